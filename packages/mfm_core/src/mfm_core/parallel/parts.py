"""Tensors in a folder, to which every process writes its own part (torch.distributed.checkpoint).

The files are safetensors: numbers, and a header in JSON that says which part of which tensor they are. torch's own
files have that in a pickle beside them, which runs code when it is read.
"""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor

from mfm_core.parallel.world import World

warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
"""Reading is each process's own affair; torch wonders."""
Parts = dict[str, Tensor]
"""By name: a DTensor has this process's piece, any other tensor is whole."""
SUMS = ".sum.json"
"""What a file's checksum is called, beside it, until all are known to all."""
CHUNK = 1 << 24


class _Writer(HuggingFaceStorageWriter):
    """Each process writes one file; when all have, the main one calls `commit`, and all hear how that went."""

    def __init__(self, folder: Path, commit: Callable[[], None]) -> None:
        super().__init__(str(folder), save_distributed=True)
        self.folder, self.commit = folder, commit

    def write_data(self, plan: Any, planner: Any) -> Any:
        """torch's, and a checksum of what is in the file."""
        result = super().write_data(plan, planner)
        for written in result.value():
            name = written.storage_data.relative_path
            sums = self.folder / f"{name}{SUMS}"
            if not sums.exists():
                sums.write_text(json.dumps(checksum(self.folder / name)))
        return result

    def finish(self, metadata: Any, results: Any) -> None:
        """Where to find what is said in the files themselves."""
        self.commit()


def write_parts(parts: Parts, folder: Path, commit: Callable[[], None], group: dist.ProcessGroup | None) -> None:
    """Writes the parts of all processes and has the main one `commit`. All call, with parts on the CPU.

    A tensor that is whole is written by one of the processes that pass it in. group: to agree through, None for a
    single process. Raises on all processes where one of them fails.
    """
    try:
        dcp.save(parts, storage_writer=_Writer(folder, commit), process_group=group, no_dist=group is None)
    except CheckpointException as failed:  # torch's has all processes' errors, and is no Exception
        error, _ = next(iter(failed.failures.values()))
        raise OSError(str(error)) from None


def collect_sums(folder: Path) -> dict[str, int]:
    """The checksums of a folder's files, by name; takes away what they were noted in."""
    sums = {}
    for path in sorted(folder.glob(f"*{SUMS}")):
        sums[path.name.removesuffix(SUMS)] = json.loads(path.read_text())
        path.unlink()
    return sums


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    total = 0
    with open(path, "rb") as file:
        while data := file.read(CHUNK):
            total = zlib.crc32(data, total)
    return total


def outlines(folder: Path) -> Parts:
    """The folder's tensors, whole, on the meta device. Runs no code of theirs; raises for files that are damaged."""
    found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: torch.empty(one.size, dtype=one.properties.dtype, device="meta") for name, one in found.items()}


def read_parts(parts: Parts, folder: Path) -> None:
    """Fills `parts` in place, each process for itself, whoever wrote them. Raises where one is missing or has another
    shape."""
    dcp.load(parts, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)


def staged(parts: Parts, alike: set[str], world: World) -> Parts:
    """Copies on the CPU, which training does not change, of what this process has to write.

    alike: the names of those that all processes have; they are dealt out, by size.
    """
    own, loads = set(parts) - alike, [0] * world.size
    for name in sorted(alike, key=lambda name: (-parts[name].numel(), name)):
        writer = loads.index(min(loads))
        loads[writer] += parts[name].nbytes
        own |= {name} if writer == world.rank else set()
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in parts.items() if name in own}


def like(piece: Tensor, whole: Tensor) -> Tensor:
    """`piece` as this process's part of a tensor that is distributed as `whole` is; itself, where that is in one."""
    if not isinstance(whole, DTensor):
        return piece
    return DTensor.from_local(
        piece, whole.device_mesh, whole.placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def is_piece(tensor: Tensor) -> bool:
    """Whether other processes have other pieces of it."""
    return isinstance(tensor, DTensor)


def agreement(world: World, timeout_s: float) -> dist.ProcessGroup | None:
    """A way to agree beside that of training, for another thread; None for a single process. All call.

    timeout_s: how long it waits for a process.
    """
    return dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s)) if world.size > 1 else None
