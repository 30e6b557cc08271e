"""The distance of spectra (MFM, Xie et al. 2023, section 3.3), after the focal frequency loss (Jiang et al. 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mfm_core.interfaces import Grid
from mfm_core.nn.patchify import patchify, unpatchify

REDUCTIONS = ("masked", "normal", "sample")
"""What counts the same: masked, each hidden frequency of the batch (official MFM). normal, each frequency, hidden or
not. sample, each image, by the mean over its hidden frequencies (CoinCheung/MFM)."""


@dataclass(frozen=True)
class Variant:
    """How two spectra are compared: |difference|^loss_gamma, with eps under the root, and a weight matrix if wanted.

    patch_factor: images are cut into patch_factor^2 pieces with a spectrum each. ave_spectrum: spectra are averaged
    over the batch first. with_matrix: elements are weighted by |difference|^matrix_gamma, which is log(1 + x) of that
    with log_matrix, divided by its maximum over the image, or with batch_matrix over everything.
    """

    loss_gamma: float = 1.0
    matrix_gamma: float = 1.0
    patch_factor: int = 1
    ave_spectrum: bool = False
    with_matrix: bool = False
    log_matrix: bool = False
    batch_matrix: bool = False
    eps: float = 1e-12


def distances(prediction: Tensor, target: Tensor, variant: Variant, matrix: Tensor | None = None) -> Tensor:
    """(B, P, C, h, w) distance of each frequency, zero frequency first, as `torch.fft` lays them out; float32.

    prediction, target: images (B, C, H, W). P = patch_factor^2 pieces, row-major, of h x w pixels; with ave_spectrum
    B is 1. matrix: (B, P, C, h, w) weights in [0, 1] in place of the variant's own; they carry no gradient.
    """
    # The transform is linear: one of the difference is half the work of two, and rounds less.
    difference = _pieces(prediction.float() - target.float(), variant.patch_factor)
    if variant.ave_spectrum:
        difference = difference.mean(dim=0, keepdim=True)
    spectrum = torch.view_as_real(torch.fft.fft2(difference, norm="ortho"))
    squared = spectrum.square().sum(dim=-1)
    elements = (squared + variant.eps) ** (variant.loss_gamma / 2)
    if not variant.with_matrix:
        return elements
    return elements * (_matrix(squared.detach(), variant) if matrix is None else matrix.detach())


def _pieces(images: Tensor, factor: int) -> Tensor:
    b, c, h, w = images.shape
    piece = (h // factor, w // factor)
    return patchify(images, piece, "chw").view(b, -1, c, *piece)


def _matrix(squared: Tensor, variant: Variant) -> Tensor:
    matrix = squared.sqrt() ** variant.matrix_gamma
    if variant.log_matrix:
        matrix = torch.log(matrix + 1)
    largest = matrix.amax() if variant.batch_matrix else matrix.amax(dim=(-2, -1), keepdim=True)
    return (matrix / largest).nan_to_num(nan=0.0).clamp(0, 1)


class FrequencyDistance:
    """The distance between the spectra of predicted and target images, which come as tokens.

    grid and patch: of the tokens, whose numbers are in the order channel, row, column (`patchify`'s chw); how many
    channels they have follows from their number. reduction: see `REDUCTIONS`; masked and sample take masks
    (B, H, W) bool over the shifted spectrum, True = hidden, and of pieces the frequencies they share with the image.

    With ave_spectrum or batch_matrix the images of a batch are coupled: the loss of a batch is then not the mean of
    the losses of its parts.
    """

    def __init__(self, grid: Grid, patch: Grid, reduction: str = "masked", variant: Variant | None = None) -> None:
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction is '{reduction}'; it can be {', '.join(REDUCTIONS)}")
        self.grid, self.patch, self.reduction = tuple(grid), tuple(patch), reduction
        self.variant = variant or Variant()

    def __call__(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """A scalar, zero where nothing is hidden. prediction, target: (B, L, D)."""
        elements = distances(self._images(prediction), self._images(target), self.variant)
        if self.reduction == "normal":
            return elements.mean()
        hidden = self._hidden(mask)
        per_image = (elements * hidden).sum(dim=(-2, -1)).mean(dim=(1, 2))
        counts = hidden.sum(dim=(-2, -1)).flatten()
        if self.reduction == "masked":
            return per_image.sum() / counts.sum().clamp(min=1)
        return (per_image / counts.clamp(min=1)).mean()

    def weight(self, mask: Tensor) -> Tensor:
        """The number of hidden frequencies, or of images."""
        if self.reduction == "masked":
            return self._hidden(mask).sum()
        return torch.full((), float(len(mask)), device=mask.device)

    def _images(self, tokens: Tensor) -> Tensor:
        channels = tokens.shape[-1] // math.prod(self.patch)
        return unpatchify(tokens, self.grid, self.patch, channels, "chw")

    def _hidden(self, mask: Tensor) -> Tensor:
        """(B, H, W) bool, shifted, to (B, 1, 1, h, w) float32 over the frequencies of one piece, zero first.

        Frequency k of a piece is frequency patch_factor * k of the image.
        """
        factor = self.variant.patch_factor
        for axis in (-2, -1):
            piece = mask.shape[axis] // factor
            places = mask.shape[axis] // 2 + factor * (torch.arange(piece, device=mask.device) - piece // 2)
            mask = mask.index_select(axis, places)
        return torch.fft.ifftshift(mask, dim=(-2, -1))[:, None, None].float()


class PastedDistance:
    """The distance of whole images' spectra for methods that hide tokens: visible patches are pasted from the target.

    distance: compares all frequencies (reduction normal).
    """

    def __init__(self, distance: FrequencyDistance) -> None:
        self.distance = distance

    def __call__(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """A scalar. prediction, target: (B, L, D). mask: (B, L) bool, True = hidden."""
        pasted = torch.where(mask[..., None], prediction.float(), target)
        return self.distance(pasted, target, mask)

    def weight(self, mask: Tensor) -> Tensor:
        """The number of images."""
        return self.distance.weight(mask)
