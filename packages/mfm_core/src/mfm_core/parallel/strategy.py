"""What a strategy gives the training loop, and how it is where every process holds the whole model and its optimizer.

Model, method, task and loop do not know which strategy they run under: they call these methods and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from fvcore.common.config import CfgNode
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer

from mfm_core.errors import UserError
from mfm_core.parallel.world import World

Groups = list[dict[str, Any]]
"""An optimizer's parameter groups."""


class Strategy:
    """How a model's parameters, gradients and optimizer state lie on the processes, and how gradients travel.

    In order: `shard` the model, make the `optimizer`, load weights and moments, `wrap`; then for each step
    `accumulate` around every micro-batch, `clip`, `step`, `zero_grad`. All processes call all methods alike.

    The optimizer is a plain one over this process's share of the parameters, be it all of them, some, or a piece of
    each.

    States are whole: those of the model and optimizer of a single process, whatever the strategy, so that a checkpoint
    moves between strategies and numbers of processes. Where each process writes its own part of them, the model's
    `state_dict()` has those of its weights, and `pieces` and `options` say what the optimizer's are.
    """

    name: str
    """As DIST.STRATEGY has it."""

    is_shared = False
    """Whether a process has an optimizer for a part of the parameters, or for pieces of them, only."""

    def __init__(self, world: World) -> None:
        self.world = world

    @classmethod
    def from_cfg(cls, dist: CfgNode, world: World, precision: str) -> Strategy:
        """From the DIST section; `precision` is the run's, fp32 | bf16 | fp16."""
        return cls(world)

    def shard(self, model: nn.Module) -> None:
        """Takes the model apart, in place; its parameters are then no longer to be computed with but by calling it."""

    def optimizer(self, groups: Groups, make: Callable[[Groups], Optimizer]) -> Optimizer:
        """What `make` makes of this process's share of the model's parameter groups."""
        return make(groups)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model to call in the training step; its weights are in place."""
        return model

    def scaler(self, enabled: bool) -> torch.amp.GradScaler:
        """The loss scaler of fp16. Call `unscale_(optimizer)` before `clip`, and `update()` after `step`."""
        return torch.amp.GradScaler(self.world.device.type, enabled=enabled)

    def accumulate(self, model: nn.Module, last: bool) -> AbstractContextManager:
        """Around forward and backward pass of one micro-batch; gradients are exchanged in the last.

        model: what `wrap` returned. All processes have the same number of micro-batches.
        """
        return nullcontext()

    def clip(self, optimizer: Optimizer, norm: float | None, value: float | None) -> Tensor:
        """Clips gradients in place by value or by global norm (None is off).

        Returns the norm of all gradients together before that, a scalar, the same on all processes.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        total = self._total_norm([p.grad for p in parameters])
        if value is not None:
            nn.utils.clip_grad_value_(parameters, value)
        elif norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, norm, total)
        return total

    def _total_norm(self, gradients: list[Tensor]) -> Tensor:
        return nn.utils.get_total_norm(gradients)

    def step(self, optimizer: Optimizer, fault: Tensor) -> None:
        """One optimizer step, unless `fault` is 1.0: then weights and moments stay as they are.

        Without waiting for the device: torch's fused optimizers read `found_inf`, and so does our LARS.
        """
        optimizer.found_inf = fault
        optimizer.step()

    def zero_grad(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Forgets the gradients. model: what `wrap` returned."""
        optimizer.zero_grad(set_to_none=True)

    def update_average(self, average: ModelEmaV3, model: nn.Module) -> None:
        """One step of the moving average, whose module has been through `shard` as `model` has."""
        average.update(model)

    def whole(self, model: nn.Module) -> nn.Module:
        """A model with these weights that each process can call by itself, as often as it likes, to evaluate it.

        It may be `model` itself; to change the weights, give its state to `load_model`.
        """
        return model

    def model_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The state of the whole model, on the main process; anything on the others."""
        return model.state_dict()

    def load_model(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        """The inverse of `model_state`, from the whole on each process. Raises RuntimeError where names differ."""
        model.load_state_dict(state, strict=True)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state of the optimizer over the whole model, on the main process; anything on the others."""
        return optimizer.state_dict()

    def load_optimizer(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        """The inverse of `optimizer_state`, but for options (weight decay, betas, …): they stay the configuration's.

        Raises ValueError or KeyError for the state of another optimizer.
        """
        load_moments(optimizer, self._share(optimizer, state))

    def pieces(self, optimizer: Optimizer) -> dict[int, tuple[Tensor, Tensor]]:
        """By its number in the whole optimizer, what this process's optimizer steps, and the model's parameter.

        They are the same, or the one is the local tensor of the other, which is distributed.
        """
        own = [p for group in optimizer.param_groups for p in group["params"]]
        return {i: (p, p) for i, p in enumerate(own)}

    def options(self, optimizer: Optimizer) -> Groups:
        """The parameter groups of the whole optimizer's state: numbers in place of parameters."""
        return optimizer.state_dict()["param_groups"]

    def _share(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """What of a whole optimizer state this process's optimizer takes."""
        return state


def load_moments(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Loads an optimizer's state, but for the options."""
    options = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, fresh in zip(optimizer.param_groups, options):
        group.update(fresh)


class Single(Strategy):
    """One process."""

    name = "single"

    def __init__(self, world: World) -> None:
        if world.size > 1:
            raise UserError(f"DIST.STRATEGY single runs in one process, not {world.size}; take auto.")
        super().__init__(world)
