"""A loader process that dies while the main one is busy: torch's signal handler raises its error right there."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest
from tiny_runs import QUIET, log_of, tiny_config

from mfm_core.engine.trainer import Trainer
from mfm_core.tasks import visualise
from mfm_image.entry import main

WORKER = ["DATA_LOADER.NUM_WORKERS", "1", *QUIET]


def kill_one(*_: object, **__: object) -> None:
    """Kills a loader process and waits for what torch does about it."""
    os.kill(next(child.pid for child in multiprocessing.active_children() if child.daemon), signal.SIGKILL)
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.parametrize("place", ["log_step", "save"])
def test_in_a_run(place, photo_folder, tmp_path, error_of, monkeypatch):
    monkeypatch.setattr(Trainer, place, kill_one)
    error = error_of(tiny_config("pretrain", photo_folder, tmp_path, *WORKER))
    assert "a data loading process died" in error and "DATA_LOADER.NUM_WORKERS (now 1)" in error
    assert log_of(tmp_path, "end")[-1]["message"] in error


def test_in_pictures(photo_folder, tmp_path, error_of, monkeypatch):
    def collect(features, loader, device):
        batches = iter(loader)
        next(batches)
        kill_one()

    assert main(tiny_config("pretrain", photo_folder, tmp_path, *QUIET, "SOLVER.MAX_EPOCH", "1")) == 0
    monkeypatch.setattr(visualise, "collect_indexed", collect)
    keys = [*WORKER, "TASK", "visualise", "PICTURE.KIND", "neighbours"]
    assert "a data loading process died" in error_of(tiny_config("pretrain", photo_folder, tmp_path, *keys))
