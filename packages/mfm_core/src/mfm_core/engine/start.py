"""How a run begins: what is decided before, and the checkpoint or the weights that it goes on from, if any."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from fvcore.common.config import CfgNode

from mfm_core.checkpoint.init_from import init_from
from mfm_core.checkpoint.resume import (
    AFRESH,
    WEIGHTS_ONLY,
    is_training_state,
    list_checkpoints,
    move_aside,
    read_state,
    restore,
    resume_latest,
    set_aside,
)
from mfm_core.checkpoint.same_run import compare_runs, held, start_digest
from mfm_core.checkpoint.state import TrainState
from mfm_core.config import RunPlan
from mfm_core.engine.alike import require_same_weights
from mfm_core.errors import UserError
from mfm_core.interfaces import Task
from mfm_core.mirror import Mirror
from mfm_core.parallel.agree import together
from mfm_core.parallel.world import World


@dataclass(frozen=True)
class Setup:
    """What is decided before a run trains or evaluates.

    cfg, task, plan: what is run. world: this process. folder: where it writes. precision: fp32 | bf16 | fp16. warnings:
    of the configuration. mirror: what the folder is copied to, where OUTPUT_DIR is an address.
    """

    cfg: CfgNode
    task: Task
    plan: RunPlan
    world: World
    folder: Path
    precision: str
    warnings: list[str]
    mirror: Mirror | None = None


@dataclass(frozen=True)
class Restored:
    """What a run begins with, in lines for the log; the checkpoint that it continues, None where it begins."""

    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    continued: Path | None = None


def begin(setup: Setup, state: TrainState) -> Restored:
    """Continues this folder's run, or another's, or takes weights."""
    cfg, plan = setup.cfg, setup.plan
    if cfg.TRAIN.AUTO_RESUME:
        path, content = resume_latest(setup.folder / "checkpoints", state, plan, cfg.RNG_SEED)
        if path is not None:
            return _continued(setup, state, content, path, AFRESH)
    path = cfg.TRAIN.CHECKPOINT_FILE_PATH
    if path and not cfg.TRAIN.CHECKPOINT_EPOCH_RESET:
        content = read_state(path, state.strategy.world)
        if is_training_state(content, plan):
            require_same_weights(content.get("files") or content["model_state"], path, setup.world)
            restore(content, state, plan, cfg.RNG_SEED, path)
            return _continued(setup, state, content, path, WEIGHTS_ONLY)
    state.held = _training_files(setup)
    if not path:
        return Restored()
    if _lies_in_folder(path, setup):
        raise UserError(
            f"TRAIN.CHECKPOINT_FILE_PATH {path} lies in OUTPUT_DIR, and TRAIN.AUTO_RESUME False moves away what is "
            "there; choose another OUTPUT_DIR."
        )
    whole = state.strategy.whole(state.model)
    report = together(partial(init_from, whole, path, cfg.TRAIN.CHECKPOINT_MIN_MATCH, cfg=cfg), setup.world)
    require_same_weights(whole.state_dict(), path, setup.world)
    for model in (state.model, state.average) if state.average is not None else (state.model,):
        state.strategy.load_model(model, whole.state_dict())
    if setup.world.is_main:
        state.held |= start_digest(path)
    return Restored([f"weights from {path}", *report.lines()], report.warnings)


def _continued(setup: Setup, state: TrainState, content: dict, path: Path | str, remedy: str) -> Restored:
    """What to say where `state` is that of `content`. Raises UserError, on all processes, where it must not be."""
    files, step, total = _training_files(setup), state.step, setup.plan.total_steps
    compare = partial(compare_runs, content, setup.cfg, files, step >= total, path, remedy)
    warnings = together(compare if setup.world.is_main else list, setup.world)
    state.held = {**state.held, **files}
    return Restored([f"continuing from {path} (step {step} of {total})"], warnings, Path(path))


def _lies_in_folder(path: str, setup: Setup) -> bool:
    """Whether a checkpoint is one of those in the folder where the run writes, by its path or its address."""
    if setup.mirror is not None:
        path = path.replace(setup.mirror.address, str(setup.mirror.folder), 1)
    return Path(path).resolve() in {own.resolve() for own in list_checkpoints(setup.folder / "checkpoints")}


def _training_files(setup: Setup) -> dict[str, str]:
    listing = setup.task.train_set.listing
    return held(listing.paths, listing.labels)


def clear_away(cfg: CfgNode, world: World, folder: Path, continued: Path | None) -> list[str]:
    """Where the run does not continue what is in its folder, moves that away, once all processes have read from it."""
    if continued and cfg.TRAIN.AUTO_RESUME:
        return []
    moved = together(partial(_clear, folder, continued) if world.is_main else dict, world)
    return [f"begins anew: the {what} of the run before lie in {place}" for what, place in moved.items() if place]


def _clear(folder: Path, continued: Path | None) -> dict[str, Path | None]:
    """Where what lay there is now, None where nothing did. Raises UserError where it cannot be moved."""
    shown = [] if continued else sorted((folder / "pictures").glob("*.*"))
    try:
        return {
            "checkpoints": set_aside(folder / "checkpoints", continued),
            "pictures": move_aside(folder / "pictures", shown),
        }
    except OSError as error:
        why = f"what an old run left in {folder} cannot be moved away ({error.strerror})"
        raise UserError(f"OUTPUT_DIR: {why}; choose another folder.") from None
