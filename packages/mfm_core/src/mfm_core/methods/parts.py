"""What the methods are put together from, by the names that the configuration gives: backbones, masks, targets."""

from __future__ import annotations

import torch
from fvcore.common.config import CfgNode

from mfm_core.config.plan import arch_of, corruption_of, mask_window, method_of, modality_of, target_of
from mfm_core.errors import UserError
from mfm_core.interfaces import Backbone, Grid, Loss, MaskGenerator, Target
from mfm_core.losses.frequency import FrequencyDistance, PastedDistance, Variant
from mfm_core.losses.masked import MaskedMSE, MeanMSE
from mfm_core.masking.block import BlockMask, ExactBlockMask
from mfm_core.masking.random import RandomMask, hidden_tokens
from mfm_core.registry import Registry
from mfm_core.targets.hog import HOGTarget
from mfm_core.targets.pixel import PixelTarget
from mfm_core.targets.spectrum import SpectrumTarget

METHODS = Registry("pre-training method", key="MASK.METHOD")
"""Name -> (configuration) -> `Pretraining`."""
BACKBONES = Registry("backbone", key="MODEL.ARCH")
"""Name -> (configuration) -> `Backbone`. A modality registers its own."""
MASKS = Registry("corruption", key="AUG.MASK_TYPE")
"""Name -> (configuration, grid) -> `MaskGenerator`."""
TARGETS = Registry("target", key="MASK.TARGET")
"""Name -> (configuration, backbone) -> `Target`."""

PLAIN = ("vit", "space_time_vit")
"""Backbones whose tokens are patches that tile the input."""
EQUAL_COUNTS = ("mae", "mff")
"""Methods that hide the same number of tokens in each image: the others make one tensor."""


def backbone_from_cfg(cfg: CfgNode) -> Backbone:
    """The encoder that MODEL.ARCH names."""
    return BACKBONES.get(arch_of(cfg))(cfg)


def masks_from_cfg(cfg: CfgNode, grid: Grid) -> MaskGenerator:
    """What draws the masks, or whatever else corrupts the input, of pre-training."""
    return MASKS.get(corruption_of(cfg))(cfg, grid)


def target_from_cfg(cfg: CfgNode, backbone: Backbone) -> Target:
    """What is predicted for each token of the backbone's grid."""
    return TARGETS.get(target_of(cfg))(cfg, backbone)


def loss_from_cfg(cfg: CfgNode, backbone: Backbone) -> Loss:
    """How prediction and target are compared: what the target asks for, over what the method hides."""
    whole = method_of(cfg) == "mfm"
    if target_of(cfg) != "spectrum":
        return MeanMSE() if whole else MaskedMSE()
    variant = Variant(
        loss_gamma=cfg.MFM.LOSS_GAMMA,
        matrix_gamma=cfg.MFM.MATRIX_GAMMA,
        patch_factor=cfg.MFM.PATCH_FACTOR,
        ave_spectrum=cfg.MFM.AVE_SPECTRUM,
        with_matrix=cfg.MFM.WITH_MATRIX,
        log_matrix=cfg.MFM.LOG_MATRIX,
        batch_matrix=cfg.MFM.BATCH_MATRIX,
        eps=cfg.MFM.LOSS_EPS,
    )
    own = "masked" if corruption_of(cfg) == "frequency" else "normal"
    distance = FrequencyDistance(backbone.grid, backbone.patch_stride, cfg.MFM.LOSS_REDUCTION or own, variant)
    return distance if whole else PastedDistance(distance)


def check_patches(cfg: CfgNode, backbone: Backbone) -> None:
    """Raises UserError where tokens overlap, leave gaps or reach beyond the image or the clip: none has its target."""
    patch, side = backbone.patch_stride, cfg.DATA.TRAIN_CROP_SIZE
    if side % patch[-1]:
        raise UserError(
            f"Pre-training needs DATA.TRAIN_CROP_SIZE {side} to be a multiple of {patch[-1]}, the model's last stride."
        )
    if len(patch) == 3 and cfg.DATA.NUM_FRAMES % patch[0]:
        raise UserError(
            f"Pre-training needs DATA.NUM_FRAMES {cfg.DATA.NUM_FRAMES} to be a multiple of {patch[0]}, the frames of a "
            "token."
        )
    if arch_of(cfg) in PLAIN and (tuple(cfg.MVIT.PATCH_KERNEL) != patch or any(cfg.MVIT.PATCH_PADDING)):
        raise UserError(
            f"Pre-training needs patches that do not overlap: MVIT.PATCH_KERNEL {list(cfg.MVIT.PATCH_KERNEL)} must "
            f"equal MVIT.PATCH_STRIDE {list(patch)}, and MVIT.PATCH_PADDING be 0."
        )


def hidden_from_cfg(cfg: CfgNode, grid: Grid) -> int:
    """The number of tokens that every mask hides where all hide the same; counted where masks are drawn."""
    window = mask_window(cfg, grid)
    enlarged = torch.Size(grid).numel() // torch.Size(window).numel()
    return hidden_in_window(cfg, window) * enlarged


def hidden_in_window(cfg: CfgNode, window: Grid) -> int:
    """The same before masks are enlarged from their window."""
    return hidden_tokens(torch.Size(window).numel(), cfg.AUG.MASK_RATIO, cfg.MASK.COUNT)


@MASKS.register("block")
def block_from_cfg(cfg: CfgNode, grid: Grid) -> BlockMask:
    """Rectangles of tokens."""
    if cfg.AUG.MASK_EXACT and method_of(cfg) not in EQUAL_COUNTS:
        return ExactBlockMask(grid, cfg.AUG.MASK_RATIO, cfg.AUG.MAX_MASK_PATCHES_PER_BLOCK)
    exact = hidden_from_cfg(cfg, grid) if method_of(cfg) in EQUAL_COUNTS else None
    return BlockMask(grid, cfg.AUG.MASK_RATIO, cfg.AUG.MAX_MASK_PATCHES_PER_BLOCK, exact)


@MASKS.register("random")
def random_from_cfg(cfg: CfgNode, grid: Grid) -> RandomMask:
    """Single tokens."""
    return RandomMask(grid, hidden_from_cfg(cfg, grid))


@TARGETS.register("spectrum")
def spectrum_from_cfg(cfg: CfgNode, backbone: Backbone) -> SpectrumTarget:
    """The image itself, whose spectrum the loss compares."""
    return SpectrumTarget(backbone.patch_stride, cfg.MFM.GREY)


@TARGETS.register("hog")
def hog_from_cfg(cfg: CfgNode, backbone: Backbone) -> HOGTarget:
    """Histograms of oriented gradients, of clips those of the first frame of each token.

    Raises UserError where cells do not divide the patch.
    """
    if backbone.patch_stride[-1] % cfg.HOG.CELL:
        raise UserError(f"HOG.CELL {cfg.HOG.CELL} must divide the patch, {backbone.patch_stride[-1]} pixels.")
    return HOGTarget(
        backbone.patch_stride[-2:],
        bins=cfg.HOG.BINS,
        cell=cfg.HOG.CELL,
        gaussian_window=cfg.HOG.GAUSSIAN_WINDOW,
        temporal_stride=backbone.patch_stride[0] if len(backbone.patch_stride) == 3 else 1,
    )


@TARGETS.register("pixel")
def pixel_from_cfg(cfg: CfgNode, backbone: Backbone) -> PixelTarget:
    """The pixels of each patch; of a clip's, the first frame's where MASK.TIME_STRIDE_LOSS says so."""
    normalise = cfg.MASK.PIXEL_VARIANCE if cfg.MASK.NORM_PRED_PIXEL else "none"
    first = modality_of(cfg) == "video" and cfg.MASK.TIME_STRIDE_LOSS
    return PixelTarget(backbone.patch_stride, cfg.MASK.PIXEL_ORDER, normalise, first_frames=first)
