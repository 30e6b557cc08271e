"""The degradations that MFM is compared with: low resolution, blur and noise (Xie et al. 2023, section 4.3).

What is random is drawn per image in the loader (`blur_kernels`, `noise`); here it is applied, on the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfm_core.corruption.pixels import PixelCorruption, full_precision


class NoDraw:
    """The mask generator of a corruption that has nothing random."""

    def __call__(self, generator: torch.Generator, image: Tensor | None = None) -> Tensor:
        """An empty tensor."""
        return torch.empty(0)


class LowResolution(PixelCorruption):
    """Shrinks images by `factor` and enlarges them again: bicubic, no antialiasing, each result clamped to [0, 1]."""

    def __init__(self, factor: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(mean, std)
        self.factor = factor

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """images: (B, C, H, W) normalised. mask: empty."""
        size = images.shape[-2:]
        with full_precision(images):
            small = _resized(self.pixels(images), tuple(n // self.factor for n in size))
            return self.normalised(_resized(small, tuple(size)))


def _resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(pixels, size=size, mode="bicubic", align_corners=False, antialias=False).clamp(0, 1)


class Blur(nn.Module):
    """Correlates each image with its own kernel, borders reflected about the outermost pixel, without clipping.

    Kernels sum to one, so that blurring normalised images is blurring pixels.
    """

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """images: (B, C, H, W) normalised. mask: (B, K, K) kernels, K odd and at most twice the image's side."""
        b, c, h, w = images.shape
        side = mask.shape[-1]
        with full_precision(images):
            padded = F.pad(images.float(), [side // 2] * 4, mode="reflect")
            kernels = mask.float().repeat_interleave(c, dim=0)[:, None]
            return F.conv2d(padded.flatten(0, 1)[None], kernels, groups=b * c).view(b, c, h, w)


class AddedNoise(PixelCorruption):
    """Adds the noise that was drawn for each image, without clipping."""

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """images: (B, C, H, W) normalised. mask: (B, C, H, W) noise on pixels in [0, 1]."""
        return images.float() + mask / self.std
