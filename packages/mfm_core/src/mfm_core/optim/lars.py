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

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One step with the gradients that are there; returns what `closure` does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf = getattr(self, "found_inf", None)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group, found_inf)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any], found_inf: Tensor | None) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = group["momentum"] * state["momentum_buffer"] + self._adapted(parameter, group)
        moved = parameter - group["lr"] * buffer
        if found_inf is not None:
            buffer = torch.where(found_inf > 0, state["momentum_buffer"], buffer)
            moved = torch.where(found_inf > 0, parameter, moved)
        state["momentum_buffer"].copy_(buffer)
        parameter.copy_(moved)

    @staticmethod
    def _adapted(parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """The decayed gradient times its trust ratio."""
        if parameter.ndim <= 1 and not group["adapt_1d"]:
            return parameter.grad
        update = parameter.grad + group["weight_decay"] * parameter
        size, step = parameter.norm(), update.norm()
        trust = group["trust_coefficient"] * size / (step + (1e-8 if group["adapt_1d"] else 0.0))
        return update * torch.where((size > 0) & (step > 0), trust, 1.0)
