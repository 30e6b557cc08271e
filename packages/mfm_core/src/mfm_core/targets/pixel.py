"""Pixels as a target: each patch as one vector, as it is or normalised by its own mean and variance.

He et al. 2022 ("per-patch normalised pixels"). Implementations differ in the order of the numbers and in the variance:
unbiased in MAE, mmpretrain and PySlowFast, biased in MAE-priv.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mfm_core.interfaces import Grid
from mfm_core.nn.patchify import patchify, unpatchify

CORRECTION = {"unbiased": 1, "biased": 0}


class PixelTarget:
    """(B, C, *size) to (B, L, dim).

    patch: pixels along each axis. order: of the numbers in a patch, see `patchify`. normalise: none | unbiased |
    biased. eps: added to the variance.
    """

    def __init__(
        self, patch: Grid, order: str = "hwc", normalise: str = "unbiased", eps: float = 1e-6, channels: int = 3
    ) -> None:
        self.patch, self.order, self.normalise, self.eps = tuple(patch), order, normalise, eps
        self.dim = channels * torch.Size(self.patch).numel()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, *size) to (B, L, dim) float32, tokens row-major."""
        patches = patchify(images.float(), self.patch, self.order)
        if self.normalise == "none":
            return patches
        mean, scale = self._statistics(patches)
        return (patches - mean) / scale

    def to_images(self, tokens: Tensor, images: Tensor) -> Tensor:
        """Targets or predictions (B, L, dim) as images (B, C, *size), with the patch statistics of `images`.

        For pictures: a prediction of normalised pixels says nothing of its patch's brightness and contrast.
        """
        tokens = tokens.float()
        if self.normalise != "none":
            mean, scale = self._statistics(patchify(images.float(), self.patch, self.order))
            tokens = tokens * scale + mean
        grid = tuple(n // p for n, p in zip(images.shape[2:], self.patch))
        return unpatchify(tokens, grid, self.patch, images.shape[1], self.order)

    def _statistics(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each patch, (B, L, 1)."""
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True, correction=CORRECTION[self.normalise])
        return mean, (variance + self.eps).sqrt()
