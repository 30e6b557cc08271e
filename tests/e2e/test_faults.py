"""What happens on clusters: kills at any moment, ranks that die or hang. Runs go on as if nothing had been, or stop
within a bounded time and say why."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
from fork_server import EVALUATE, EVALUATED, SAVE, SAVED, TRAIN, ForkServer
from paths import CONFIGS
from tiny_runs import QUIET, TINY, assert_same, last_state, log_of

from mfm_core.checkpoint.io import load_file_state
from mfm_core.checkpoint.resume import newest_checkpoint
from mfm_core.data.sampler import EpochCut, TrainSampler

KILLS = int(os.environ.get("MFM_FAULT_KILLS", "20"))
SEED = int(os.environ.get("MFM_FAULT_SEED", "0"))
STEPS = 3
"""In an epoch."""
BOUND_S = 90.0
"""Until all processes of a run with a dead one are gone; ten times what it takes, for a busy machine."""
START = ""
"""The phase before any mark: joining, building, resuming."""
WAYS = {
    # what is killed; how it saves; how often, and in the midst of what
    "one file": ([], KILLS, (TRAIN, SAVE, EVALUATE, TRAIN, SAVE, EVALUATE, START)),
    "parts, in the background": (
        ["DIST.STRATEGY", "fsdp2", "TRAIN.CHECKPOINT_FORMAT", "sharded", "TRAIN.CHECKPOINT_ASYNC", "True"],
        -(-KILLS // 2),
        (SAVE, SAVE, SAVE, TRAIN, SAVE),
    ),
    "one file, in the background": (["TRAIN.CHECKPOINT_ASYNC", "True"], -(-KILLS // 4), (SAVE,)),
}
TWO = [
    *("--cfg", CONFIGS / "demo" / "pretrain.yaml"),
    *TINY,
    *QUIET,
    *("MASK.PRETRAIN_DEPTH", "[1]"),
    *("NUM_GPUS", "2"),
    *("MONITOR.PERIOD", "1"),
    *("SOLVER.MAX_EPOCH", "8"),
    *("TRAIN.EMA_DECAY", "0.9"),
    *("TRAIN.CHECKPOINT_PERIOD", "1"),
    *("TRAIN.CHECKPOINT_STEPS", "2"),
    *("TRAIN.CHECKPOINT_KEEP", "2"),
    *("DIST.TIMEOUT", "60"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with ForkServer(tmp_path_factory.mktemp("server")) as server:
        yield server


def ranks_of(pid: int) -> list[int]:
    """The processes that a launcher has started, in the order of their ranks."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return sorted(map(int, text.split()))


def wait_for(server: ForkServer, mark: str, count: int, timeout: float = 120.0) -> str:
    """All marks up to the `count`-th of this kind."""
    seen, deadline = "", time.monotonic() + timeout
    while seen.count(mark) < count:
        assert time.monotonic() < deadline, f"no {count} of {mark} in {seen}: {server.output.read_text()[-2000:]}"
        seen += server.marks(1.0)
    return seen


def phase_of(marks: str) -> str:
    """What the main process was doing when the marks broke off."""
    if marks.count(SAVE) > marks.count(SAVED):
        return SAVE
    if marks.count(EVALUATE) > marks.count(EVALUATED):
        return EVALUATE
    return TRAIN if marks else START


def newest(output: Path) -> dict:
    """What the newest checkpoint holds, which must be readable."""
    return load_file_state(str(newest_checkpoint(output / "checkpoints")))


def assert_nothing_lost(output: Path) -> None:
    """What the log says is saved is there, or something newer."""
    log = output / "log.txt"
    saved = re.findall(r"saved .*checkpoint_(epoch|step)_(\d+)", log.read_text()) if log.exists() else []
    if saved:
        steps = [int(number) * (STEPS if kind == "epoch" else 1) for kind, number in saved]
        assert newest(output)["step"] >= max(steps)


@pytest.mark.parametrize("way", WAYS)
def test_killed_again_and_again(way, server, photo_folder, tmp_path, record_property):
    """kill -9 in steps, in saves and in evaluations, of the whole run or of one rank: the same weights and the same
    log, bit for bit. MFM_FAULT_KILLS says how often."""
    saving, kills, phases = WAYS[way]
    epochs = 3 + 3 * kills // 2  # no start gets further than an epoch and a half, on average over the kinds of kills
    command = [*TWO, *saving, "SOLVER.MAX_EPOCH", epochs, "DATA.PATH_TO_DATA_DIR", photo_folder]
    server.start([*command, "OUTPUT_DIR", tmp_path / "whole"])
    assert server.wait(600.0) == 0, server.output.read_text()[-2000:]
    server.close_marks()

    draw, output, fell = random.Random(SEED), tmp_path / "run", []
    aims = [phases[i % len(phases)] for i in range(kills)]
    draw.shuffle(aims)
    for i, aim in enumerate(aims):
        pid = server.start([*command, "OUTPUT_DIR", output])
        fell.append(kill_at(aim, server, pid, draw, victim=draw.choice((0, 1)) if aim and i % 5 == 4 else None))
        assert_nothing_lost(output)
    server.start([*command, "OUTPUT_DIR", output])
    assert server.wait(600.0) == 0, server.output.read_text()[-2000:]
    server.close_marks()

    names = {START: "start", TRAIN: "step", SAVE: "save", EVALUATE: "evaluation"}
    counts = ", ".join(f"{name} {fell.count(phase)}" for phase, name in names.items())
    record_property("told", f"{kills} kills of two processes ({way}) fell into: {counts}")
    assert set(phases) - {START} <= set(fell) or kills < len(phases)
    assert_same(newest(tmp_path / "whole"), newest(output))
    for kind, key, numbers in (("step", "step", range(1, STEPS * epochs + 1)), ("epoch", "epoch", range(epochs + 1))):
        whole, run = log_of(tmp_path / "whole", kind), log_of(output, kind)
        assert [line[key] for line in run] == [line[key] for line in whole] == list(numbers)
        for one, other in zip(whole, run):
            assert all(one.get(name) == other.get(name) for name in ("loss", "grad_norm", "train_loss", "val_loss"))
    assert len(list((output / "checkpoints").iterdir())) == 2


def kill_at(aim: str, server: ForkServer, pid: int, draw: random.Random, victim: int | None) -> str:
    """Kills a run when it has come to what is aimed at, and a random moment later; what it was really doing."""
    marks = wait_for(server, aim, draw.randint(1, 4 if aim == TRAIN else 2)) if aim else ""
    time.sleep(draw.uniform(0.0, 0.03 if aim else 1.0))
    return phase_of(marks + kill(server, pid, victim))


def kill(server: ForkServer, pid: int, victim: int | None) -> str:
    """Kills the whole run, or one of its ranks, after which the others have to leave; the last marks."""
    if victim is None:
        os.killpg(pid, signal.SIGKILL)
        assert server.wait(BOUND_S) == -signal.SIGKILL
    else:
        os.kill(ranks_of(pid)[victim], signal.SIGKILL)
        assert server.wait(BOUND_S) == 2
        assert f"Process {victim} of 2 died" in server.output.read_text()
    return server.close_marks()


@pytest.mark.parametrize(
    ("sign", "victim", "timeout"),
    [(signal.SIGKILL, 0, 60), (signal.SIGKILL, 1, 60), (signal.SIGSTOP, 1, 3), (signal.SIGKILL, None, 60)],
    ids=["rank 0 dies", "rank 1 dies", "rank 1 hangs", "the launcher dies"],
)
def test_a_rank_that_dies_or_hangs_stops_the_others(sign, victim, timeout, server, photo_folder, tmp_path):
    """One clear line, no traceback, and no process is left, loading ones included."""
    paths = ["DATA.PATH_TO_DATA_DIR", photo_folder, "OUTPUT_DIR", tmp_path]
    pid = server.start([*TWO, *paths, "DATA_LOADER.NUM_WORKERS", "1", "DIST.TIMEOUT", timeout], {"patience": 5.0})
    wait_for(server, TRAIN, 2)
    os.kill(pid if victim is None else ranks_of(pid)[victim], sign)
    code = server.wait(BOUND_S)
    server.close_marks()
    said = server.output.read_text()
    # Python's own thread that hands a batch over may be caught in the middle by the death of who was to take it
    assert "Traceback" not in said or "resource_sharer.py" in said, said
    if victim is None:
        assert code == -sign
        return
    assert code in (1, 2), said
    assert "Process 1 of 2 died" in said or "Process 0 of 2 died" in said or "DIST.TIMEOUT 3 s" in said, said
    if victim == 1:  # the one that keeps the log
        assert "lost another" in log_of(tmp_path, "end")[-1]["message"]


@pytest.mark.parametrize(("rank", "error"), [(1, "UserError"), (0, "RuntimeError")])
def test_an_error_on_one_rank_stops_the_others(rank, error, server, photo_folder, tmp_path):
    paths = ["DATA.PATH_TO_DATA_DIR", photo_folder, "OUTPUT_DIR", tmp_path]
    server.start([*TWO, *paths], faults={"rank": rank, "step": 2, "error": error})
    code = server.wait(BOUND_S)
    server.close_marks()
    said = server.output.read_text()
    assert code == (2 if error == "UserError" else 1), said
    assert "only here" in said, said
    assert ("Traceback" in said) == (error == "RuntimeError"), said


@pytest.mark.parametrize(("rank", "remedy"), [(1, "stop"), (0, "skip")])
def test_a_nan_on_one_rank_names_step_and_files(rank, remedy, server, photo_folder, tmp_path):
    """In the second of its two micro-batches: the files of that one are named, and no others."""
    paths = ["DATA.PATH_TO_DATA_DIR", photo_folder, "OUTPUT_DIR", tmp_path, "SOLVER.MAX_EPOCH", "2"]
    keys = ["TRAIN.ACCUM_STEPS", "2", "TRAIN.NONFINITE", remedy, "LOG_PERIOD", "3"]
    server.start([*TWO, *paths, *keys], faults={"rank": rank, "step": 4, "error": "nan"})
    code = server.wait(BOUND_S)
    server.close_marks()
    assert code == (2 if remedy == "stop" else 0), server.output.read_text()
    if remedy == "stop":
        said = log_of(tmp_path, "end")[-1]["message"]
        assert "Training stopped: at step 4 the loss was nan" in said
        assert last_state(tmp_path)["step"] == 4, "nothing is saved from the fault on"
    else:
        (said,) = [line["message"] for line in log_of(tmp_path, "warning") if "skipped" in line["message"]]
        assert "Step 4 was skipped" in said and last_state(tmp_path)["guard_state"]["skipped"] == 1
        assert all(t.isfinite().all() for t in last_state(tmp_path)["model_state"].values())
    keys = list(TrainSampler(EpochCut(24, 8), rank, 2, seed=0, start_epoch=1, start_step=1))[0][2:]
    names = [f"{photo_folder}/train/{('apple', 'bear', 'cat')[key.index // 8]}/{key.index % 8}.JPEG" for key in keys]
    assert said.endswith(f"Files in the batch: rank {rank}: {', '.join(names)}")
