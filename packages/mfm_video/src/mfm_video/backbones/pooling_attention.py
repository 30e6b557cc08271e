"""Pooling attention and its block: MViTv2 (Li et al. 2022), with PySlowFast's parameter names.

Queries, keys and values are pooled on their grid of tokens, each head with the same depthwise convolution, so that a
block can look at fewer keys than it has queries, and give fewer tokens than it takes.
"""

from __future__ import annotations

import torch
from timm.layers import DropPath, LayerScale, Mlp
from torch import Tensor, nn

from mfm_core.interfaces import Grid
from mfm_core.nn.attention import attend, attend_extended
from mfm_core.nn.vit import layer_norm
from mfm_video.backbones.depthwise import DepthwiseConv3d
from mfm_video.backbones.relative_positions import key_codes, query_features
from mfm_video.backbones.stages import BlockPlan, Pooling, skip_pooling

POOLS = {"max": nn.MaxPool3d, "avg": nn.AvgPool3d}


class PoolingAttention(nn.Module):
    """Self-attention between pooled queries, keys and values.

    grid: of the block's input tokens in the size that the model is built for, which gives the position tables their
    lengths. mode: conv | avg | max. num_prefix_tokens: class tokens, which are not pooled. rel_pos_spatial,
    rel_pos_temporal: relative positions along height and width, along time. residual_pooling: add the pooled queries
    to the output, but for the class token. The position tables are zero; the model draws them.
    """

    def __init__(
        self,
        plan: BlockPlan,
        grid: Grid,
        num_prefix_tokens: int,
        qkv_bias: bool = True,
        mode: str = "conv",
        rel_pos_spatial: bool = True,
        rel_pos_temporal: bool = True,
        residual_pooling: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads, self.prefix, self.residual_pooling = plan.heads, num_prefix_tokens, residual_pooling
        self.plan, head_dim = plan, plan.attention_dim // plan.heads
        self.qkv = nn.Linear(plan.dim, 3 * plan.attention_dim, bias=qkv_bias)
        self.proj = nn.Linear(plan.attention_dim, plan.attention_dim)
        self.proj_drop = nn.Dropout(dropout)
        for name, pooling in (("q", plan.pool_q), ("k", plan.pool_kv), ("v", plan.pool_kv)):
            self.add_module(f"pool_{name}", _pool(pooling, mode, head_dim))
            self.add_module(f"norm_{name}", layer_norm(head_dim) if pooling and mode == "conv" else None)
        # In time the tables span the block's input, as PySlowFast's do, whatever the strides.
        finest = [grid[0], *(n // min(q, kv) for n, q, kv in zip(grid[1:], plan.q_stride[1:], plan.kv_stride[1:]))]
        there = (rel_pos_temporal, rel_pos_spatial, rel_pos_spatial)
        for axis, size, wanted in zip("thw", finest, there):
            table = nn.Parameter(torch.zeros(2 * size - 1, head_dim)) if wanted else None
            self.register_parameter(f"rel_pos_{axis}", table)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """(B, prefix + N, dim), tokens row-major over `grid`, to (B, prefix + L, attention_dim), likewise."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q = self._pooled(q, grid, self.pool_q, self.norm_q)
        k = self._pooled(k, grid, self.pool_k, self.norm_k)
        v = self._pooled(v, grid, self.pool_v, self.norm_v)
        out = self._attend(q, k, v, self.plan.out_grid(grid), self.plan.key_grid(grid))
        if self.residual_pooling:
            first, rest = out[:, :, : self.prefix], out[:, :, self.prefix :]
            out = torch.cat([first, rest + q[:, :, self.prefix :].to(out.dtype)], dim=2)
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, q_grid: Grid, k_grid: Grid) -> Tensor:
        tables = [self.rel_pos_t, self.rel_pos_h, self.rel_pos_w]
        if all(table is None for table in tables):
            return attend(q, k, v)
        # Relative positions are added to the logits as they are, which `attend_extended` divides by this.
        scaled = [None if table is None else table * q.shape[-1] ** 0.5 for table in tables]
        more_q = query_features(q, scaled, q_grid, k_grid, self.prefix)
        return attend_extended(q, k, v, more_q, key_codes(tables, k_grid, self.prefix, q.device))

    def _pooled(self, x: Tensor, grid: Grid, pool: nn.Module | None, norm: nn.Module | None) -> Tensor:
        """(B, heads, prefix + N, D) with its tokens pooled and normalised; class tokens are only normalised."""
        if pool is not None:
            x = pool_tokens(x, grid, pool, self.prefix)
        return x if norm is None else norm(x)


def _pool(pooling: Pooling | None, mode: str, dim: int) -> nn.Module | None:
    if pooling is None:
        return None
    if mode == "conv":
        return DepthwiseConv3d(dim, pooling.kernel, pooling.stride, pooling.padding)
    return POOLS[mode](pooling.kernel, pooling.stride, pooling.padding)


def pool_tokens(x: Tensor, grid: Grid, pool: nn.Module, prefix: int) -> Tensor:
    """(B, heads, prefix + N, D) through `pool` on (B * heads, D, *grid), but for the first `prefix` tokens."""
    volume = x[:, :, prefix:].flatten(0, 1).unflatten(1, grid).permute(0, 4, 1, 2, 3)
    pooled = pool(volume).flatten(2).transpose(1, 2).unflatten(0, x.shape[:2])
    return torch.cat([x[:, :, :prefix].to(pooled.dtype), pooled], dim=2) if prefix else pooled


class MultiscaleBlock(nn.Module):
    """Pre-norm block of pooling attention and MLP; the residual is pooled as the queries are, by their maximum.

    Where the width changes, the residual is a linear layer of the normalised activations: before the attention where
    it changes there, otherwise before the MLP.
    """

    def __init__(
        self,
        plan: BlockPlan,
        attn: PoolingAttention,
        mlp_ratio: float,
        drop_path: float,
        layer_scale: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.plan = plan
        self.norm1, self.attn = layer_norm(plan.dim), attn
        self.norm2 = layer_norm(plan.attention_dim)
        self.mlp = Mlp(plan.attention_dim, int(plan.attention_dim * mlp_ratio), plan.out_dim, drop=dropout)
        self.ls1 = LayerScale(plan.attention_dim, layer_scale) if layer_scale else nn.Identity()
        self.ls2 = LayerScale(plan.out_dim, layer_scale) if layer_scale else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.proj = nn.Linear(plan.dim, plan.out_dim) if plan.dim != plan.out_dim else None
        self.widens_in_attention = plan.attention_dim != plan.dim
        strided = any(s > 1 for s in plan.q_stride)
        self.pool_skip = _pool(skip_pooling(plan.q_stride), "max", plan.dim) if strided else None

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """(B, prefix + N, dim), tokens row-major over `grid`, to (B, prefix + L, out_dim) over `plan.out_grid`."""
        normed = self.norm1(x)
        attended = self.attn(normed, grid)
        x = self.proj(normed) if self.proj is not None and self.widens_in_attention else x
        if self.pool_skip is not None:
            x = pool_tokens(x[:, None], grid, self.pool_skip, self.attn.prefix)[:, 0]
        x = x + self.drop_path(self.ls1(attended))
        normed = self.norm2(x)
        x = self.proj(normed) if self.proj is not None and not self.widens_in_attention else x
        return x + self.drop_path(self.ls2(self.mlp(normed)))
