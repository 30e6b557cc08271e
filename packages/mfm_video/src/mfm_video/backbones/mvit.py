"""MViTv2, the multiscale vision transformer on clips (Li et al. 2022), as PySlowFast builds it for masked pre-training.

Parameter names and initialisation are PySlowFast's, so that its released weights load name by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from mfm_core.errors import UserError
from mfm_core.interfaces import Grid
from mfm_core.nn.pos_embed import make_positions, position_table
from mfm_core.nn.vit import PatchEmbed, TransformerEncoder, init_weights, run_block
from mfm_video.backbones.pooling_attention import MultiscaleBlock, PoolingAttention
from mfm_video.backbones.stages import BlockPlan, adaptive_strides, plan_blocks


class MViT(TransformerEncoder):
    """The encoder without a final norm: heads bring their own.

    size: frames, height and width of a clip. patch_kernel, patch_stride, patch_padding: of the stem, a convolution.
    blocks: see `plan_blocks`. positions: none | learned | separable, see `make_positions`.
    drop_path: rate of the last block, growing linearly from 0. dropout: behind positions, attention and MLP.
    layer_scale: initial value, 0 for none. act_checkpoint: recompute blocks in the backward pass.
    The rest is as in `PoolingAttention`. Clips of other sizes are encoded with resampled positions.
    """

    def __init__(
        self,
        size: Grid,
        patch_kernel: Grid,
        patch_stride: Grid,
        patch_padding: Grid,
        blocks: Sequence[BlockPlan],
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        mode: str = "conv",
        cls_token: bool = True,
        positions: str = "none",
        rel_pos_spatial: bool = True,
        rel_pos_temporal: bool = True,
        residual_pooling: bool = True,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        layer_scale: float = 0.0,
        act_checkpoint: bool = False,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.depth, self.act_checkpoint = len(blocks), act_checkpoint
        self.stem_dim, self.dims = blocks[0].dim, [plan.out_dim for plan in blocks]
        self.embed_dim = self.dims[-1]
        self._stem = tuple(zip(patch_kernel, patch_stride, patch_padding))
        self.embed_grid = self.grid_of(size)
        self.grids = list(accumulate(blocks, lambda grid, plan: plan.out_grid(grid), initial=self.embed_grid))[1:]
        self.grid: Grid = self.grids[-1]
        self.patch_stride = _pixels_per_token(patch_stride, blocks)
        self.patch_embed = PatchEmbed(channels, self.stem_dim, patch_kernel, patch_stride, patch_padding)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.stem_dim)) if cls_token else None
        self.pos_embed = make_positions(positions, self.embed_grid, self.stem_dim, cls_token)
        self.pos_drop = nn.Dropout(dropout)
        rates = torch.linspace(0, drop_path, self.depth, device="cpu").tolist()
        table_grids = accumulate(blocks, _divided, initial=tuple(n // s for n, s in zip(size, patch_stride)))
        attention = partial(
            PoolingAttention,
            num_prefix_tokens=self.num_prefix_tokens,
            qkv_bias=qkv_bias,
            mode=mode,
            rel_pos_spatial=rel_pos_spatial,
            rel_pos_temporal=rel_pos_temporal,
            residual_pooling=residual_pooling,
            dropout=dropout,
        )
        self.blocks = nn.ModuleList(
            MultiscaleBlock(plan, attention(plan, grid), mlp_ratio, rate, layer_scale, dropout)
            for plan, grid, rate in zip(blocks, table_grids, rates)
        )
        self._start()

    def _start(self) -> None:
        """PySlowFast's initialisation."""
        init_weights(self)
        for name, table in self.named_parameters():
            if _is_table(name):
                nn.init.trunc_normal_(table, std=0.02)

    def stages(self) -> dict[str, nn.Module]:
        """Modules whose outputs show the way of a batch, by what they are: where width or grid change."""
        shapes = list(zip(self.dims, self.grids))
        last = [i for i in range(self.depth) if i + 1 == self.depth or shapes[i] != shapes[i + 1]]
        blocks = {f"block {i + 1} of {self.depth}": self.blocks[i] for i in last}
        return {"patch embedding": self.patch_embed, **blocks}

    def grid_of(self, size: Grid) -> Grid:
        """The grid of the patch embedding of a clip with these frames, height and width."""
        return tuple((n + 2 * p - k) // s + 1 for n, (k, s, p) in zip(size, self._stem))

    def encode(
        self, tokens: Tensor, depths: Sequence[int], keep: Tensor | None = None, grid: Grid | None = None
    ) -> list[Tensor]:
        """Adds class token and positions and runs the blocks.

        tokens: (B, L, D) over `grid`, None for `embed_grid`. keep must be None: pooling needs every token in its place.
        Returns the outputs of the blocks named in `depths`, each (B, prefix + L, D) over that block's grid.
        """
        if keep is not None:
            raise ValueError("a multiscale transformer pools whole grids; no token can be left out")
        grid = grid or self.embed_grid
        tokens = self.with_class_token(tokens)
        positions = self._positions(grid)
        tokens = self.pos_drop(tokens if positions is None else tokens + positions)
        outputs = []
        for i, block in enumerate(self.blocks):
            tokens = run_block(block, tokens, self.act_checkpoint, grid)
            grid = block.plan.out_grid(grid)
            if i in depths:
                outputs.append(tokens)
        return outputs

    def _positions(self, grid: Grid) -> Tensor | None:
        """The absolute positions, (1, prefix + L, D), resampled where `grid` is another than the model's."""
        if self.pos_embed is None:
            return None
        table = position_table(self.pos_embed)
        if grid == self.embed_grid:
            return table
        first, rest = table[:, : self.num_prefix_tokens], table[:, self.num_prefix_tokens :]
        volume = rest.transpose(1, 2).unflatten(2, self.embed_grid)
        return torch.cat([first, F.interpolate(volume, size=grid, mode="trilinear").flatten(2).transpose(1, 2)], dim=1)

    def tokens(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to the last block's tokens (B, prefix + L, D), row-major over `grid`."""
        return self.encode(self.embed(x), [self.depth - 1], grid=self.grid_of(x.shape[2:]))[0]

    def no_weight_decay(self) -> set[str]:
        """Names that weight decay may spare (`MVIT.ZERO_DECAY_POS_CLS`): class token and all positions."""
        return {name for name, _ in self.named_parameters() if _is_table(name)}


def _is_table(name: str) -> bool:
    return name.split(".")[0] in ("cls_token", "pos_embed") or ".attn.rel_pos_" in name


def _divided(grid: Grid, plan: BlockPlan) -> Grid:
    """By strides alone, which is how PySlowFast gives its tables their lengths."""
    return tuple(n // s for n, s in zip(grid, plan.q_stride))


def _pixels_per_token(patch_stride: Grid, blocks: Sequence[BlockPlan]) -> Grid:
    strides = tuple(patch_stride)
    for plan in blocks:
        strides = tuple(n * s for n, s in zip(strides, plan.q_stride))
    return strides


def mvit_from_cfg(cfg: CfgNode) -> MViT:
    """The encoder for clips of DATA.NUM_FRAMES frames of DATA.TRAIN_CROP_SIZE pixels.

    Raises UserError where widths, heads, strides or patches do not fit.
    """
    mvit, side = cfg.MVIT, cfg.DATA.TRAIN_CROP_SIZE
    if mvit.SIZE:
        raise UserError(
            f"MVIT.SIZE {mvit.SIZE} names a plain ViT; give a multiscale one by EMBED_DIM, DEPTH, NUM_HEADS."
        )
    if mvit.USE_FIXED_SINCOS_POS:
        raise UserError("MVIT.USE_FIXED_SINCOS_POS belongs to plain ViTs; a multiscale one learns its positions.")
    kernel, stride, padding = (_triple(cfg, key) for key in ("PATCH_KERNEL", "PATCH_STRIDE", "PATCH_PADDING"))
    size, blocks = (cfg.DATA.NUM_FRAMES, side, side), _blocks_of(cfg)
    if any(n < pixels for n, pixels in zip(size, _pixels_per_token(stride, blocks))):
        raise UserError(
            f"A clip of {size[0]} frames of {side} pixels is smaller than a token of the last block, "
            f"{_pixels_per_token(stride, blocks)}; raise DATA.NUM_FRAMES or TRAIN_CROP_SIZE, lower MVIT.POOL_Q_STRIDE."
        )
    model = MViT(
        size=size,
        patch_kernel=kernel,
        patch_stride=stride,
        patch_padding=padding,
        blocks=blocks,
        mlp_ratio=mvit.MLP_RATIO,
        qkv_bias=mvit.QKV_BIAS,
        mode=mvit.MODE,
        cls_token=mvit.CLS_EMBED_ON,
        positions="none" if not mvit.USE_ABS_POS else "separable" if mvit.SEP_POS_EMBED else "learned",
        rel_pos_spatial=mvit.REL_POS_SPATIAL,
        rel_pos_temporal=mvit.REL_POS_TEMPORAL,
        residual_pooling=mvit.RESIDUAL_POOLING,
        drop_path=mvit.DROPPATH_RATE,
        dropout=mvit.DROPOUT_RATE,
        layer_scale=mvit.LAYER_SCALE_INIT_VALUE,
        act_checkpoint=cfg.MODEL.ACT_CHECKPOINT,
    )
    wanted = tuple(-(-n // s) for n, s in zip(size, stride))
    if model.embed_grid != wanted:
        raise UserError(
            f"MVIT.PATCH_PADDING {list(padding)} makes {model.embed_grid} tokens where MVIT.PATCH_STRIDE "
            f"{list(stride)} means {wanted}; pad by half of MVIT.PATCH_KERNEL, {[k // 2 for k in kernel]}, or choose "
            "DATA.NUM_FRAMES and DATA.TRAIN_CROP_SIZE that the strides divide."
        )
    return model


def _blocks_of(cfg: CfgNode) -> list[BlockPlan]:
    mvit = cfg.MVIT
    q_strides = _by_block(cfg, "POOL_Q_STRIDE", 3)
    kv_strides = _by_block(cfg, "POOL_KV_STRIDE", 3)
    if mvit.POOL_KV_STRIDE_ADAPTIVE is not None:
        kv_strides = adaptive_strides(mvit.DEPTH, _triple(cfg, "POOL_KV_STRIDE_ADAPTIVE"), q_strides)
    kernel = None if mvit.POOL_KVQ_KERNEL is None else _triple(cfg, "POOL_KVQ_KERNEL")
    if kernel is not None and any(n % 2 == 0 for n in kernel):
        raise UserError(
            f"MVIT.POOL_KVQ_KERNEL {list(kernel)} must be odd: others would make more tokens than there are."
        )
    try:
        return plan_blocks(
            depth=mvit.DEPTH,
            embed_dim=mvit.EMBED_DIM,
            num_heads=mvit.NUM_HEADS,
            dim_mul={block: factor for block, (factor,) in _by_block(cfg, "DIM_MUL", 1).items()},
            head_mul={block: factor for block, (factor,) in _by_block(cfg, "HEAD_MUL", 1).items()},
            q_strides=q_strides,
            kv_strides=kv_strides,
            kernel=kernel,
            dim_mul_in_attention=mvit.DIM_MUL_IN_ATT,
        )
    except ValueError as error:
        raise UserError(f"MVIT.EMBED_DIM, NUM_HEADS, DIM_MUL and HEAD_MUL do not fit: {error}.") from None


def _triple(cfg: CfgNode, key: str) -> Grid:
    value = tuple(cfg.MVIT[key])
    least = 0 if key == "PATCH_PADDING" else 1
    if len(value) != 3 or not all(isinstance(n, int) and n >= least for n in value):
        raise UserError(f"MVIT.{key} {list(value)} needs three whole numbers on video: time, height and width.")
    return value


def _by_block(cfg: CfgNode, key: str, numbers: int) -> dict[int, tuple]:
    """A list of [block, number, ...] as a table by block; strides are whole numbers, factors any above 0."""
    table, kinds = {}, (int,) if numbers == 3 else (int, float)
    for row in cfg.MVIT[key]:
        fits = isinstance(row, (list, tuple)) and len(row) == numbers + 1
        if (
            not fits
            or row[0] not in range(cfg.MVIT.DEPTH + 1)
            or not all(isinstance(n, kinds) and n > 0 for n in row[1:])
        ):
            raise UserError(
                f"MVIT.{key} has {row}; each entry is a block below MVIT.DEPTH {cfg.MVIT.DEPTH} and "
                + ("its strides in time, height and width." if numbers == 3 else "a factor above 0.")
            )
        table[row[0]] = tuple(row[1:])
    return table
