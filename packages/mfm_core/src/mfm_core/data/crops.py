"""Boxes of crops, resizing and normalisation of 8-bit pixels: what images and the frames of a clip share.

Resizing is torch's antialiased uint8 kernel, which computes what PIL does (to one grey level, rarely two) five times
faster.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate


class Normalize:
    """(3, h, w) uint8 to float32: `(x / 255 - mean) / std` as one multiplication and one addition in place."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        mean64, std64 = (torch.tensor(list(x), dtype=torch.float64).view(-1, 1, 1) for x in (mean, std))
        self.factor, self.offset = (1 / (255 * std64)).float(), (-mean64 / std64).float()

    def __call__(self, image: Tensor) -> Tensor:
        # planar first: transposing bytes is four times cheaper than transposing floats
        return image.contiguous().float().mul_(self.factor).add_(self.offset)


def random_crop(
    height: int, width: int, scale: Sequence[float], ratio: Sequence[float], rng: random.Random
) -> tuple[int, int, int, int]:
    """The box (top, left, height, width) of a random resized crop (Inception; draws as timm and torchvision do).

    Ten times an area share from `scale` and an aspect ratio (log-uniform from `ratio`) are drawn; the first box that
    fits is placed at random. Where none fits, the largest central box with an allowed ratio is taken.
    """
    for _ in range(10):
        h, w = _crop_size(height, width, scale, ratio, rng)
        if 0 < w <= width and 0 < h <= height:
            return rng.randint(0, height - h), rng.randint(0, width - w), h, w
    w = min(width, max(1, int(round(height * ratio[1]))))
    h = min(height, max(1, int(round(width / ratio[0]))))
    return (height - h) // 2, (width - w) // 2, h, w


def clamped_crop(
    height: int, width: int, scale: Sequence[float], ratio: Sequence[float], rng: random.Random
) -> tuple[int, int, int, int]:
    """As `random_crop`, with a single draw: a box that does not fit is clamped to the image.

    MAE trains its linear probe with it (He et al. 2022), after TensorFlow's crop: on elongated images crops are
    smaller, and of more extreme shapes, than the ranges say.
    """
    h, w = _crop_size(height, width, scale, ratio, rng)
    h, w = max(1, min(h, height)), max(1, min(w, width))
    return rng.randint(0, height - h), rng.randint(0, width - w), h, w


def _crop_size(
    height: int, width: int, scale: Sequence[float], ratio: Sequence[float], rng: random.Random
) -> tuple[int, int]:
    """(height, width) of one draw, which may be larger than the image."""
    area = rng.uniform(*scale) * height * width
    aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
    return int(round(math.sqrt(area / aspect))), int(round(math.sqrt(area * aspect)))


def resize(pixels: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """(…, 3, h, w) uint8 to (…, 3, *size) uint8 with antialiasing, PIL's `resize` to one grey level, rarely two."""
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    batch = pixels if pixels.ndim == 4 else pixels[None]
    resized = interpolate(batch, size=size, mode=interpolation, antialias=True, align_corners=False)
    return resized if pixels.ndim == 4 else resized[0]


def short_side_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) with the shorter of them `short_side`, the other rounded down (torchvision's `Resize`)."""
    if height <= width:
        return short_side, int(short_side * width / height)
    return int(short_side * height / width), short_side
