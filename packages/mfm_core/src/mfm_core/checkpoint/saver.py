"""Writes a run's checkpoints, in one file or in parts, at once or while training goes on."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from mfm_core.checkpoint.folder import torn_name
from mfm_core.checkpoint.resume import checkpoint_name, prune, remove_torn, save_checkpoint
from mfm_core.checkpoint.sharded import commit, parts_of
from mfm_core.checkpoint.state import TrainState, facts, whole_state
from mfm_core.config.plan import RunPlan
from mfm_core.errors import UserError
from mfm_core.parallel.parts import agreement, staged, write_parts
from mfm_core.parallel.world import World


@dataclass(frozen=True)
class Outcome:
    """How a save ended, the same on all processes. error: why it failed, in a line; None where it did not."""

    step: int
    path: Path
    error: str | None


class Saver(ABC):
    """Begin with `start`, and go on when `outcome` says how it ended. All processes call both alike.

    background: the files are written in a thread, from copies; at most one save is under way.
    """

    suffix = ""
    """Behind the checkpoint's name."""

    def __init__(self, folder: Path, plan: RunPlan, cfg: CfgNode, world: World, background: bool) -> None:
        self.folder, self.plan, self.cfg, self.world, self.background = folder, plan, cfg, world, background
        self.keep = cfg.TRAIN.CHECKPOINT_KEEP
        self._thread: threading.Thread | None = None
        self._begun: tuple[int, Path] | None = None
        self._error: str | None = None

    def start(self, state: TrainState) -> None:
        """Saves this moment's state; the save before must have had its outcome."""
        name = checkpoint_name(state.step, self.plan) + self.suffix
        self._begun, self._error = (state.step, self.folder / name), None
        work = self._prepare(state, self._begun[1])
        if not self.background:
            self._run(work)
            return
        self._thread = threading.Thread(target=self._run, args=(work,), name="checkpoint", daemon=True)
        self._thread.start()

    def outcome(self, wait: bool) -> Outcome | None:
        """How the save that was started ended; None without one, or where it goes on and nobody shall `wait`."""
        if self._begun is None:
            return None
        if self._thread is not None:
            if not wait and any(self.world.gather(self._thread.is_alive())):
                return None
            self._thread.join()
            self._thread = None
        error = next((error for error in self.world.gather(self._error) if error is not None), None)
        outcome = Outcome(*self._begun, error)
        self._begun = None
        return outcome

    def leave(self, seconds: float = 60.0) -> None:
        """Gives a save that is under way this long to end, where the run ends for another reason."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except UserError as error:
            self._error = str(error)
        except Exception as error:  # any other would end with the thread, and the save count as done
            line = " ".join(str(error).split())[:200] or type(error).__name__
            full = isinstance(error, MemoryError)
            remedy = (
                "main memory is full; lower DATA_LOADER.NUM_WORKERS" if full else "free the disk or change OUTPUT_DIR"
            )
            self._error = f"Cannot write the checkpoint {self._begun[1]} ({line}); {remedy}."

    @abstractmethod
    def _prepare(self, state: TrainState, path: Path) -> Callable[[], None]:
        """Whatever takes all processes together, and copies of what training would change; the work that is left."""


def _fail(error: Exception) -> None:
    raise error


class FileSaver(Saver):
    """Everything in one file, which the main process writes."""

    suffix = ".pyth"

    def _prepare(self, state: TrainState, path: Path) -> Callable[[], None]:
        content = whole_state(state, self.plan, self.cfg)
        if not self.world.is_main:
            return lambda: None
        try:
            content = copied(content) if self.background else content
        except (MemoryError, RuntimeError) as error:  # torch raises either where main memory is full
            return partial(_fail, error)
        return lambda: save_checkpoint(self.folder, content, self.plan, self.keep)


class FolderSaver(Saver):
    """A folder, to which every process writes its part."""

    def __init__(self, folder: Path, plan: RunPlan, cfg: CfgNode, world: World, background: bool) -> None:
        super().__init__(folder, plan, cfg, world, background)
        self.group = agreement(world, cfg.DIST.TIMEOUT)

    def _prepare(self, state: TrainState, path: Path) -> Callable[[], None]:
        refused = self.world.from_main(self._make_room(path) if self.world.is_main else None)
        parts = staged(*parts_of(state), self.world)
        rest = facts(state, self.plan, self.cfg)
        rest = copied({**rest, "optimizer_groups": state.strategy.options(state.optimizer)})

        def finish() -> None:
            commit(path, rest)
            prune(self.folder, path, self.plan, self.keep)

        def work() -> None:
            if refused is not None:
                raise OSError(refused)
            write_parts(parts, torn_name(path), finish, self.group)

        return work

    def _make_room(self, path: Path) -> str | None:
        """Removes what earlier saves have left, and makes the folder; what is wrong, where that fails."""
        try:
            remove_torn(self.folder)
            torn_name(path).mkdir(parents=True)
        except OSError as error:
            return error.strerror or str(error)
        return None


SAVERS = {"consolidated": FileSaver, "sharded": FolderSaver}
"""By TRAIN.CHECKPOINT_FORMAT."""


def saver_from_cfg(cfg: CfgNode, folder: Path, plan: RunPlan, world: World) -> Saver:
    """The saver of a run; folder: of its checkpoints."""
    return SAVERS[cfg.TRAIN.CHECKPOINT_FORMAT](folder, plan, cfg, world, cfg.TRAIN.CHECKPOINT_ASYNC)


def copied(content: Any) -> Any:
    """The same with copies of its tensors on the CPU."""
    if isinstance(content, torch.Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, dict):
        return {key: copied(value) for key, value in content.items()}
    return [copied(value) for value in content] if isinstance(content, list) else content
