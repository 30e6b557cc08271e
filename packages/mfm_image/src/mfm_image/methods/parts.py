"""What the methods are put together from, by the names that the configuration gives: backbones, masks, targets."""

from __future__ import annotations

import torch
from fvcore.common.config import CfgNode

from mfm_core.config.plan import arch_of, corruption_of, method_of, target_of
from mfm_core.errors import UserError
from mfm_core.interfaces import Backbone, Grid, MaskGenerator, Target
from mfm_core.masking.block import BlockMask
from mfm_core.masking.random import RandomMask, hidden_tokens
from mfm_core.registry import Registry
from mfm_core.targets.hog import HOGTarget
from mfm_core.targets.pixel import PixelTarget
from mfm_image.backbones.vit import vit_from_cfg

METHODS = Registry("pre-training method", key="MASK.METHOD")
"""Name -> (configuration) -> `Pretraining`."""
BACKBONES = Registry("backbone", key="MODEL.ARCH")
"""Name -> (configuration) -> `Backbone`."""
MASKS = Registry("corruption", key="AUG.MASK_TYPE")
"""Name -> (configuration, grid) -> `MaskGenerator`."""
TARGETS = Registry("target", key="MASK.TARGET")
"""Name -> (configuration, backbone) -> `Target`."""

EQUAL_COUNTS = ("mae", "mff")
"""Methods that hide the same number of tokens in each image: the others make one tensor."""

BACKBONES.register("vit")(vit_from_cfg)


def backbone_from_cfg(cfg: CfgNode) -> Backbone:
    """The encoder that MODEL.ARCH names."""
    return BACKBONES.get(arch_of(cfg))(cfg)


def masks_from_cfg(cfg: CfgNode, grid: Grid) -> MaskGenerator:
    """What draws the masks, or whatever else corrupts the input, of pre-training."""
    return MASKS.get(corruption_of(cfg))(cfg, grid)


def target_from_cfg(cfg: CfgNode, backbone: Backbone) -> Target:
    """What is predicted for each token of the backbone's grid."""
    return TARGETS.get(target_of(cfg))(cfg, backbone)


def check_patches(cfg: CfgNode, backbone: Backbone) -> None:
    """Raises UserError where a ViT's patches overlap or leave gaps, so that no target belongs to a token alone."""
    patch = backbone.patch_stride
    if arch_of(cfg) == "vit" and (tuple(cfg.MVIT.PATCH_KERNEL) != patch or any(cfg.MVIT.PATCH_PADDING)):
        raise UserError(
            f"Pre-training needs patches that do not overlap: MVIT.PATCH_KERNEL {list(cfg.MVIT.PATCH_KERNEL)} must "
            f"equal MVIT.PATCH_STRIDE {list(patch)}, and MVIT.PATCH_PADDING be 0."
        )


def hidden_from_cfg(cfg: CfgNode, grid: Grid) -> int:
    """The number of tokens that every mask hides where all hide the same."""
    return hidden_tokens(torch.Size(grid).numel(), cfg.AUG.MASK_RATIO, cfg.MASK.COUNT)


@MASKS.register("block")
def block_from_cfg(cfg: CfgNode, grid: Grid) -> BlockMask:
    """Rectangles of tokens."""
    exact = hidden_from_cfg(cfg, grid) if method_of(cfg) in EQUAL_COUNTS else None
    return BlockMask(grid, cfg.AUG.MASK_RATIO, cfg.AUG.MAX_MASK_PATCHES_PER_BLOCK, exact)


@MASKS.register("random")
def random_from_cfg(cfg: CfgNode, grid: Grid) -> RandomMask:
    """Single tokens."""
    return RandomMask(grid, hidden_from_cfg(cfg, grid))


@TARGETS.register("hog")
def hog_from_cfg(cfg: CfgNode, backbone: Backbone) -> HOGTarget:
    """Histograms of oriented gradients. Raises UserError where cells do not divide the patch."""
    if backbone.patch_stride[-1] % cfg.HOG.CELL:
        raise UserError(f"HOG.CELL {cfg.HOG.CELL} must divide the patch, {backbone.patch_stride[-1]} pixels.")
    return HOGTarget(
        backbone.patch_stride, bins=cfg.HOG.BINS, cell=cfg.HOG.CELL, gaussian_window=cfg.HOG.GAUSSIAN_WINDOW
    )


@TARGETS.register("pixel")
def pixel_from_cfg(cfg: CfgNode, backbone: Backbone) -> PixelTarget:
    """The pixels of each patch."""
    normalise = cfg.MASK.PIXEL_VARIANCE if cfg.MASK.NORM_PRED_PIXEL else "none"
    return PixelTarget(backbone.patch_stride, order=cfg.MASK.PIXEL_ORDER, normalise=normalise)
