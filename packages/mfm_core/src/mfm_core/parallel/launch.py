"""Starts the processes of a run on this machine, as PySlowFast's NUM_GPUS, NUM_SHARDS, shard_id and init_method do."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlparse

import torch
import torch.multiprocessing as mp

from mfm_core.errors import UserError
from mfm_core.parallel.signals import EXIT_AGAIN, SIGNALS

_PR_SET_PDEATHSIG = 1
"""Of linux/prctl.h."""


def local_processes(num_gpus: int, device_choice: str) -> int:
    """How many processes NUM_GPUS asks for here: one for each GPU; with DEVICE cpu that many on the CPU; else one.

    Raises UserError where GPUs are asked for that this machine has not.
    """
    if device_choice == "cpu":
        return max(1, num_gpus)
    available = torch.cuda.device_count()
    if available and num_gpus > available:
        raise UserError(f"NUM_GPUS is {num_gpus}, but this machine has {available}; set NUM_GPUS {available}.")
    return max(1, num_gpus) if available else 1


def check_shard(shard_id: int, num_shards: int) -> None:
    """Raises UserError where this machine's number is none of NUM_SHARDS: the others would wait for it in vain."""
    if not 0 <= shard_id < num_shards:
        raise UserError(
            f"--shard_id is {shard_id}, and NUM_SHARDS is {num_shards}; the machines' numbers are 0 to "
            f"{num_shards - 1}, each once."
        )


def launch(
    function: Callable[..., int],
    args: tuple,
    processes: int,
    num_shards: int = 1,
    shard_id: int = 0,
    init_method: str = "tcp://localhost:0",
) -> int:
    """Runs `function(*args)` in every process of this machine and returns its exit code.

    Under torchrun, and for a single process, it is called right here. `init_method` is tcp://host:port of machine 0;
    port 0 takes a free one, which only a single machine can do.
    """
    if "RANK" in os.environ or processes * num_shards == 1:
        return function(*args)
    host, port = _address(init_method, num_shards)
    told: list[int] = []

    def forward(signum: int, frame: object = None) -> None:
        told.append(signum)
        for process in multiprocessing.active_children():
            with suppress(ProcessLookupError):
                os.kill(process.pid, signum)

    # torch would follow the one line that says what is wrong with "Terminating process"
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    # each process saves its run; this one waits for them
    previous = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        context = mp.start_processes(
            _worker,
            (function, args, processes, num_shards, shard_id, host, port),
            nprocs=processes,
            join=False,
            start_method="spawn",
        )
        if told:  # while they were being started
            forward(told[-1])
        while not context.join():
            pass
    except KeyboardInterrupt:  # the terminal has told the processes, too
        for process in multiprocessing.active_children():
            process.join(10.0)
            process.kill()
        return 130
    except mp.ProcessExitedException as error:
        if told and -error.exit_code in SIGNALS:  # it did not yet listen: none had begun to train
            return EXIT_AGAIN
        if error.exit_code in (1, 2, EXIT_AGAIN):
            return error.exit_code
        raise UserError(
            f"Process {error.error_index} of {processes} died ({error.msg}); the others were stopped. "
            "Continue with the same command."
        ) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0


def let_main_speak(seconds: float = 10.0) -> None:
    """For a process that is about to report why it fails: the main one does so at once, the others wait first.

    Mostly all fail for the same reason, or the others because the main one left; then whoever started them stops
    them before they repeat it. Only the one that fails alone gets to speak.
    """
    rank = os.environ.get("RANK", "0")  # which may be what is wrong
    if rank.isdecimal() and int(rank):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(seconds)


def _address(init_method: str, num_shards: int) -> tuple[str, int]:
    try:
        url = urlparse(init_method)
        scheme, host, port = url.scheme, url.hostname, url.port
    except ValueError:  # a port that is none, or a bracket that stays open
        scheme, host, port = "", None, None
    if scheme != "tcp" or not host or port is None:
        raise UserError(f"--init_method is '{init_method}'; it looks like tcp://host:port.")
    if port:
        return host, port
    if num_shards > 1:
        raise UserError("NUM_SHARDS above 1 needs --init_method tcp://host:port of machine 0, the same on all.")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return "127.0.0.1", free.getsockname()[1]


def _worker(
    local_rank: int, function: Callable, args: tuple, processes: int, shards: int, shard_id: int, host: str, port: int
) -> None:
    os.environ.update(
        RANK=str(shard_id * processes + local_rank),
        LOCAL_RANK=str(local_rank),
        WORLD_SIZE=str(shards * processes),
        LOCAL_WORLD_SIZE=str(processes),
        MASTER_ADDR=host,
        MASTER_PORT=str(port),
    )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"].split(",")[0]))  # of nested levels, the first
    _end_with_parent()
    code = function(*args)
    if code == EXIT_AGAIN:  # of all processes; the first to leave makes torch end the others, which do so already
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if code:
        sys.exit(code)


def _end_with_parent() -> None:
    """Makes the run save and leave where the process that started it dies, as far as the system can.

    torch asks for SIGINT then, which a shell makes the jobs of its scripts ignore: they would train on, out of sight.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
