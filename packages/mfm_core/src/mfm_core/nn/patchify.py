"""Images or clips cut into patches and put together again; the order of a patch's numbers is an argument.

Published weights need their own order: "hwc" (rows, columns, channel fastest) in MAE (He et al. 2022) and mmpretrain,
"chw" (channel slowest) in MAE-priv, in PySlowFast's 2-D targets and in a pixel shuffle (MFM, Xie et al. 2023).
"""

from __future__ import annotations

from torch import Tensor

from mfm_core.interfaces import Grid

ORDERS = ("hwc", "chw")


def patchify(images: Tensor, patch: Grid | int, order: str = "hwc") -> Tensor:
    """(B, C, *size) to (B, L, D): patches row-major over the grid, D = C * numbers of `patch` multiplied.

    patch: pixels along each axis; one number is for all. Raises ValueError where it does not divide the size.
    """
    size = images.shape[2:]
    patch = _along_axes(patch, len(size), order)
    if any(n % p for n, p in zip(size, patch)):
        raise ValueError(f"{tuple(size)} pixels are not a whole number of patches {patch}")
    grid = tuple(n // p for n, p in zip(size, patch))
    cut = images.reshape(*images.shape[:2], *(n for pair in zip(grid, patch) for n in pair))
    return cut.permute(_split_axes(len(size), order)).flatten(1 + len(size)).flatten(1, len(size))


def unpatchify(tokens: Tensor, grid: Grid, patch: Grid | int, channels: int, order: str = "hwc") -> Tensor:
    """(B, L, D) to (B, channels, *size): what `patchify` undoes. Raises ValueError where L or D does not fit."""
    axes = len(grid)
    patch = _along_axes(patch, axes, order)
    inner = (*patch, channels) if order == "hwc" else (channels, *patch)
    cut = tokens.unflatten(2, inner).unflatten(1, grid)
    split = _split_axes(axes, order)
    whole = cut.permute([split.index(axis) for axis in range(len(split))])
    return whole.reshape(len(tokens), channels, *(n * p for n, p in zip(grid, patch)))


def _along_axes(patch: Grid | int, axes: int, order: str) -> Grid:
    """One number for each axis. Raises ValueError for another count or an unknown order."""
    patch = (patch,) * axes if isinstance(patch, int) else tuple(patch)
    if len(patch) != axes:
        raise ValueError(f"a patch of {len(patch)} axes does not cut {axes}")
    if order not in ORDERS:
        raise ValueError(f"the order of a patch is one of {ORDERS}, not '{order}'")
    return patch


def _split_axes(axes: int, order: str) -> list[int]:
    """(B, C, g1, p1, g2, p2, ...) as (B, g1, g2, ..., numbers of the patch in their order)."""
    grid, inside = [2 + 2 * i for i in range(axes)], [3 + 2 * i for i in range(axes)]
    return [0, *grid, *(inside + [1] if order == "hwc" else [1] + inside)]
