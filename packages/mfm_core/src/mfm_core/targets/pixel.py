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

    patch: pixels along each axis, frames first in a clip. order: of the numbers in a patch, see `patchify`; the frames
    of a patch come before its rows. normalise: none | unbiased | biased. eps: added to the variance. first_frames: of
    the frames of each patch of a clip, predict the first alone (MAE on video, Feichtenhofer et al. 2022).
    """

    def __init__(
        self,
        patch: Grid,
        order: str = "hwc",
        normalise: str = "unbiased",
        eps: float = 1e-6,
        channels: int = 3,
        first_frames: bool = False,
    ) -> None:
        self.stride = patch[0] if first_frames else 1
        """Every so many frames of a clip are predicted."""
        self.patch = (patch[0] // self.stride, *patch[1:])
        self.order, self.normalise, self.eps = order, normalise, eps
        self.dim = channels * torch.Size(self.patch).numel()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, *size) to (B, L, dim) float32, tokens row-major."""
        patches = patchify(self.predicted(images).float(), self.patch, self.order)
        if self.normalise == "none":
            return patches
        mean, scale = self._statistics(patches)
        return (patches - mean) / scale

    def to_images(self, tokens: Tensor, images: Tensor) -> Tensor:
        """Targets or predictions (B, L, dim) as images (B, C, *size), with the patch statistics of `images`.

        For pictures: a prediction of normalised pixels says nothing of its patch's brightness and contrast. Clips come
        back with the frames that are predicted.
        """
        images, tokens = self.predicted(images), tokens.float()
        if self.normalise != "none":
            mean, scale = self._statistics(patchify(images.float(), self.patch, self.order))
            tokens = tokens * scale + mean
        grid = tuple(n // p for n, p in zip(images.shape[2:], self.patch))
        return unpatchify(tokens, grid, self.patch, images.shape[1], self.order)

    def predicted(self, images: Tensor) -> Tensor:
        """The frames (B, C, T', H, W) of a clip that are predicted; an image as it is."""
        return images[:, :, :: self.stride] if self.stride > 1 else images

    def _statistics(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each patch, (B, L, 1)."""
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True, correction=CORRECTION[self.normalise])
        return mean, (variance + self.eps).sqrt()
