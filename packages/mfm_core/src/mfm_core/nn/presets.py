"""The ViT that the configuration describes, over the pixels of an image or a clip: sizes by name, and the builder."""

from __future__ import annotations

from fvcore.common.config import CfgNode

from mfm_core.errors import UserError
from mfm_core.interfaces import Grid
from mfm_core.nn.vit import VisionTransformer

SIZES = {
    # width, depth, heads (Dosovitskiy et al. 2021; Ti and S: Touvron et al. 2021)
    "Ti": (192, 12, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "H": (1280, 32, 16),
}
_AXES = {2: "two numbers on images, height and width", 3: "three numbers on clips: time, height and width"}


def vit_from_cfg(cfg: CfgNode, size: Grid) -> VisionTransformer:
    """The encoder for `size` pixels, (h, w) or (t, h, w). Raises UserError where patches or heads do not fit."""
    kernel, stride, padding = (
        axes_from_cfg(cfg, key, len(size)) for key in ("PATCH_KERNEL", "PATCH_STRIDE", "PATCH_PADDING")
    )
    keys = ("DATA.NUM_FRAMES", "DATA.TRAIN_CROP_SIZE", "DATA.TRAIN_CROP_SIZE")[3 - len(size) :]
    for key, n, k, s, p in zip(keys, size, kernel, stride, padding):
        if (n + 2 * p - k) % s or n + 2 * p < k:
            raise UserError(
                f"{key} {n} is not a whole number of patches: MVIT.PATCH_KERNEL {list(kernel)}, PATCH_STRIDE "
                f"{list(stride)}, PATCH_PADDING {list(padding)}."
            )
    width, depth, heads = size_from_cfg(cfg)
    if width % heads:
        raise UserError(f"MVIT.EMBED_DIM {width} cannot be divided over MVIT.NUM_HEADS {heads}.")
    return VisionTransformer(
        size=size,
        patch_kernel=kernel,
        patch_stride=stride,
        patch_padding=padding,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=cfg.MVIT.MLP_RATIO,
        qkv_bias=cfg.MVIT.QKV_BIAS,
        cls_token=cfg.MVIT.CLS_EMBED_ON,
        positions=positions_from_cfg(cfg, width, len(size)),
        drop_path=cfg.MVIT.DROPPATH_RATE,
        layer_scale=cfg.MVIT.LAYER_SCALE_INIT_VALUE,
        act_checkpoint=cfg.MODEL.ACT_CHECKPOINT,
        key_bias=cfg.MVIT.KEY_BIAS,
        sincos_first=cfg.MVIT.SINCOS_FIRST,
    )


def size_from_cfg(cfg: CfgNode) -> tuple[int, int, int]:
    """Width, depth and heads, by the name of the size or one by one."""
    return SIZES.get(cfg.MVIT.SIZE, (cfg.MVIT.EMBED_DIM, cfg.MVIT.DEPTH, cfg.MVIT.NUM_HEADS))


def decoder_heads_from_cfg(cfg: CfgNode) -> int:
    """Heads of a masked autoencoder's decoder: as many as named, or one for each 64 channels."""
    return cfg.MASK.DECODER_NUM_HEADS or max(1, cfg.MASK.DECODER_EMBED_DIM // 64)


def positions_from_cfg(cfg: CfgNode, width: int, axes: int) -> str:
    """The kind of positions, see `make_positions`. Raises UserError where the keys contradict each other."""
    if not cfg.MVIT.USE_ABS_POS:
        if cfg.MVIT.USE_FIXED_SINCOS_POS:
            raise UserError("MVIT.USE_FIXED_SINCOS_POS needs MVIT.USE_ABS_POS True.")
        return "none"
    if cfg.MVIT.USE_FIXED_SINCOS_POS:
        return fixed(width, axes, "MVIT.EMBED_DIM")
    return "separable" if axes == 3 and cfg.MVIT.SEP_POS_EMBED else "learned"


def fixed(width: int, axes: int, key: str) -> str:
    """Sin-cos positions; raises UserError where the channels, which `key` gives, cannot be shared out to the axes."""
    multiple = {2: 4, 3: 16}[axes]
    if width % multiple:
        raise UserError(f"{key} {width} must be a multiple of {multiple} for sin-cos positions.")
    return "sincos"


def axes_from_cfg(cfg: CfgNode, key: str, axes: int) -> Grid:
    """A list of the MVIT section with a number for each axis. Raises UserError for another length."""
    value = tuple(cfg.MVIT[key])
    if len(value) != axes:
        raise UserError(f"MVIT.{key} {list(value)} needs {_AXES[axes]}.")
    return value
