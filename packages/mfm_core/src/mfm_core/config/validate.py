"""Rules across keys: impossible combinations are refused, keys that cannot act in this run are named.

A rule here is about the configuration alone; whether the data fit is found out when they are read.
"""

from __future__ import annotations

from collections.abc import Iterator

from fvcore.common.config import CfgNode

from mfm_core.config.defaults import get_cfg
from mfm_core.config.load import flatten
from mfm_core.config.plan import modality_of, task_of
from mfm_core.errors import UserError

VIDEO_ONLY = (
    "DATA.NUM_FRAMES",
    "DATA.SAMPLING_RATE",
    "DATA.DECODING_BACKEND",
    "DATA.DECODING_SHORT_SIZE",
    "DATA.TRAIN_JITTER_SCALES",
    "DATA.TRAIN_CROP_NUM_TEMPORAL",
    "DATA.USE_OFFSET_SAMPLING",
    "AUG.MASK_TUBE",
    "AUG.MASK_FRAMES",
    "AUG.MASK_WINDOW_SIZE",
    "TEST.NUM_ENSEMBLE_VIEWS",
    "TEST.NUM_SPATIAL_CROPS",
    "TEST.NUM_TEMPORAL_CLIPS",
)
MULTISCALE_ONLY = (
    "MVIT.MODE",
    "MVIT.POOL_KVQ_KERNEL",
    "MVIT.POOL_KV_STRIDE_ADAPTIVE",
    "MVIT.REL_POS_TEMPORAL",
    "MVIT.RESIDUAL_POOLING",
)
PRETRAIN_ONLY = ("AUG.MASK_RATIO", "AUG.MAX_MASK_PATCHES_PER_BLOCK", "KNN.PERIOD")
FINETUNE_ONLY = (
    "MIXUP.ENABLE",
    "DATA.LABEL_FRACTION",
    "MODEL.NUM_CLASSES",
    "MVIT.USE_MEAN_POOLING",
    "MVIT.HEAD_INIT_SCALE",
)
MAE_ONLY = ("MASK.MAE_RND_MASK", "MASK.DECODER_DEPTH", "MASK.DECODER_EMBED_DIM")
AT_LEAST_ONE = (
    "TRAIN.BATCH_SIZE",
    "TRAIN.ACCUM_STEPS",
    "SOLVER.MAX_EPOCH",
    "AUG.NUM_SAMPLE",
    "NUM_SHARDS",
    "LOG_PERIOD",
    "TEST.BATCH_SIZE",
)
ALREADY_TRUE = {
    # Values that say what is the case for images anyway; no reason to warn of PySlowFast's own files.
    "DATA.NUM_FRAMES": 1,
    "MVIT.MODE": "conv",
}


def validate(cfg: CfgNode) -> list[str]:
    """Raises UserError for what cannot work; returns one warning for each key that is set and cannot act."""
    for message in _refusals(cfg):
        raise UserError(message)
    return list(_warnings(cfg))


def _refusals(cfg: CfgNode) -> Iterator[str]:
    yield from _refuse_model(cfg)
    yield from _refuse_method(cfg)
    yield from _refuse_solver(cfg)


def _refuse_model(cfg: CfgNode) -> Iterator[str]:
    image = modality_of(cfg) == "image"
    if cfg.MODEL.MODEL_NAME not in ("MaskMViT", "MViT"):
        yield f"MODEL.MODEL_NAME is '{cfg.MODEL.MODEL_NAME}'; it can be MaskMViT (pre-training) or MViT (classifier)."
    if cfg.MODEL.ARCH not in ("maskmvit", "mvit"):
        yield f"MODEL.ARCH is '{cfg.MODEL.ARCH}'; it can be maskmvit (pre-training) or mvit (classifier)."
    if image and not cfg.MVIT.PATCH_2D:
        yield "TRAIN.DATASET imagenet needs MVIT.PATCH_2D True: the patch embedding of images is two-dimensional."
    if image and (cfg.MVIT.DIM_MUL or cfg.MVIT.HEAD_MUL or cfg.MVIT.POOL_Q_STRIDE):
        yield "MVIT.DIM_MUL, HEAD_MUL and POOL_Q_STRIDE make a multiscale model; on images the backbone is a plain ViT."
    if image and (cfg.MVIT.REL_POS_SPATIAL or cfg.MVIT.SEP_POS_EMBED):
        yield "MVIT.REL_POS_SPATIAL and SEP_POS_EMBED belong to the multiscale model; the ViT has one position table."
    if cfg.MVIT.NORM != "layernorm":
        yield f"MVIT.NORM is '{cfg.MVIT.NORM}'; it can be layernorm."
    if cfg.MVIT.SIZE and any(cfg.MVIT[k] != get_cfg().MVIT[k] for k in ("EMBED_DIM", "DEPTH", "NUM_HEADS")):
        yield "MVIT.SIZE sets EMBED_DIM, DEPTH and NUM_HEADS; give the size or the three, not both."
    if any(c != 3 for c in cfg.DATA.INPUT_CHANNEL_NUM):
        yield f"DATA.INPUT_CHANNEL_NUM is {cfg.DATA.INPUT_CHANNEL_NUM}; images have 3 channels."
    for key in ("MEAN", "STD"):
        if len(cfg.DATA[key]) != 3:
            yield f"DATA.{key} needs 3 numbers, one for each of red, green and blue."


def _refuse_method(cfg: CfgNode) -> Iterator[str]:
    pretrain = task_of(cfg) == "pretrain"
    if pretrain and cfg.MODEL.MODEL_NAME == "MViT":
        yield "TASK pretrain needs MODEL.MODEL_NAME MaskMViT."
    if not pretrain and cfg.MODEL.MODEL_NAME == "MaskMViT":
        yield "TASK finetune needs MODEL.MODEL_NAME MViT."
    if pretrain and not cfg.MASK.ENABLE:
        yield "Pre-training needs MASK.ENABLE True and a target, for example MASK.PRED_HOG True."
    if pretrain and cfg.MASK.MAE_ON:
        yield "MASK.MAE_ON: masked autoencoders are not built yet; MASK.PRED_HOG True is what can be pre-trained."
    if pretrain and not cfg.MASK.PRED_HOG:
        yield "MASK.PRED_HOG must be True: HOG is the target that can be predicted."
    if pretrain and cfg.MASK.HEAD_TYPE != "separate":
        yield "MASK.HEAD_TYPE separate_xformer belongs to masked autoencoders; MaskFeat takes separate."
    if pretrain and not 0.0 < cfg.AUG.MASK_RATIO < 1.0:
        yield f"AUG.MASK_RATIO is {cfg.AUG.MASK_RATIO}; pre-training needs a share between 0 and 1, for example 0.4."
    if pretrain and cfg.MODEL.LOSS_FUNC != "multi_mse":
        yield f"MODEL.LOSS_FUNC is '{cfg.MODEL.LOSS_FUNC}'; pre-training takes multi_mse."
    if not pretrain and cfg.MODEL.LOSS_FUNC == "multi_mse":
        yield "MODEL.LOSS_FUNC multi_mse is for pre-training; take cross_entropy or soft_cross_entropy."
    if not pretrain and cfg.MIXUP.ENABLE and cfg.MODEL.LOSS_FUNC != "soft_cross_entropy":
        yield "MIXUP.ENABLE makes soft labels and needs MODEL.LOSS_FUNC soft_cross_entropy."


def _refuse_solver(cfg: CfgNode) -> Iterator[str]:
    for key in AT_LEAST_ONE:
        value = _get(cfg, key)
        if value < 1:
            yield f"{key} is {value}; it must be at least 1."
    if cfg.SOLVER.LR_POLICY == "cosine" and cfg.SOLVER.COSINE_END_LR >= cfg.SOLVER.BASE_LR:
        yield f"SOLVER.COSINE_END_LR {cfg.SOLVER.COSINE_END_LR} is not below SOLVER.BASE_LR {cfg.SOLVER.BASE_LR}."
    if not 0 <= cfg.SOLVER.WARMUP_EPOCHS < cfg.SOLVER.MAX_EPOCH:
        yield (
            f"SOLVER.WARMUP_EPOCHS {cfg.SOLVER.WARMUP_EPOCHS} is not below SOLVER.MAX_EPOCH {cfg.SOLVER.MAX_EPOCH}; "
            "shorten the warm-up with the run."
        )
    if not 0.0 < cfg.DATA.LABEL_FRACTION <= 1.0:
        yield f"DATA.LABEL_FRACTION is {cfg.DATA.LABEL_FRACTION}; it must be above 0 and at most 1."
    if not 0.0 <= cfg.TRAIN.EMA_DECAY < 1.0:
        yield f"TRAIN.EMA_DECAY is {cfg.TRAIN.EMA_DECAY}; it must be at least 0 and below 1."
    if cfg.TRAIN.ENABLE and cfg.TEST.ENABLE and cfg.TRAIN.DATASET != cfg.TEST.DATASET:
        yield f"TEST.DATASET {cfg.TEST.DATASET} is not TRAIN.DATASET {cfg.TRAIN.DATASET}."


def _warnings(cfg: CfgNode) -> Iterator[str]:
    if modality_of(cfg) == "image":
        yield from _name(cfg, VIDEO_ONLY, "acts on video only")
        yield from _name(cfg, MULTISCALE_ONLY, "acts in multiscale models only")
    yield from _name(cfg, ("BN.USE_PRECISE_STATS",), "has no effect: the model has no BatchNorm")
    if not cfg.BN.USE_PRECISE_STATS:
        yield from _name(cfg, ("BN.NUM_BATCHES_PRECISE",), "acts with BN.USE_PRECISE_STATS only")
    if task_of(cfg) == "pretrain":
        yield from _name(cfg, FINETUNE_ONLY, "acts in fine-tuning only")
        if not cfg.AUG.GEN_MASK_LOADER:
            yield "AUG.GEN_MASK_LOADER False has no effect: masks are always made in the loader."
        if not cfg.MASK.MAE_ON:
            yield from _name(cfg, MAE_ONLY, "acts with MASK.MAE_ON only")
    else:
        yield from _name(cfg, PRETRAIN_ONLY, "acts in pre-training only")
    if cfg.MIXUP.LABEL_SMOOTH_VALUE != 0.1 and not cfg.MIXUP.ENABLE:
        yield from _name(cfg, ("MIXUP.LABEL_SMOOTH_VALUE",), "acts with MIXUP.ENABLE only")
    if cfg.AUG.RE_SPLIT and cfg.AUG.NUM_SAMPLE == 1:
        yield from _name(cfg, ("AUG.RE_SPLIT",), "acts with AUG.NUM_SAMPLE above 1 only")


def _name(cfg: CfgNode, keys: tuple[str, ...], why: str) -> Iterator[str]:
    default = dict(flatten(get_cfg()))
    for key in keys:
        value = _get(cfg, key)
        if value != default[key] and ALREADY_TRUE.get(key) != value:
            yield f"{key} {value} {why}."


def _get(cfg: CfgNode, key: str):
    for name in key.split("."):
        cfg = cfg[name]
    return cfg
