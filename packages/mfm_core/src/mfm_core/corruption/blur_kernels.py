"""The blur kernels of blind super-resolution, drawn per image (Wang et al. 2021, Real-ESRGAN; BasicSR's recipes).

x is the column's offset from the centre and y the row's; every kernel sums to one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """What describes a kernel. sigmas in pixels, theta in radians; the isotropic kinds use sigma_x alone.

    beta: exponent of the generalised and plateau kinds. omega: cutoff of the sinc, radians per pixel.
    """

    size: int
    sigma_x: float = 1.0
    sigma_y: float = 1.0
    theta: float = 0.0
    beta: float = 1.0
    omega: float = math.pi


def _offsets(size: int) -> tuple[Tensor, Tensor]:
    line = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    return line[None, :].expand(size, size), line[:, None].expand(size, size)


def _distance(shape: Shape, isotropic: bool) -> Tensor:
    """(size, size) squared Mahalanobis distance of each pixel; covariances in float32, as BasicSR rounds them."""
    x, y = _offsets(shape.size)
    if isotropic:
        covariance = torch.eye(2, dtype=torch.float64) * shape.sigma_x**2
    else:
        c, s = math.cos(shape.theta), math.sin(shape.theta)
        turn = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
        covariance = turn @ torch.diag(torch.tensor([shape.sigma_x**2, shape.sigma_y**2]).double()) @ turn.T
    inverse = torch.linalg.inv(covariance.float().double())
    return inverse[0, 0] * x * x + 2 * inverse[0, 1] * x * y + inverse[1, 1] * y * y


def _gaussian(shape: Shape, isotropic: bool) -> Tensor:
    return torch.exp(-0.5 * _distance(shape, isotropic))


def _generalized(shape: Shape, isotropic: bool) -> Tensor:
    return torch.exp(-0.5 * _distance(shape, isotropic) ** shape.beta)


def _plateau(shape: Shape, isotropic: bool) -> Tensor:
    return 1 / (_distance(shape, isotropic) ** shape.beta + 1)


def _sinc(shape: Shape, isotropic: bool) -> Tensor:
    """The ideal circular low-pass of cutoff omega."""
    x, y = _offsets(shape.size)
    radius = (x * x + y * y).sqrt()
    inside = shape.omega * torch.special.bessel_j1(shape.omega * radius) / (2 * math.pi * radius)
    return torch.where(radius > 0, inside, shape.omega**2 / (4 * math.pi))


KINDS: dict[str, tuple[Callable[[Shape, bool], Tensor], bool]] = {
    "iso": (_gaussian, True),
    "aniso": (_gaussian, False),
    "generalized_iso": (_generalized, True),
    "generalized_aniso": (_generalized, False),
    "plateau_iso": (_plateau, True),
    "plateau_aniso": (_plateau, False),
    "sinc": (_sinc, True),
}
"""Kind -> (density, isotropic)."""


def blur_kernel(kind: str, shape: Shape) -> Tensor:
    """(size, size) float32, sum one."""
    density, isotropic = KINDS[kind]
    values = density(shape, isotropic)
    return (values / values.sum()).float()


class BlurKernels:
    """Draws a kernel for each image: kind, size, and what shapes it.

    kinds and probabilities: names of `KINDS` and their weights. sizes: odd, drawn evenly. sigma_x, sigma_y, theta,
    beta_gaussian, beta_plateau: ranges (low, high) to draw from evenly.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        probabilities: Sequence[float],
        sizes: Sequence[int],
        sigma_x: Sequence[float],
        sigma_y: Sequence[float],
        theta: Sequence[float],
        beta_gaussian: Sequence[float],
        beta_plateau: Sequence[float],
    ) -> None:
        self.kinds, self.sizes = tuple(kinds), tuple(sizes)
        self.weights = torch.tensor(list(probabilities), dtype=torch.float64)
        self.sigma_x, self.sigma_y, self.theta = sigma_x, sigma_y, theta
        self.beta_gaussian, self.beta_plateau = beta_gaussian, beta_plateau

    def __call__(self, generator: torch.Generator, image: Tensor | None = None) -> Tensor:
        """(K, K) float32 with K the largest size, smaller kernels in the middle; the image is not looked at."""
        kernel = blur_kernel(*self.draw(generator))
        border = (max(self.sizes) - kernel.shape[0]) // 2
        return F.pad(kernel, [border] * 4)

    def draw(self, generator: torch.Generator) -> tuple[str, Shape]:
        """A kind and its shape."""
        kind = self.kinds[int(torch.multinomial(self.weights, 1, generator=generator))]
        size = self.sizes[int(torch.randint(len(self.sizes), (), generator=generator))]
        beta = self.beta_plateau if kind.startswith("plateau") else self.beta_gaussian
        cutoff = (math.pi / 3 if size < 13 else math.pi / 5, math.pi)
        ranges = (self.sigma_x, self.sigma_y, self.theta, beta, cutoff)
        uniform = torch.rand(len(ranges), generator=generator, dtype=torch.float64).tolist()
        return kind, Shape(size, *(low + u * (high - low) for u, (low, high) in zip(uniform, ranges)))
