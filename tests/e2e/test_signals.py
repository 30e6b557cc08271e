"""A run that is told to stop saves and leaves within two steps, also out of an evaluation, and ends the same later."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from paths import CONFIGS, REPOSITORY, TOOLS
from tiny_runs import QUIET, TINY, assert_same, last_state, log_of, tiny_config

from mfm_core.engine import evaluate, one_writer
from mfm_core.parallel.signals import EXIT_AGAIN
from mfm_image.entry import main

EVALUATES = [*QUIET, "TRAIN.EVAL_PERIOD", 1, "TRAIN.CHECKPOINT_PERIOD", 2, "TEST.BATCH_SIZE", 2]


@pytest.fixture(scope="module")
def whole(photo_folder, tmp_path_factory):
    """The folder of an undisturbed run of two epochs, each of which is evaluated in three batches."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(tiny_config("finetune", photo_folder, folder, *EVALUATES)) == 0
    return folder


@pytest.mark.parametrize(("epoch", "number"), [(1, signal.SIGUSR1), (2, signal.SIGUSR2)])
def test_a_signal_in_evaluation(epoch, number, whole, photo_folder, tmp_path, monkeypatch):
    """After an epoch that is not saved for itself, and after the last: the rest of the evaluation is left out."""
    batches, sums = [], evaluate._sums

    def told_in_the_first_batch(*arguments):
        batches.append(1)
        if len(batches) == 3 * (epoch - 1) + 1:
            os.kill(os.getpid(), number)
        return sums(*arguments)

    monkeypatch.setattr(evaluate, "_sums", told_in_the_first_batch)
    cfg = tiny_config("finetune", photo_folder, tmp_path, *EVALUATES)
    assert main(cfg) == EXIT_AGAIN
    assert len(batches) == 3 * (epoch - 1) + 1
    assert last_state(tmp_path)["step"] == 3 * epoch
    assert len(log_of(tmp_path, "epoch")) == epoch - 1
    assert signal.getsignal(number) == signal.SIG_DFL
    assert main(cfg) == 0
    assert_same(last_state(whole), last_state(tmp_path))
    for one, other in zip(log_of(whole, "epoch"), log_of(tmp_path, "epoch"), strict=True):
        assert all(one[key] == other[key] for key in ("epoch", "step", "train_loss", "top1", "val_loss"))


def test_two_processes_of_which_one_is_told(photo_folder, tmp_path, monkeypatch, capsys):
    """Far from a logging step, both leave after the same step; a run started beside them does not touch theirs."""
    monkeypatch.setattr(one_writer, "PATIENCE", 0.5)
    log = tmp_path / "steps"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [REPOSITORY / "tests" / "paused_run.py", "--cfg", CONFIGS / "demo" / "pretrain.yaml", *TINY, *QUIET]
    command += ["MASK.PRETRAIN_DEPTH", "[1]", "TRAIN.BATCH_SIZE", "4", "LOG_PERIOD", "1000"]
    command += ["DATA.PATH_TO_DATA_DIR", photo_folder, "OUTPUT_DIR", tmp_path / "run"]
    settings = {"PAUSED_LOG": str(log), "PAUSED_STARTS": "1", "PAUSED_RANK": "1", "GLOO_SOCKET_IFNAME": "lo"}
    run = subprocess.Popen(
        [str(word) for word in command],
        env={**os.environ, "OMP_NUM_THREADS": "1", **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        paused = _paused_process(Path(f"{log}.paused"), run)
        assert main(tiny_config("pretrain", photo_folder, tmp_path / "run")) == 2
        assert f"Another run writes to OUTPUT_DIR {tmp_path / 'run'} (process " in capsys.readouterr().err
        os.kill(paused, signal.SIGUSR1)
        out, _ = run.communicate(timeout=300)
    finally:
        run.kill()
    assert "stopped and saved" in out, out
    assert [line["status"] for line in log_of(tmp_path / "run", "end")] == ["stopped"]
    assert len(log_of(tmp_path / "run", "run")) == 1
    assert last_state(tmp_path / "run")["step"] == 4, "told in the third step; said in it, heard in the next"
    assert f"exitcode  : {EXIT_AGAIN}" in out, out


@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_before_training_begins(processes, photo_folder, tmp_path):
    """While it loads, starts its processes or lists files: nothing is there to be saved, and all is to be done."""
    keys = ["NUM_GPUS", processes, "MASK.PRETRAIN_DEPTH", "[1]", "TRAIN.BATCH_SIZE", 4 * processes]
    keys += ["DATA.PATH_TO_DATA_DIR", photo_folder, "OUTPUT_DIR", tmp_path]
    command = [sys.executable, TOOLS / "run_net.py", "--cfg", CONFIGS / "demo" / "pretrain.yaml", *TINY, *keys]
    for moment in (0.0, 1.0):
        with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
            while not _catches(run.pid, signal.SIGUSR1):
                time.sleep(0.01)
            time.sleep(moment)
            run.send_signal(signal.SIGUSR1)
            assert run.wait(300) == EXIT_AGAIN, run.stderr.read()


def _catches(process: int, number: int) -> bool:
    """Whether the process has a handler for a signal; true where it has ended."""
    status = Path(f"/proc/{process}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    caught = next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt")), -1)
    return bool(caught >> (number - 1) & 1)


def _paused_process(file: Path, run: subprocess.Popen) -> int:
    """The number of the process that says in `file` that it waits."""
    deadline = time.monotonic() + 300
    while not file.exists() or not file.read_text().endswith("\n"):
        assert time.monotonic() < deadline and run.poll() is None, run.communicate(timeout=5)
        time.sleep(0.1)
    return int(file.read_text().split()[1])
