"""Block-wise masks over an image's token grid (BEiT, Bao et al. 2022, as PySlowFast draws them for MaskFeat)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfm_core.errors import UserError
from mfm_core.interfaces import Grid

MIN_ASPECT = 0.3


class BlockMask:
    """Hides rectangles until `ratio` of the grid is hidden, or until ten attempts in a row find no room.

    A block has an area between a fifth of the requested count and what is still missing (at most `max_block`), and a
    log-uniform aspect ratio in [0.3, 1 / 0.3]; it is smaller than the grid both ways. The count therefore never
    exceeds round(ratio * tokens) and often falls a little short of it.

    exact: the number of tokens to hide in the place of that count, in every image the same, for encoders that see the
    visible tokens only. Tokens that no block has reached are then hidden singly until it is met. more_room: what makes
    the grid larger, for the message of the UserError where it is too small for blocks.
    """

    attempts = 10

    def __init__(
        self,
        grid: Grid,
        ratio: float,
        max_block: int | None = None,
        exact: int | None = None,
        more_room: str = "raise the image size, or lower MVIT.PATCH_STRIDE",
    ) -> None:
        self.grid, self.exact = tuple(grid), exact
        self.requested = round(ratio * math.prod(grid)) if exact is None else exact
        self.min_block = self.requested // 5
        self.max_block = max_block or self.requested
        if self.requested < 1 or min(grid[-2:]) < 2:
            raise UserError(
                f"AUG.MASK_RATIO {ratio} of a {' x '.join(map(str, grid))} grid leaves no token to hide; "
                f"{'raise the ratio, or ' if min(grid[-2:]) > 1 else ''}{more_room}."
            )

    def __call__(self, generator: torch.Generator, image: Tensor | None = None) -> Tensor:
        """(*grid) bool, True = hidden; the image is not looked at."""
        mask = torch.zeros(self.grid, dtype=torch.bool)
        hidden = 0
        while hidden < self.requested:
            added = self._add_block(mask, self.requested - hidden, generator)
            if added == 0:
                break
            hidden += added
        if self.exact is not None:
            self._top_up(mask, self.exact - hidden, generator)
        return mask

    def _top_up(self, mask: Tensor, missing: int, generator: torch.Generator) -> None:
        """Hides `missing` more tokens in place, drawn from the visible ones."""
        visible = (~mask).flatten().nonzero()[:, 0]
        chosen = visible[torch.randperm(len(visible), generator=generator)[:missing]]
        mask.view(-1)[chosen] = True

    def _add_block(self, mask: Tensor, missing: int, generator: torch.Generator) -> int:
        """Hides one more block in place; how many tokens that added, 0 where no attempt fitted."""
        for _ in range(self.attempts):
            where = self._draw(missing, generator)
            if where is None:
                continue
            block = mask[where]
            added = block.numel() - int(block.sum())
            if 0 < added <= missing:
                block.fill_(True)
                return added
        return 0

    def _draw(self, missing: int, generator: torch.Generator) -> tuple[slice, ...] | None:
        """A place for a block, None where the drawn shape does not fit into the grid."""
        u = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        return self._rectangle(min(missing, self.max_block), u)

    def _rectangle(self, most: int, u: list[float]) -> tuple[slice, slice] | None:
        """Rows and columns of a rectangle of at most `most` tokens, from four numbers uniform in [0, 1)."""
        height, width = self.grid[-2:]
        area = self.min_block + u[0] * (most - self.min_block)
        aspect = math.exp((2 * u[1] - 1) * -math.log(MIN_ASPECT))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h >= height or w >= width:
            return None
        top, left = int(u[2] * (height - h + 1)), int(u[3] * (width - w + 1))
        return slice(top, top + h), slice(left, left + w)


class ExactBlockMask(BlockMask):
    """Goes on with blocks until exactly round(ratio * tokens) of the grid are hidden, as mmpretrain does for MaskFeat.

    The last ones lie on others but for what is missing, which BlockMask often fails to draw in ten attempts. (In
    mmpretrain no block reaches the last row or column, for an error in its bounds.)
    """

    attempts = 10_000
    """In a row, before tokens are hidden singly after all; of 13,743 blocks on 14 x 14 none took above 187."""

    def __init__(self, grid: Grid, ratio: float, max_block: int | None = None) -> None:
        super().__init__(grid, ratio, max_block, exact=round(ratio * math.prod(grid)))
