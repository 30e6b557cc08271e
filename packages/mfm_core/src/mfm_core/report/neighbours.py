"""The training images whose features lie nearest to a query's, by cosine, as a sheet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mfm_core.errors import UserError
from mfm_core.interfaces import SampleKey
from mfm_core.report.panels import sheet

_SAME = np.array([52, 158, 90], dtype=np.uint8)
"""Frame of a neighbour of the query's class: a green that reads on light and dark."""
GONE = np.full((1, 1, 3), 136, dtype=np.uint8)
"""In the place of a file that has vanished since its features were computed; a sheet enlarges it."""


@dataclass(frozen=True)
class Neighbour:
    """An image (H, W, 3) uint8 with its class, and its cosine similarity to the query."""

    image: np.ndarray
    name: str
    similarity: float


@torch.no_grad()
def nearest(queries: Tensor, bank: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Cosine similarities (N, count), largest first, of `queries` (N, D) to `bank` (M, D), and the rows of it.

    Raises `UserError` where the bank has fewer rows.
    """
    if count > len(bank):
        raise UserError(f"PICTURE.NUM_NEIGHBOURS is {count}, but only {len(bank)} training files can be read.")
    similarity = F.normalize(queries.float(), dim=1) @ F.normalize(bank.float(), dim=1).T
    return tuple(similarity.topk(count, dim=1))


def find_neighbours(
    dataset: Any, index: Tensor, similarity: Tensor, stills: Callable[[Tensor], list[np.ndarray]]
) -> list[list[Neighbour]]:
    """The neighbours at `index` (N, count) of `dataset`, read again; `stills` makes (H, W, 3) uint8 of a batch.

    A file that cannot be read any more is grey, and "gone" stands behind its class.
    """
    listing = dataset.listing

    def neighbour(i: int, cosine: float) -> Neighbour:
        image, name = still_of(dataset, i, stills), listing.classes[int(listing.labels[i])]
        return Neighbour(image, f"{name}, gone" if image is GONE else name, cosine)

    return [list(map(neighbour, *row)) for row in zip(index.tolist(), similarity.tolist())]


def still_of(dataset: Any, index: int, stills: Callable[[Tensor], list[np.ndarray]]) -> np.ndarray:
    """File `index` of `dataset`, read again, as (H, W, 3) uint8; `GONE` where it cannot be read any more."""
    views = dataset[SampleKey(0, index)].views
    return stills(torch.stack(views))[0] if views else GONE


def neighbours_sheet(
    queries: Sequence[np.ndarray], names: Sequence[str], found: Sequence[Sequence[Neighbour]]
) -> Image.Image:
    """One row for each query (H, W, 3) uint8, called by its class in `names` ("" unknown): it, and what was `found`."""
    rows = [
        [query, *(_framed(n.image) if name and n.name == name else n.image for n in row)]
        for query, name, row in zip(queries, names, found)
    ]
    captions = [[name, *(f"{n.similarity:.2f} {n.name}" for n in row)] for name, row in zip(names, found)]
    return sheet(rows, ("query", *map(str, range(1, len(found[0]) + 1))), captions)


def _framed(image: np.ndarray) -> np.ndarray:
    """A copy with a coloured frame over its border."""
    width = max(1, round(0.03 * min(image.shape[:2])))
    framed = np.empty_like(image)
    framed[:] = _SAME
    framed[width:-width, width:-width] = image[width:-width, width:-width]
    return framed
