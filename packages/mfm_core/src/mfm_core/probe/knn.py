"""The weighted nearest-neighbour classifier on frozen features (Wu et al. 2018, section 3.4; the protocol of DINO)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mfm_core.errors import UserError
from mfm_core.parallel.world import World

_CHUNK_ELEMENTS = 1 << 25
"""Similarities held at once: 128 MB of float32."""
_LARGEST_VOTE = 60.0
"""Logarithm of the largest vote: float32 ends at 88, and a class sums up as many votes as it has neighbours."""


@torch.no_grad()
def knn_predict(
    train_features: Tensor,
    train_labels: Tensor,
    features: Tensor,
    num_classes: int,
    k: list[int],
    temperature: float = 0.07,
) -> dict[int, Tensor]:
    """Class scores of `features` (N, D) from their nearest neighbours among `train_features` (M, D), by cosine.

    Each of the k nearest votes for its class in `train_labels` (M,) int64 with exp(similarity / temperature). The
    search is exact (all similarities, in chunks) and runs on the device of `features`; nothing needs to be normalised.
    Where the nearest's vote would lie outside exp(-60)..exp(60), at low temperatures, all votes of that row are scaled
    to make it exp(60), which changes no ranking and keeps them inside float32.
    Returns {k: scores (N, num_classes) float32}; a class without a neighbour has 0.
    Raises `UserError` (`KNN.K`) for a k that is not in 1..M, `ValueError` for labels outside 0..num_classes-1.
    """
    _check(train_features, train_labels, features, num_classes, k)
    device = features.device
    bank = F.normalize(train_features.to(device, torch.float32), dim=1)
    queries = F.normalize(features.float(), dim=1)
    labels = train_labels.to(device)
    scores = {n: torch.zeros(len(queries), num_classes, device=device) for n in k}
    rows = max(1, _CHUNK_ELEMENTS // len(bank))
    for start in range(0, len(queries), rows):
        part = slice(start, start + rows)
        with torch.autocast(device.type, enabled=False):
            similarity, nearest = (queries[part] @ bank.T).topk(max(k), dim=1)
        votes, classes = _votes(similarity, temperature), labels[nearest]
        for n, score in scores.items():
            score[part].scatter_add_(1, classes[:, :n], votes[:, :n])
    return scores


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    k: list[int],
    temperature: float = 0.07,
    top: int = 1,
) -> dict[int, float]:
    """Top-`top` accuracy in percent per k of `knn_predict` against `labels` (N,) int64; NaN where N is 0.

    With fewer than `top` neighbours only the first k classes count, as in the published tool. Classes of equal score
    rank by their number.
    """
    scores = knn_predict(train_features, train_labels, features, num_classes, k, temperature)
    return {n: _accuracy(score, labels, min(top, n)) for n, score in scores.items()}


@torch.no_grad()
def shared_knn_accuracy(
    bank: tuple[Tensor, Tensor],
    queries: tuple[Tensor, Tensor],
    num_classes: int,
    k: list[int],
    temperature: float,
    world: World,
) -> dict[int, tuple[float, float]]:
    """Top-1 and top-5 in percent per k, each process searching for its share of the queries.

    bank, queries: (features (N, D), labels (N,)), the same on all processes. As `knn_accuracy` in one process, but for
    the last digits. All processes must call, and all get the result.
    """
    own = slice(world.rank, None, world.size)
    features, labels = (array[own].to(world.device) for array in queries)
    scores = knn_predict(bank[0].to(world.device), bank[1], features, num_classes, k, temperature)
    hits = [[_hits(scores[n], labels, min(top, n)).sum() for top in (1, 5)] for n in k]
    total = world.all_sum(torch.tensor(hits, dtype=torch.float64, device=world.device))
    return {n: tuple(row) for n, row in zip(k, (100 * total / len(queries[0])).tolist())}


def _votes(similarity: Tensor, temperature: float) -> Tensor:
    """exp(similarity / temperature) for (N, k) in falling order, each row scaled where float32 needs it."""
    largest = similarity[:, :1]
    outside = largest.abs() > _LARGEST_VOTE * temperature
    shift = torch.where(outside, largest - _LARGEST_VOTE * temperature, 0.0)
    return ((similarity - shift) / temperature).exp()


def _accuracy(scores: Tensor, labels: Tensor, top: int) -> float:
    """Percent of rows of `scores` (N, classes) whose label is among the first `top` classes."""
    return 100.0 * float(_hits(scores, labels, top).double().mean())


def _hits(scores: Tensor, labels: Tensor, top: int) -> Tensor:
    """(N,) bool: whether the label is among the first `top` classes; classes of equal score rank by their number."""
    ranking = scores.argsort(dim=1, descending=True, stable=True)[:, :top]
    return (ranking == labels.to(scores.device)[:, None]).any(dim=1)


def _check(bank: Tensor, labels: Tensor, features: Tensor, num_classes: int, k: list[int]) -> None:
    """Raises for neighbours that cannot be had and for arrays that do not fit."""
    if not k or min(k) < 1:
        raise UserError(f"KNN.K: {k} must be a list of whole numbers from 1 up")
    if max(k) > len(bank):
        raise UserError(
            f"KNN.K: {max(k)} neighbours are asked for, but there are only {len(bank)} training features (files that "
            "cannot be read have none: `run_net.py doctor` names them); lower KNN.K or give more training files"
        )
    if bank.ndim != 2 or features.ndim != 2 or bank.shape[1] != features.shape[1] or labels.shape != bank.shape[:1]:
        shapes = f"{tuple(bank.shape)}, {tuple(labels.shape)}, {tuple(features.shape)}"
        raise ValueError(f"k-NN needs train features (M, D), train labels (M,) and features (N, D), not {shapes}")
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise ValueError(f"k-NN train labels span {int(labels.min())}..{int(labels.max())}, not 0..{num_classes - 1}")
