"""What corruptions of whole images have in common: they work on pixels in [0, 1] while models see normalised ones."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


class PixelCorruption(nn.Module):
    """Holds the normalisation of the images, `mean` and `std` of each channel, and undoes or repeats it."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(list(mean)).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(-1, 1, 1), persistent=False)

    def pixels(self, images: Tensor) -> Tensor:
        """Normalised (B, C, H, W) to [0, 1], in float32."""
        return images.float() * self.std + self.mean

    def normalised(self, pixels: Tensor) -> Tensor:
        """The inverse of `pixels`."""
        return (pixels - self.mean) / self.std


def full_precision(tensor: Tensor) -> AbstractContextManager:
    """Autocast off, on the device of `tensor`: spectra and kernels lose too much in 16 bits."""
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)
