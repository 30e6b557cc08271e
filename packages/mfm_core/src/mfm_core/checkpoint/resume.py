"""Continues a run exactly where it stopped: strict, everything, and only the same run.

All randomness of a run is a function of its seed and position (see `engine.randomness`), so the position is the only
random state there is to save.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mfm_core.checkpoint.folder import FACTS, REPLACED, damaged, is_folder, remove_folder
from mfm_core.checkpoint.io import load_facts, load_file_state, save_atomic
from mfm_core.checkpoint.sharded import load_parts
from mfm_core.checkpoint.state import FORMAT, UNSAID, TrainState, identity
from mfm_core.config.plan import RunPlan
from mfm_core.errors import UserError
from mfm_core.parallel.agree import together
from mfm_core.parallel.world import World

logger = logging.getLogger(__name__)
AFRESH = "set TRAIN.AUTO_RESUME False or another OUTPUT_DIR to start afresh"
ELSEWHERE = "take another OUTPUT_DIR"
WEIGHTS_ONLY = "set TRAIN.CHECKPOINT_EPOCH_RESET True to take its weights only"
PATIENCE_S = 5.0
"""How long a process looks for a checkpoint that another one lists."""
_BEFORE = re.compile(r"before_(\d+)")
_NAME = re.compile(rf"checkpoint_(epoch|step)_(\d+)(\.pyth|{re.escape(REPLACED)}|)")


def checkpoint_name(step: int, plan: RunPlan) -> str:
    """checkpoint_epoch_EEEEE after an epoch, else checkpoint_step_SSSSSSSS; a file's has .pyth behind it."""
    epoch, inside = divmod(step, plan.steps_per_epoch)
    return f"checkpoint_step_{step:08d}" if inside else f"checkpoint_epoch_{epoch:05d}"


def save_checkpoint(folder: Path, content: dict[str, Any], plan: RunPlan, keep: int) -> Path:
    """Writes the file that `checkpoint_name` says; prunes old ones.

    content: what `whole_state` returned on the main process. keep: how many of the newest stay, 0 for all.
    """
    remove_torn(folder)
    path = folder / f"{checkpoint_name(content['step'], plan)}.pyth"
    save_atomic(content, path)
    prune(folder, path, plan, keep)
    return path


def remove_torn(folder: Path) -> None:
    """Removes what is left of saves that were killed."""
    _remove(folder.glob(".checkpoint_*.tmp"))


def prune(folder: Path, newest: Path, plan: RunPlan, keep: int) -> None:
    """Removes all but `keep` checkpoints up to the `newest`; 0 keeps all."""
    if keep > 0:
        paths = list_checkpoints(folder, plan)
        # Those of later steps are torn, or of another run that was here: they must not push out what can be continued.
        _remove(paths[paths.index(newest) :][keep:])


def _remove(paths: Iterable[Path]) -> None:
    """Files that stay where they cannot be removed cost room, not the run."""
    for path in paths:
        try:
            if path.is_dir():
                remove_folder(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("warning: the old %s cannot be removed (%s).", path, error.strerror)


def list_checkpoints(folder: Path, plan: RunPlan | None = None) -> list[Path]:
    """The folder's checkpoints, newest (by optimizer step) first.

    Names count epochs or steps. How many steps an epoch has says the plan of the run that wrote them; without it, one
    of the checkpoints does.
    """
    return _newest_first(folder.glob("checkpoint_*"), plan)


def _newest_first(paths: Iterable[Path], plan: RunPlan | None = None) -> list[Path]:
    matches = [(_NAME.fullmatch(path.name), path) for path in paths]
    named = [(match[1], int(match[2]), match[3] != REPLACED, path) for match, path in matches if match]
    per_epoch = plan.steps_per_epoch if plan is not None else _steps_per_epoch(named)
    found = [(count * (per_epoch if unit == "epoch" else 1), whole, path) for unit, count, whole, path in named]
    return [path for *_, path in sorted(found, reverse=True)]


def _steps_per_epoch(named: list[tuple[str, int, bool, Path]]) -> int:
    """Steps of an epoch, as far as it takes to order checkpoints of which nothing but the names is known."""
    if len({unit for unit, *_ in named}) > 1:
        for unit, count, _, path in named:
            with suppress(Exception):  # what is wrong with a file is said where it is used
                if unit == "epoch" and count:
                    return _facts(path)["step"] // count
    return 1


def newest_checkpoint(folder: Path) -> Path | None:
    """The folder's newest checkpoint where no plan says how many steps an epoch has; None where there is none."""
    return next(iter(list_checkpoints(folder)), None)


def _facts(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself, its tensors left on the disk."""
    file = path / FACTS if path.is_dir() else path
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def machines_of(folder: Path, batch_size: int) -> int | None:
    """The machines that the run of this folder began on, where its batch is not `batch_size`; else None.

    TRAIN.BATCH_SIZE is meant for each: where a run goes on with more or fewer, its batch stays what it was.
    """
    for path in list_checkpoints(folder):
        with suppress(Exception):  # what is wrong with a file is said where it is resumed from
            content = _facts(path)
            same = content["identity"]["TRAIN.BATCH_SIZE over all machines"] == batch_size
            return None if same else content.get("machines")
    return None


def set_aside(folder: Path, continued: Path | None = None) -> Path | None:
    """Moves the checkpoints of an earlier run to a folder inside; returns that, or None where there are none.

    A run that begins anew would else be continued from them. continued: the checkpoint that it continues, which stays.
    """
    paths = [path for path in list_checkpoints(folder) if continued is None or path.resolve() != continued.resolve()]
    return move_aside(folder, paths)


def move_aside(folder: Path, paths: list[Path]) -> Path | None:
    """Moves what lies in `folder` to another before_N inside; returns that, or None where there is nothing."""
    if not paths:
        return None
    numbers = [int(match[1]) for path in folder.iterdir() if (match := _BEFORE.fullmatch(path.name))]
    aside = folder / f"before_{1 + max(numbers, default=0)}"
    aside.mkdir()
    for path in paths:
        path.rename(aside / path.name)
    return aside


def resume_latest(
    folder: Path, state: TrainState, plan: RunPlan, seed: int
) -> tuple[Path, dict[str, Any]] | tuple[None, None]:
    """Restores the newest readable checkpoint of `folder` into `state`; that and its content, or None.

    One that any process cannot read is warned of and all take the one before it. Raises UserError for a checkpoint of
    another run, and where the processes see different ones.
    """
    paths = _seen_by_all(folder, plan, state.strategy.world)
    for path in paths:
        try:
            content = read_state(path, state.strategy.world, "TRAIN.AUTO_RESUME")
        except UserError as error:
            logger.warning("%s Taking the checkpoint before it.", error)
            continue
        # Often the weights to begin with are those of this folder: what begins anew there would move them away.
        restore(content, state, plan, seed, path, AFRESH if is_training_state(content, plan) else ELSEWHERE)
        return path, content
    if paths:
        raise UserError(f"TRAIN.AUTO_RESUME: no checkpoint in {folder} can be read; move them away to start afresh.")
    return None, None


def read_state(path: Path | str, world: World, key: str = "TRAIN.CHECKPOINT_FILE_PATH") -> Any:
    """What a file holds; of a folder, which all processes look through together, all but the parts. All call.

    Raises UserError, on all of them, for what is missing or damaged where one looks.
    """
    return together(partial(_read, path, world, key), world)


def _read(path: Path | str, world: World, key: str) -> Any:
    if not is_folder(path):
        return load_file_state(str(path), key)
    content = load_facts(Path(path), key)
    own = dict(sorted(content["files"].items())[world.rank :: world.size])
    if wrong := damaged(Path(path), own):
        raise UserError(f"{key}: the checkpoint {path} is corrupt: {wrong[0]} is missing or not what was written.")
    return content


def _seen_by_all(folder: Path, plan: RunPlan, world: World) -> list[Path]:
    """The checkpoints that all processes see in OUTPUT_DIR, newest first. All call.

    Network file systems list a folder, for a minute, as it was before; what one process lists, the others look for by
    its name. Raises UserError, on all of them, where one does not see the newest.
    """
    listed = world.gather({path.name for path in list_checkpoints(folder, plan)})
    paths = _newest_first((folder / name for name in set().union(*listed)), plan)
    end = time.monotonic() + PATIENCE_S
    while not all(path.exists() for path in paths) and time.monotonic() < end:
        time.sleep(0.2)
    seen = world.gather([path.exists() for path in paths])
    blind = [rank for rank, sees in enumerate(seen) if paths and not sees[0]]
    if blind:
        raise UserError(
            f"The processes found different checkpoints (process {blind[0]} does not see {paths[0].name}); OUTPUT_DIR "
            f"{folder.parent} must be one folder that all machines share."
        )
    return [path for path, *sees in zip(paths, *seen) if all(sees)]


def is_training_state(content: Any, plan: RunPlan) -> bool:
    """Whether a checkpoint's content can be continued by a run of this task."""
    return isinstance(content, dict) and content.get("format") == FORMAT and content["identity"]["task"] == plan.task


def restore(
    content: dict[str, Any], state: TrainState, plan: RunPlan, seed: int, path: Path | str, remedy: str = WEIGHTS_ONLY
) -> None:
    """Puts everything back in place. Raises UserError, naming what differs and the remedy, for another run's."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} holds no training state; use it through TRAIN.CHECKPOINT_FILE_PATH instead.")
    for what, here in identity(plan, seed).items():
        there = content["identity"].get(what, UNSAID.get(what))
        if there != here:
            raise UserError(f"{path} is of another run ({what}: {there} there, {here} here); {remedy}.")
    here, there = type(state.optimizer).__name__, content.get("optimizer")
    if there not in (here, None):
        raise UserError(f"{path} is of another optimizer ({there} there, {here} here); {remedy}.")
    try:
        if "files" in content:
            load_parts(state, Path(path), content["optimizer_groups"])
        else:
            _load_whole(state, content)
    except (RuntimeError, ValueError, KeyError) as error:
        line = " ".join(str(error).split())[:300]
        raise UserError(f"{path} is of another model or optimizer ({line}); {remedy}.") from None
    if content["scaler_state"] and state.scaler.is_enabled():
        state.scaler.load_state_dict(content["scaler_state"])
    state.guard.load_state_dict(content["guard_state"])
    state.step, state.held = content["step"], content.get("held", {})
    for name, value in content["meters"].items():
        state.meters[name].copy_(value)


def _load_whole(state: TrainState, content: dict[str, Any]) -> None:
    state.strategy.load_model(state.model, content["model_state"])
    if state.average is not None:
        state.strategy.load_model(state.average, content["ema_state"] or content["model_state"])
    state.strategy.load_optimizer(state.optimizer, content["optimizer_state"])
