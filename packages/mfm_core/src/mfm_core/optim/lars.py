"""LARS: momentum SGD whose step for each tensor is a fixed share of the tensor's own norm (You et al. 2017).

As MAE and MoCo v3 have it: the learning rate stays outside the momentum buffer, and tensors of one dimension take
plain momentum SGD.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """buffer = momentum * buffer + trust * (gradient + weight_decay * p), then p = p - lr * buffer.

    trust = trust_coefficient * |p| / |gradient + weight_decay * p|, or 1 where one of the norms is 0. A tensor
    without a gradient is left alone, its buffer too. A `found_inf` of 1 on the optimizer holds a step back, as in
    torch's fused optimizers, without waiting for the device.

    Args:
        params: tensors, or groups of them; each group may have its own options.
        lr: learning rate.
        momentum: share of the buffer that stays.
        weight_decay: of tensors that are adapted; the others have none.
        trust_coefficient: the share of a tensor's norm that a learning rate of 1 moves it by.
        adapt_1d: adapt biases and gains, too, with 1e-8 added to the norm that is divided by, as mmpretrain does
            (which also keeps the learning rate inside the buffer: another number only while the rate changes).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        adapt_1d: bool = False,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, {**options, "trust_coefficient": trust_coefficient, "adapt_1d": adapt_1d})
        self.norms_of_whole: Callable[[Tensor], Tensor] = torch.clone
        """From the norms of these tensors to those of the tensors that they are pieces of; whoever cut them sets it."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One step with the gradients that are there; returns what `closure` does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf = getattr(self, "found_inf", None)
        moving = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for (parameter, group), trust in zip(moving, self._trusts(moving)):
            self._update(parameter, group, trust, found_inf)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any], trust: Tensor | None, found_inf: Tensor | None) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        update = parameter.grad if trust is None else _decayed(parameter, group) * trust
        buffer = group["momentum"] * state["momentum_buffer"] + update
        moved = parameter - group["lr"] * buffer
        if found_inf is not None:
            buffer = torch.where(found_inf > 0, state["momentum_buffer"], buffer)
            moved = torch.where(found_inf > 0, parameter, moved)
        state["momentum_buffer"].copy_(buffer)
        parameter.copy_(moved)

    def _trusts(self, moving: list[tuple[Tensor, dict[str, Any]]]) -> list[Tensor | None]:
        """The trust ratio of each tensor, None for those that are not adapted; all norms in one go."""
        adapted = [i for i, (p, group) in enumerate(moving) if p.ndim > 1 or group["adapt_1d"]]
        trusts: list[Tensor | None] = [None] * len(moving)
        if not adapted:
            return trusts
        norms = [torch.stack([moving[i][0].norm(), _decayed(*moving[i]).norm()]) for i in adapted]
        for i, (size, step) in zip(adapted, self.norms_of_whole(torch.stack(norms))):
            group = moving[i][1]
            trust = group["trust_coefficient"] * size / (step + (1e-8 if group["adapt_1d"] else 0.0))
            trusts[i] = torch.where((size > 0) & (step > 0), trust, 1.0)
        return trusts


def _decayed(parameter: Tensor, group: dict[str, Any]) -> Tensor:
    """The gradient with weight decay."""
    return parameter.grad + group["weight_decay"] * parameter
