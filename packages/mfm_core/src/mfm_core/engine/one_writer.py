"""One run at a time writes to a folder: a second one is told who does, instead of mixing its log with the first's."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mfm_core.errors import UserError
from mfm_core.parallel.agree import together
from mfm_core.parallel.world import World, is_elastic

NAME = ".lock"
PATIENCE = 5.0
"""Seconds that a run started by hand gives the one before it to end."""
RESTART = 40.0
"""The same where torchrun starts: it may have told the processes before to end only now, and kills them after 30 s."""
LEASE = 120.0
"""The same for a process of another machine: where that has died, an NFS server frees its locks after 90 s."""


@contextmanager
def only_writer(folder: Path, world: World, timeout_s: float) -> Iterator[None]:
    """Holds `folder` for this run, on the main process; all processes call.

    The lock is the system's (a POSIX record lock), which ends with the process however that ends, and which forked
    loader workers do not inherit: none is ever left behind. Where the file system has no locks that is said, and the
    run goes on. timeout_s: after which the other processes give up waiting for this one.
    Raises UserError on all where another run holds it, after some patience.
    """
    with ExitStack() as held:
        together(lambda: _hold(folder, timeout_s / 2, held) if world.is_main else None, world)
        yield


def _hold(folder: Path, most_s: float, held: ExitStack) -> None:
    """Takes the lock until `held` is left. Raises UserError where another run keeps it."""
    try:
        file = held.enter_context((folder / NAME).open("a+b", buffering=0))
        if not _taken(file):
            _wait(file, folder, most_s)
    except OSError as error:  # of file systems without locks, or another user's file
        _say(f"warning: {folder / NAME} cannot be locked ({error.strerror}): nothing keeps a second run away.")
        return
    own = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
    with suppress(OSError):  # a full disk: the lock holds without its text
        file.truncate(0)
        file.write(own.encode())


def _taken(file: BinaryIO) -> bool:
    """False where another process holds the lock. Raises OSError where there are no locks."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX lets systems choose
        return False
    return True


def _wait(file: BinaryIO, folder: Path, most_s: float) -> None:
    """Returns when this run may go on. Raises UserError, saying who holds the lock, where it may not."""
    file.seek(0)
    holder = " ".join(file.read().decode(errors="replace").split()) or "it does not say which"
    is_far = f" on {socket.gethostname()} " not in holder
    patience = min(LEASE if is_far else RESTART if is_elastic() else PATIENCE, most_s)
    logged, end = _size_of_log(folder), time.monotonic() + patience
    _say(f"Waiting up to {patience:.0f} s for the run in {folder} to end ({holder}).")
    while time.monotonic() < end:
        time.sleep(0.2)
        if _taken(file):
            return
    if is_far and _size_of_log(folder) == logged:  # a machine that died may keep a lock for good
        _say(f"warning: the run in {folder} has written nothing for {patience:.0f} s ({holder}); this one goes on.")
        return
    raise UserError(f"Another run writes to OUTPUT_DIR {folder} ({holder}); stop it, or choose another folder.")


def _size_of_log(folder: Path) -> int:
    log = folder / "log.jsonl"
    return log.stat().st_size if log.is_file() else 0


def _say(message: str) -> None:
    sys.stderr.write(message + "\n")
