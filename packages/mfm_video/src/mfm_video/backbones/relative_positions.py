"""Decomposed relative positions in time and space as additional features of queries and keys.

MViTv2 (Li et al. 2022, section 4.1) adds to the logit of a query and a key the query's products with three learned
vectors, one for their distance along each axis. Along an axis that vector depends on the query's place and the key's
coordinate only, so the sum is a dot product: of the query's products with the vectors of all coordinates, and of the
key's coordinates written as one-hot codes. The two are appended to queries and keys (`attend_extended`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mfm_core.interfaces import Grid

AXES = ("nthwc,tkc->nthwk", "nthwc,hkc->nthwk", "nthwc,wkc->nthwk")
"""Products of each query with the vectors of its own coordinate along time, height, width."""


def query_features(q: Tensor, tables: Sequence[Tensor | None], q_grid: Grid, k_grid: Grid, prefix: int) -> Tensor:
    """Products of the queries with the vectors of all key coordinates, axis after axis.

    q: (B, heads, prefix + N, D), tokens row-major over `q_grid`. tables: for time, height and width, (rows, D) with a
    row for each distance, or None for an axis without. The `prefix` class tokens get zeros.
    Returns (B, heads, prefix + N, E), E the sum of the keys' sizes along the axes with a table.
    """
    body = q[:, :, prefix:].flatten(0, 1).unflatten(1, q_grid)
    products = [
        torch.einsum(axis, body, vectors(table, q_size, k_size).to(body.dtype))
        for axis, table, q_size, k_size in zip(AXES, tables, q_grid, k_grid)
        if table is not None
    ]
    features = torch.cat(products, dim=-1).flatten(1, 3).unflatten(0, q.shape[:2])
    return F.pad(features, (0, 0, prefix, 0))


def key_codes(tables: Sequence[Tensor | None], k_grid: Grid, prefix: int, device: torch.device) -> Tensor:
    """One-hot codes of the keys' coordinates along the axes with a table, after zeros for the class tokens.

    (prefix + M, E) float32.
    """
    codes = []
    for axis, table in enumerate(tables):
        if table is not None:
            shape = [1] * len(k_grid)
            shape[axis] = k_grid[axis]
            eye = torch.eye(k_grid[axis], device=device).view(*shape, k_grid[axis])
            codes.append(eye.expand(*k_grid, -1))
    return F.pad(torch.cat(codes, dim=-1).flatten(0, -2), (0, 0, prefix, 0))


def vectors(table: Tensor, q_size: int, k_size: int) -> Tensor:
    """The table's rows for each pair of coordinates along an axis: (rows, D) to (q_size, k_size, D)."""
    table = resample_table(table, 2 * max(q_size, k_size) - 1)
    return table[distances(q_size, k_size, table.device)]


def distances(q_size: int, k_size: int, device: torch.device | None = None) -> Tensor:
    """(q_size, k_size) int64 rows of a table of 2 * max - 1: the coordinates' difference on the finer of both scales.

    Truncated as in PySlowFast where the sizes are no multiples of each other.
    """
    q_step, k_step = max(k_size / q_size, 1.0), max(q_size / k_size, 1.0)
    q_places = torch.arange(q_size, device=device)[:, None] * q_step
    k_places = torch.arange(k_size, device=device)[None] * k_step
    return (q_places - k_places + (k_size - 1) * k_step).long()


def resample_table(table: Tensor, rows: int) -> Tensor:
    """(old, D) to (rows, D), linear along the distances with half-pixel centres, as PySlowFast does at any size."""
    if table.shape[0] == rows:
        return table
    return F.interpolate(table.T[None], size=rows, mode="linear", align_corners=False)[0].T
