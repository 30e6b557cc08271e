"""Losses of classifiers, for hard and for mixed labels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy; target: (B,) int64 classes or (B, classes) rows that sum to one."""
    return F.cross_entropy(logits.float(), target)
