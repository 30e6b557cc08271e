"""Colour to grey."""

from __future__ import annotations

from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""


def luma(images: Tensor) -> Tensor:
    """(..., 3, H, W) to (..., 1, H, W)."""
    return (images * images.new_tensor(LUMA).view(3, 1, 1)).sum(dim=-3, keepdim=True)
