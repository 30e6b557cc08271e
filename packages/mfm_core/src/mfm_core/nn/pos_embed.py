"""Position tables: fixed sin-cos tables over any grid, and resampling of learned ones to another grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_1d(dim: int, positions: Tensor) -> Tensor:
    """(P,) positions to (P, dim): sines, then cosines, of frequencies 10000^(-2i/dim) (Vaswani et al. 2017)."""
    omega = 1.0 / 10000 ** (torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angles = positions.to(torch.float64)[:, None] * omega[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_2d(grid: tuple[int, int], dim: int, cls_token: bool, first: str = "column") -> Tensor:
    """(1, [1 +] h * w, dim) float32 table, tokens row-major; a class token gets zeros.

    `first` is the axis in the first half of the channels: column in official MAE (He et al. 2022), row in MAE-priv
    and mmpretrain. Raises ValueError where dim is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"sin-cos positions need a width that is a multiple of 4, not {dim}")
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    axes = (columns, rows) if first == "column" else (rows, columns)
    table = torch.cat([sincos_1d(dim // 2, axis.flatten()) for axis in axes], dim=1).float()
    if cls_token:
        table = torch.cat([torch.zeros(1, dim), table])
    return table[None]


def resample_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int], prefix: int) -> Tensor:
    """A (1, prefix + h * w, D) table for another grid, bicubic; the `prefix` class-token rows stay as they are."""
    head, body = table[:, :prefix], table[:, prefix:]
    image = body.reshape(1, *old, -1).permute(0, 3, 1, 2).float()
    image = F.interpolate(image, size=new, mode="bicubic", align_corners=False)
    return torch.cat([head, image.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)
