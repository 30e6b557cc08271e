"""Builds the model of a run from the configuration: a pre-training method's, or the classifier."""

from __future__ import annotations

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from mfm_core.config import method_of, task_of
from mfm_core.heads.classification import ClassificationHead
from mfm_core.interfaces import Grid
from mfm_core.objective import Classifier, EncoderModel
from mfm_image.methods import mae, maskfeat, mff, mfm  # noqa: F401  importing a method registers it
from mfm_image.methods.parts import METHODS, backbone_from_cfg, masks_from_cfg


def classifier_from_cfg(cfg: CfgNode) -> Classifier:
    """The classifier that fine-tuning trains."""
    backbone = backbone_from_cfg(cfg)
    head = ClassificationHead(
        backbone.embed_dim,
        cfg.MODEL.NUM_CLASSES,
        backbone.num_prefix_tokens,
        mean_pooling=cfg.MVIT.USE_MEAN_POOLING,
        dropout=cfg.MODEL.DROPOUT_RATE,
        init_scale=cfg.MVIT.HEAD_INIT_SCALE,
        norm=backbone.needs_norm,
        fresh_norm=cfg.MVIT.FRESH_NORM,
        init_std=cfg.MVIT.HEAD_INIT_STD,
        init_bias=cfg.MVIT.HEAD_INIT_BIAS,
    )
    return Classifier(backbone, head)


def build_model(cfg: CfgNode) -> EncoderModel:
    """The model that the configuration's task trains, on the current default device."""
    return METHODS.get(method_of(cfg))(cfg) if task_of(cfg) == "pretrain" else classifier_from_cfg(cfg)


def example_input(cfg: CfgNode, grid: Grid) -> tuple[Tensor, ...]:
    """Meta tensors for one input of the model's forward pass."""
    image = torch.empty(1, 3, cfg.DATA.TRAIN_CROP_SIZE, cfg.DATA.TRAIN_CROP_SIZE, device="meta")
    if task_of(cfg) == "pretrain":
        mask = masks_from_cfg(cfg, grid)(torch.Generator(), torch.zeros(image.shape[1:]))
        return image, mask[None].to("meta")
    return (image,)
