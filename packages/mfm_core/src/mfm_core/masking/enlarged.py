"""Masks enlarged to a finer grid than they were drawn on: that of a window (cubes, tubes, frames) or a pooled stage."""

from __future__ import annotations

import torch
from torch import Tensor

from mfm_core.errors import UserError
from mfm_core.interfaces import Grid, MaskGenerator


class Enlarged:
    """Draws a mask over a coarse `window` and repeats each of its places until it is as large as `grid`.

    PySlowFast draws MaskFeat's cubes in a window of 8 x 7 x 7 for a grid of 8 x 14 x 14. With a window of one time step
    what is hidden is hidden all the time (tubes, VideoMAE, Tong et al. 2022), with one of a single place in space whole
    frames are hidden. Raises UserError where the window does not divide the grid.
    """

    def __init__(self, masker: MaskGenerator, window: Grid, grid: Grid) -> None:
        self.masker, self.window, self.grid = masker, tuple(window), tuple(grid)
        if len(window) != len(grid) or any(n % w for n, w in zip(grid, window)):
            raise UserError(
                f"AUG.MASK_WINDOW_SIZE {list(window)} must divide the token grid {' x '.join(map(str, grid))} of "
                "this model and clip (time, height, width)."
            )

    def __call__(self, generator: torch.Generator, image: Tensor | None = None) -> Tensor:
        """(*grid) bool, True = hidden; the clip is not looked at."""
        return enlarge(self.masker(generator, image).reshape(self.window), self.grid)


def enlarge(mask: Tensor, grid: Grid) -> Tensor:
    """(..., *coarse) to (..., *grid), each cell the one of `mask` that it lies in; nothing where the grids are equal.

    Where the grids are no multiples of each other, a cell lies where its first corner does (nearest resizing).
    """
    for axis, size in enumerate(grid, start=-len(grid)):
        coarse = mask.shape[axis]
        if coarse != size:
            mask = mask.index_select(axis, torch.arange(size, device=mask.device) * coarse // size)
    return mask
