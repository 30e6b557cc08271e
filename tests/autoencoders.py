"""The pre-training models of MAE, MAE-priv and mmpretrain under our names, and configurations that describe them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from mfm_core.config import get_cfg
from mfm_core.masking.random import mask_of_noise
from mfm_image.models import build_model

Table = tuple[tuple[str, str], ...]
"""(pattern, replacement) pairs; all are applied, in order."""

_HEAD = (
    (r"^(neck\.)?mask_token$", "head.mask_token"),
    (r"^(neck\.)?decoder_pos_embed$", "head.pos_embed"),
    (r"^(neck\.)?decoder_embed\.", "head.embed."),
    (r"^(neck\.)?decoder_pred\.", "head.projection."),
    (r"^(neck\.)?decoder_blocks\.", "head.blocks."),
)
MAE: Table = (
    *_HEAD,
    (r"^norm\.", "head.encoder_norm."),
    (r"^decoder_norm\.", "head.norm."),
    (r"^(cls_token|pos_embed|patch_embed\.|blocks\.)", r"backbone.\1"),
)
MAE_PRIV: Table = (
    *_HEAD,
    (r"^encoder\.norm\.", "head.encoder_norm."),
    (r"^encoder\.", "backbone."),
    (r"^encoder_to_decoder\.", "head.embed."),
    (r"^decoder\.head\.", "head.projection."),
    (r"^decoder\.", "head."),
)
MMPRETRAIN: Table = (
    (r"^neck\.ln1\.", "head.norm."),
    (r"^backbone\.ln1\.", "head.encoder_norm."),
    (r"^backbone\.(proj_layers|proj_weights)", r"neck.\1"),
    *_HEAD,
    (r"^backbone\.layers\.", "backbone.blocks."),
    (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
    (r"\.ln([12])\.", r".norm\1."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
)


def our_name(name: str, table: Table) -> str:
    """Their parameter name as ours."""
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


def load(model: nn.Module, path: Path, table: Table) -> nn.Module:
    """`model` with the weights of a released file; every name must find its tensor."""
    content = torch.load(path, weights_only=True)
    state = content.get("model", content.get("state_dict"))
    model.load_state_dict({our_name(name, table): tensor for name, tensor in state.items()})
    return model


def autoencoder_config(**values):
    """The configuration of a masked autoencoder; values by the names below."""
    known = {
        "method": "MASK.METHOD",
        "image": "DATA.TRAIN_CROP_SIZE",
        "size": "MVIT.SIZE",
        "width": "MVIT.EMBED_DIM",
        "depth": "MVIT.DEPTH",
        "heads": "MVIT.NUM_HEADS",
        "mlp_ratio": "MVIT.MLP_RATIO",
        "cls_token": "MVIT.CLS_EMBED_ON",
        "key_bias": "MVIT.KEY_BIAS",
        "first": "MVIT.SINCOS_FIRST",
        "ratio": "AUG.MASK_RATIO",
        "count": "MASK.COUNT",
        "decoder_width": "MASK.DECODER_EMBED_DIM",
        "decoder_depth": "MASK.DECODER_DEPTH",
        "decoder_heads": "MASK.DECODER_NUM_HEADS",
        "decoder_cls_token": "MASK.DECODER_CLS_TOKEN",
        "normalise": "MASK.NORM_PRED_PIXEL",
        "order": "MASK.PIXEL_ORDER",
        "variance": "MASK.PIXEL_VARIANCE",
        "layers": "MFF.LAYERS",
    }
    cfg = get_cfg()
    cfg.TASK, cfg.MODEL.MODEL_NAME, cfg.MODEL.ARCH, cfg.MODEL.LOSS_FUNC = "pretrain", "MaskMViT", "vit", "multi_mse"
    cfg.TRAIN.DATASET = cfg.TEST.DATASET = "imagenet"
    cfg.MASK.ENABLE, cfg.MVIT.PATCH_2D, cfg.MVIT.USE_FIXED_SINCOS_POS = True, True, True
    patch = values.pop("patch")
    cfg.MVIT.PATCH_KERNEL, cfg.MVIT.PATCH_STRIDE, cfg.MVIT.PATCH_PADDING = [patch] * 2, [patch] * 2, [0, 0]
    cfg.MVIT.DROPPATH_RATE = 0.0
    for name, value in values.items():
        section, key = known[name].split(".")
        cfg[section][key] = value
    cfg.DATA.TEST_CROP_SIZE = cfg.DATA.TRAIN_CROP_SIZE
    return cfg


def meta_model(cfg):
    """The model at full size, without content."""
    with torch.device("meta"):
        return build_model(cfg)


def parameters(model: nn.Module) -> tuple[int, int]:
    """All, and those that are trained."""
    every = list(model.parameters())
    return sum(p.numel() for p in every), sum(p.numel() for p in every if p.requires_grad)


def mask_from(noise: Tensor, model) -> Tensor:
    """(B, L) noise to the mask (B, *grid) that the model's counts ask for."""
    hidden = noise.shape[1] - model.num_visible
    return mask_of_noise(noise, hidden).unflatten(1, model.backbone.grid)


def encoded(model, images: Tensor, keep: Tensor) -> list[Tensor]:
    """The blocks' outputs for the tokens at `keep`, (B, prefix + V, D) each, without a norm."""
    return model.backbone.encode(model.backbone.embed(images), model.depths, keep)


def decay_of(optimizer: torch.optim.Optimizer, names: Iterable[str]) -> dict[str, tuple[float, float]]:
    """(lr scale, weight decay) of those parameters that are in a group."""
    names = set(names)
    groups = optimizer.param_groups
    return {n: (group["lr_scale"], group["weight_decay"]) for group in groups for n in group["names"] if n in names}
