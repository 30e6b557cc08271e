"""The ViT of an image run."""

from __future__ import annotations

from fvcore.common.config import CfgNode

from mfm_core.nn import presets
from mfm_core.nn.vit import VisionTransformer


def vit_from_cfg(cfg: CfgNode) -> VisionTransformer:
    """The encoder for images of DATA.TRAIN_CROP_SIZE. Raises UserError where patches or heads do not fit."""
    side = cfg.DATA.TRAIN_CROP_SIZE
    return presets.vit_from_cfg(cfg, (side, side))
