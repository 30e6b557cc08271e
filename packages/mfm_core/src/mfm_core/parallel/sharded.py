"""What strategies have in common whose processes each step another share of the parameters (ZeRO: Rajbhandari 2020)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mfm_core.parallel.strategy import Strategy
from mfm_core.parallel.world import World


class SharedScaler(torch.amp.GradScaler):
    """Looks at the gradients of this process's share; an infinity on any process lowers the scale on all."""

    def __init__(self, world: World, enabled: bool) -> None:
        super().__init__(world.device.type, enabled=enabled)
        self.world = world

    def _unscale_grads_(
        self, optimizer: Optimizer, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool
    ) -> dict[torch.device, Tensor]:
        """torch's, which fairscale's and FSDP's scalers override, too; a share may be empty."""
        found = super()._unscale_grads_(optimizer, inv_scale, found_inf, allow_fp16)
        own = torch.stack([found_inf, *(t.to(found_inf.device) for t in found.values())]).amax()
        return {found_inf.device: self.world.all_max(own)}


class Sharded(Strategy):
    """The optimizer's gradients are this process's alone: norms are summed over processes."""

    is_shared = True

    def scaler(self, enabled: bool) -> torch.amp.GradScaler:
        """The loss scaler, the same on all processes."""
        return SharedScaler(self.world, enabled)

    def _total_norm(self, gradients: list[Tensor]) -> Tensor:
        own = nn.utils.get_total_norm(gradients).to(self.world.device, torch.float32)
        return self.world.all_sum(own.square()).sqrt()


def whole_groups(optimizer: Optimizer, numbers: list[list[int]]) -> list[dict[str, Any]]:
    """The groups of an optimizer's state over the whole model, given the numbers of the parameters in each."""
    options = [{key: value for key, value in g.items() if key != "params"} for g in optimizer.param_groups]
    return [{**group, "params": own} for group, own in zip(options, numbers, strict=True)]


def check_groups(state: dict[str, Any], numbers: list[list[int]]) -> None:
    """Raises ValueError where an optimizer's state is of other parameter groups."""
    if [len(group["params"]) for group in state["param_groups"]] != [len(group) for group in numbers]:
        raise ValueError("its parameter groups have other sizes")


def numbered(groups: list[dict[str, Any]]) -> list[list[int]]:
    """The numbers that torch gives the parameters of these groups, from 0 on."""
    starts = [sum(len(g["params"]) for g in groups[:i]) for i in range(len(groups))]
    return [list(range(start, start + len(g["params"]))) for start, g in zip(starts, groups)]
