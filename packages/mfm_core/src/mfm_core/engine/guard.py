"""Keeps a NaN, an infinity or an exploding loss from the weights, and says at which step and in which files it came.

Nothing here waits for the device: faults are noted in tensors and read on logging steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mfm_core.errors import UserError
from mfm_core.parallel.world import World


class RunningStatistics:
    """What forward passes change by themselves, BatchNorm's running statistics: kept equal on all processes (each sees
    its own images; their mean is taken), and from faulty steps.
    """

    def __init__(self, model: nn.Module, world: World) -> None:
        saved = model.state_dict()
        self.buffers = [b for name, b in model.named_buffers() if name in saved and b.is_floating_point()]
        self.world = world

    def read(self) -> Tensor:
        """All of them in one tensor, before the step."""
        return torch.cat([b.flatten() for b in self.buffers]) if self.buffers else torch.empty(0)

    def settle(self, before: Tensor, fault: Tensor) -> None:
        """After the step: the mean over the processes, or where `fault` is 1.0 what `read` gave before."""
        if self.buffers:
            now = self.world.all_sum(self.read()) / self.world.size
            parts = torch.where(fault > 0, before, now).split([b.numel() for b in self.buffers])
            torch._foreach_copy_(self.buffers, [part.view_as(b) for part, b in zip(parts, self.buffers)])


class StepGuard:
    """Judges every step before the optimizer takes it.

    on_nonfinite: stop | skip. explosion_factor: a loss above this multiple of its running mean stops the run; 0 is
    off. tolerate_inf: under an fp16 scaler an infinite gradient is ordinary. history: steps between two `check`s.
    """

    def __init__(
        self, device: torch.device, on_nonfinite: str, explosion_factor: float, tolerate_inf: bool, history: int
    ) -> None:
        self.on_nonfinite, self.explosion_factor, self.tolerate_inf = on_nonfinite, explosion_factor, tolerate_inf
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._stop_step = torch.full((), -1, dtype=torch.int64, device=device)
        self._stop_loss = torch.zeros((), device=device)
        self._running = torch.full((), float("nan"), device=device)
        self._batches: deque[tuple[int, Tensor]] = deque(maxlen=history + 1)

    def judge(self, step: int, loss: Tensor, grad_norm: Tensor, index: Tensor) -> Tensor:
        """1.0 where this step must not reach the weights, else 0.0, on the device.

        loss: of the whole step, over all ranks. index: the files of this process's batch, on the CPU.
        """
        self._batches.append((step, index))
        bad_loss = ~torch.isfinite(loss)
        nonfinite = bad_loss | ~torch.isfinite(grad_norm)
        exploded = torch.zeros_like(nonfinite)
        if self.explosion_factor > 0:
            exploded = loss > self.explosion_factor * self._running
            self._running = torch.where(self._running.isnan(), loss, torch.lerp(self._running, loss, 0.02))
        fault = nonfinite | exploded
        self.skipped += fault
        stops = exploded
        if self.on_nonfinite == "stop":
            stops = exploded | (bad_loss if self.tolerate_inf else nonfinite)
        first = stops & (self._stop_step < 0)
        self._stop_step = torch.where(first, step, self._stop_step)
        self._stop_loss = torch.where(first, loss, self._stop_loss)
        return fault.float()

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run must know to judge the same way."""
        return {"running": self._running, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        self._running.copy_(state["running"])
        self.skipped.copy_(state["skipped"])

    def check(self, file_name: Callable[[int], str], gather: Callable[[Any], list[Any]]) -> None:
        """Raises UserError where a step since the last call must stop the run.

        file_name maps an index to a path; gather returns what each rank passes in. All ranks call.
        """
        step = int(self._stop_step)
        if step < 0:
            return
        files = next((index.tolist() for s, index in self._batches if s == step), [])
        names = ", ".join(name for part in gather([file_name(i) for i in dict.fromkeys(files[:8])]) for name in part)
        raise UserError(
            f"Training stopped: at step {step} the loss was {float(self._stop_loss):.4g} or its gradient was not "
            f"finite. That step did not reach the weights. Lower SOLVER.BASE_LR, set SOLVER.CLIP_GRAD_L2NORM, or set "
            f"TRAIN.NONFINITE skip. The ranks' batches began with: {names}"
        )
