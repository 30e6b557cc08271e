"""Position tables: fixed sin-cos ones, learned ones in two parts, and resampling of learned ones to another grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfm_core.interfaces import Grid


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


def sincos_3d(grid: tuple[int, int, int], dim: int, cls_token: bool, first: str = "column") -> Tensor:
    """(1, [1 +] t * h * w, dim) float32 table, tokens row-major; a class token gets zeros.

    Time has the first quarter of the channels, space the others, see `sincos_2d` (PySlowFast; Feichtenhofer et al.
    2022). Raises ValueError where dim is not a multiple of 16.
    """
    if dim % 16:
        raise ValueError(f"sin-cos positions of clips need a width that is a multiple of 16, not {dim}")
    steps, *space = grid
    time = sincos_1d(dim // 4, torch.arange(steps)).float()
    plane = sincos_2d(tuple(space), dim - dim // 4, cls_token=False, first=first)[0]
    table = torch.cat([time[:, None].expand(-1, len(plane), -1), plane.expand(steps, -1, -1)], dim=2).flatten(0, 1)
    if cls_token:
        table = torch.cat([torch.zeros(1, dim), table])
    return table[None]


def sincos(grid: Grid, dim: int, cls_token: bool, first: str = "column") -> Tensor:
    """The fixed table of an image's or a clip's grid, see `sincos_2d` and `sincos_3d`."""
    return {2: sincos_2d, 3: sincos_3d}[len(grid)](grid, dim, cls_token, first)


class SeparablePositions(nn.Module):
    """A learned table over space and one over time, whose sum is a token's position, and a row for a class token.

    Fan et al. 2021 (MViT), Feichtenhofer et al. 2022 (MAE on video).
    """

    def __init__(self, grid: tuple[int, int, int], dim: int, cls_token: bool) -> None:
        super().__init__()
        self.spatial = nn.Parameter(torch.zeros(1, grid[1] * grid[2], dim))
        self.temporal = nn.Parameter(torch.zeros(1, grid[0], dim))
        self.cls = nn.Parameter(torch.zeros(1, 1, dim)) if cls_token else None

    def forward(self) -> Tensor:
        """(1, [1 +] t * h * w, dim), tokens row-major, time slowest."""
        return separable_table(self.spatial, self.temporal, self.cls)


def separable_table(spatial: Tensor, temporal: Tensor, cls: Tensor | None) -> Tensor:
    """(1, h * w, D) and (1, t, D) added to (1, [1 +] t * h * w, D), behind a class token's (1, 1, D)."""
    table = (spatial[:, None] + temporal[:, :, None]).flatten(1, 2)
    return table if cls is None else torch.cat([cls, table], dim=1)


def make_positions(
    kind: str, grid: Grid, dim: int, cls_token: bool, sincos_first: str = "column"
) -> nn.Parameter | SeparablePositions | None:
    """The positions of a transformer: learned (one table) | separable (clips) | sincos (fixed) | none.

    Learned ones are zero; the model draws them.
    """
    if kind == "learned":
        return nn.Parameter(torch.zeros(1, int(cls_token) + torch.Size(grid).numel(), dim))
    if kind == "separable":
        return SeparablePositions(grid, dim, cls_token)
    if kind == "sincos":
        return nn.Parameter(sincos(grid, dim, cls_token, sincos_first), requires_grad=False)
    return None


def position_table(positions: nn.Parameter | SeparablePositions) -> Tensor:
    """(1, [1 +] L, D): what `make_positions` made, as one table."""
    return positions() if isinstance(positions, SeparablePositions) else positions


def resample_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int], prefix: int) -> Tensor:
    """A (1, prefix + h * w, D) table for another grid, bicubic; the `prefix` class-token rows stay as they are."""
    head, body = table[:, :prefix], table[:, prefix:]
    image = body.reshape(1, *old, -1).permute(0, 3, 1, 2).float()
    image = F.interpolate(image, size=new, mode="bicubic", align_corners=False)
    return torch.cat([head, image.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)
