"""Whether the processes of a run are about to do the same: asked when it starts, before any waits for another in vain.

The command is typed on each machine, which has its own files, its own processors and its own view of shared folders.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from mfm_core.config.load import flatten
from mfm_core.errors import UserError
from mfm_core.interfaces import Task
from mfm_core.parallel.agree import counted, require_alike
from mfm_core.parallel.world import World
from mfm_core.paths import is_remote
from mfm_core.probe.store import weights_digest

OWN = {"NUM_GPUS", "DEVICE", "DATA_LOADER.NUM_WORKERS", "DATA_LOADER.PIN_MEMORY"}
"""Keys that each machine may have its own value of."""
PLACES = {
    *("OUTPUT_DIR", "DATA.PATH_TO_DATA_DIR", "DATA.PATH_PREFIX"),
    *("TRAIN.CHECKPOINT_FILE_PATH", "TEST.CHECKPOINT_FILE_PATH"),
}
"""The same of paths: a folder may be mounted elsewhere. Addresses are the same for all."""


def require_one_configuration(cfg: CfgNode, world: World) -> None:
    """Raises UserError, on all processes, where they were started with different configurations. All call."""
    facts = {key: _place(value) if key in PLACES else str(value) for key, value in flatten(cfg) if key not in OWN}
    facts["number of machines"] = str(world.num_shards)
    require_alike(facts, world, "The processes were started with different configurations", "start all with the same")


def require_same_work(task: Task, precision: str, world: World) -> None:
    """Raises UserError, on all processes, where they found different files, or would compute in different precisions.

    All call, before anything that takes all of them.
    """
    listings = task.listings()
    files = {
        f"{what} files": counted(len(it.paths), it.paths.content() + it.labels.tobytes())
        for what, it in listings.items()
    }
    require_alike(files, world, "The processes found different files", "all machines need the same data")
    remedy = "set TRAIN.PRECISION fp32, or another that all machines have"
    computed = {"TRAIN.PRECISION": precision}
    require_alike(computed, world, "The processes would compute in different precisions", remedy)


def require_same_weights(state: Mapping[str, Tensor | int], path: Path | str, world: World) -> None:
    """Raises UserError, on all processes, where they have different weights from `path`. All call.

    state: tensors by name, or the checksums of the files that they are in.
    """
    if world.size == 1:
        return
    tensors = {name: value if isinstance(value, Tensor) else torch.tensor(value) for name, value in state.items()}
    facts = {"digest": weights_digest(tensors)}
    require_alike(facts, world, f"The processes have different weights from {path}", "all need the same file")


def require_shared(folder: Path, world: World) -> None:
    """Raises UserError, on all processes, where one does not see what the main one writes to OUTPUT_DIR. All call."""
    if world.size == 1:
        return
    name = f".shared.{uuid.uuid4().hex}" if world.is_main else None
    if world.is_main:
        with suppress(OSError):
            (folder / name).write_text("")
    name = world.from_main(name if world.is_main and (folder / name).exists() else None)
    if name is None:  # a disk that takes nothing is somebody else's to complain of
        return
    blind = [rank for rank, sees in enumerate(world.gather((folder / name).exists())) if not sees]
    if world.is_main:
        with suppress(OSError):
            (folder / name).unlink()
    if blind:
        raise UserError(
            f"OUTPUT_DIR {folder}: process {blind[0]} does not see what the main one writes there. With "
            "TRAIN.CHECKPOINT_FORMAT sharded it must be one folder that all machines share; else take consolidated."
        )


def _place(path: str) -> str:
    """What all must have alike of a path."""
    return path if is_remote(path) or not path else "a path"
