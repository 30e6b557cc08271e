"""Cube-wise masks over a clip's token grid (MaskFeat, Wei et al. 2022, section 3.3, as PySlowFast draws them)."""

from __future__ import annotations

import torch

from mfm_core.errors import UserError
from mfm_core.interfaces import Grid
from mfm_core.masking.block import BlockMask

TRIALS = 32
"""Masks that are drawn to see whether a ratio is too small; half as many where it is not."""
WIDER = "raise AUG.MASK_WINDOW_SIZE"
"""What gives blocks more room where they are drawn in a window."""


class CubeMask(BlockMask):
    """Hides cubes until `ratio` of the window is hidden, or until a hundred attempts in a row find no room.

    A cube's face is shaped as `BlockMask` says, with an area between a fifth of `max_block` (by default the window's)
    and all of it, however much is still missing; the cube lasts for a number of time steps drawn evenly from 1 to all.
    exact: see `BlockMask`. Raises UserError where no cube fits into the ratio, in most masks.
    """

    attempts = 100

    def __init__(self, window: Grid, ratio: float, max_block: int | None = None, exact: int | None = None) -> None:
        super().__init__(window, ratio, max_block or window[1] * window[2], exact, WIDER)
        self.min_block = self.max_block // 5
        if exact is None and not self._hides_most_times():
            raise UserError(
                f"AUG.MASK_RATIO {ratio} hides nothing in most clips: it makes {self.requested} of the "
                f"{' x '.join(map(str, window))} places of AUG.MASK_WINDOW_SIZE, less than most cubes have; raise it, "
                "or lower AUG.MAX_MASK_PATCHES_PER_BLOCK."
            )

    def _hides_most_times(self) -> bool:
        """Tried out: shapes are rounded, and how small a cube can be does not say how seldom it is."""
        generator, good = torch.Generator().manual_seed(0), 0
        for _ in range(TRIALS):
            good += bool(self(generator).any())
            if 2 * good >= TRIALS:
                return True
        return False

    def _draw(self, missing: int, generator: torch.Generator) -> tuple[slice, ...] | None:
        u = torch.rand(6, generator=generator, dtype=torch.float64).tolist()
        face = self._rectangle(self.max_block, u[:4])
        if face is None:
            return None
        steps = self.grid[0]
        length = 1 + int(u[4] * steps)
        first = int(u[5] * (steps - length + 1))
        return slice(first, first + length), *face
