"""torch's DistributedDataParallel: every process holds everything, gradients are averaged (Li et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fvcore.common.config import CfgNode
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mfm_core.errors import UserError
from mfm_core.parallel.strategy import Strategy
from mfm_core.parallel.world import World


class DDP(Strategy):
    """Gradients travel while the backward pass still runs.

    find_unused: look in each step for parameters that take no part in it, on some processes or on all; without it
    such a step is refused.
    """

    name = "ddp"

    def __init__(self, world: World, find_unused: bool = False) -> None:
        super().__init__(world)
        self.find_unused = find_unused

    @classmethod
    def from_cfg(cls, dist: CfgNode, world: World, precision: str) -> DDP:
        """From the DIST section."""
        return cls(world, dist.FIND_UNUSED)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model under DistributedDataParallel. Running statistics are the training loop's to keep equal."""
        device = self.world.device
        return DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=self.find_unused,
        )

    @contextmanager
    def accumulate(self, model: nn.Module, last: bool) -> Iterator[None]:
        """No exchange before the last micro-batch. Raises UserError for a parameter without gradient."""
        if not last:
            with model.no_sync():
                yield
            return
        yield
        if not self.find_unused:  # its bucket was never full, so that none of it was exchanged
            idle = [name for name, p in model.module.named_parameters() if p.requires_grad and p.grad is None]
            if idle:
                raise UserError(
                    f"{len(idle)} parameters took no part in a step ({idle[0]} first), which DIST.STRATEGY ddp must "
                    "look for: set DIST.FIND_UNUSED True."
                )
