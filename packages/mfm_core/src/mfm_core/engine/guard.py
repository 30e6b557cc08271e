"""Keeps a NaN, an infinity or an exploding loss from the weights, and says at which step and in which files it came.

Nothing here waits for the device: faults are noted in tensors and read on logging steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mfm_core.errors import UserError
from mfm_core.parallel.world import World

MOST_TOLD = 20
"""Skipped steps that are told one by one."""
MOST_FILES = 16
"""Files that each process names of a faulty step."""


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


@dataclass
class _Judged:
    """A step since the last `check`: its files, and on the device its loss over all ranks, the losses of this
    process's micro-batches, whether it was kept from the weights, and whether that stops the run."""

    step: int
    index: Tensor
    loss: Tensor
    own: Tensor
    fault: Tensor
    stops: Tensor


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
        self._running = torch.full((), float("nan"), device=device)
        self._judged: deque[_Judged] = deque(maxlen=history + 1)
        self._told = 0

    def judge(self, step: int, loss: Tensor, grad_norm: Tensor, index: Tensor, own: Tensor | None = None) -> Tensor:
        """1.0 where this step must not reach the weights, else 0.0, on the device.

        loss: of the whole step, over all ranks. index: the files of this process's batch, on the CPU. own: (n,) the
        losses of its n micro-batches, which say in which of them a NaN came up.
        """
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
        told = bad_loss | exploded if self.tolerate_inf else fault
        self._judged.append(_Judged(step, index, loss, loss[None] if own is None else own, told, stops))
        return fault.float()

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run must know to judge the same way."""
        return {"running": self._running, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        self._running.copy_(state["running"])
        self.skipped.copy_(state["skipped"])

    def check(self, file_name: Callable[[int], str], gather: Callable[[Any], list[Any]]) -> list[str]:
        """One line for each step since the last call that was skipped; the first `MOST_TOLD` of a run.

        file_name maps an index to a path; gather returns what each rank passes in. All ranks call. Raises UserError
        where a step must stop the run.
        """
        judged = list(self._judged)
        self._judged.clear()
        if not judged:
            return []
        faults, stops = torch.stack([torch.stack([j.fault, j.stops]) for j in judged], dim=1).tolist()  # one wait
        lines = []
        for j, fault, stop in zip(judged, faults, stops):
            if not fault or not stop and self._told >= MOST_TOLD:
                continue
            cause = f"at step {j.step} the loss was {float(j.loss):.4g} or its gradient was not finite"
            files = _name(gather(_suspects(j, file_name)))
            if stop:
                raise UserError(
                    f"Training stopped: {cause}. That step did not reach the weights. Lower SOLVER.BASE_LR, set "
                    f"SOLVER.CLIP_GRAD_L2NORM, or set TRAIN.NONFINITE skip. {files}"
                )
            self._told += 1
            more = " Further ones are only counted." if self._told == MOST_TOLD else ""
            lines.append(f"Step {j.step} was skipped: {cause}. {files}{more}")
        return lines


def _suspects(judged: _Judged, file_name: Callable[[int], str]) -> tuple[bool, int, list[str]]:
    """Whether a micro-batch of this process had a loss that is no number; how many files the step is about here, all
    or those of such micro-batches, and what the first are called."""
    bad = ~torch.isfinite(judged.own.cpu())
    parts = judged.index.chunk(len(bad))
    chosen = [part for part, is_bad in zip(parts, bad.tolist()) if is_bad] if bad.any() else parts
    files = list(dict.fromkeys(torch.cat(list(chosen)).tolist()))
    return bool(bad.any()), len(files), [file_name(i) for i in files[:MOST_FILES]]


def _name(ranks: list[tuple[bool, int, list[str]]]) -> str:
    """The files of those ranks where the fault shows, or of all where it shows in none alone."""
    where = [(rank, count, names) for rank, (bad, count, names) in enumerate(ranks) if bad]
    where = where or [(rank, count, names) for rank, (_, count, names) in enumerate(ranks)]
    named = []
    for rank, count, names in where:
        more = f" and {count - len(names)} more" if count > len(names) else ""
        named.append(f"{f'rank {rank}: ' if len(ranks) > 1 else ''}{', '.join(names)}{more}")
    return f"Files in the batch: {'; '.join(named)}"
