"""How width, heads and grid of a multiscale transformer go from block to block (Fan et al. 2021, Li et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mfm_core.interfaces import Grid


@dataclass(frozen=True)
class Pooling:
    """Pooling of a grid of tokens: kernel and stride along each axis, padded by half the kernel."""

    kernel: Grid
    stride: Grid

    @property
    def padding(self) -> Grid:
        """Along each axis, on both sides."""
        return tuple(k // 2 for k in self.kernel)

    @property
    def is_identity(self) -> bool:
        """Whether kernel and stride are 1 along all axes."""
        return all(n == 1 for n in (*self.kernel, *self.stride))

    def grid(self, grid: Grid) -> Grid:
        """The grid that is left of `grid`."""
        return tuple((n + 2 * p - k) // s + 1 for n, k, s, p in zip(grid, self.kernel, self.stride, self.padding))


def skip_pooling(stride: Grid) -> Pooling:
    """The pooling that fits a stride where no kernel is given: one more where it is above 1."""
    return Pooling(tuple(s + 1 if s > 1 else s for s in stride), stride)


@dataclass(frozen=True)
class BlockPlan:
    """One block: widths of its input, of its attention and of its output; heads; pooling of queries, keys and values.

    None where nothing is pooled.
    """

    dim: int
    attention_dim: int
    out_dim: int
    heads: int
    pool_q: Pooling | None = None
    pool_kv: Pooling | None = None

    @property
    def q_stride(self) -> Grid:
        """What the block divides the grid by."""
        return self.pool_q.stride if self.pool_q is not None else (1, 1, 1)

    @property
    def kv_stride(self) -> Grid:
        """What keys and values divide the grid by."""
        return self.pool_kv.stride if self.pool_kv is not None else (1, 1, 1)

    def out_grid(self, grid: Grid) -> Grid:
        """The grid of the block's output."""
        return grid if self.pool_q is None else self.pool_q.grid(grid)

    def key_grid(self, grid: Grid) -> Grid:
        """The grid of keys and values."""
        return grid if self.pool_kv is None else self.pool_kv.grid(grid)


def plan_blocks(
    depth: int,
    embed_dim: int,
    num_heads: int,
    dim_mul: Mapping[int, float],
    head_mul: Mapping[int, float],
    q_strides: Mapping[int, Grid],
    kv_strides: Mapping[int, Grid],
    kernel: Grid | None,
    dim_mul_in_attention: bool = False,
) -> list[BlockPlan]:
    """The blocks of a model whose maps name block indices.

    head_mul multiplies the heads at its index. dim_mul multiplies the width there where `dim_mul_in_attention`, and
    otherwise in the MLP of the block before. kernel: of all poolings; None follows the strides.
    Raises ValueError where a block's heads do not divide its width.
    """
    heads = [num_heads]
    for i in range(depth + 1):
        heads.append(multiplied(heads[-1], head_mul.get(i, 1.0)))
    plans, dim = [], embed_dim
    for i in range(depth):
        at = i if dim_mul_in_attention else i + 1
        out_dim = multiplied(dim, dim_mul.get(at, 1.0), divisor=heads[at + 1])
        attention_dim = out_dim if dim_mul_in_attention else dim
        if attention_dim % heads[i + 1]:
            raise ValueError(f"block {i} has {heads[i + 1]} heads, which do not divide its width {attention_dim}")
        pools = (_pooling(kernel, strides.get(i)) for strides in (q_strides, kv_strides))
        plans.append(BlockPlan(dim, attention_dim, out_dim, heads[i + 1], *pools))
        dim = out_dim
    return plans


def adaptive_strides(depth: int, first: Grid, q_strides: Mapping[int, Grid]) -> dict[int, Grid]:
    """Key and value strides of all blocks: `first`, divided by the query strides so far and the block's own."""
    strides, current = {}, tuple(first)
    for i in range(depth):
        if i in q_strides:
            current = tuple(max(n // s, 1) for n, s in zip(current, q_strides[i]))
        strides[i] = current
    return strides


def multiplied(width: int, factor: float, divisor: int = 1) -> int:
    """width * factor as a multiple of `divisor`, the nearest, but no tenth below (as PySlowFast rounds)."""
    wanted = width * factor
    rounded = max(1, int(wanted + divisor / 2) // divisor * divisor)
    return int(rounded + divisor if rounded < 0.9 * wanted else rounded)


def _pooling(kernel: Grid | None, stride: Grid | None) -> Pooling | None:
    if stride is None:
        return None
    pooling = Pooling(kernel, stride) if kernel is not None else skip_pooling(stride)
    return None if pooling.is_identity else pooling
