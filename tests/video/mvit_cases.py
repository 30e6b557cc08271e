"""Multiscale models for tests: configurations of golden cases, and the models that they describe."""

from __future__ import annotations

from mfm_core.config import get_cfg
from mfm_core.corruption.tokens import MaskToken
from mfm_core.heads.classification import ClassificationHead
from mfm_core.heads.linear import SeparateHeads
from mfm_core.losses.masked import MaskedMSE
from mfm_core.objective import Classifier, MaskedPrediction
from mfm_core.targets.hog import HOGTarget
from mfm_video.backbones.mvit import mvit_from_cfg

SAME_NAMES = (
    *("patch_2d", "patch_kernel", "patch_stride", "patch_padding", "embed_dim", "depth", "num_heads", "mlp_ratio"),
    *("qkv_bias", "dim_mul", "head_mul", "pool_q_stride", "pool_kv_stride_adaptive", "residual_pooling"),
    *("use_abs_pos", "rel_pos_spatial", "rel_pos_temporal"),
)
OTHER_NAMES = {
    "CLS_EMBED_ON": "cls_token",
    "USE_MEAN_POOLING": "mean_pooling",
    "DROPPATH_RATE": "droppath",
    "DROPOUT_RATE": "dropout",
    "MODE": "pool_mode",
    "POOL_KVQ_KERNEL": "pool_qkv_kernel",
    "SEP_POS_EMBED": "separate_pos_embed",
    "DIM_MUL_IN_ATT": "dim_change_inside_attention",
}


def config_of(model: dict, steps: dict | None = None):
    """The configuration of a PySlowFast case's model, and of its training steps."""
    cfg = get_cfg()
    cfg.TRAIN.DATASET = cfg.TEST.DATASET = "kinetics"
    cfg.DATA.TRAIN_CROP_SIZE = cfg.DATA.TEST_CROP_SIZE = model["image_size"]
    cfg.DATA.NUM_FRAMES = model["num_frames"]
    cfg.MODEL.MODEL_NAME, cfg.MODEL.ARCH = model["model"], "mvit"
    cfg.MODEL.NUM_CLASSES = model["num_classes"] or 1
    cfg.MODEL.DROPOUT_RATE = 0.0
    for name in SAME_NAMES:
        cfg.MVIT[name.upper()] = model[name]
    for key, name in OTHER_NAMES.items():
        cfg.MVIT[key] = model[name]
    cfg.MASK.PRETRAIN_DEPTH = model.get("predict_from_block", [0])
    cfg.HOG.BINS, cfg.HOG.CELL = model.get("hog_bins", 9), model.get("hog_cell", 8)
    cfg.HOG.GAUSSIAN_WINDOW = model.get("hog_gaussian_window", 0)
    cfg.MVIT.ZERO_DECAY_POS_CLS = False
    if steps is not None:
        cfg.SOLVER.OPTIMIZING_METHOD = steps["optimizer"]
        cfg.SOLVER.BETAS, cfg.SOLVER.WEIGHT_DECAY = tuple(steps["betas"]), steps["weight_decay"]
        cfg.SOLVER.ZERO_WD_1D_PARAM = steps["zero_weight_decay_for_1d_and_bias"]
        cfg.SOLVER.LAYER_DECAY = steps["layer_decay"]
    return cfg


def maskfeat(cfg) -> MaskedPrediction:
    """MaskFeat on the multiscale model of a configuration."""
    backbone, depths = mvit_from_cfg(cfg), list(cfg.MASK.PRETRAIN_DEPTH)
    target = HOGTarget(
        backbone.patch_stride[1:],
        bins=cfg.HOG.BINS,
        cell=cfg.HOG.CELL,
        gaussian_window=cfg.HOG.GAUSSIAN_WINDOW,
        temporal_stride=backbone.patch_stride[0],
    )
    head = SeparateHeads([backbone.dims[i] for i in depths], target.dim)
    return MaskedPrediction(backbone, MaskToken(backbone.stem_dim), head, target, MaskedMSE(), depths)


def classifier(cfg) -> Classifier:
    """The classifier of a configuration."""
    backbone = mvit_from_cfg(cfg)
    head = ClassificationHead(
        backbone.embed_dim,
        cfg.MODEL.NUM_CLASSES,
        backbone.num_prefix_tokens,
        mean_pooling=cfg.MVIT.USE_MEAN_POOLING,
        dropout=cfg.MODEL.DROPOUT_RATE,
    )
    return Classifier(backbone, head)
