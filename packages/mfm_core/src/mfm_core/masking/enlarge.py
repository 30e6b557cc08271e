"""Masks on a finer grid than they were drawn on: at the resolution of a window, or of a pooled stage."""

from __future__ import annotations

import torch
from torch import Tensor

from mfm_core.interfaces import Grid


def enlarge(mask: Tensor, grid: Grid) -> Tensor:
    """(..., *coarse) to (..., *grid), each cell the one of `mask` that it lies in; nothing where the grids are equal.

    Where the grids are no multiples of each other, a cell lies where its first corner does (nearest resizing).
    """
    for axis, size in enumerate(grid, start=-len(grid)):
        coarse = mask.shape[axis]
        if coarse != size:
            mask = mask.index_select(axis, torch.arange(size, device=mask.device) * coarse // size)
    return mask
