"""Classification accuracy over a loader, each image counted once over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from mfm_core.errors import UserError
from mfm_core.interfaces import Batch
from mfm_core.losses.classification import ClassLoss, soft_cross_entropy
from mfm_core.parallel.world import World


def correct_in_top(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """How many of the (B, classes) rows have their label (B,) among the k highest; fewer classes lower k."""
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(dim=1).sum()


@torch.inference_mode()
def evaluate_classifier(
    model: nn.Module,
    loader: Iterable[Batch],
    world: World,
    autocast: Callable[[], AbstractContextManager],
    criterion: ClassLoss = soft_cross_entropy,
) -> dict[str, float]:
    """top1 and top5 in percent and the mean loss val_loss, over the images of all ranks' loaders.

    Unreadable images are not counted; `images` says how many were. Raises UserError where there was none.
    """
    return evaluate_heads(lambda inputs: model(inputs)[None], 1, loader, world, autocast, criterion)[0]


@torch.inference_mode()
def evaluate_heads(
    model: Callable[[Tensor], Tensor],
    heads: int,
    loader: Iterable[Batch],
    world: World,
    autocast: Callable[[], AbstractContextManager],
    criterion: ClassLoss = soft_cross_entropy,
) -> list[dict[str, float]]:
    """What `evaluate_classifier` gives, for each head of a model that maps images to logits (heads, B, classes)."""
    sums = torch.zeros(heads, 4, dtype=torch.float64, device=world.device)
    for batch in loader:
        if not len(batch):
            continue
        batch = batch.to(world.device)
        with autocast():
            logits = model(batch.inputs).float()
        sums += torch.stack([_sums(of_head, batch.labels, criterion) for of_head in logits])
    sums = world.all_sum(sums)
    if not sums[0, 3]:
        raise UserError("None of the validation files can be read; check them with `run_net.py doctor`.")
    return [
        {"top1": 100 * top1 / images, "top5": 100 * top5 / images, "val_loss": loss / images, "images": int(images)}
        for top1, top5, loss, images in sums.tolist()
    ]


def _sums(logits: Tensor, labels: Tensor, criterion: ClassLoss) -> Tensor:
    """Hits among the first and the first five, loss and number of the rows, (4,) float64."""
    loss = criterion(logits, labels) * len(labels)
    top1, top5 = (correct_in_top(logits, labels, k) for k in (1, 5))
    return torch.stack([top1, top5, loss, torch.tensor(len(labels), device=logits.device)]).double()
