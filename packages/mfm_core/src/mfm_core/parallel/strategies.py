"""How gradients travel between processes. Model, task and loop do not know which strategy they run under."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mfm_core.errors import UserError
from mfm_core.parallel.world import World
from mfm_core.registry import Registry

STRATEGIES = Registry("strategy", key="DIST.STRATEGY")


@STRATEGIES.register("single")
class Single:
    """One process."""

    def __init__(self, world: World) -> None:
        if world.size > 1 and type(self) is Single:
            raise UserError(f"DIST.STRATEGY single runs in one process, not {world.size}; take ddp or auto.")
        self.world = world

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model to call in the training step."""
        return model

    def accumulate(self, model: nn.Module, last: bool) -> AbstractContextManager:
        """Around forward and backward of one micro-batch; gradients are exchanged in the last."""
        return nullcontext()

    def clip(self, parameters: Iterable[Tensor], norm: float | None, value: float | None) -> Tensor:
        """Clips gradients in place by value or by global norm (None is off); their norm before that, a scalar."""
        parameters = [p for p in parameters if p.grad is not None]
        total = nn.utils.get_total_norm([p.grad for p in parameters])
        if value is not None:
            nn.utils.clip_grad_value_(parameters, value)
        elif norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, norm, total)
        return total


@STRATEGIES.register("ddp")
class DDP(Single):
    """Every process holds everything; gradients are averaged in buckets while the backward pass still runs."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model under DistributedDataParallel. Running statistics are the training loop's to keep equal."""
        device = self.world.device
        return DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )

    def accumulate(self, model: nn.Module, last: bool) -> AbstractContextManager:
        """No exchange before the last micro-batch."""
        return nullcontext() if last else model.no_sync()


def build_strategy(name: str, world: World) -> Single:
    """The strategy for `DIST.STRATEGY`; auto is ddp where there are several processes."""
    if name == "auto":
        name = "ddp" if world.size > 1 else "single"
    return STRATEGIES.get(name)(world)
