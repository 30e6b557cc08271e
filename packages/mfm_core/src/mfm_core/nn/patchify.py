"""Images and clips cut into patches, one row of numbers each, and put together again; nothing else does this."""

from __future__ import annotations

import math

from torch import Tensor

from mfm_core.interfaces import Grid

ORDERS = ("hwc", "chw")
"""Numbers within a patch: hwc, channel fastest (MAE); chw, channel slowest (pixel shuffle, MFM)."""


def patchify(images: Tensor, patch: Grid, order: str) -> Tensor:
    """(B, C, *size) to (B, L, D): tokens row-major, D = C * prod(patch) numbers in `order` (see `ORDERS`).

    Raises ValueError where `patch` does not divide the size, or for an unknown order.
    """
    size, axes = images.shape[2:], len(patch)
    if order not in ORDERS:
        raise ValueError(f"order is '{order}'; it can be {' or '.join(ORDERS)}")
    if len(size) != axes or any(n % p for n, p in zip(size, patch)):
        raise ValueError(f"patches of {tuple(patch)} do not divide images of {tuple(size)}")
    split = [n for side, p in zip(size, patch) for n in (side // p, p)]
    x = images.reshape(*images.shape[:2], *split)
    places, inside = range(2, 2 + 2 * axes, 2), range(3, 3 + 2 * axes, 2)
    x = x.permute(0, *places, *((*inside, 1) if order == "hwc" else (1, *inside)))
    return x.reshape(images.shape[0], math.prod(x.shape[1 : 1 + axes]), -1)


def unpatchify(tokens: Tensor, grid: Grid, patch: Grid, channels: int, order: str) -> Tensor:
    """The inverse of `patchify`: (B, L, D) over `grid` to (B, channels, *size)."""
    if order not in ORDERS:
        raise ValueError(f"order is '{order}'; it can be {' or '.join(ORDERS)}")
    axes = len(grid)
    inside = (*patch, channels) if order == "hwc" else (channels, *patch)
    x = tokens.reshape(tokens.shape[0], *grid, *inside)
    channel, first = (1 + 2 * axes, 1 + axes) if order == "hwc" else (1 + axes, 2 + axes)
    x = x.permute(0, channel, *(axis for i in range(axes) for axis in (1 + i, first + i)))
    return x.reshape(tokens.shape[0], channels, *(g * p for g, p in zip(grid, patch)))
