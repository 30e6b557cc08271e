"""Rules across keys: impossible combinations are refused, keys that cannot act in this run are named.

A rule here is about the configuration alone; whether the data fit is found out when they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fvcore.common.config import CfgNode

from mfm_core.config.defaults import get_cfg
from mfm_core.config.load import flatten
from mfm_core.config.plan import arch_of, corruption_of, method_of, modality_of, target_of, task_of
from mfm_core.config.tables import LENGTHS, NOT_EMPTY, RANGES, WEIGHTED, WORDS
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
PRETRAIN_ONLY = (
    "AUG.GEN_MASK_LOADER",
    "AUG.MASK_TYPE",
    "AUG.MASK_RATIO",
    "AUG.MAX_MASK_PATCHES_PER_BLOCK",
    "MASK.ENABLE",
    "MASK.PRED_HOG",
    "MASK.PRETRAIN_DEPTH",
    "MASK.HEAD_TYPE",
    "MASK.MAE_ON",
    "MASK.METHOD",
    "MASK.TARGET",
    "MFM.CORRUPTION",
    "HOG.BINS",
    "HOG.CELL",
    "HOG.GAUSSIAN_WINDOW",
    "MONITOR.PERIOD",
    "MONITOR.NUM_IMAGES",
    "MONITOR.PICTURE_PERIOD",
    "MONITOR.NUM_PICTURES",
    "KNN.PERIOD",
)
VIT_ONLY = (
    "MVIT.SIZE",
    "MVIT.EMBED_DIM",
    "MVIT.DEPTH",
    "MVIT.NUM_HEADS",
    "MVIT.MLP_RATIO",
    "MVIT.QKV_BIAS",
    "MVIT.PATCH_2D",
    "MVIT.PATCH_KERNEL",
    "MVIT.PATCH_STRIDE",
    "MVIT.PATCH_PADDING",
    "MVIT.CLS_EMBED_ON",
    "MVIT.USE_ABS_POS",
    "MVIT.USE_FIXED_SINCOS_POS",
    "MVIT.DROPPATH_RATE",
    "MVIT.LAYER_SCALE_INIT_VALUE",
    "MVIT.ZERO_DECAY_POS_CLS",
)
MFM_ONLY = {
    "frequency": ("MFM.RADIUS", "MFM.RADIUS_OUTER", "MFM.LOW_PASS_RATIO", "MFM.CENTRE", "MFM.FILTER"),
    "sr": ("MFM.SR_FACTOR",),
    "deblur": tuple(f"MFM.{key}" for key in get_cfg().MFM if key.startswith("BLUR_")),
    "denoise": tuple(f"MFM.{key}" for key in get_cfg().MFM if key.startswith("NOISE_")),
}
FINETUNE_ONLY = (
    "MIXUP.ENABLE",
    "DATA.LABEL_FRACTION",
    "MODEL.NUM_CLASSES",
    "MODEL.DROPOUT_RATE",
    "MVIT.USE_MEAN_POOLING",
    "MVIT.HEAD_INIT_SCALE",
)
ALREADY_TRUE = {
    # Values that say what is the case anyway where the key cannot act; no reason to warn of PySlowFast's own files.
    "DATA.NUM_FRAMES": 1,
    "MVIT.MODE": "conv",
    "MODEL.DROPOUT_RATE": 0.0,
    "AUG.AA_TYPE": "",
    "AUG.COLOR_JITTER": None,
    "AUG.RE_PROB": 0.0,
}
Condition = Callable[[CfgNode], bool]
IDLE: tuple[tuple[Condition, str, tuple[str, ...]], ...] = (
    (lambda c: modality_of(c) == "image", "acts on video only", VIDEO_ONLY),
    (lambda c: modality_of(c) == "image", "acts in multiscale models only", MULTISCALE_ONLY),
    (lambda c: task_of(c) == "pretrain", "acts in fine-tuning only", FINETUNE_ONLY),
    (
        lambda c: task_of(c) == "pretrain",
        "acts in fine-tuning only: MONITOR.PERIOD and KNN.PERIOD say when pre-training evaluates",
        ("TRAIN.EVAL_PERIOD",),
    ),
    (lambda c: task_of(c) == "finetune", "acts in pre-training only", PRETRAIN_ONLY),
    (
        lambda c: method_of(c) not in ("mae", "mff"),
        "acts in masked autoencoders only",
        ("MASK.MAE_RND_MASK", "MASK.DECODER_DEPTH", "MASK.DECODER_EMBED_DIM"),
    ),
    (lambda c: arch_of(c) != "resnet", "has no effect: the model has no BatchNorm", ("BN.USE_PRECISE_STATS",)),
    (
        lambda c: arch_of(c) == "resnet",
        "has no effect: evaluation takes BatchNorm's running statistics",
        ("BN.USE_PRECISE_STATS",),
    ),
    (lambda c: arch_of(c) == "resnet", "acts in ViTs only", VIT_ONLY),
    (lambda c: arch_of(c) != "resnet", "acts with MODEL.ARCH resnet only", ("RESNET.DEPTH", "RESNET.ZERO_INIT")),
    *(
        (lambda c, kind=kind: not _corrupts(c, kind), f"acts in pre-training with MFM.CORRUPTION {kind} only", keys)
        for kind, keys in MFM_ONLY.items()
    ),
    (
        lambda c: task_of(c) == "pretrain" and method_of(c) == "mfm",
        "has no effect with MASK.METHOD mfm",
        ("AUG.MASK_RATIO", "AUG.MAX_MASK_PATCHES_PER_BLOCK", "MASK.PRETRAIN_DEPTH", "MASK.HEAD_TYPE"),
    ),
    (
        lambda c: task_of(c) != "pretrain" or target_of(c) != "spectrum",
        "acts with MASK.TARGET spectrum only",
        ("MFM.GREY", "MFM.LOSS_REDUCTION", "MFM.LOSS_GAMMA", "MFM.LOSS_EPS", "MFM.PATCH_FACTOR", "MFM.AVE_SPECTRUM")
        + ("MFM.WITH_MATRIX",),
    ),
    (
        lambda c: not c.MFM.WITH_MATRIX,
        "acts with MFM.WITH_MATRIX only",
        ("MFM.MATRIX_GAMMA", "MFM.LOG_MATRIX", "MFM.BATCH_MATRIX"),
    ),
    (lambda c: not c.BN.USE_PRECISE_STATS, "acts with BN.USE_PRECISE_STATS only", ("BN.NUM_BATCHES_PRECISE",)),
    (lambda c: c.AUG.NUM_SAMPLE == 1, "acts with AUG.NUM_SAMPLE above 1 only", ("AUG.RE_SPLIT",)),
    (
        lambda c: not c.AUG.ENABLE,
        "acts with AUG.ENABLE only",
        ("AUG.AA_TYPE", "AUG.COLOR_JITTER", "AUG.RE_PROB", "AUG.RE_MODE", "AUG.RE_COUNT"),
    ),
    (
        lambda c: c.AUG.ENABLE and c.AUG.RE_PROB == 0,
        "acts with AUG.RE_PROB above 0 only",
        ("AUG.RE_MODE", "AUG.RE_COUNT"),
    ),
    (
        lambda c: c.AUG.ENABLE and bool(c.AUG.AA_TYPE),
        "has no effect: AUG.AA_TYPE replaces it",
        ("AUG.COLOR_JITTER",),
    ),
    (
        lambda c: not c.MIXUP.ENABLE,
        "acts with MIXUP.ENABLE only",
        ("MIXUP.ALPHA", "MIXUP.CUTMIX_ALPHA", "MIXUP.PROB", "MIXUP.SWITCH_PROB", "MIXUP.LABEL_SMOOTH_VALUE"),
    ),
    (
        lambda c: c.KNN.PERIOD == 0 or task_of(c) == "finetune",
        "acts with KNN.PERIOD above 0 in pre-training only",
        ("KNN.K", "KNN.TEMPERATURE", "KNN.NUM_TRAIN"),
    ),
    (
        lambda c: c.SOLVER.OPTIMIZING_METHOD == "adamw",
        "acts with SOLVER.OPTIMIZING_METHOD sgd only",
        ("SOLVER.MOMENTUM", "SOLVER.DAMPENING", "SOLVER.NESTEROV"),
    ),
    (
        lambda c: c.SOLVER.OPTIMIZING_METHOD == "sgd",
        "acts with SOLVER.OPTIMIZING_METHOD adamw only",
        ("SOLVER.BETAS",),
    ),
    (
        lambda c: c.SOLVER.LR_POLICY == "constant",
        "acts with SOLVER.LR_POLICY cosine only",
        ("SOLVER.COSINE_END_LR", "SOLVER.COSINE_AFTER_WARMUP"),
    ),
    (
        lambda c: c.SOLVER.WARMUP_EPOCHS == 0,
        "acts with SOLVER.WARMUP_EPOCHS above 0 only",
        ("SOLVER.WARMUP_START_LR", "SOLVER.COSINE_AFTER_WARMUP"),
    ),
    (
        lambda c: c.SOLVER.CLIP_GRAD_VAL is not None,
        "has no effect: SOLVER.CLIP_GRAD_VAL goes first",
        ("SOLVER.CLIP_GRAD_L2NORM",),
    ),
    (lambda c: c.TRAIN.PRECISION != "auto", "acts with TRAIN.PRECISION auto only", ("TRAIN.MIXED_PRECISION",)),
    (lambda c: c.TRAIN.ENABLE, "acts with TRAIN.ENABLE False only", ("TEST.CHECKPOINT_FILE_PATH",)),
    (
        lambda c: not c.TRAIN.ENABLE,
        "acts with TRAIN.ENABLE only",
        ("TRAIN.CHECKPOINT_FILE_PATH", "TRAIN.STOP_STEP", "TRAIN.EMA_DECAY", "TRAIN.COMPILE"),
    ),
)
"""(condition, why, keys): where the condition holds, the keys cannot act; one that is set is warned of."""


def validate(cfg: CfgNode) -> list[str]:
    """Raises UserError for what cannot work; returns one warning for each key that is set and cannot act."""
    for message in _refusals(cfg):
        raise UserError(message)
    return list(_warnings(cfg))


def _refusals(cfg: CfgNode) -> Iterator[str]:
    yield from _refuse_values(cfg)
    yield from _refuse_model(cfg)
    yield from _refuse_method(cfg)
    yield from _refuse_draws(cfg)
    yield from _refuse_solver(cfg)


def _refuse_values(cfg: CfgNode) -> Iterator[str]:
    for key, lengths in LENGTHS.items():
        value = list(_get(cfg, key))
        if len(value) not in lengths:
            yield f"{key} is {value}; it needs {' or '.join(map(str, lengths))} numbers."
    for key in NOT_EMPTY:
        if not _get(cfg, key):
            yield f"{key} is empty; it needs at least one number."
    for key, (low, high) in RANGES.items():
        value = _get(cfg, key)
        numbers = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
        if any(not low <= number <= high for number in numbers):
            most = f" and at most {high:.10g}" if high < float("inf") else ""
            yield f"{key} is {value}; it must be at least {low:.10g}{most}."


def _refuse_model(cfg: CfgNode) -> Iterator[str]:
    image = modality_of(cfg) == "image"
    if cfg.MODEL.MODEL_NAME == get_cfg().MODEL.MODEL_NAME:
        yield "MODEL.MODEL_NAME is not given; it can be MaskMViT (pre-training), MViT (classifier), or '' with a TASK."
    if cfg.MODEL.ARCH == get_cfg().MODEL.ARCH:
        yield "MODEL.ARCH is not given; it can be vit (or PySlowFast's maskmvit and mvit) and resnet."
    if not cfg.MODEL.MODEL_NAME and not cfg.TASK:
        yield "MODEL.MODEL_NAME is '' and TASK, too; set TASK, for example to pretrain or finetune."
    if image and arch_of(cfg) == "vit" and not cfg.MVIT.PATCH_2D:
        yield "TRAIN.DATASET imagenet needs MVIT.PATCH_2D True: the patch embedding of images is two-dimensional."
    if image and (cfg.MVIT.DIM_MUL or cfg.MVIT.HEAD_MUL or cfg.MVIT.POOL_Q_STRIDE):
        yield "MVIT.DIM_MUL, HEAD_MUL and POOL_Q_STRIDE make a multiscale model; on images the backbone is a plain ViT."
    if image and (cfg.MVIT.REL_POS_SPATIAL or cfg.MVIT.SEP_POS_EMBED):
        yield "MVIT.REL_POS_SPATIAL and SEP_POS_EMBED belong to the multiscale model; the ViT has one position table."
    if image and arch_of(cfg) == "vit" and cfg.DATA.TEST_CROP_SIZE != cfg.DATA.TRAIN_CROP_SIZE:
        yield (
            f"DATA.TEST_CROP_SIZE {cfg.DATA.TEST_CROP_SIZE} is not DATA.TRAIN_CROP_SIZE {cfg.DATA.TRAIN_CROP_SIZE}; "
            "a ViT's positions belong to one size."
        )
    if image and task_of(cfg) == "pretrain" and cfg.DATA.TEST_CROP_SIZE != cfg.DATA.TRAIN_CROP_SIZE:
        yield (
            f"DATA.TEST_CROP_SIZE {cfg.DATA.TEST_CROP_SIZE} is not DATA.TRAIN_CROP_SIZE {cfg.DATA.TRAIN_CROP_SIZE}; "
            "what pre-training predicts belongs to one size."
        )
    if arch_of(cfg) == "resnet" and cfg.TRAIN.COMPILE and cfg.MODEL.ACT_CHECKPOINT:
        yield "TRAIN.COMPILE cannot compile a ResNet's MODEL.ACT_CHECKPOINT (its running statistics); take one of them."
    if cfg.MVIT.NORM != "layernorm":
        yield f"MVIT.NORM is '{cfg.MVIT.NORM}'; it can be layernorm."
    if cfg.MVIT.SIZE and any(cfg.MVIT[k] != get_cfg().MVIT[k] for k in ("EMBED_DIM", "DEPTH", "NUM_HEADS")):
        yield "MVIT.SIZE sets EMBED_DIM, DEPTH and NUM_HEADS; give the size or the three, not both."
    if any(c != 3 for c in cfg.DATA.INPUT_CHANNEL_NUM):
        yield f"DATA.INPUT_CHANNEL_NUM is {cfg.DATA.INPUT_CHANNEL_NUM}; images have 3 channels."


def _refuse_method(cfg: CfgNode) -> Iterator[str]:
    yield from _refuse_pretraining(cfg) if task_of(cfg) == "pretrain" else _refuse_classifier(cfg)


TOKENS, WHOLE = ("block", "random"), ("frequency", "sr", "deblur", "denoise")
COMBINES = {
    # method: backbones, corruptions, and why no others
    "maskfeat": (("vit",), TOKENS, "hidden patches become a mask token, which only a ViT has a place for"),
    "mae": (("vit",), TOKENS, "hidden patches never enter the encoder, which only a ViT can do without"),
    "mff": (("vit",), TOKENS, "it fuses the layers of a masked autoencoder's ViT"),
    "mfm": (("vit", "resnet"), WHOLE, "the image is corrupted as a whole, not in tokens"),
}


def _refuse_pretraining(cfg: CfgNode) -> Iterator[str]:
    method, target, corruption, arch = method_of(cfg), target_of(cfg), corruption_of(cfg), arch_of(cfg)
    archs, corruptions, reason = COMBINES[method]
    if cfg.MODEL.MODEL_NAME == "MViT":
        yield "TASK pretrain needs MODEL.MODEL_NAME MaskMViT."
    if not cfg.MASK.ENABLE:
        yield "Pre-training needs MASK.ENABLE True and a method, for example MASK.PRED_HOG True."
    if cfg.MASK.METHOD and cfg.MASK.MAE_ON and method not in ("mae", "mff"):
        yield f"MASK.MAE_ON True contradicts MASK.METHOD {method}."
    if cfg.MASK.PRED_HOG and target != "hog":
        yield f"MASK.PRED_HOG True contradicts MASK.TARGET {target}."
    if not cfg.MASK.METHOD and not cfg.MASK.MAE_ON and not cfg.MASK.PRED_HOG:
        yield "Nothing says what to pre-train: set MASK.METHOD (maskfeat, mae, mff, mfm), or MASK.PRED_HOG True."
    if arch not in archs:
        yield f"MODEL.ARCH {cfg.MODEL.ARCH} cannot be pre-trained by {method}: {reason}."
    if corruption not in corruptions:
        yield f"AUG.MASK_TYPE {corruption} is not for {method}: {reason}; it takes {', '.join(corruptions)}."
    if method == "maskfeat" and cfg.MASK.HEAD_TYPE != "separate":
        yield "MASK.HEAD_TYPE separate_xformer belongs to masked autoencoders; MaskFeat takes separate."
    if target == "spectrum" and corruption != "frequency" and cfg.MFM.LOSS_REDUCTION in ("masked", "sample"):
        yield (
            f"MFM.LOSS_REDUCTION {cfg.MFM.LOSS_REDUCTION} averages over hidden frequencies, and {corruption} hides "
            "none; take normal, or '' for what fits."
        )
    if (cfg.MFM.AVE_SPECTRUM or cfg.MFM.BATCH_MATRIX) and target == "spectrum" and cfg.TRAIN.ACCUM_STEPS > 1:
        key = "MFM.AVE_SPECTRUM" if cfg.MFM.AVE_SPECTRUM else "MFM.BATCH_MATRIX"
        yield f"{key} True makes a loss over the whole batch, which TRAIN.ACCUM_STEPS cannot cut up; set that to 1."
    if target == "spectrum" and cfg.DATA.TRAIN_CROP_SIZE % cfg.MFM.PATCH_FACTOR:
        yield f"MFM.PATCH_FACTOR {cfg.MFM.PATCH_FACTOR} must divide DATA.TRAIN_CROP_SIZE {cfg.DATA.TRAIN_CROP_SIZE}."
    if corruption in TOKENS and not 0.0 < cfg.AUG.MASK_RATIO < 1.0:
        yield f"AUG.MASK_RATIO is {cfg.AUG.MASK_RATIO}; pre-training needs a share between 0 and 1, for example 0.4."
    if cfg.MODEL.LOSS_FUNC != "multi_mse":
        yield f"MODEL.LOSS_FUNC is '{cfg.MODEL.LOSS_FUNC}'; pre-training takes multi_mse."


def _refuse_draws(cfg: CfgNode) -> Iterator[str]:
    """What MFM's degradations draw from."""
    for key, words in WORDS.items():
        for word in _get(cfg, key):
            if word not in words:
                yield f"{key} has '{word}'; it can have {', '.join(words)}."
    for key, weights in WEIGHTED.items():
        if len(_get(cfg, key)) != len(_get(cfg, weights)) or not sum(_get(cfg, weights)) > 0:
            yield f"{weights} needs a probability for each of {key} {_get(cfg, key)}, and not zeros only."
    if any(size % 2 == 0 for size in cfg.MFM.BLUR_KERNEL_SIZE):
        yield f"MFM.BLUR_KERNEL_SIZE {cfg.MFM.BLUR_KERNEL_SIZE} must be odd, so that kernels have a centre."
    size = cfg.DATA.TRAIN_CROP_SIZE
    if _corrupts(cfg, "deblur") and max(cfg.MFM.BLUR_KERNEL_SIZE) // 2 >= size:
        yield f"MFM.BLUR_KERNEL_SIZE {max(cfg.MFM.BLUR_KERNEL_SIZE)} is too large for DATA.TRAIN_CROP_SIZE {size}."
    if _corrupts(cfg, "sr") and size < cfg.MFM.SR_FACTOR:
        yield f"MFM.SR_FACTOR {cfg.MFM.SR_FACTOR} leaves nothing of DATA.TRAIN_CROP_SIZE {size}."


def _corrupts(cfg: CfgNode, kind: str) -> bool:
    return task_of(cfg) == "pretrain" and corruption_of(cfg) == kind


def _refuse_classifier(cfg: CfgNode) -> Iterator[str]:
    if cfg.MODEL.MODEL_NAME == "MaskMViT":
        yield "TASK finetune needs MODEL.MODEL_NAME MViT."
    if cfg.MODEL.LOSS_FUNC == "multi_mse":
        yield "MODEL.LOSS_FUNC multi_mse is for pre-training; take cross_entropy or soft_cross_entropy."
    if cfg.MIXUP.ENABLE and cfg.MODEL.LOSS_FUNC != "soft_cross_entropy":
        yield "MIXUP.ENABLE makes soft labels and needs MODEL.LOSS_FUNC soft_cross_entropy."
    if cfg.MIXUP.ENABLE and cfg.MIXUP.ALPHA <= 0 and cfg.MIXUP.CUTMIX_ALPHA <= 0:
        yield "MIXUP.ENABLE is on, but MIXUP.ALPHA and MIXUP.CUTMIX_ALPHA are 0; give one of them, or switch it off."


def _refuse_solver(cfg: CfgNode) -> Iterator[str]:
    if cfg.SOLVER.LR_POLICY == "cosine" and cfg.SOLVER.COSINE_END_LR >= cfg.SOLVER.BASE_LR:
        yield f"SOLVER.COSINE_END_LR {cfg.SOLVER.COSINE_END_LR} is not below SOLVER.BASE_LR {cfg.SOLVER.BASE_LR}."
    if not 0 <= cfg.SOLVER.WARMUP_EPOCHS < cfg.SOLVER.MAX_EPOCH:
        yield (
            f"SOLVER.WARMUP_EPOCHS {cfg.SOLVER.WARMUP_EPOCHS} is not below SOLVER.MAX_EPOCH {cfg.SOLVER.MAX_EPOCH}; "
            "shorten the warm-up with the run."
        )
    if cfg.TRAIN.ENABLE and cfg.TEST.ENABLE and cfg.TRAIN.DATASET != cfg.TEST.DATASET:
        yield f"TEST.DATASET {cfg.TEST.DATASET} is not TRAIN.DATASET {cfg.TRAIN.DATASET}."


def _warnings(cfg: CfgNode) -> Iterator[str]:
    for holds, why, keys in IDLE:
        if holds(cfg):
            yield from _name(cfg, keys, why)
    if target_of(cfg) == "spectrum" and task_of(cfg) == "pretrain" and cfg.NUM_GPUS * cfg.NUM_SHARDS > 1:
        for key in ("MFM.AVE_SPECTRUM", "MFM.BATCH_MATRIX"):
            if _get(cfg, key):
                yield f"{key} True makes a loss over each process's own images; the result depends on their number."
    if task_of(cfg) == "pretrain" and not cfg.AUG.GEN_MASK_LOADER:
        yield "AUG.GEN_MASK_LOADER False has no effect: masks are always made in the loader."


def _name(cfg: CfgNode, keys: tuple[str, ...], why: str) -> Iterator[str]:
    default = dict(flatten(get_cfg()))
    for key in keys:
        value = _get(cfg, key)
        if value != default[key] and not (key in ALREADY_TRUE and value == ALREADY_TRUE[key]):
            yield f"{key} {value} {why}."


def _get(cfg: CfgNode, key: str):
    for name in key.split("."):
        cfg = cfg[name]
    return cfg
