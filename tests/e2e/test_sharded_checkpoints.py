"""Checkpoints to which every process writes its part: the same run whoever reads them, whole or not there, harmless."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from paths import CONFIGS
from strategy_runs import Case, in_world, steps_of, trainer_of
from tiny_runs import QUIET, TINY, assert_same, last_state, tiny_config

from mfm_core.checkpoint.io import load_file_state
from mfm_core.checkpoint.resume import read_state, restore
from mfm_core.checkpoint.saver import FolderSaver, copied
from mfm_core.checkpoint.state import whole_state
from mfm_core.parallel.world import World
from mfm_image.entry import main

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


@pytest.mark.parametrize("again", [True, False], ids=["again", "new"])
@pytest.mark.parametrize("moment", ["writing", "facts", "named", "done"])
def test_killed_while_saving(moment, again, photo_folder, tmp_path):
    """By SIGKILL, saving a step that is saved already, or the next: no moment costs what was there."""
    if moment == "named" and not again:
        pytest.skip("nothing has to make way for a new checkpoint")
    steps = ["TRAIN.CHECKPOINT_STEPS", "2", *SHARDED]
    assert main(tiny_config("pretrain", photo_folder, tmp_path / "whole", *steps)) == 0
    run, stop = tmp_path / "run", ["TRAIN.STOP_STEP", "3"]
    assert main(tiny_config("pretrain", photo_folder, run, *steps, *stop)) == 0
    assert folders(run) == ["checkpoint_epoch_00001", "checkpoint_step_00000002"]
    command = [sys.executable, "killed_save.py", moment, "1", "--cfg", CONFIGS / "demo" / "pretrain.yaml", *TINY]
    command += ["MASK.PRETRAIN_DEPTH", "[1]", "DATA.PATH_TO_DATA_DIR", photo_folder, "OUTPUT_DIR", run, *steps]
    done = subprocess.run(
        [str(word) for word in (*command, *(stop if again else []))],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    left = {name for name in folders(run) if not name.startswith(".")}
    expected = {"checkpoint_step_00000002", "checkpoint_epoch_00001"}
    if moment == "named":
        expected = {"checkpoint_step_00000002", "checkpoint_epoch_00001.replaced"}
    elif moment == "done":
        expected |= {"checkpoint_epoch_00001.replaced" if again else "checkpoint_step_00000004"}
    assert left == expected
    for name in left:
        assert load_file_state(str(run / "checkpoints" / name))["step"] in (2, 3, 4)
    assert main(tiny_config("pretrain", photo_folder, run, *steps, "TRAIN.CHECKPOINT_KEEP", "2")) == 0
    assert_same(newest(run), newest(tmp_path / "whole"))
    assert folders(run) == ["checkpoint_epoch_00002", "checkpoint_step_00000004"]
