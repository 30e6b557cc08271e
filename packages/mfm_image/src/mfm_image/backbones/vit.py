"""The ViT of an image run: sizes by name, and the builder that reads the configuration."""

from __future__ import annotations

from fvcore.common.config import CfgNode

from mfm_core.errors import UserError
from mfm_core.nn.vit import VisionTransformer

SIZES = {
    # width, depth, heads (Dosovitskiy et al. 2021; Ti and S: Touvron et al. 2021)
    "Ti": (192, 12, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "H": (1280, 32, 16),
}


def vit_from_cfg(cfg: CfgNode) -> VisionTransformer:
    """The encoder for images of DATA.TRAIN_CROP_SIZE. Raises UserError where patches or heads do not fit."""
    side = cfg.DATA.TRAIN_CROP_SIZE
    kernel, stride, padding = (_pair(cfg, key) for key in ("PATCH_KERNEL", "PATCH_STRIDE", "PATCH_PADDING"))
    if any((side + 2 * p - k) % s for k, s, p in zip(kernel, stride, padding)):
        raise UserError(
            f"DATA.TRAIN_CROP_SIZE {side} is not a whole number of patches (MVIT.PATCH_STRIDE {list(stride)})."
        )
    width, depth, heads = SIZES.get(cfg.MVIT.SIZE, (cfg.MVIT.EMBED_DIM, cfg.MVIT.DEPTH, cfg.MVIT.NUM_HEADS))
    if width % heads:
        raise UserError(f"MVIT.EMBED_DIM {width} cannot be divided over MVIT.NUM_HEADS {heads}.")
    if cfg.MVIT.USE_FIXED_SINCOS_POS and not cfg.MVIT.USE_ABS_POS:
        raise UserError("MVIT.USE_FIXED_SINCOS_POS needs MVIT.USE_ABS_POS True.")
    positions = "sincos" if cfg.MVIT.USE_FIXED_SINCOS_POS else "learned" if cfg.MVIT.USE_ABS_POS else "none"
    return VisionTransformer(
        size=(side, side),
        patch_kernel=kernel,
        patch_stride=stride,
        patch_padding=padding,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=cfg.MVIT.MLP_RATIO,
        qkv_bias=cfg.MVIT.QKV_BIAS,
        cls_token=cfg.MVIT.CLS_EMBED_ON,
        positions=positions,
        drop_path=cfg.MVIT.DROPPATH_RATE,
        layer_scale=cfg.MVIT.LAYER_SCALE_INIT_VALUE,
        act_checkpoint=cfg.MODEL.ACT_CHECKPOINT,
        key_bias=cfg.MVIT.KEY_BIAS,
        sincos_first=cfg.MVIT.SINCOS_FIRST,
    )


def _pair(cfg: CfgNode, key: str) -> tuple[int, int]:
    value = cfg.MVIT[key]
    if len(value) != 2:
        raise UserError(f"MVIT.{key} {list(value)} needs two numbers on images, height and width.")
    return tuple(value)
