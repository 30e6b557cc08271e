"""Signals that ask a run to save and leave, and how its processes agree on the step after which they do.

SIGTERM is what a preempted job gets, SIGUSR1 or SIGUSR2 what `sbatch --signal` sends before the time limit. Each
process may see one a little earlier or later than the others, or be the only one that does; but all must leave after
the same step. The handler sets a flag and no more: it may run in the middle of a step, or of a line of the log.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mfm_core.parallel.world import World

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
EXIT_AGAIN = 75
"""A run's exit code where a signal stopped it before its end and it has saved: start it again with the same command
(EX_TEMPFAIL of sysexits.h)."""

_asked = False


class Interrupted(Exception):
    """An evaluation ends without a result; raised in all processes at the same place."""


@contextmanager
def listening() -> Iterator[None]:
    """Inside, `SIGNALS` set a flag instead of ending the process."""
    global _asked
    _asked = False
    previous = {number: signal.signal(number, _ask) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _asked = False


def _ask(signum: int, frame: object) -> None:
    global _asked
    _asked = True


def asked() -> bool:
    """Whether this process has been told to stop."""
    return _asked


def agreed(world: World) -> bool:
    """Whether any process has been told to stop. All must call; they wait for each other."""
    return bool(world.all_max(torch.tensor(float(_asked), device=world.device)))


class StopVote:
    """The same inside the training loop, without another collective operation and without waiting for the device.

    Each process adds a number to what is summed over all in a step anyway, and reads the sum one step later, when the
    device has long computed it. So all read the same and leave after the same step, at most two after the signal.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._counts: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def with_vote(self, value: Tensor) -> Tensor:
        """(2,): the scalar `value`, and 1 where this process has been told to stop, else 0."""
        return torch.stack([value, torch.full_like(value, _asked)])

    def count(self, votes: Tensor) -> None:
        """Takes the sum of the votes of a step; in every step, in all processes."""
        event = None
        if votes.is_cuda:
            host = torch.empty_like(votes, device="cpu", pin_memory=True)
            votes = host.copy_(votes, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._counts.append((votes, event))

    def decided(self) -> bool:
        """Whether any process had been told to stop when the step before the latest began; alone: by now."""
        if self.world.size == 1:
            self._counts.clear()
            return _asked
        if len(self._counts) < 2:
            return False
        votes, event = self._counts.popleft()
        if event is not None:
            event.synchronize()
        return bool(votes > 0)
