"""Keeps a NaN, an infinity or an exploding loss from the weights, and says at which step and in which files it came.

Nothing here waits for the device: faults are noted in tensors and read on logging steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from fvcore.common.config import CfgNode
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
    process's micro-batches, the running mean of losses before it, whether it was kept from the weights, whether that
    was for an explosion, and whether it stops the run."""

    step: int
    index: Tensor
    loss: Tensor
    own: Tensor
    mean: Tensor
    fault: Tensor
    exploded: Tensor
    stops: Tensor


class StepGuard:
    """Judges every step before the optimizer takes it.

    on_nonfinite, on_explosion: stop | skip. explosion_factor: a finite loss above this multiple of its running mean has
    exploded; 0 is off. tolerate_inf: under an fp16 scaler an infinite gradient is ordinary. history: steps between two
    `check`s.
    """

    def __init__(
        self,
        device: torch.device,
        on_nonfinite: str,
        on_explosion: str,
        explosion_factor: float,
        tolerate_inf: bool,
        history: int,
    ) -> None:
        self.on_nonfinite, self.on_explosion = on_nonfinite, on_explosion
        self.explosion_factor, self.tolerate_inf = explosion_factor, tolerate_inf
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._running = torch.full((), float("nan"), device=device)
        self._judged: deque[_Judged] = deque(maxlen=history + 1)
        self._told = 0

    @classmethod
    def from_cfg(cls, cfg: CfgNode, device: torch.device, precision: str) -> StepGuard:
        """From the TRAIN section; `precision` is the run's."""
        train = cfg.TRAIN
        return cls(
            device,
            train.NONFINITE,
            train.EXPLOSION,
            train.KILL_LOSS_EXPLOSION_FACTOR,
            tolerate_inf=precision == "fp16",
            history=cfg.LOG_PERIOD,
        )

    def judge(self, step: int, loss: Tensor, grad_norm: Tensor, index: Tensor, own: Tensor | None = None) -> Tensor:
        """1.0 where this step must not reach the weights, else 0.0, on the device.

        loss: of the whole step, over all ranks. index: the files of this process's batch, on the CPU. own: (n,) the
        losses of its n micro-batches, which say in which of them a NaN came up.
        """
        bad_loss = ~torch.isfinite(loss)
        nonfinite = bad_loss | ~torch.isfinite(grad_norm)
        mean = self._running
        exploded = self._exploded(loss, bad_loss)
        fault = nonfinite | exploded
        self.skipped += fault
        worth_telling = bad_loss if self.tolerate_inf else nonfinite
        stops = torch.zeros_like(fault)
        if self.on_nonfinite == "stop":
            stops = stops | worth_telling
        if self.on_explosion == "stop":
            stops = stops | exploded
        own = loss[None] if own is None else own
        self._judged.append(_Judged(step, index, loss, own, mean, worth_telling | exploded, exploded, stops))
        return fault.float()

    def _exploded(self, loss: Tensor, bad_loss: Tensor) -> Tensor:
        """Whether a loss is finite and too large; the running mean takes it in.

        What is not finite would spoil the mean for ever. What has exploded counts as the bound that it broke: one step
        hardly moves the mean, and a higher level that lasts is reached in the end, so that not all steps are skipped.
        """
        if self.explosion_factor <= 0:
            return torch.zeros_like(bad_loss)
        bound = self.explosion_factor * self._running  # NaN before the first loss: nothing is above it
        exploded = (loss > bound) & ~bad_loss
        counted = torch.where(exploded, bound, loss)
        mean = torch.where(self._running.isnan(), loss, torch.lerp(self._running, counted, 0.02))
        self._running = torch.where(bad_loss, self._running, mean)
        return exploded

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
        flags = torch.stack([torch.stack([j.fault, j.exploded, j.stops]) for j in judged]).tolist()  # one wait
        lines = []
        for j, (fault, exploded, stop) in zip(judged, flags):
            if not fault or not stop and self._told >= MOST_TOLD:
                continue
            cause, remedy = self._cause(j, exploded)
            files = _name(gather(_suspects(j, file_name)))
            if stop:
                raise UserError(
                    f"Training stopped: {cause}. That step did not reach the weights. Lower SOLVER.BASE_LR, set "
                    f"SOLVER.CLIP_GRAD_L2NORM, {remedy}. {files}"
                )
            self._told += 1
            more = " Further ones are only counted." if self._told == MOST_TOLD else ""
            lines.append(f"Step {j.step} was skipped: {cause}. {files}{more}")
        return lines

    def _cause(self, judged: _Judged, exploded: bool) -> tuple[str, str]:
        """What was wrong with a step, and the key that lets a run pass over it."""
        said = f"at step {judged.step} the loss was {float(judged.loss):.4g}"
        if not exploded:
            return f"{said} or its gradient was not finite", "or set TRAIN.NONFINITE skip"
        factor = f"TRAIN.KILL_LOSS_EXPLOSION_FACTOR {self.explosion_factor:g}"
        cause = f"{said}, more than {factor} times its running mean {float(judged.mean):.4g}"
        return cause, "raise that factor, or set TRAIN.EXPLOSION skip"


def _suspects(judged: _Judged, file_name: Callable[[int], str]) -> tuple[bool, int, list[str]]:
    """Whether a micro-batch of this process had a loss that is no number; how many files the step is about here, all
    or those of such micro-batches, and what the first are called."""
    bad = ~torch.isfinite(judged.own.cpu())
    parts = judged.index.tensor_split(len(bad))
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
