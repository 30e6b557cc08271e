"""Builds the model of a run from the configuration: a pre-training method's, a classifier, or a frozen encoder's."""

from __future__ import annotations

from fvcore.common.config import CfgNode
from torch import nn

from mfm_core.config import method_of, task_of
from mfm_core.heads.classification import ClassificationHead, ReadOut
from mfm_core.heads.probe import ProbeHead
from mfm_core.methods import clip_masks, mae, maskfeat  # noqa: F401  importing a method registers it
from mfm_core.methods.parts import METHODS, backbone_from_cfg
from mfm_core.nn.vit import layer_norm
from mfm_core.objective import Classifier, EncoderModel, FrozenEncoder, LinearProbe, Pretraining


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
        norm_bias=cfg.MVIT.HEAD_INIT_NORM_BIAS,
    )
    return Classifier(backbone, head)


def pretraining_from_cfg(cfg: CfgNode) -> Pretraining:
    """The model of the pre-training method."""
    return METHODS.get(method_of(cfg))(cfg)


def probe_from_cfg(cfg: CfgNode) -> LinearProbe:
    """A frozen encoder and a linear layer for each learning rate of PROBE.LRS."""
    backbone = backbone_from_cfg(cfg)
    normalised = cfg.PROBE.LAYER_NORM and backbone.needs_norm
    head = ProbeHead(
        backbone.embed_dim,
        cfg.MODEL.NUM_CLASSES,
        backbone.num_prefix_tokens,
        mean_pooling=cfg.MVIT.USE_MEAN_POOLING,
        norm=layer_norm(backbone.embed_dim) if normalised else nn.Identity(),
        batch_norm_eps=cfg.PROBE.BATCH_NORM_EPS if cfg.PROBE.BATCH_NORM else None,
        lr_scales=[lr / cfg.SOLVER.BASE_LR for lr in cfg.PROBE.LRS] or [1.0],
    )
    return LinearProbe(backbone, head)


def encoder_from_cfg(cfg: CfgNode) -> FrozenEncoder:
    """A frozen encoder with the read-out of KNN.FEATURES."""
    backbone = backbone_from_cfg(cfg)
    if cfg.KNN.FEATURES == "mean":
        return FrozenEncoder(backbone)
    norm = layer_norm(backbone.embed_dim) if cfg.KNN.FEATURES == "cls" else nn.Identity()
    return FrozenEncoder(backbone, ReadOut(norm, backbone.num_prefix_tokens, cfg.KNN.FEATURES == "mean_raw"))


MODELS = {
    "pretrain": pretraining_from_cfg,
    "finetune": classifier_from_cfg,
    "probe": probe_from_cfg,
    "knn": encoder_from_cfg,
}


def build_model(cfg: CfgNode) -> EncoderModel:
    """The model of the configuration's task, on the current default device."""
    return MODELS[task_of(cfg)](cfg)
