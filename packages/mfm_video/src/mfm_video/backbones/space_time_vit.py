"""The space-time ViT of a video run: a plain ViT on patches of several frames (Feichtenhofer et al. 2022)."""

from __future__ import annotations

from fvcore.common.config import CfgNode

from mfm_core.nn.presets import vit_from_cfg
from mfm_core.nn.vit import VisionTransformer


def space_time_vit_from_cfg(cfg: CfgNode) -> VisionTransformer:
    """The encoder for clips of DATA.NUM_FRAMES frames, DATA.TRAIN_CROP_SIZE wide and high.

    Raises UserError where patches, heads or positions do not fit.
    """
    side = cfg.DATA.TRAIN_CROP_SIZE
    return vit_from_cfg(cfg, (cfg.DATA.NUM_FRAMES, side, side))
