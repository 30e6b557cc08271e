"""Starts whole runs by fork, so that twenty starts pay for one import; marks on a pipe say where a run is.

As a script it is the server: a line of JSON on standard input starts a run, a line for its process, its exit code and
the end of the last process of its session come back. `ForkServer` is a test's side of it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

TRAIN, SAVE, SAVED, EVALUATE, EVALUATED = "t", "s", "S", "e", "E"
SLOW_DISK_S = 0.03
"""What forcing a file to disk takes at least, so that a kill can fall into a save."""


class ForkServer:
    """A context; one run at a time."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "output.txt"
        self._fifo = folder / "marks"
        self._said = b""
        os.mkfifo(self._fifo)

    def __enter__(self) -> ForkServer:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._server = subprocess.Popen([sys.executable, __file__], env=environment, **pipes)
        self._read(300.0)  # it has imported everything
        return self

    def __exit__(self, *_: object) -> None:
        self._server.kill()
        self._server.communicate()

    def start(self, arguments: list[object], faults: dict[str, object] | None = None) -> int:
        """Starts `run_net.py arguments` and returns its process, the leader of a session."""
        self._marks = os.open(self._fifo, os.O_RDONLY | os.O_NONBLOCK)
        self.output.write_text("")
        order = {"arguments": [str(a) for a in arguments], "faults": faults or {}}
        order |= {"output": str(self.output), "marks": str(self._fifo)}
        self._server.stdin.write(json.dumps(order).encode() + b"\n")
        self._server.stdin.flush()
        return self._read(30.0)["pid"]

    def marks(self, timeout: float) -> str:
        """The marks that have come since the last call; waits for one."""
        select.select([self._marks], [], [], timeout)
        try:
            found = os.read(self._marks, 65536).decode()
        except BlockingIOError:
            return ""
        if not found:
            time.sleep(0.005)  # nobody has it open yet, or any more
        return found

    def wait(self, timeout: float) -> int:
        """The exit code; raises TimeoutError where the last process of the run is not gone in time."""
        code = self._read(timeout)["code"]
        self._read(timeout)
        return code

    def close_marks(self) -> str:
        """What marks are left."""
        left = self.marks(0.0)
        os.close(self._marks)
        return left

    def _read(self, timeout: float) -> dict:
        deadline = time.monotonic() + timeout
        while b"\n" not in self._said:
            if not select.select([self._server.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"nothing for {timeout} s; the run said: {self.output.read_text()[-2000:]}")
            more = os.read(self._server.stdout.fileno(), 65536)
            if not more:
                raise EOFError("the server died")
            self._said += more
        line, self._said = self._said.split(b"\n", 1)
        return json.loads(line)


def _serve() -> None:
    import ctypes

    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: a killed run's processes become this one's to wait for
    sys.path.insert(0, os.path.dirname(__file__))
    import torch.utils.tensorboard  # noqa: F401
    from entry_point import run_net

    import mfm_image.entry  # noqa: F401

    _say(ready=True)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _run(run_net, order)
        _say(pid=pid)
        _say(code=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        while True:
            try:
                os.wait()
            except ChildProcessError:
                break
        _say(gone=True)


def _say(**what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _run(run_net, order: dict) -> None:
    code = 0
    try:
        os.setsid()
        output = os.open(order["output"], os.O_WRONLY | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(output, stream)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _instrument(os.open(order["marks"], os.O_WRONLY), order["faults"])
        code = run_net.main(order["arguments"])
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _instrument(marks: int, faults: dict) -> None:
    """Ranks start by fork, and rank 0 marks where it is.

    faults: {"rank": r, "step": s, "error": a class, or nan}; {"patience": seconds until ranks that hang are killed}.
    """
    from functools import partial

    from mfm_core.checkpoint.saver import Saver
    from mfm_core.engine.trainer import Trainer
    from mfm_core.errors import UserError
    from mfm_core.parallel import launch

    def marked(function, before: str, after: str):
        def call(*arguments, **keywords):
            main = os.environ.get("RANK", "0") == "0"
            if main:
                os.write(marks, before.encode())
            result = function(*arguments, **keywords)
            if main and after:
                os.write(marks, after.encode())
            return result

        return call

    force, step = os.fsync, Trainer.train_step

    def slow_force(handle):
        time.sleep(SLOW_DISK_S / 2)
        force(handle)
        time.sleep(SLOW_DISK_S / 2)

    def faulty_step(trainer, batch):
        if faults.get("rank") == trainer.world.rank and faults["step"] == trainer.state.step:
            if faults["error"] == "nan":  # in the last of two micro-batches
                batch.inputs.chunk(2)[1].fill_(float("nan"))
            else:
                raise {"UserError": UserError, "RuntimeError": RuntimeError}[faults["error"]]("only here")
        return step(trainer, batch)

    os.fsync = slow_force
    Saver._run = marked(Saver._run, SAVE, SAVED)  # in its thread, where that is how it saves
    Trainer.train_step = marked(faulty_step, TRAIN, "")
    Trainer.log_epoch = marked(Trainer.log_epoch, EVALUATE, EVALUATED)
    start = launch.mp.start_processes

    def fork(function, arguments, **keywords):
        context = start(partial(_rank, function), arguments, **{**keywords, "start_method": "fork"})
        if "patience" in faults:
            context.join = partial(context.join, grace_period=faults["patience"])
        return context

    launch.mp.start_processes = fork


def _rank(function, rank: int, *arguments: object) -> None:
    import multiprocessing.util

    from mfm_core.data.loader import _kill_workers

    multiprocessing.util.Finalize(None, _kill_workers, exitpriority=100)  # a fork forgets what importing has set up
    function(rank, *arguments)


if __name__ == "__main__":
    _serve()
