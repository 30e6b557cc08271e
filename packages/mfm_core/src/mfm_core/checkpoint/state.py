"""What a checkpoint of a run holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from mfm_core.config.plan import RunPlan
from mfm_core.parallel.strategy import Strategy

FORMAT = "mfm-1"


@dataclass
class TrainState:
    """Everything that a training step changes."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: nn.Module | None
    guard: Any
    """Offers `state_dict` and `load_state_dict`."""
    strategy: Strategy
    """How model, average and optimizer lie on the processes."""
    step: int = 0
    meters: dict[str, torch.Tensor] = field(default_factory=dict)
    """Sums of the running epoch, for its log line; scalars on the training device."""
    held: dict[str, str] = field(default_factory=dict)
    """Digests of what the files held that the run was made from, by the keys that name them; see `same_run`."""


UNSAID = {"DATA_LOADER.DROP_LAST": True}
"""What held when checkpoints did not yet say it."""


def identity(plan: RunPlan, seed: int) -> dict[str, Any]:
    """What must be equal for a checkpoint to belong to the same run; the number of processes may differ."""
    return {
        "task": plan.task,
        "training files": plan.files,
        "TRAIN.BATCH_SIZE over all machines": plan.batch_size,
        "DATA_LOADER.DROP_LAST": plan.drop_last,
        "SOLVER.MAX_EPOCH": plan.epochs,
        "RNG_SEED": seed,
    }


def facts(state: TrainState, plan: RunPlan, cfg: CfgNode) -> dict[str, Any]:
    """What a checkpoint holds beside the tensors of the model, of its average and of the optimizer's state."""
    return {
        "format": FORMAT,
        "epoch": state.step // plan.steps_per_epoch,
        "step": state.step,
        "machines": plan.machines,
        "identity": identity(plan, cfg.RNG_SEED),
        "optimizer": type(state.optimizer).__name__,
        "scaler_state": state.scaler.state_dict(),
        "guard_state": state.guard.state_dict(),
        "meters": state.meters,
        "held": state.held,
        "cfg": cfg.dump(),
    }


def whole_state(state: TrainState, plan: RunPlan, cfg: CfgNode) -> dict[str, Any]:
    """What a checkpoint holds, put together from all processes on the main one. All call."""
    strategy = state.strategy
    return {
        **facts(state, plan, cfg),
        "model_state": strategy.model_state(state.model),
        "optimizer_state": strategy.optimizer_state(state.optimizer),
        "ema_state": strategy.model_state(state.average) if state.average is not None else None,
    }
