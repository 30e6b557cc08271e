"""MViTv2-S: MaskFeat's training step beside torchvision's blocks, and the pooling convolutions beside torch's own.

The plain side of the step has the same stem, head, HOG, weights, clips and masks; its blocks are torchvision's, whose
attention is a softmax of a matrix of logits to which it adds a matrix of relative-position biases.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from benchmark_step import Case, step_rows
from benchmark_timing import Row, median_times, pictures, threads_of
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torchvision.models.video.mvit import MSBlockConfig, MultiscaleBlock

from mfm_core.checkpoint.layouts import LAYOUTS
from mfm_core.interfaces import Grid
from mfm_core.objective import MaskedPrediction
from mfm_video.backbones.depthwise import DepthwiseConv3d
from mfm_video.backbones.stages import BlockPlan
from mfm_video.models import example_input

MASKFEAT = Path(__file__).parent.parent / "configs" / "masked_ssl" / "k400_MVITv2_S_16x4_MaskFeat_PT.yaml"
SIZES = {"cpu": 1, "cuda": 16}
"""Clips in a step. PySlowFast's numbers on a CPU are of one."""
POOLED = {
    "queries": ((1, 96, 8, 56, 56), (1, 1, 1)),
    "keys": ((1, 96, 8, 56, 56), (1, 8, 8)),
    "queries of stage 2": ((2, 96, 8, 56, 56), (1, 2, 2)),
    "queries of stage 3": ((4, 96, 8, 14, 14), (1, 1, 1)),
    "keys of stage 3": ((4, 96, 8, 14, 14), (1, 2, 2)),
}
"""Volumes that a clip's 16 x 224 x 224 pixels become in MViTv2-S, heads first, and the strides they are pooled with."""


def benchmark_mvit(args: argparse.Namespace) -> Iterator[Row]:
    """MaskFeat's step on MViTv2-S."""
    return step_rows(args, Case("mvit", "MViTv2-S", MASKFEAT, plain_mvit_form, clips, example_input, SIZES, "clips"))


def clips(cfg: CfgNode, count: int) -> Tensor:
    """`count` clips (count, 3, T, H, W), each a picture that moves by two pixels a frame."""
    frames, side = cfg.DATA.NUM_FRAMES, cfg.DATA.TRAIN_CROP_SIZE
    still = pictures(count, side, torch.device("cpu"))
    return torch.stack([still.roll(2 * t, dims=3) for t in range(frames)], dim=2)


def plain_mvit_form(model: MaskedPrediction) -> MaskedPrediction:
    """A copy of a MaskFeat model of a multiscale ViT, with the same weights in torchvision's blocks."""
    plain, grid, blocks = copy.deepcopy(model), model.backbone.embed_grid, nn.ModuleList()
    for ours in plain.backbone.blocks:
        blocks.append(_torchvision_block(ours.plan, grid))
        grid = ours.plan.out_grid(grid)
    layout = next(layout for layout in LAYOUTS if layout.name == "torchvision MViT")
    names = layout.to_ours(f"blocks.{name}" for name in blocks.state_dict())
    state = model.state_dict()
    blocks.load_state_dict({theirs.removeprefix("blocks."): state[ours] for theirs, ours in names.items()})
    plain.backbone.blocks = nn.ModuleList(
        PlainBlock(ours.plan, block) for ours, block in zip(plain.backbone.blocks, blocks)
    )
    return plain.to(next(model.parameters()).device)


class PlainBlock(nn.Module):
    """One of torchvision's blocks, called as ours are."""

    def __init__(self, plan: BlockPlan, block: MultiscaleBlock) -> None:
        super().__init__()
        self.plan, self.block = plan, block

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """(B, 1 + N, dim) over `grid` to (B, 1 + L, out_dim) over `plan.out_grid`."""
        return self.block(x, grid)[0]


def _torchvision_block(plan: BlockPlan, grid: Grid) -> MultiscaleBlock:
    kernels = [list(pool.kernel) if pool is not None else [] for pool in (plan.pool_q, plan.pool_kv)]
    strides = [list(pool.stride) if pool is not None else [] for pool in (plan.pool_q, plan.pool_kv)]
    return MultiscaleBlock(
        input_size=list(grid),
        cnf=MSBlockConfig(plan.heads, plan.dim, plan.out_dim, *kernels, *strides),
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=plan.attention_dim == plan.out_dim,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )


def benchmark_pooling(args: argparse.Namespace) -> Iterator[Row]:
    """Depthwise convolutions forward and backward; on a GPU ours is torch's own, and there is no row."""
    if torch.device(args.device).type != "cpu":
        return
    for threads in args.threads:
        for what, (shape, stride) in POOLED.items():
            for dtype in (torch.float32, torch.bfloat16):
                with threads_of(threads):
                    yield _pooling_row(args, what, shape, stride, dtype, threads)


def _pooling_row(
    args: argparse.Namespace, what: str, shape: tuple[int, ...], stride: Grid, dtype: torch.dtype, threads: int
) -> Row:
    torch.manual_seed(0)
    ours = DepthwiseConv3d(shape[1], (3, 3, 3), stride, (1, 1, 1)).to(dtype)
    theirs = nn.Conv3d(shape[1], shape[1], 3, stride, 1, groups=shape[1], bias=False).to(dtype)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    upstream = torch.randn_like(theirs(x))
    sides = {name: _gradients(layer, x, upstream) for name, layer in (("plain", theirs), ("ours", ours))}
    errors = [(mine - wanted).norm() / wanted.norm() for mine, wanted in zip(sides["ours"](), sides["plain"]())]
    times = median_times(sides, args.repeats, x.device)
    case = f"{what} {'x'.join(map(str, shape))}, strides {'x'.join(map(str, stride))}, {str(dtype)[6:]}"
    remark = f"gradients differ by {max(errors).item():.0e}"
    return Row("pooling", case, threads, times["plain"], times["ours"], remark)


def _gradients(layer: nn.Module, x: Tensor, upstream: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: torch.autograd.grad(layer(x), (x, layer.weight), upstream)
