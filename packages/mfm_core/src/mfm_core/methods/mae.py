"""MAE: the encoder sees visible patches only, a transformer decoder predicts the hidden ones (He et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fvcore.common.config import CfgNode
from torch import nn

from mfm_core.config import get_cfg, modality_of
from mfm_core.errors import UserError
from mfm_core.heads.decoder import TransformerDecoder
from mfm_core.interfaces import Backbone
from mfm_core.methods.parts import (
    METHODS,
    backbone_from_cfg,
    check_patches,
    hidden_from_cfg,
    loss_from_cfg,
    target_from_cfg,
)
from mfm_core.nn.init import init_autoencoder, init_mae_priv, init_pyslowfast_decoder
from mfm_core.nn.presets import decoder_heads_from_cfg
from mfm_core.objective import MaskedAutoencoder


@METHODS.register("mae")
def mae_from_cfg(cfg: CfgNode) -> MaskedAutoencoder:
    """Pixels of the hidden patches, or another target, decoded from the encoder's last block."""
    return autoencoder_from_cfg(cfg, backbone_from_cfg(cfg))


def autoencoder_from_cfg(
    cfg: CfgNode, backbone: Backbone, earlier: Sequence[int] = (), neck: nn.Module | None = None
) -> MaskedAutoencoder:
    """A masked autoencoder around `backbone`; `neck` joins the outputs of the blocks `earlier` with the last's."""
    check_patches(cfg, backbone)
    last = backbone.depth - 1
    depths = list(cfg.MASK.PRETRAIN_DEPTH)
    if depths not in ([last], get_cfg().MASK.PRETRAIN_DEPTH):
        raise UserError(
            f"MASK.PRETRAIN_DEPTH is {depths}; a masked autoencoder decodes the encoder's last block, {last}."
        )
    init = cfg.MASK.INIT or {"image": "mae", "video": "pyslowfast"}[modality_of(cfg)]
    if init != "pyslowfast":
        init_autoencoder(backbone)
    target = target_from_cfg(cfg, backbone)
    decoder = decoder_from_cfg(cfg, backbone, target.dim)
    if init == "mae_priv":
        init_mae_priv(backbone, decoder)
    elif init == "pyslowfast":
        init_pyslowfast_decoder(decoder)
    return MaskedAutoencoder(
        backbone=backbone,
        head=decoder,
        target=target,
        loss=loss_from_cfg(cfg, backbone),
        num_visible=torch.Size(backbone.grid).numel() - hidden_from_cfg(cfg, backbone.grid),
        depths=[*earlier, last],
        neck=neck,
    )


def decoder_from_cfg(cfg: CfgNode, backbone: Backbone, target_dim: int) -> TransformerDecoder:
    """The decoder of MASK.DECODER_*. Raises UserError where its width cannot be divided over heads and positions."""
    width = cfg.MASK.DECODER_EMBED_DIM
    heads = decoder_heads_from_cfg(cfg)
    positions = _positions(cfg)
    multiple = {2: 4, 3: 16}[len(backbone.grid)] if positions == "sincos" else 1
    if width % heads or width % multiple:
        raise UserError(
            f"MASK.DECODER_EMBED_DIM {width} must be a multiple of {multiple}, for its positions, and of its {heads} "
            "heads (MASK.DECODER_NUM_HEADS; 0 is one for each 64 channels)."
        )
    return TransformerDecoder(
        grid=backbone.grid,
        encoder_dim=backbone.embed_dim,
        target_dim=target_dim,
        embed_dim=width,
        depth=cfg.MASK.DECODER_DEPTH,
        num_heads=heads,
        mlp_ratio=cfg.MVIT.MLP_RATIO,
        num_prefix_tokens=backbone.num_prefix_tokens,
        decode_prefix=cfg.MASK.DECODER_CLS_TOKEN,
        qkv_bias=cfg.MVIT.QKV_BIAS,
        key_bias=cfg.MVIT.KEY_BIAS,
        sincos_first=cfg.MVIT.SINCOS_FIRST,
        act_checkpoint=cfg.MODEL.ACT_CHECKPOINT,
        positions=positions,
    )


def _positions(cfg: CfgNode) -> str:
    """The decoder's kind of positions: sin-cos ones on images, on clips learned ones unless the encoder's are fixed."""
    if modality_of(cfg) == "image" or cfg.MVIT.USE_FIXED_SINCOS_POS:
        return "sincos"
    return "separable" if cfg.MASK.DECODER_SEP_POS_EMBED else "learned"
