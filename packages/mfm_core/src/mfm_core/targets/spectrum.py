"""The clean image as the target of a loss that compares spectra (MFM, Xie et al. 2023; `losses.frequency`)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfm_core.nn.colour import luma
from mfm_core.nn.patchify import patchify, unpatchify


class SpectrumTarget:
    """The normalised pixels of each patch, channel slowest: an image cut up, whose spectrum the loss takes.

    patch: (height, width) of a token in pixels. grey: the luma of the normalised image instead, one channel
    (CoinCheung/MFM).
    """

    def __init__(self, patch: tuple[int, int], grey: bool = False) -> None:
        self.patch, self.grey = tuple(patch), grey
        self.channels = 1 if grey else 3

    @property
    def dim(self) -> int:
        """Numbers per token, ordered (channel, row, column)."""
        return self.channels * math.prod(self.patch)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, L, dim) float32."""
        images = images.float()
        return patchify(luma(images) if self.grey else images, self.patch, "chw")

    def to_images(self, tokens: Tensor, images: Tensor) -> Tensor:
        """Targets or predictions (B, L, dim) as normalised images (B, 3 or 1, H, W) of the size of `images`."""
        grid = tuple(n // p for n, p in zip(images.shape[-2:], self.patch))
        return unpatchify(tokens, grid, self.patch, self.channels, "chw")
