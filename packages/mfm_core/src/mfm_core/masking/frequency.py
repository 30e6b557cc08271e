"""Masks over the spectrum of an image: low or high frequencies hidden (MFM, Xie et al. 2023, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from mfm_core.errors import UserError

CENTRES = ("dc", "half")
"""dc: discs about the frequency zero, at n // 2 of n (official MFM). half: about n / 2, half a frequency off it where
n is odd (CoinCheung/MFM)."""


def disc(size: tuple[int, int], radius: float, outer_radius: float, centre: str = "dc") -> Tensor:
    """(H, W) bool over the shifted spectrum: nearer to the centre than `radius`, or at least `outer_radius` away."""
    rows, columns = (torch.arange(n, dtype=torch.float64) - (n // 2 if centre == "dc" else n / 2) for n in size)
    squared = rows.square()[:, None] + columns.square()
    return (squared < radius**2) | (squared >= outer_radius**2)


class FrequencyMask:
    """Hides the high or the low frequencies of an image.

    With probability `low_pass_ratio` the encoder sees the low ones, those of `disc`, and the others are hidden;
    otherwise the disc is hidden. (The published masks are 1 where a frequency is kept: the opposite of ours.)
    Raises UserError where the disc is all of the spectrum or none of it, so that there is nothing to predict.
    """

    def __init__(
        self, size: tuple[int, int], radius: float, outer_radius: float, low_pass_ratio: float, centre: str = "dc"
    ) -> None:
        low = disc(size, radius, outer_radius, centre)
        if low.all() or not low.any():
            raise UserError(
                f"MFM.RADIUS {radius:g} (outer {outer_radius:g}) parts the spectrum of {size[0]} x {size[1]} pixels "
                f"into {int(low.sum())} and {int((~low).sum())} frequencies; choose one that leaves some on both sides."
            )
        self.low_pass_ratio = low_pass_ratio
        self.low_pass, self.high_pass = ~low, low
        """(H, W) bool, True = hidden, of an input that is low-passed, and of one that is high-passed."""

    def __call__(self, generator: torch.Generator, image: Tensor | None = None) -> Tensor:
        """(H, W) bool over the shifted spectrum (zero at n // 2), True = hidden; the image is not looked at."""
        low_pass = torch.rand((), generator=generator, dtype=torch.float64) < self.low_pass_ratio
        return self.low_pass if low_pass else self.high_pass
