"""Losses of classifiers, for hard and for mixed labels, and the smoothing of labels (Szegedy et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from mfm_core.registry import Registry

ClassLoss = Callable[[Tensor, Tensor], Tensor]
"""(logits (B, classes), target (B,) int64 or (B, classes) float) to a scalar, the mean over the images."""
CLASS_LOSSES = Registry("loss", key="MODEL.LOSS_FUNC")


@CLASS_LOSSES.register("cross_entropy")
@CLASS_LOSSES.register("soft_cross_entropy")
def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy; target: (B,) int64 classes or (B, classes) rows that sum to one."""
    return F.cross_entropy(logits.float(), target)


@CLASS_LOSSES.register("bce")
def binary_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Each class is a yes-or-no question of its own (Wightman et al. 2021); the mean over images and classes.

    target: (B,) int64 classes or (B, classes) probabilities, which are taken as they are.
    """
    if target.ndim == 1:
        target = F.one_hot(target, logits.shape[1])
    return F.binary_cross_entropy_with_logits(logits.float(), target.float())


def probabilities(logits: Tensor, loss_func: str) -> Tensor:
    """What a classifier says of each class, (B, classes): with a sigmoid for each (bce) they need not add up to one."""
    return logits.float().sigmoid() if loss_func == "bce" else logits.float().softmax(dim=1)


def smooth_labels(target: Tensor, amount: float, over: str = "all") -> Tensor:
    """Gives `amount` of each row's probability away, evenly: over all classes (its own too), or over the others.

    target: (B, classes) rows that sum to one, mixed or not. "all" leaves the label 1 - amount + amount / classes, as
    timm, PySlowFast and mmpretrain have it; "others" leaves it 1 - amount (CoinCheung/MFM).
    """
    classes = target.shape[1]
    if over == "others":
        return target * (1 - amount) + (1 - target) * (amount / (classes - 1))
    return target * (1 - amount) + amount / classes
