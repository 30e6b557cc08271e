"""The ResNet of an image run (He et al. 2016): bottleneck blocks with the stride on the 3x3 convolution.

Blocks are torchvision's, and so are the parameter names, which MFM's and timm's checkpoints share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import Bottleneck

from mfm_core.errors import UserError
from mfm_core.interfaces import Grid

LAYERS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Blocks in each of the four stages, by depth."""
STEM, PLANES = 64, (64, 128, 256, 512)
STRIDE = 32


class ResNet(nn.Module):
    """Four stages of bottleneck blocks, without a classifier; a token is a cell of the last feature map.

    size: (height, width) of the input, at least 32 pixels each. layers: blocks in each stage. stem and planes: widths
    of the first convolution and of the blocks' inner ones, a quarter of what leaves a stage. zero_init: the last norm
    of each block starts at zero, so that blocks start as the identity (Goyal et al. 2017; official MFM).
    act_checkpoint: recompute blocks in the backward pass.
    """

    patch_stride = (STRIDE, STRIDE)
    num_prefix_tokens = 0
    needs_norm = False

    def __init__(
        self,
        size: Grid,
        layers: Sequence[int] = LAYERS[50],
        stem: int = STEM,
        planes: Sequence[int] = PLANES,
        zero_init: bool = True,
        act_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.grid: Grid = tuple(-(-n // STRIDE) for n in size)
        self.embed_dim, self.depth = planes[-1] * Bottleneck.expansion, sum(layers)
        self.starts = [sum(layers[:i]) for i in range(len(layers))]
        self.act_checkpoint = act_checkpoint
        self.conv1 = nn.Conv2d(3, stem, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        widths = (stem, *(n * Bottleneck.expansion for n in planes))
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            _stage(widths[i], planes[i], layers[i], stride=1 if i == 0 else 2) for i in range(4)
        )
        _init_weights(self, zero_init)

    def tokens(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, L, D), the last feature map row by row; any size, whose grid may differ from `grid`."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = self._run(block, x)
        return x.flatten(2).transpose(1, 2)

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        if not (self.act_checkpoint and torch.is_grad_enabled()):
            return block(x)
        return checkpoint(block, x, use_reentrant=False, context_fn=lambda: _once(block))

    def features(self, x: Tensor) -> Tensor:
        """Frozen-feature read-out: (B, D) float32, the mean over the last feature map."""
        return self.tokens(x).float().mean(dim=1)

    def stages(self) -> dict[str, nn.Module]:
        """Modules whose outputs show the way of a batch, by what they are."""
        stages = {f"stage {i}": getattr(self, f"layer{i}") for i in (1, 2, 3, 4)}
        return {"stem": self.conv1, "max-pool": self.maxpool} | {
            f"{name}, block {len(stage)} of {len(stage)}": stage[-1] for name, stage in stages.items()
        }

    def layer_of(self, name: str) -> int:
        """The depth of a parameter for layer decay: 0 for the stem, i + 1 for block i, counted through the stages."""
        first, _, rest = name.partition(".")
        if first in ("conv1", "bn1"):
            return 0
        return self.starts[int(first.removeprefix("layer")) - 1] + int(rest.split(".")[0]) + 1

    @property
    def num_layers(self) -> int:
        """The layer of a head."""
        return self.depth + 1

    def no_weight_decay(self) -> set[str]:
        """None beyond biases and norms, which `SOLVER.ZERO_WD_1D_PARAM` spares."""
        return set()


def _stage(inputs: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    outputs = planes * Bottleneck.expansion
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    first = Bottleneck(inputs, planes, stride, shortcut)
    return nn.Sequential(first, *(Bottleneck(outputs, planes) for _ in range(blocks - 1)))


def _init_weights(model: nn.Module, zero_init: bool) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init and isinstance(module, Bottleneck):
            nn.init.zeros_(module.bn3.weight)


def _once(block: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Contexts of a block's forward pass and of its repetition, which must not count its batch a second time."""
    return nullcontext(), _statistics_kept(block)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """No momentum leaves running statistics as they are. (Without them autograd would find fewer tensors to keep.)"""
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before):
            norm.momentum, norm.num_batches_tracked = momentum, batches


def resnet_from_cfg(cfg: CfgNode) -> ResNet:
    """The encoder for images of DATA.TRAIN_CROP_SIZE. Raises UserError where they are too small."""
    side = cfg.DATA.TRAIN_CROP_SIZE
    if side < STRIDE:
        raise UserError(f"DATA.TRAIN_CROP_SIZE {side} is too small for a ResNet, which needs {STRIDE} pixels or more.")
    return ResNet(
        (side, side),
        LAYERS[cfg.RESNET.DEPTH],
        STEM,
        PLANES,
        zero_init=cfg.RESNET.ZERO_INIT,
        act_checkpoint=cfg.MODEL.ACT_CHECKPOINT,
    )
