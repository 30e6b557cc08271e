"""`run_net` in a process of its own that ends by SIGKILL in the middle of saving a checkpoint in parts."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import torch
from entry_point import run_net

from mfm_core.checkpoint import sharded
from mfm_core.parallel.parts import _Writer


def killed_save(moment: str, arguments: list[object]) -> int:
    """The exit code of `run_net.py arguments`, killed in its first save.

    moment: writing (its part is written), facts (all parts are), named (the old folder has another name), or done.
    """
    words = [str(word) for word in arguments]
    process = multiprocessing.get_context("forkserver").Process(target=_run, args=(moment, words))
    process.start()
    process.join(300)
    process.kill()
    return process.exitcode


def _run(moment: str, arguments: list[str]) -> None:
    write_data, replace = _Writer.write_data, os.replace

    def kill(at: str) -> None:
        if at == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def writes(writer, *arguments):
        result = write_data(writer, *arguments)
        kill("writing")
        return result

    def replaces(old, new):
        if Path(old).is_dir():
            kill("facts")
        replace(old, new)
        if str(new).endswith(sharded.REPLACED):
            kill("named")
        if str(old).endswith(".tmp") and Path(new).is_dir():
            kill("done")

    _Writer.write_data = writes
    sharded.os.replace = replaces
    torch.set_num_threads(1)
    raise SystemExit(run_net.main(arguments))
