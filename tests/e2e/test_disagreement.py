"""Processes on two machines that would not do the same: all end at once, with a line that says what differs."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from iopath.common.file_io import g_pathmgr
from store import FOLDER, PREFIX, Store, registered
from strategy_runs import small_resnets
from tiny_runs import QUIET, last_state, log_of, tiny_clip_config, tiny_config

from mfm_core.checkpoint import resume
from mfm_core.engine import precision, run
from mfm_core.engine.log import RunLog
from mfm_core.errors import UserError
from mfm_core.mirror import Mirror
from mfm_core.parallel import stop
from mfm_image.entry import main
from mfm_video.entry import main as video_main

SHORT = ["TRAIN.BATCH_SIZE", "4", "SOLVER.MAX_EPOCH", "1", "DIST.TIMEOUT", "240", *QUIET]
WAIT_S = 300.0


class Machine(multiprocessing.get_context("forkserver").Process):
    """A process on a machine of its own; what it says goes to a file. twist: what is other there."""

    def __init__(self, rank: int, port: int, cfg, entry: Callable, twist: Callable[[int], None] | None, said: Path):
        super().__init__(args=(rank, port, cfg, entry, twist, said), target=_machine)
        self.said = said


def _machine(rank: int, port: int, cfg, entry: Callable, twist: Callable[[int], None] | None, said: Path) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", GLOO_SOCKET_IFNAME="lo")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    with open(said, "w", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
        if twist is not None:
            twist(rank)
        sys.exit(entry(cfg))


class Two:
    """What two machines say."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, first, second, twist=None, entry=main, all_end: bool = False) -> tuple[int, str]:
        """The first's exit code and what it says; the second is ended then, unless all shall end."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pair = enumerate((first, second))
        machines = [Machine(r, port, cfg, entry, twist, self.folder / f"said_{r}.txt") for r, cfg in pair]
        try:
            for machine in machines:
                machine.start()
            for machine in machines if all_end else machines[:1]:
                machine.join(WAIT_S)
        finally:
            for machine in machines:
                machine.kill()
                machine.join()
        return machines[0].exitcode, machines[0].said.read_text()

    def refuse(self, first, second, twist=None, entry=main) -> str:
        """The one line of an error that the first ends with."""
        code, said = self(first, second, twist, entry)
        assert code == 2 and said.startswith("error: ") and said.count("\n") == 1, (code, said)
        return said


@pytest.fixture
def two(tmp_path) -> Two:
    return Two(tmp_path)


@pytest.fixture
def fewer(photo_folder, tmp_path) -> Path:
    """The photos, where one for validation has another name and one is missing."""
    folder = shutil.copytree(photo_folder, tmp_path / "fewer")
    (folder / "val" / "apple" / "0.JPEG").unlink()
    return folder


def test_other_configurations(two, photo_folder, tmp_path):
    """All keys are compared but those that may be a machine's own."""
    own = ["DATA_LOADER.NUM_WORKERS", "1", "DATA_LOADER.PIN_MEMORY", "False", "NUM_GPUS", "4"]
    other = ["SOLVER.BASE_LR", "0.125", "TRAIN.AUTO_RESUME", "False", "TRAIN.ENABLE", "False", "DIST.STRATEGY", "ddp"]
    one = tiny_config("pretrain", photo_folder, tmp_path / "run", *SHORT, "SOLVER.BASE_LR", "0.25")
    line = two.refuse(one, tiny_config("pretrain", "elsewhere", tmp_path / "run", *SHORT, *own, *other))
    assert "SOLVER.BASE_LR: 0.25 on process 0, 0.125 on process 1" in line
    assert "TRAIN.AUTO_RESUME: True on process 0, False on process 1" in line
    assert line.count(": ") == 2 + len(other) // 2 - 1, line
    assert not (tmp_path / "run").exists()


def test_other_addresses(two, photo_folder):
    one, other = (tiny_config("pretrain", photo_folder, f"store://runs/{name}", *SHORT) for name in "ab")
    assert "OUTPUT_DIR: store://runs/a on process 0, store://runs/b on process 1" in two.refuse(one, other)


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_other_validation_files(kind, two, photo_folder, fewer, tmp_path):
    one, other = (tiny_config(kind, folder, tmp_path / "run", *SHORT) for folder in (photo_folder, fewer))
    line = two.refuse(one, other)
    assert "different files (validation files: 6 (digest " in line and "training files" not in line


def test_files_of_other_names_and_none(two, photo_folder, fewer, tmp_path):
    shutil.rmtree(fewer / "val")
    (fewer / "train" / "bear" / "0.JPEG").rename(fewer / "train" / "bear" / "000.JPEG")
    one, other = (tiny_config("pretrain", folder, tmp_path / "run", *SHORT) for folder in (photo_folder, fewer))
    line = two.refuse(one, other)
    assert line.count("24 (digest ") == 2 and "none on process 1" in line, line


def test_other_files_to_test(two, clip_folder, tmp_path):
    """Of a run that only tests."""
    fewer = shutil.copytree(clip_folder, tmp_path / "fewer")
    lines = (fewer / "test.csv").read_text().splitlines()
    (fewer / "test.csv").write_text("\n".join(lines[:-1]))
    test = [*SHORT, "TRAIN.ENABLE", "False", "TEST.CHECKPOINT_FILE_PATH", "none.pyth"]
    one, other = (tiny_clip_config("mvit", folder, tmp_path / "run", *test) for folder in (clip_folder, fewer))
    assert "test files: 5 (digest " in two.refuse(one, other, entry=video_main)


def test_files_that_one_lacks(two, photo_folder, fewer, tmp_path):
    shutil.rmtree(fewer / "val")
    one, other = (tiny_config("finetune", folder, tmp_path / "run", *SHORT) for folder in (photo_folder, fewer))
    line = two.refuse(one, other)
    assert line.startswith("error: Process 1 of 2: ") and f"{fewer}/val" in line


def older_processor(rank: int) -> None:
    precision.computes_bf16 = lambda device: rank == 0


def test_other_precisions(two, photo_folder, tmp_path):
    auto = tiny_config("pretrain", photo_folder, tmp_path / "run", *SHORT, "TRAIN.PRECISION", "auto")
    line = two.refuse(auto, auto, older_processor)
    assert "TRAIN.PRECISION: bf16 on process 0, fp32 on process 1" in line


def test_parts_of_a_checkpoint_on_different_disks(two, photo_folder, tmp_path):
    sharded = [*SHORT, "TRAIN.CHECKPOINT_FORMAT", "sharded"]
    one, other = (tiny_config("pretrain", photo_folder, tmp_path / name, *sharded) for name in "ab")
    line = two.refuse(one, other)
    assert "process 1 does not see" in line and "must be one folder that all machines share" in line
    assert not list((tmp_path / "a").glob(".shared*"))


def one_unreadable(rank: int) -> None:
    """The newest checkpoint, on machine 1."""
    load = resume.load_file_state

    def fails(path: str, key: str):
        if rank and path.endswith("00002.pyth"):
            raise UserError(f"{path}: Input/output error")
        return load(path, key)

    resume.load_file_state = fails


def impatient(rank: int) -> None:
    resume.PATIENCE_S = 0.1


def test_checkpoints(two, photo_folder, tmp_path):
    """Those of different folders are refused; what one machine cannot read none takes."""
    epochs = [*SHORT, "SOLVER.MAX_EPOCH", "2", "TRAIN.CHECKPOINT_PERIOD", "1"]
    begun = tiny_config("pretrain", photo_folder, tmp_path / "run", *epochs, "TRAIN.BATCH_SIZE", "8")
    assert main(begun) == 0
    here, elsewhere = (tiny_config("pretrain", photo_folder, tmp_path / name, *epochs) for name in ("run", "other"))
    for first, second, blind in ((here, elsewhere, 1), (elsewhere, here, 0)):
        line = two.refuse(first, second, impatient)
        assert f"different checkpoints (process {blind} does not see checkpoint_epoch_00002.pyth)" in line
        assert "must be one folder that all machines share" in line
    code, said = two(here, here, one_unreadable, all_end=True)
    assert code == 0 and "Process 1 of 2: " in said and "continuing from" in said, said
    assert "checkpoint_epoch_00001.pyth (step 3 of 6)" in said


def looks_earlier(rank: int) -> None:
    """Machine 1 has looked before the newest checkpoint was saved."""
    newest = run.newest_checkpoint
    run.newest_checkpoint = lambda folder: folder / "checkpoint_epoch_00001.pyth" if rank else newest(folder)


def test_the_newest_is_the_same_for_all(two, photo_folder, tmp_path):
    """A test in the folder of a run that goes on."""
    epochs = [*SHORT, "SOLVER.MAX_EPOCH", "2", "TRAIN.CHECKPOINT_PERIOD", "1"]
    assert main(tiny_config("pretrain", photo_folder, tmp_path / "run", *epochs)) == 0
    test = tiny_config("pretrain", photo_folder, tmp_path / "run", *epochs, "TRAIN.ENABLE", "False")
    code, said = two(test, test, looks_earlier, all_end=True)
    assert code == 0 and "checkpoint_epoch_00002.pyth" in said, said


@pytest.mark.parametrize("use", ["begin", "continue", "test"])
def test_other_weights_at_the_same_place(use, two, photo_folder, tmp_path):
    for name, seed in (("one", "1"), ("other", "2")):
        cfg = tiny_config("pretrain", photo_folder, tmp_path / name, *SHORT, "RNG_SEED", seed, "TRAIN.STOP_STEP", "1")
        assert main(cfg) == 0
    weights = [tmp_path / name / "checkpoints" / "checkpoint_step_00000001.pyth" for name in ("one", "other")]
    key = "TEST.CHECKPOINT_FILE_PATH" if use == "test" else "TRAIN.CHECKPOINT_FILE_PATH"
    keys = [*SHORT, "TRAIN.ENABLE", str(use != "test"), "TRAIN.CHECKPOINT_EPOCH_RESET", str(use == "begin"), key]
    line = two.refuse(*(tiny_config("pretrain", photo_folder, tmp_path / "run", *keys, path) for path in weights))
    assert f"The processes have different weights from {weights[0]} (digest: " in line


def test_who_stops_agrees_before_the_log_ends(photo_folder, tmp_path, monkeypatch):
    """Its end may be a copy that takes longer than the others wait."""
    said, end, agreed = [], RunLog.end, stop.agreed
    monkeypatch.setattr(RunLog, "end", lambda log, *status: said.append("end") or end(log, *status))
    monkeypatch.setattr(stop, "agreed", lambda world: said.append("agreed") or agreed(world))
    assert main(tiny_config("pretrain", photo_folder, tmp_path, *SHORT, "TRAIN.STOP_STEP", "1")) == 0
    assert said[-2:] == ["agreed", "end"]


def test_a_log_ends_once(tmp_path):
    """Another process may be lost when it has."""
    log = RunLog(tmp_path)
    for status in ("stopped", "failed"):
        log.end(status)
    assert [line["status"] for line in log_of(tmp_path, "end")] == ["stopped"]


def at_a_store(folder: Path, rank: int) -> None:
    """Machine 0 takes its time to fetch and to copy; notes who does what."""
    os.environ.update({FOLDER: str(folder / "store"), "FVCORE_CACHE": str(folder / "home")})
    g_pathmgr._path_handlers[PREFIX] = Store()

    def noted(name: str, slow: float):
        do = getattr(Mirror, name)

        def does(mirror: Mirror) -> None:
            for what in ("begins", "ends"):
                with open(folder / "turns.txt", "a") as turns:
                    turns.write(f"{rank} {name} {what}\n")
                if what == "begins":
                    time.sleep(slow)
                    do(mirror)

        setattr(Mirror, name, does)

    for name in ("fetch", "push"):
        noted(name, 0.5 * (rank == 0))


def test_machines_with_one_home_fetch_in_turns(two, photo_folder, tmp_path, monkeypatch):
    """The second leaves alone what the main one works in."""
    registered(tmp_path / "store", monkeypatch)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "before"))
    run_ = [photo_folder, "store://runs/a", *SHORT, "SOLVER.MAX_EPOCH", "2", "TRAIN.CHECKPOINT_PERIOD", "1"]
    assert main(tiny_config("pretrain", *run_, "TRAIN.BATCH_SIZE", "8", "TRAIN.STOP_STEP", "3")) == 0
    cfg = tiny_config("pretrain", *run_)
    code, said = two(cfg, cfg, partial(at_a_store, tmp_path), all_end=True)
    assert code == 0 and "(step 3 of 6)" in said, said
    turns = (tmp_path / "turns.txt").read_text().splitlines()
    assert turns.index("0 push ends") < turns.index("1 fetch begins"), turns
    kept = {path.name for path in (tmp_path / "store" / "runs" / "a" / "checkpoints").iterdir()}
    assert kept == {"checkpoint_epoch_00001.pyth", "checkpoint_epoch_00002.pyth"}
    assert last_state(tmp_path / "store" / "runs" / "a")["step"] == 6


def folder_is_closed(rank: int) -> None:
    prepare = run.prepare_folder

    def fails(path: str) -> Path:
        if rank:
            raise UserError(f"OUTPUT_DIR {path} cannot be written")
        return prepare(path)

    run.prepare_folder = fails


def dies_at_its_folder(rank: int) -> None:
    if rank:
        run.prepare_folder = lambda path: os._exit(9)


def test_one_that_cannot_begin(two, photo_folder, tmp_path):
    cfg = tiny_config("pretrain", photo_folder, tmp_path / "run", *SHORT)
    assert two.refuse(cfg, cfg, folder_is_closed).startswith("error: Process 1 of 2: OUTPUT_DIR")
    code, said = two(cfg, cfg, dies_at_its_folder)
    assert code == 1 and said.startswith("error: Process 0 of 2 lost another one") and said.count("\n") == 1, said


def small_and_strict(rank: int) -> None:
    """Tensors without numbers are nothing to sum: on GPUs they would not pass."""
    small_resnets().__enter__()
    sum_up = dist.all_reduce

    def strict(tensor, *arguments, **keywords):
        assert not tensor.is_meta, "one process sums alone"
        return sum_up(tensor, *arguments, **keywords)

    dist.all_reduce = strict


def test_the_summary_waits_for_nobody(two, photo_folder, tmp_path):
    norms = ["MODEL.ARCH", "resnet", "SOLVER.LAYER_DECAY", "1.0", "BN.NORM_TYPE", "sync_batchnorm"]
    cfg = tiny_config("finetune", photo_folder, tmp_path / "run", *SHORT, *norms, "LOG_MODEL_INFO", "True")
    code, said = two(cfg, cfg, small_and_strict, all_end=True)
    assert code == 0 and "parameters" in said, said
