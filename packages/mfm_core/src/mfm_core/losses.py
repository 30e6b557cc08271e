"""Losses: masked regression for pre-training, soft cross-entropy for mixed labels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the hidden tokens of the whole batch (Wei et al. 2022).

    prediction, target: (B, L, D). mask: (B, L) bool, True = hidden. Zero where nothing is hidden.
    """
    per_token = (prediction.float() - target).square().mean(dim=-1)
    hidden = mask.to(per_token.dtype)
    return (per_token * hidden).sum() / hidden.sum().clamp(min=1.0)


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy; target: (B,) int64 classes or (B, classes) rows that sum to one."""
    return F.cross_entropy(logits.float(), target)
