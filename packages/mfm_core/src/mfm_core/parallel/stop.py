"""How the processes of a run that is told to stop (`parallel.signals`) agree on the step after which they all leave.

Each may see the signal a little earlier or later than the others, or be the only one that does.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from mfm_core.parallel.signals import asked
from mfm_core.parallel.world import World


class Interrupted(Exception):
    """An evaluation ends without a result; raised in all processes at the same place."""


def agreed(world: World) -> bool:
    """Whether any process has been told to stop. All must call; they wait for each other."""
    return bool(world.all_max(torch.tensor(float(asked()), device=world.device)))


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
        return torch.stack([value, torch.full_like(value, asked())])

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
            return asked()
        if len(self._counts) < 2:
            return False
        votes, event = self._counts.popleft()
        if event is not None:
            event.synchronize()
        return bool(votes > 0)
