"""Continues a run exactly where it stopped: strict, everything, and only the same run.

All randomness of a run is a function of its seed and position (see `engine.randomness`), so the position is the only
random state there is to save.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from mfm_core.checkpoint.io import load_file_state, save_atomic
from mfm_core.config.plan import RunPlan
from mfm_core.errors import UserError
from mfm_core.parallel.strategy import Strategy

logger = logging.getLogger(__name__)
FORMAT = "mfm-1"
_AFRESH = "set TRAIN.AUTO_RESUME False or another OUTPUT_DIR to start afresh"
_WEIGHTS_ONLY = "set TRAIN.CHECKPOINT_EPOCH_RESET True to take its weights only"
_NAME = re.compile(r"checkpoint_(epoch|step)_(\d+)\.pyth")


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


def identity(plan: RunPlan, seed: int) -> dict[str, Any]:
    """What must be equal for a checkpoint to belong to the same run; the number of processes may differ."""
    return {
        "task": plan.task,
        "training files": plan.files,
        "TRAIN.BATCH_SIZE over all machines": plan.batch_size,
        "SOLVER.MAX_EPOCH": plan.epochs,
        "RNG_SEED": seed,
    }


def whole_state(state: TrainState, plan: RunPlan, cfg: CfgNode) -> dict[str, Any]:
    """What a checkpoint holds, put together from all processes on the main one. All call."""
    strategy = state.strategy
    return {
        "format": FORMAT,
        "epoch": state.step // plan.steps_per_epoch,
        "step": state.step,
        "machines": plan.machines,
        "identity": identity(plan, cfg.RNG_SEED),
        "model_state": strategy.model_state(state.model),
        "optimizer_state": strategy.optimizer_state(state.optimizer),
        "scaler_state": state.scaler.state_dict(),
        "ema_state": strategy.model_state(state.average) if state.average is not None else None,
        "guard_state": state.guard.state_dict(),
        "meters": state.meters,
        "cfg": cfg.dump(),
    }


def save_checkpoint(folder: Path, content: dict[str, Any], plan: RunPlan, keep: int) -> Path:
    """Writes checkpoint_epoch_EEEEE.pyth after an epoch, else checkpoint_step_SSSSSSSS.pyth; prunes old ones.

    content: what `whole_state` returned on the main process. keep: how many of the newest stay, 0 for all.
    """
    _remove(folder.glob(".checkpoint_*.tmp"))  # of a save that was killed
    step = content["step"]
    epoch, inside = divmod(step, plan.steps_per_epoch)
    path = folder / (f"checkpoint_step_{step:08d}.pyth" if inside else f"checkpoint_epoch_{epoch:05d}.pyth")
    save_atomic(content, path)
    if keep > 0:
        paths = list_checkpoints(folder, plan)
        # Those of later steps are torn, or of another run that was here: they must not push out what can be continued.
        _remove(paths[paths.index(path) :][keep:])
    return path


def _remove(paths: Iterable[Path]) -> None:
    """Files that stay where they cannot be removed cost room, not the run."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("warning: the old %s cannot be removed (%s).", path, error.strerror)


def list_checkpoints(folder: Path, plan: RunPlan) -> list[Path]:
    """The folder's checkpoints, newest (by optimizer step) first."""
    found = []
    for path in folder.glob("checkpoint_*.pyth"):
        match = _NAME.fullmatch(path.name)
        if match:
            step = int(match[2]) * (plan.steps_per_epoch if match[1] == "epoch" else 1)
            found.append((step, path))
    return [path for _, path in sorted(found, reverse=True)]


def newest_checkpoint(folder: Path) -> Path | None:
    """The folder's newest checkpoint where no plan says how many steps an epoch has; None where there is none."""
    newest: dict[str, tuple[int, Path]] = {}
    for path in folder.glob("checkpoint_*.pyth"):
        match = _NAME.fullmatch(path.name)
        if match:
            newest[match[1]] = max(newest.get(match[1], (-1, path)), (int(match[2]), path))
    paths = [path for _, path in newest.values()]
    return (
        max(paths, key=lambda path: load_file_state(str(path))["step"]) if len(paths) > 1 else next(iter(paths), None)
    )


def machines_of(folder: Path, batch_size: int) -> int | None:
    """The machines that the run of this folder began on, where its batch is not `batch_size`; else None.

    TRAIN.BATCH_SIZE is meant for each: where a run goes on with more or fewer, its batch stays what it was.
    """
    for path in sorted(folder.glob("checkpoint_*.pyth"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        with suppress(Exception):  # what is wrong with a file is said where it is resumed from
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            same = content["identity"]["TRAIN.BATCH_SIZE over all machines"] == batch_size
            return None if same else content.get("machines")
    return None


def resume_latest(folder: Path, state: TrainState, plan: RunPlan, seed: int) -> Path | None:
    """Restores the newest readable checkpoint of `folder` into `state`; None where there is none.

    A corrupt file is warned of and the one before it is taken. Raises UserError for a checkpoint of another run.
    """
    paths = list_checkpoints(folder, plan)
    for path in paths:
        try:
            content = load_file_state(str(path), key="TRAIN.AUTO_RESUME")
        except UserError as error:
            logger.warning("%s Taking the checkpoint before it.", error)
            continue
        restore(content, state, plan, seed, path, remedy=_AFRESH)
        return path
    if paths:
        raise UserError(f"TRAIN.AUTO_RESUME: no checkpoint in {folder} can be read; move them away to start afresh.")
    return None


def is_training_state(content: Any, plan: RunPlan) -> bool:
    """Whether a checkpoint's content can be continued by a run of this task."""
    return isinstance(content, dict) and content.get("format") == FORMAT and content["identity"]["task"] == plan.task


def restore(
    content: dict[str, Any], state: TrainState, plan: RunPlan, seed: int, path: Path | str, remedy: str = _WEIGHTS_ONLY
) -> None:
    """Puts everything back in place. Raises UserError, naming what differs and the remedy, for another run's."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} holds no training state; use it through TRAIN.CHECKPOINT_FILE_PATH instead.")
    for what, here in identity(plan, seed).items():
        there = content["identity"].get(what)
        if there != here:
            raise UserError(f"{path} is of another run ({what}: {there} there, {here} here); {remedy}.")
    try:
        state.strategy.load_model(state.model, content["model_state"])
        if state.average is not None:
            state.strategy.load_model(state.average, content["ema_state"] or content["model_state"])
        state.strategy.load_optimizer(state.optimizer, content["optimizer_state"])
    except (RuntimeError, ValueError, KeyError) as error:
        line = " ".join(str(error).split())[:300]
        raise UserError(f"{path} is of another model or optimizer ({line}); {remedy}.") from None
    if content["scaler_state"] and state.scaler.is_enabled():
        state.scaler.load_state_dict(content["scaler_state"])
    state.guard.load_state_dict(content["guard_state"])
    state.step = content["step"]
    for name, value in content["meters"].items():
        state.meters[name].copy_(value)
