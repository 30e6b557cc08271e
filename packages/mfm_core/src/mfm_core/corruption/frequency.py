"""Removes the hidden frequencies from images (MFM, Xie et al. 2023), as either implementation does it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mfm_core.corruption.pixels import PixelCorruption, full_precision


def filtered(images: Tensor, hidden: Tensor) -> Tensor:
    """Complex (B, C, H, W): float32 `images` without their `hidden` frequencies, (B, H, W) bool, shifted."""
    kept = torch.fft.ifftshift(~hidden, dim=(-2, -1))[:, None]
    return torch.fft.ifft2(torch.fft.fft2(images) * kept)


class ClampedFilter(PixelCorruption):
    """Filters pixels in [0, 1], takes the real part, clamps to [0, 1] and normalises (official MFM).

    The clamp removes about half of what a high-pass leaves.
    """

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """images: (B, C, H, W) normalised. mask: (B, H, W) bool over the shifted spectrum, True = hidden."""
        with full_precision(images):
            return self.normalised(filtered(self.pixels(images), mask).real.clamp(0, 1))


class MagnitudeFilter(nn.Module):
    """Filters the normalised images and takes the magnitude: negative values are mirrored (CoinCheung/MFM)."""

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """images: (B, C, H, W) normalised. mask: (B, H, W) bool over the shifted spectrum, True = hidden."""
        with full_precision(images):
            return filtered(images.float(), mask).abs()
