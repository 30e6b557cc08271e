"""Configurations of models of clips, and their parameters under PySlowFast's names."""

from __future__ import annotations

from fvcore.common.config import CfgNode
from pyslowfast_names import pyslowfast_name

from mfm_core.config import get_cfg
from mfm_core.objective import MaskedAutoencoder


def clip_config(**values: object) -> CfgNode:
    """A small space-time ViT that is pre-trained as MAE on clips, with further KEY__NAME=values."""
    cfg = get_cfg()
    cfg.TASK, cfg.MODEL.MODEL_NAME, cfg.MODEL.ARCH, cfg.MODEL.LOSS_FUNC = "pretrain", "", "maskmvit", "multi_mse"
    cfg.DATA.NUM_FRAMES, cfg.DATA.TRAIN_CROP_SIZE, cfg.DATA.TEST_CROP_SIZE = 4, 32, 32
    cfg.MVIT.PATCH_KERNEL = cfg.MVIT.PATCH_STRIDE = [2, 8, 8]
    cfg.MVIT.PATCH_PADDING, cfg.MVIT.SEP_POS_EMBED, cfg.MVIT.DROPPATH_RATE = [0, 0, 0], True, 0.0
    cfg.MVIT.EMBED_DIM, cfg.MVIT.DEPTH, cfg.MVIT.NUM_HEADS = 48, 3, 3
    cfg.MASK.ENABLE = cfg.MASK.MAE_ON = cfg.MASK.MAE_RND_MASK = True
    cfg.MASK.HEAD_TYPE, cfg.MASK.DECODER_EMBED_DIM, cfg.MASK.DECODER_DEPTH = "separate_xformer", 32, 2
    cfg.AUG.MASK_RATIO = 0.75
    cfg.MODEL.DROPOUT_RATE = 0.0
    for name, value in values.items():
        section, key = name.split("__")
        cfg[section][key] = value
    return cfg


def golden_config(model: dict) -> CfgNode:
    """The configuration of a golden case's model, without its head."""
    cfg = get_cfg()
    cfg.DATA.TRAIN_CROP_SIZE = cfg.DATA.TEST_CROP_SIZE = model["image_size"]
    cfg.DATA.NUM_FRAMES = model["num_frames"]
    cfg.MODEL.MODEL_NAME, cfg.MODEL.ARCH = model["model"], model["model"].lower()
    cfg.MODEL.DROPOUT_RATE = model["dropout"]
    for key in ("patch_2d", "patch_kernel", "patch_stride", "patch_padding", "embed_dim", "depth", "num_heads"):
        cfg.MVIT[key.upper()] = model[key]
    for key in ("mlp_ratio", "qkv_bias", "use_abs_pos"):
        cfg.MVIT[key.upper()] = model[key]
    cfg.MVIT.CLS_EMBED_ON, cfg.MVIT.SEP_POS_EMBED = model["cls_token"], model["separate_pos_embed"]
    cfg.MVIT.USE_MEAN_POOLING, cfg.MVIT.DROPPATH_RATE = model["mean_pooling"], model["droppath"]
    steps = model["train_steps"]
    cfg.MVIT.ZERO_DECAY_POS_CLS = False
    cfg.SOLVER.OPTIMIZING_METHOD = steps["optimizer"]
    cfg.SOLVER.BETAS, cfg.SOLVER.WEIGHT_DECAY = tuple(steps["betas"]), steps["weight_decay"]
    cfg.SOLVER.ZERO_WD_1D_PARAM = steps["zero_weight_decay_for_1d_and_bias"]
    cfg.SOLVER.LAYER_DECAY = steps["layer_decay"]
    return cfg


def released_names(model) -> dict[str, str]:
    """Our name of each trained parameter -> PySlowFast's."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not isinstance(model, MaskedAutoencoder):
        return {name: pyslowfast_name(name) for name in names}
    parts = {
        "head.encoder_norm.": "norm.",
        "head.embed.": "decoder_embed.",
        "head.mask_token": "mask_token",
        "head.pos_embed.cls": "dec_pos_embed_class",
        "head.pos_embed.": "dec_pos_embed_",
        "head.pos_embed": "decoder_pos_embed",
        "head.blocks.": "pred_head.transforms.0.",
        "head.norm.": f"pred_head.transforms.0.{len(model.head.blocks)}.",
        "head.projection.": "pred_head.projections.0.",
    }
    found = {}
    for name in names:
        ours = next((part for part in parts if name.startswith(part)), None)
        found[name] = parts[ours] + name.removeprefix(ours) if ours else pyslowfast_name(name)
    return found
