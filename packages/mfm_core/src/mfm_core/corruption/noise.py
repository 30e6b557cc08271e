"""Gaussian and Poisson noise, coloured or grey, drawn per image (Wang et al. 2021, Real-ESRGAN; BasicSR's recipes)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mfm_core.nn.colour import luma


def gaussian_noise(normal: Tensor, sigma: float, grey: bool) -> Tensor:
    """Standard normal (C, H, W) to noise on pixels in [0, 1], sigma in 8-bit levels; grey: one channel's for all."""
    return (normal[:1].expand_as(normal) if grey else normal) * (sigma / 255)


def poisson_noise(pixels: Tensor, scale: float, grey: bool, generator: torch.Generator) -> Tensor:
    """The noise of counting photons, times `scale`; pixels: (3, H, W) in [0, 1].

    The counts at white are the number of distinct levels in the image, rounded up to a power of two.
    """
    levels = ((luma(pixels) if grey else pixels) * 255).round().clamp(0, 255) / 255
    counts = 2.0 ** math.ceil(math.log2(len(levels.unique())))
    noise = torch.poisson(levels * counts, generator=generator) / counts - levels
    return noise.expand_as(pixels) * scale


class NoiseDraws:
    """Draws the noise for each image.

    kinds and probabilities: gaussian | poisson, and their weights. gaussian_sigma: range of sigma, in 8-bit levels.
    poisson_scale: range of the factor on the noise. The ranges are drawn from evenly; *_grey: probability of noise
    without colour. mean and std: of the images' normalisation, for Poisson noise depends on the pixels.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        probabilities: Sequence[float],
        gaussian_sigma: Sequence[float],
        gaussian_grey: float,
        poisson_scale: Sequence[float],
        poisson_grey: float,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self.draws = [{"gaussian": self._gaussian, "poisson": self._poisson}[kind] for kind in kinds]
        self.weights = torch.tensor(list(probabilities), dtype=torch.float64)
        self.gaussian_sigma, self.gaussian_grey = gaussian_sigma, gaussian_grey
        self.poisson_scale, self.poisson_grey = poisson_scale, poisson_grey
        self.mean, self.std = (torch.tensor(list(values)).view(-1, 1, 1) for values in (mean, std))

    def __call__(self, generator: torch.Generator, image: Tensor) -> Tensor:
        """(3, H, W) float32 to add to the pixels in [0, 1] of the normalised `image`, which has the same shape."""
        draw = self.draws[int(torch.multinomial(self.weights, 1, generator=generator))]
        strength, grey = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        return draw(generator, image, strength, grey)

    def _gaussian(self, generator: torch.Generator, image: Tensor, strength: float, grey: float) -> Tensor:
        low, high = self.gaussian_sigma
        normal = torch.randn(image.shape, generator=generator)
        return gaussian_noise(normal, low + strength * (high - low), grey < self.gaussian_grey)

    def _poisson(self, generator: torch.Generator, image: Tensor, strength: float, grey: float) -> Tensor:
        low, high = self.poisson_scale
        pixels = image.float() * self.std + self.mean
        return poisson_noise(pixels, low + strength * (high - low), grey < self.poisson_grey, generator)
