"""MFF: MAE whose decoder sees shallow layers fused into the last (Liu et al. 2023, "Improving Pixel-based MIM")."""

from __future__ import annotations

from fvcore.common.config import CfgNode

from mfm_core.errors import UserError
from mfm_core.methods.mae import autoencoder_from_cfg
from mfm_core.methods.parts import METHODS, backbone_from_cfg
from mfm_core.objective import MaskedAutoencoder
from mfm_image.fusion import LayerFusion


@METHODS.register("mff")
def mff_from_cfg(cfg: CfgNode) -> MaskedAutoencoder:
    """MAE with the blocks that MFF.LAYERS lists fused into the last one."""
    backbone = backbone_from_cfg(cfg)
    layers, last = list(cfg.MFF.LAYERS), backbone.depth - 1
    if layers != sorted(set(layers)) or layers[-1] >= last:
        raise UserError(
            f"MFF.LAYERS is {layers}; it lists blocks in rising order from 0 that lie before the last, {last}, "
            "which joins by itself."
        )
    return autoencoder_from_cfg(cfg, backbone, layers, LayerFusion(backbone.embed_dim, len(layers)))
