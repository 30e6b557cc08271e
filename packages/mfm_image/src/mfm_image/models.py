"""Builds the model of a run from the configuration: one function for each pre-training method, and the classifier."""

from __future__ import annotations

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from mfm_core.config import method_of, task_of
from mfm_core.corruption.tokens import MaskToken
from mfm_core.errors import UserError
from mfm_core.heads.classification import ClassificationHead
from mfm_core.heads.linear import SeparateHeads
from mfm_core.interfaces import Grid
from mfm_core.losses import masked_mse
from mfm_core.objective import Classifier, EncoderModel, MaskedPrediction
from mfm_core.registry import Registry
from mfm_core.targets.hog import HOGTarget
from mfm_image.backbones.vit import vit_from_cfg

METHODS = Registry("pre-training method", key="MASK")


@METHODS.register("maskfeat")
def maskfeat_from_cfg(cfg: CfgNode) -> MaskedPrediction:
    """MaskFeat: HOG of the hidden patches (Wei et al. 2022)."""
    backbone = vit_from_cfg(cfg)
    depths = list(cfg.MASK.PRETRAIN_DEPTH)
    if depths != sorted(set(depths)) or depths[0] < 0 or depths[-1] != backbone.depth - 1:
        raise UserError(
            f"MASK.PRETRAIN_DEPTH is {depths}; it lists blocks in rising order and ends with the encoder's last, "
            f"{backbone.depth - 1}, for what lies behind would learn nothing."
        )
    patch = backbone.patch_stride
    if patch[0] % cfg.HOG.CELL or tuple(cfg.MVIT.PATCH_KERNEL) != patch or any(cfg.MVIT.PATCH_PADDING):
        raise UserError(
            f"MaskFeat needs patches that do not overlap, with whole HOG cells: MVIT.PATCH_KERNEL "
            f"{list(cfg.MVIT.PATCH_KERNEL)} must equal MVIT.PATCH_STRIDE {list(patch)}, MVIT.PATCH_PADDING be 0, and "
            f"HOG.CELL {cfg.HOG.CELL} divide the patch."
        )
    target = HOGTarget(
        backbone.patch_stride, bins=cfg.HOG.BINS, cell=cfg.HOG.CELL, gaussian_window=cfg.HOG.GAUSSIAN_WINDOW
    )
    return MaskedPrediction(
        backbone=backbone,
        corruption=MaskToken(backbone.embed_dim),
        head=SeparateHeads(backbone.embed_dim, target.dim, len(cfg.MASK.PRETRAIN_DEPTH)),
        target=target,
        loss=masked_mse,
        depths=cfg.MASK.PRETRAIN_DEPTH,
    )


def classifier_from_cfg(cfg: CfgNode) -> Classifier:
    """The classifier that fine-tuning trains."""
    backbone = vit_from_cfg(cfg)
    head = ClassificationHead(
        backbone.embed_dim,
        cfg.MODEL.NUM_CLASSES,
        backbone.num_prefix_tokens,
        mean_pooling=cfg.MVIT.USE_MEAN_POOLING,
        dropout=cfg.MODEL.DROPOUT_RATE,
        init_scale=cfg.MVIT.HEAD_INIT_SCALE,
    )
    return Classifier(backbone, head)


def build_model(cfg: CfgNode) -> EncoderModel:
    """The model that the configuration's task trains, on the current default device."""
    return METHODS.get(method_of(cfg))(cfg) if task_of(cfg) == "pretrain" else classifier_from_cfg(cfg)


def example_input(cfg: CfgNode, grid: Grid) -> tuple[Tensor, ...]:
    """Meta tensors for one input of the model's forward pass."""
    image = torch.empty(1, 3, cfg.DATA.TRAIN_CROP_SIZE, cfg.DATA.TRAIN_CROP_SIZE, device="meta")
    if task_of(cfg) == "pretrain":
        return image, torch.empty(1, *grid, dtype=torch.bool, device="meta")
    return (image,)
