"""MFM: the image loses frequencies, or is degraded, as a whole, and the clean one is predicted (Xie et al. 2023).

The paper's siblings (super-resolution, deblurring, denoising) are the same method with another corruption.
"""

from __future__ import annotations

from fvcore.common.config import CfgNode
from torch import nn

from mfm_core.config.plan import arch_of, corruption_of
from mfm_core.corruption.blur_kernels import BlurKernels
from mfm_core.corruption.degrade import AddedNoise, Blur, LowResolution, NoDraw
from mfm_core.corruption.frequency import ClampedFilter, MagnitudeFilter
from mfm_core.corruption.noise import NoiseDraws
from mfm_core.heads.linear import SeparateHeads
from mfm_core.interfaces import Grid
from mfm_core.masking.frequency import FrequencyMask
from mfm_core.methods.parts import (
    MASKS,
    METHODS,
    backbone_from_cfg,
    check_patches,
    loss_from_cfg,
    target_from_cfg,
)
from mfm_core.nn.init import init_as_torch, init_beit
from mfm_core.objective import CorruptedPrediction
from mfm_core.registry import Registry

CORRUPTIONS = Registry("corruption of whole images", key="MFM.CORRUPTION")
"""Name -> (configuration) -> module (images, what was drawn) -> images. `MASKS` has what draws, by the same names."""


@METHODS.register("mfm")
def mfm_from_cfg(cfg: CfgNode) -> CorruptedPrediction:
    """The clean image, or another target, by a linear layer from the last tokens of a ViT or a ResNet."""
    backbone = backbone_from_cfg(cfg)
    check_patches(cfg, backbone)
    if arch_of(cfg) == "vit":
        init_beit(backbone)
    target = target_from_cfg(cfg, backbone)
    head = SeparateHeads(backbone.embed_dim, target.dim, norm=backbone.needs_norm)
    init_as_torch(head)
    return CorruptedPrediction(
        backbone=backbone,
        corruption=CORRUPTIONS.get(corruption_of(cfg))(cfg),
        head=head,
        target=target,
        loss=loss_from_cfg(cfg, backbone),
    )


@CORRUPTIONS.register("frequency")
def filter_from_cfg(cfg: CfgNode) -> nn.Module:
    """Removes the hidden frequencies."""
    if cfg.MFM.FILTER == "magnitude":
        return MagnitudeFilter()
    return ClampedFilter(cfg.DATA.MEAN, cfg.DATA.STD)


@MASKS.register("frequency")
def frequency_mask_from_cfg(cfg: CfgNode, grid: Grid) -> FrequencyMask:
    """Low or high frequencies hidden."""
    size = (cfg.DATA.TRAIN_CROP_SIZE, cfg.DATA.TRAIN_CROP_SIZE)
    return FrequencyMask(size, cfg.MFM.RADIUS, cfg.MFM.RADIUS_OUTER, cfg.MFM.LOW_PASS_RATIO, cfg.MFM.CENTRE)


@CORRUPTIONS.register("sr")
def low_resolution_from_cfg(cfg: CfgNode) -> LowResolution:
    """Shrinks and enlarges."""
    return LowResolution(cfg.MFM.SR_FACTOR, cfg.DATA.MEAN, cfg.DATA.STD)


@MASKS.register("sr")
def no_draw_from_cfg(cfg: CfgNode, grid: Grid) -> NoDraw:
    """Nothing is random."""
    return NoDraw()


@CORRUPTIONS.register("deblur")
def blur_from_cfg(cfg: CfgNode) -> Blur:
    """Blurs each image with its kernel."""
    return Blur()


@MASKS.register("deblur")
def blur_kernels_from_cfg(cfg: CfgNode, grid: Grid) -> BlurKernels:
    """A kernel for each image."""
    return BlurKernels(
        kinds=cfg.MFM.BLUR_KERNEL_LIST,
        probabilities=cfg.MFM.BLUR_KERNEL_PROB,
        sizes=cfg.MFM.BLUR_KERNEL_SIZE,
        sigma_x=cfg.MFM.BLUR_SIGMA_X,
        sigma_y=cfg.MFM.BLUR_SIGMA_Y,
        theta=cfg.MFM.BLUR_ROTATE_ANGLE,
        beta_gaussian=cfg.MFM.BLUR_BETA_GAUSSIAN,
        beta_plateau=cfg.MFM.BLUR_BETA_PLATEAU,
    )


@CORRUPTIONS.register("denoise")
def noise_from_cfg(cfg: CfgNode) -> AddedNoise:
    """Adds each image's noise."""
    return AddedNoise(cfg.DATA.MEAN, cfg.DATA.STD)


@MASKS.register("denoise")
def noise_draws_from_cfg(cfg: CfgNode, grid: Grid) -> NoiseDraws:
    """Noise for each image."""
    return NoiseDraws(
        kinds=cfg.MFM.NOISE_TYPE,
        probabilities=cfg.MFM.NOISE_PROB,
        gaussian_sigma=cfg.MFM.NOISE_GAUSSIAN_SIGMA,
        gaussian_grey=cfg.MFM.NOISE_GAUSSIAN_GREY_PROB,
        poisson_scale=cfg.MFM.NOISE_POISSON_SCALE,
        poisson_grey=cfg.MFM.NOISE_POISSON_GREY_PROB,
        mean=cfg.DATA.MEAN,
        std=cfg.DATA.STD,
    )
