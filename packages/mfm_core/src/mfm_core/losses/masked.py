"""Regression of what is hidden."""

from __future__ import annotations

import torch
from torch import Tensor


class MaskedMSE:
    """Mean squared error over the hidden tokens of the whole batch (He et al. 2022, Wei et al. 2022)."""

    def __call__(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """A scalar, zero where nothing is hidden. prediction, target: (B, L, D). mask: (B, L) bool, True = hidden."""
        per_token = (prediction.float() - target).square().mean(dim=-1)
        hidden = mask.to(per_token.dtype)
        return (per_token * hidden).sum() / hidden.sum().clamp(min=1.0)

    def weight(self, mask: Tensor) -> Tensor:
        """The number of hidden tokens."""
        return mask.sum().float()


class MeanMSE:
    """Mean squared error over all tokens: for inputs that are corrupted everywhere, and not in some tokens."""

    def __call__(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """A scalar. prediction, target: (B, L, D). mask: of any kind; only its length B counts."""
        return (prediction.float() - target).square().mean()

    def weight(self, mask: Tensor) -> Tensor:
        """The number of images."""
        return torch.full((), float(len(mask)), device=mask.device)
