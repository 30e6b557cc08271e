"""Masks drawn over a coarse window and enlarged to a clip's token grid: cubes, tubes and whole frames."""

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
        mask = self.masker(generator, image).reshape(self.window)
        for axis, (n, w) in enumerate(zip(self.grid, self.window)):
            mask = mask.repeat_interleave(n // w, dim=axis)
        return mask
