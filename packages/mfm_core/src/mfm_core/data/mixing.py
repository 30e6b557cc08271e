"""Mixup and CutMix: each image of a batch is mixed with another of it, and so are their labels.

Zhang et al. 2018, Yun et al. 2019. timm's `Mixup` with another order of pairs to choose, and with the box that
CutMix's authors, PySlowFast, MAE, MFM and CoinCheung/MFM cut: its sides are even, where newer timm allows odd ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Box = tuple[int, int, int, int]
"""Top, bottom, left, right."""

PARTNERS: dict[str, Callable[[int], Tensor]] = {
    "reverse": lambda size: torch.arange(size).flip(0),
    "next": lambda size: torch.arange(size).roll(1),
    "random": torch.randperm,
}
"""Which image of a batch each one is mixed with: their indices (B,), for B."""


@dataclass(frozen=True)
class Mixer:
    """Mixes a batch as a whole: Mixup or CutMix, one share for all images, drawn from NumPy's global generator.

    mixup_alpha, cutmix_alpha: parameters of the Beta distributions of the share; 0 is off. prob: of mixing a batch at
    all. switch_prob: of CutMix where both are on. partner: reverse (image i and image B - 1 - i) | next (image i
    gets some of image i - 1, the first of the last) | random (a permutation from torch's global generator, as
    mmpretrain draws it). The middle one of an odd batch reversed stays as it is, and so does one drawn for itself.
    """

    mixup_alpha: float
    cutmix_alpha: float
    prob: float = 1.0
    switch_prob: float = 0.5
    partner: str = "reverse"

    def __call__(self, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """images: (B, C, *size). target: (B, classes), mixed by the images' true shares."""
        share, box = self._draw(*images.shape[-2:])
        if share == 1.0:
            return images, target
        order = PARTNERS[self.partner](len(images)).to(images.device)
        return mix_images(images, images[order], share, box), mix_targets(target, target[order], share)

    def _draw(self, height: int, width: int) -> tuple[float, Box | None]:
        """The share that each image keeps, and what is cut out of it, if anything; draws in timm's order."""
        if np.random.rand() >= self.prob:
            return 1.0, None
        cut = self.cutmix_alpha > 0
        if self.mixup_alpha > 0 and self.cutmix_alpha > 0:
            cut = bool(np.random.rand() < self.switch_prob)
        alpha = self.cutmix_alpha if cut else self.mixup_alpha
        share = float(np.random.beta(alpha, alpha))
        if not cut or share == 1.0:
            return share, None
        centre = int(np.random.randint(height)), int(np.random.randint(width))
        box = cut_box(share, centre, height, width)
        return kept_share(box, height, width), box


def cut_box(share: float, centre: tuple[int, int], height: int, width: int) -> Box:
    """A box around `centre` (row, column) with 1 - `share` of the image's area, clipped to the image."""
    side = 0.5 * math.sqrt(1.0 - share)
    half_height, half_width = int(side * height), int(side * width)
    row, column = centre
    return (
        max(0, row - half_height),
        min(height, row + half_height),
        max(0, column - half_width),
        min(width, column + half_width),
    )


def kept_share(box: Box, height: int, width: int) -> float:
    """How much of the image lies outside the box."""
    top, bottom, left, right = box
    return 1.0 - (bottom - top) * (right - left) / (height * width)


def mix_images(images: Tensor, partners: Tensor, share: float, box: Box | None) -> Tensor:
    """`share` of each image and the rest of its partner, or, with a box, the partner's pixels inside it."""
    if box is None:
        return (images * share).add_(partners, alpha=1.0 - share)
    top, bottom, left, right = box
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
    return mixed


def mix_targets(target: Tensor, partners: Tensor, share: float) -> Tensor:
    """The same of the labels' probabilities."""
    return target * share + partners * (1.0 - share)
