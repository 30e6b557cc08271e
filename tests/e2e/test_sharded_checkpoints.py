"""Checkpoints to which every process writes its part: the same run whoever reads them, whole or not there, harmless."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from killed_save import killed_save
from paths import CONFIGS, TOOLS
from strategy_runs import Case, in_world, steps_of, trainer_of
from tiny_runs import QUIET, TINY, assert_same, last_state, tiny_config

from mfm_core.checkpoint.folder import FACTS
from mfm_core.checkpoint.io import load_file_state
from mfm_core.checkpoint.resume import read_state, restore
from mfm_core.checkpoint.saver import FolderSaver, copied
from mfm_core.checkpoint.state import whole_state
from mfm_core.parallel.launch import launch
from mfm_core.parallel.parts import _Writer, checksum
from mfm_core.parallel.world import World
from mfm_image.entry import main

sys.path.append(str(TOOLS))
import convert_checkpoint

pytestmark = pytest.mark.xdist_group("sharded checkpoints")  # what they share is made once
SHARDED = ["TRAIN.CHECKPOINT_FORMAT", "sharded", "TRAIN.EMA_DECAY", "0.9", *QUIET]
ASYNC = ["TRAIN.CHECKPOINT_ASYNC", "True"]


def newest(output):
    """The content of the run's newest folder, as one file would have it."""
    folder = max((output / "checkpoints").glob("checkpoint_*"), key=lambda path: path.stat().st_mtime_ns)
    return load_file_state(str(folder))


@pytest.mark.parametrize("how", [[], ASYNC], ids=["at once", "async"])
def test_one_process(how, photo_folder, tmp_path):
    whole = ["TRAIN.EMA_DECAY", "0.9", *QUIET]
    assert main(tiny_config("pretrain", photo_folder, tmp_path / "file", *whole)) == 0
    expected = last_state(tmp_path / "file")
    assert main(tiny_config("pretrain", photo_folder, tmp_path / "run", *SHARDED, *how, "TRAIN.STOP_STEP", "2")) == 0
    assert main(tiny_config("pretrain", photo_folder, tmp_path / "run", *SHARDED, *how)) == 0
    found = newest(tmp_path / "run")
    assert found.keys() == expected.keys() and found["step"] == expected["step"]
    assert_same(found, expected)


EMA = ("TRAIN.EMA_DECAY", 0.9)
STRATEGIES = ("ddp", "sharded_ddp", "fsdp2")
SAVED = [
    *(Case(f"{strategy} {solver}", strategy, solver=solver) for strategy in STRATEGIES for solver in ("adamw", "lars")),
    *(Case(f"{strategy} average", strategy, solver="sgd", overrides=EMA) for strategy in STRATEGIES),
    *(Case(f"{strategy} resnet", strategy, kind="resnet", batch=6) for strategy in STRATEGIES),
]


def save(case: Case, world: World, folder: Path) -> dict[str, Any]:
    """Two steps, a save in the background while a third step changes everything, and what was to be saved."""
    trainer = trainer_of(case, world, folder / case.name)
    steps_of(trainer, 2)
    expected = whole_state(trainer.state, trainer.plan, trainer.saver.cfg)
    expected = copied(expected) if world.is_main else {}
    saver = FolderSaver(folder / case.name, trainer.plan, trainer.saver.cfg, world, background=True)
    saver.start(trainer.state)
    steps_of(trainer, 3)
    outcome = saver.outcome(wait=True)
    assert outcome.error is None, outcome.error
    return {**expected, "path": str(outcome.path)}


def load(case: Case, world: World, folder: Path) -> dict[str, Any]:
    """The state after a restore; `case.twist` is the folder."""
    case, path = replace(case, twist=""), case.twist
    trainer = trainer_of(case, world, folder / case.name)
    steps_of(trainer, 1)
    content = read_state(path, world)
    restore(content, trainer.state, trainer.plan, trainer.saver.cfg.RNG_SEED, path)
    return whole_state(trainer.state, trainer.plan, trainer.saver.cfg)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """What two processes saved, by the case's name."""
    return in_world(2, SAVED, tmp_path_factory.mktemp("saved"), save)


def test_one_file_is_made_of_the_parts(saved):
    for name, expected in saved.items():
        found = load_file_state(expected["path"])
        assert found.keys() == expected.keys() - {"path"}, name
        assert_same(found, expected)
        assert found["optimizer_state"]["param_groups"] == expected["optimizer_state"]["param_groups"]
        assert list(found["optimizer_state"]["state"]) == list(expected["optimizer_state"]["state"])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_any_strategy_reads_what_any_wrote(size, saved, tmp_path):
    """Bit for bit, moments included, on one, two and three processes."""
    cases = [
        replace(case, name=f"{case.name} to {strategy}", strategy=strategy, batch=6, twist=saved[case.name]["path"])
        for case, strategy in product(SAVED, STRATEGIES if size > 1 else ("single",))
    ]
    loaded = in_world(size, cases, tmp_path, load)
    for case in cases:
        expected = saved[case.name.split(" to ")[0]]
        assert loaded[case.name]["step"] == 2
        assert_same(loaded[case.name], expected)
        assert len(loaded[case.name]["optimizer_state"]["state"]) == len(expected["optimizer_state"]["state"]) > 0


def folders(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").iterdir())


OFTEN = ["TRAIN.CHECKPOINT_STEPS", "2", *SHARDED]


@pytest.fixture(scope="module")
def whole(photo_folder, tmp_path_factory):
    """The folder of an undisturbed run that saves every other step."""
    output = tmp_path_factory.mktemp("whole")
    assert main(tiny_config("pretrain", photo_folder, output, *OFTEN)) == 0
    return output


@pytest.mark.parametrize(
    ("moment", "again"),
    # nothing has to make way for a new checkpoint
    [pair for pair in product(("writing", "facts", "named", "done"), (True, False)) if pair != ("named", False)],
)
def test_killed_while_saving(moment, again, whole, photo_folder, tmp_path):
    """By SIGKILL, saving a step that is saved already (again), or the next: no moment costs what was there."""
    run, stop = tmp_path / "run", ["TRAIN.STOP_STEP", "3"]
    assert main(tiny_config("pretrain", photo_folder, run, *OFTEN, *stop)) == 0
    assert folders(run) == ["checkpoint_epoch_00001", "checkpoint_step_00000002"]
    command = ["--cfg", CONFIGS / "demo" / "pretrain.yaml", *TINY, "MASK.PRETRAIN_DEPTH", "[1]"]
    command += ["DATA.PATH_TO_DATA_DIR", photo_folder, "OUTPUT_DIR", run, *OFTEN, *(stop if again else [])]
    assert killed_save(moment, command) == -signal.SIGKILL
    left = {name for name in folders(run) if not name.startswith(".")}
    expected = {"checkpoint_step_00000002", "checkpoint_epoch_00001"}
    if moment == "named":
        expected = {"checkpoint_step_00000002", "checkpoint_epoch_00001.replaced"}
    elif moment == "done":
        expected |= {"checkpoint_epoch_00001.replaced" if again else "checkpoint_step_00000004"}
    assert left == expected
    for name in left:
        assert load_file_state(str(run / "checkpoints" / name))["step"] in (2, 3, 4)
    assert main(tiny_config("pretrain", photo_folder, run, *OFTEN, "TRAIN.CHECKPOINT_KEEP", "2")) == 0
    assert_same(newest(run), newest(whole))
    assert folders(run) == ["checkpoint_epoch_00002", "checkpoint_step_00000004"]


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_strangers_folder_runs_no_code(photo_folder, tmp_path, error_of):
    """torch's own reader of such folders would unpickle `.metadata`; ours never opens it, nor unpickles anything."""
    run, trap = tmp_path / "run", Trap(tmp_path / "sprung")
    assert main(tiny_config("pretrain", photo_folder, run, *SHARDED)) == 0
    folder = run / "checkpoints" / "checkpoint_epoch_00002"
    with open(folder / ".metadata", "wb") as file:
        pickle.dump(trap, file)
    pickle.loads((folder / ".metadata").read_bytes())
    assert trap.path.exists()  # the trap is a real one
    trap.path.unlink()
    start = ["TRAIN.CHECKPOINT_FILE_PATH", folder, "TRAIN.CHECKPOINT_EPOCH_RESET", "True", *QUIET]
    assert main(tiny_config("pretrain", photo_folder, tmp_path / "next", *start)) == 0
    facts = torch.load(folder / FACTS, weights_only=True)
    torch.save({**facts, "cfg": trap}, folder / FACTS)
    assert str(folder) in error_of(tiny_config("pretrain", photo_folder, tmp_path / "other", *start))
    torch.save(facts, folder / FACTS)
    (shard,) = folder.glob("*.safetensors")
    torch.save({"model": trap}, shard)
    torch.save({**facts, "files": {shard.name: checksum(shard)}}, folder / FACTS)
    assert str(folder) in error_of(tiny_config("pretrain", photo_folder, tmp_path / "other", *start))
    assert not trap.path.exists()


def test_a_damaged_part_costs_that_checkpoint(photo_folder, tmp_path, capsys):
    steps = ["TRAIN.CHECKPOINT_PERIOD", "1", *SHARDED]
    assert main(tiny_config("pretrain", photo_folder, tmp_path, *steps)) == 0
    expected = newest(tmp_path)
    (shard,) = (tmp_path / "checkpoints" / "checkpoint_epoch_00002").glob("*.safetensors")
    for damage in (lambda data: data[:-4] + bytes([data[-4] ^ 1]) + data[-3:], lambda data: data[:1000], None):
        if damage is None:
            shard.unlink()
        else:
            shard.write_bytes(damage(shard.read_bytes()))
        capsys.readouterr()
        assert main(tiny_config("pretrain", photo_folder, tmp_path, *steps)) == 0
        said = capsys.readouterr().out
        assert "checkpoint_epoch_00002 is corrupt" in said and "Taking the checkpoint before it" in said
        assert_same(newest(tmp_path), expected)


@pytest.mark.parametrize("content", [[1, 2], {"format": "mfm-1"}, "text"], ids=["list", "no files", "text"])
def test_facts_of_another_shape_cost_that_checkpoint(content, photo_folder, tmp_path, capsys):
    steps = ["TRAIN.CHECKPOINT_PERIOD", "1", *SHARDED]
    assert main(tiny_config("pretrain", photo_folder, tmp_path, *steps)) == 0
    torch.save(content, tmp_path / "checkpoints" / "checkpoint_epoch_00002" / FACTS)
    assert main(tiny_config("pretrain", photo_folder, tmp_path, *steps)) == 0
    assert "checkpoint_epoch_00002 is corrupt" in capsys.readouterr().out


def test_a_file_out_of_a_folder(photo_folder, tmp_path, error_of):
    """Whatever is to be done with it: the folder is named."""
    assert main(tiny_config("pretrain", photo_folder, tmp_path / "run", *SHARDED)) == 0
    folder = tmp_path / "run" / "checkpoints" / "checkpoint_epoch_00002"
    for file in sorted(folder.glob("[!.]*")):
        for reset in ("False", "True"):
            start = ["TRAIN.CHECKPOINT_FILE_PATH", file, "TRAIN.CHECKPOINT_EPOCH_RESET", reset, *QUIET]
            error = error_of(tiny_config("pretrain", photo_folder, tmp_path / "next", *start))
            assert f"a part of the checkpoint {folder}; name that folder" in error


def test_the_last_ones_stay_whatever_their_form(photo_folder, tmp_path):
    """A run goes on in another form, and prunes what it wrote in the first."""
    keep = ["TRAIN.CHECKPOINT_STEPS", "1", "TRAIN.CHECKPOINT_PERIOD", "1", "TRAIN.CHECKPOINT_KEEP", "2", *SHARDED]
    assert main(tiny_config("pretrain", photo_folder, tmp_path, *keep, "TRAIN.STOP_STEP", "2")) == 0
    assert folders(tmp_path) == ["checkpoint_step_00000001", "checkpoint_step_00000002"]
    file = ["TRAIN.CHECKPOINT_FORMAT", "consolidated", "TRAIN.CHECKPOINT_ASYNC", "True"]
    assert main(tiny_config("pretrain", photo_folder, tmp_path, *keep, *file, "TRAIN.STOP_STEP", "3")) == 0
    assert folders(tmp_path) == ["checkpoint_epoch_00001.pyth", "checkpoint_step_00000002"]
    assert main(tiny_config("pretrain", photo_folder, tmp_path, *keep)) == 0
    assert folders(tmp_path) == ["checkpoint_epoch_00002", "checkpoint_step_00000005"]


@pytest.mark.parametrize("how", [[], ASYNC], ids=["at once", "async"])
def test_a_disk_that_is_full_for_a_while(how, photo_folder, tmp_path, monkeypatch, capsys):
    """Costs those checkpoints, which the log says; the last one of a run is an error."""
    write, full = _Writer.write_data, [2, 3]

    def refuse(writer, *arguments):
        if int(writer.folder.name.split("_")[-1].removesuffix(".tmp")) in full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(writer, *arguments)

    monkeypatch.setattr(_Writer, "write_data", refuse)
    steps = ["TRAIN.CHECKPOINT_PERIOD", "1", "SOLVER.MAX_EPOCH", "4", *SHARDED, *how]
    assert main(tiny_config("pretrain", photo_folder, tmp_path, *steps)) == 0
    said = capsys.readouterr().out
    for number in (2, 3):
        (line,) = [line for line in said.splitlines() if f"checkpoint_epoch_0000{number}" in line]
        assert "No space left" in line and "Training goes on" in line
    assert folders(tmp_path) == ["checkpoint_epoch_00001", "checkpoint_epoch_00004"]
    full.append(4)
    assert main(tiny_config("pretrain", photo_folder, tmp_path / "again", *steps)) == 2
    assert "No space left" in capsys.readouterr().err


def fail_on_one(case: Case, world: World, folder: Path) -> dict[str, Any]:
    """Two saves; in the first, the disk of the last process is full."""
    trainer = trainer_of(case, world, folder / case.name)
    steps_of(trainer, 2)
    saver = FolderSaver(folder / case.name, trainer.plan, trainer.saver.cfg, world, background=True)
    write, outcomes = _Writer.write_data, []
    for full in (True, False):
        refused = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _Writer.write_data = Mock(side_effect=refused) if full and world.rank == world.size - 1 else write
        saver.start(trainer.state)
        outcomes.append(saver.outcome(wait=True))
    return {"errors": world.gather([outcome.error for outcome in outcomes]), "path": str(outcomes[1].path)}


def test_a_disk_that_is_full_on_one_machine(tmp_path):
    """All processes hear of it, and the next save is whole."""
    found = in_world(2, [Case("full", "fsdp2")], tmp_path, fail_on_one)["full"]
    for first, second in found["errors"]:
        assert "No space left" in first and second is None
    assert load_file_state(found["path"])["step"] == 2


@pytest.mark.parametrize("strategy", ["sharded_ddp", "fsdp2"])
def test_two_processes_stop_and_go_on(strategy, photo_folder, tmp_path):
    """Bit for bit the undisturbed run's, saved in the background at every other step."""
    two = [*SHARDED, *ASYNC, "NUM_GPUS", "2", "DIST.STRATEGY", strategy, "TRAIN.CHECKPOINT_STEPS", "2"]
    for name, stop in (("whole", []), ("run", ["TRAIN.STOP_STEP", "4"]), ("run", [])):
        cfg = tiny_config("pretrain", photo_folder, tmp_path / name, *two, *stop)
        assert launch(main, (cfg,), processes=2) == 0
    assert_same(newest(tmp_path / "run"), newest(tmp_path / "whole"))
    assert len(list((tmp_path / "run" / "checkpoints" / "checkpoint_epoch_00002").glob("*.safetensors"))) == 2


def test_one_file_of_it(photo_folder, tmp_path, capsys):
    """Goes on as the folder does, and timm takes what the folder has."""
    run, file = tmp_path / "run", tmp_path / "one.pyth"
    assert main(tiny_config("pretrain", photo_folder, run, *SHARDED, "TRAIN.STOP_STEP", "4")) == 0
    folder = run / "checkpoints" / "checkpoint_step_00000004"
    assert convert_checkpoint.main([str(folder), str(file)]) == 0
    assert convert_checkpoint.main([str(folder), str(tmp_path / "timm.safetensors")]) == 0
    for name, path in (("folder", folder), ("file", file)):
        start = [*SHARDED, "TRAIN.CHECKPOINT_FILE_PATH", path]
        assert main(tiny_config("pretrain", photo_folder, tmp_path / name, *start)) == 0
        assert f"continuing from {path} (step 4 of 6)" in capsys.readouterr().out
    assert_same(newest(tmp_path / "folder"), newest(tmp_path / "file"))
