"""Frozen features of a whole data set, gathered over ranks, the same whatever the number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from mfm_core.errors import UserError
from mfm_core.interfaces import Batch


@torch.no_grad()
def collect(
    model_features: Callable[[Tensor], Tensor],
    loader: Iterable[Batch],
    device: torch.device | str,
    autocast: AbstractContextManager | None = None,
) -> tuple[Tensor, Tensor]:
    """Features (N, D) float32 and labels (N,) int64, both on CPU, of every image that the ranks' loaders give.

    See `collect_indexed`.
    """
    return collect_indexed(model_features, loader, device, autocast)[:2]


@torch.no_grad()
def collect_indexed(
    model_features: Callable[[Tensor], Tensor],
    loader: Iterable[Batch],
    device: torch.device | str,
    autocast: AbstractContextManager | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `collect`, and each row's `Batch.index` (N,) int64: unreadable images have no row.

    `model_features` maps (B, C, *size) on `device` to (B, D); the caller has put the model into evaluation mode.
    `autocast` is entered around each of its calls, so it must be reusable, as `torch.autocast(...)` is.
    Under `torch.distributed` all ranks must call, and all get the whole result. Rows are ordered by `Batch.index` and
    an index that comes twice (samplers pad the last batch) counts once, so that the result equals one process's.
    Raises `UserError` where no rank's loader gives a batch.
    """
    device = torch.device(device)
    autocast = autocast if autocast is not None else nullcontext()
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in loader:
        if not len(batch):  # all its files were unreadable
            continue
        inputs = batch.inputs.to(device, non_blocking=True)
        with autocast:
            features = model_features(inputs)
        found.append((features.float().cpu(), batch.labels.cpu(), batch.index.cpu()))
    empty = (torch.empty(0, 0), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    features, labels, index = (torch.cat(parts) for parts in zip(*found)) if found else empty
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        features, labels, index = _gather(features, labels, index, device)
    if len(index) == 0:
        raise UserError("none of the files to take features of can be read; check them with `run_net.py doctor`")
    order = _first_of_each(index)
    return features[order], labels[order], index[order]


def _first_of_each(index: Tensor) -> Tensor:
    """Positions that sort `index` (N,) and keep the first of equal entries."""
    order = index.argsort(stable=True)
    ordered = index[order]
    return order[F.pad(ordered[1:] != ordered[:-1], (1, 0), value=True)]


def _gather(features: Tensor, labels: Tensor, index: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Concatenates all ranks' rows on all ranks, in rank order; ranks may hold different numbers of rows, also none."""
    on = device if dist.get_backend() == "nccl" else torch.device("cpu")
    shapes = _all_gather(torch.tensor([len(index), features.shape[1]], device=on))
    rows = [int(shape[0]) for shape in shapes]
    most, dim = max(rows), max(int(shape[1]) for shape in shapes)
    if len(features) == 0:
        features = features.new_empty(0, dim)
    numbers = torch.stack([labels, index], dim=1)
    padded = [F.pad(part, (0, 0, 0, most - len(part))).to(on) for part in (features, numbers)]
    features, numbers = (torch.cat([part[:n].cpu() for part, n in zip(_all_gather(whole), rows)]) for whole in padded)
    return features, numbers[:, 0], numbers[:, 1]


def _all_gather(value: Tensor) -> list[Tensor]:
    """`value` of every rank, in rank order; shapes must agree."""
    parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, value.contiguous())
    return parts
