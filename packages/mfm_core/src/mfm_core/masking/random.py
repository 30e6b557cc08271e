"""Random masks: every token alone is hidden or not, and every image hides the same number (MAE, He et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from mfm_core.errors import UserError
from mfm_core.interfaces import Grid


class RandomMask:
    """Hides `hidden` tokens of the grid, all sets of that many equally likely."""

    def __init__(self, grid: Grid, hidden: int) -> None:
        self.grid, self.hidden = tuple(grid), hidden

    def __call__(self, generator: torch.Generator, image: Tensor | None = None) -> Tensor:
        """(*grid) bool, True = hidden; the image is not looked at."""
        noise = torch.rand(torch.Size(self.grid).numel(), generator=generator)
        return mask_of_noise(noise, self.hidden).reshape(self.grid)


def mask_of_noise(noise: Tensor, hidden: int) -> Tensor:
    """(..., L) numbers to (..., L) bool: the `hidden` largest are True, as MAE and MAE-priv sort their noise."""
    order = noise.argsort(dim=-1, stable=True)[..., noise.shape[-1] - hidden :]
    return torch.zeros_like(noise, dtype=torch.bool).scatter_(-1, order, True)


def hidden_tokens(tokens: int, ratio: float, rounded: str = "visible") -> int:
    """How many of `tokens` a mask of that ratio hides; what is `rounded` is rounded down, the other gets the rest.

    "visible": int(tokens * (1 - ratio)) are visible, as in MAE. "hidden": int(ratio * tokens) are hidden, as in
    MAE-priv. Both in floating point, whose errors count: of 100 tokens at 0.9, MAE keeps 9.
    Raises UserError where nothing would be hidden, or nothing visible.
    """
    hidden = int(ratio * tokens) if rounded == "hidden" else tokens - int(tokens * (1 - ratio))
    if not 0 < hidden < tokens:
        raise UserError(
            f"AUG.MASK_RATIO {ratio} hides {hidden} of {tokens} tokens; at least one must be hidden and one visible."
        )
    return hidden
