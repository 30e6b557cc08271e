"""Keys that cannot act in a run: each that is set is warned of by name, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fvcore.common.config import CfgNode

from mfm_core.config.defaults import get_cfg
from mfm_core.config.load import flatten, value_of
from mfm_core.config.plan import (
    arch_of,
    corruption_of,
    corrupts,
    drawing_of,
    method_of,
    modality_of,
    pictures_of,
    target_of,
    task_of,
    trains,
)

VIDEO_ONLY = (
    "DATA.PATH_LABEL_SEPARATOR",
    "DATA.PATH_PREFIX",
    "DATA.NUM_FRAMES",
    "DATA.SAMPLING_RATE",
    "DATA.TARGET_FPS",
    "DATA.DECODING_BACKEND",
    "DATA.DECODING_SHORT_SIZE",
    "DATA.TRAIN_JITTER_SCALES",
    "DATA.TRAIN_CROP_NUM_TEMPORAL",
    "DATA.USE_OFFSET_SAMPLING",
    "AUG.MASK_TUBE",
    "AUG.MASK_FRAMES",
    "AUG.MASK_WINDOW_SIZE",
    "MASK.TIME_STRIDE_LOSS",
    "MASK.DECODER_SEP_POS_EMBED",
    "TEST.NUM_ENSEMBLE_VIEWS",
    "TEST.NUM_SPATIAL_CROPS",
    "TEST.NUM_TEMPORAL_CLIPS",
)
IMAGE_ONLY = (
    "DATA.IN_VAL_CROP_RATIO",
    "DATA.TRAIN_CROP_TYPE",
    "DATA.TRAIN_RESIZE_SHORT_SIDE",
    "DATA.TRAIN_CROP_PADDING",
    "DATA.TRAIN_CROP_CLAMP",
    "DATA.TEST_INTERPOLATION",
    "TEST.RESIZE_SIZES",
)
MULTISCALE_ONLY = (
    "MVIT.MODE",
    "MVIT.DIM_MUL_IN_ATT",
    "MVIT.POOL_KVQ_KERNEL",
    "MVIT.POOL_KV_STRIDE_ADAPTIVE",
    "MVIT.POOL_KV_STRIDE",
    "MVIT.DROPOUT_RATE",
    "MVIT.REL_POS_SPATIAL",
    "MVIT.REL_POS_TEMPORAL",
    "MVIT.RESIDUAL_POOLING",
)
PRETRAIN_ONLY = (
    "AUG.GEN_MASK_LOADER",
    "AUG.MASK_TYPE",
    "AUG.MASK_RATIO",
    "AUG.MAX_MASK_PATCHES_PER_BLOCK",
    "AUG.MASK_TUBE",
    "AUG.MASK_FRAMES",
    "AUG.MASK_WINDOW_SIZE",
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
    "MIXUP.LABEL_SMOOTH_ALWAYS",
    "MODEL.DROPOUT_RATE",
    "MVIT.HEAD_INIT_SCALE",
    "MVIT.HEAD_INIT_STD",
    "MVIT.HEAD_INIT_BIAS",
    "MVIT.FRESH_NORM",
)
CLASSIFIER_ONLY = ("DATA.LABEL_FRACTION", "MODEL.NUM_CLASSES", "MVIT.USE_MEAN_POOLING")
PROBE_ONLY = ("PROBE.LRS", "PROBE.LAYER_NORM", "PROBE.BATCH_NORM", "PROBE.BATCH_NORM_EPS")
ALREADY_TRUE = {
    # Values that say what is the case anyway where the key cannot act; no reason to warn of PySlowFast's own files.
    "DATA.NUM_FRAMES": 1,
    "MVIT.MODE": "conv",
    "MODEL.DROPOUT_RATE": 0.0,
    "MVIT.DROPPATH_RATE": 0.0,
    "AUG.AA_TYPE": "",
    "AUG.COLOR_JITTER": None,
    "AUG.RE_PROB": 0.0,
}
UNTRAINED = ("MASK", "MFM", "HOG", "MONITOR", "PROBE", "SOLVER", "AUG", "MIXUP", "TRAIN", "BN")
"""Sections that cannot act where nothing is trained, but for these keys."""
UNTRAINED_TOO = ("TRAIN.ENABLE", "TRAIN.DATASET", "TRAIN.PRECISION", "TRAIN.MIXED_PRECISION")
BLOCKS = (("block", "block"), ("tube", "cube"))
"""What is hidden and how it is drawn, where blocks have a largest size."""
Condition = Callable[[CfgNode], bool]


def _decodes(cfg: CfgNode) -> bool:
    """Whether the model is a masked autoencoder."""
    return task_of(cfg) != "finetune" and method_of(cfg) in ("mae", "mff")


def _reports_attention(cfg: CfgNode) -> bool:
    """Whether this is a fine-tuning run whose report ends with a picture of attention."""
    return (
        task_of(cfg) == "finetune" and not pictures_of(cfg) and arch_of(cfg) == "vit" and cfg.MONITOR.NUM_PICTURES > 0
    )


IDLE: tuple[tuple[Condition, str, tuple[str, ...]], ...] = (
    (lambda c: modality_of(c) == "image", "acts on video only", VIDEO_ONLY),
    (lambda c: modality_of(c) == "video", "acts on images only", IMAGE_ONLY),
    (
        lambda c: modality_of(c) == "video" and not (c.AUG.ENABLE and c.AUG.AA_TYPE),
        "acts on video with AUG.AA_TYPE only",
        ("AUG.INTERPOLATION",),
    ),
    (lambda c: arch_of(c) != "mvit", "acts in multiscale models only", MULTISCALE_ONLY),
    (
        lambda c: arch_of(c) == "mvit" and c.MVIT.POOL_KV_STRIDE_ADAPTIVE is not None,
        "has no effect: MVIT.POOL_KV_STRIDE_ADAPTIVE gives the strides",
        ("MVIT.POOL_KV_STRIDE",),
    ),
    (
        lambda c: arch_of(c) == "mvit" and not c.MVIT.DIM_MUL,
        "acts with MVIT.DIM_MUL only",
        ("MVIT.DIM_MUL_IN_ATT",),
    ),
    (lambda c: arch_of(c) == "mvit", "acts in plain ViTs only", ("MVIT.KEY_BIAS",)),
    (
        lambda c: modality_of(c) == "video" and not c.MVIT.USE_ABS_POS,
        "acts with MVIT.USE_ABS_POS only",
        ("MVIT.SEP_POS_EMBED",),
    ),
    (lambda c: task_of(c) != "finetune", "acts in fine-tuning only", FINETUNE_ONLY),
    (lambda c: task_of(c) in ("pretrain", "knn"), "acts in fine-tuning and linear probing only", CLASSIFIER_ONLY),
    (lambda c: task_of(c) != "probe", "acts with TASK probe only", PROBE_ONLY),
    (lambda c: not c.PROBE.BATCH_NORM, "acts with PROBE.BATCH_NORM only", ("PROBE.BATCH_NORM_EPS",)),
    (
        lambda c: task_of(c) == "probe",
        "has no effect: the encoder is frozen and sees no noise",
        ("MVIT.DROPPATH_RATE", "MODEL.ACT_CHECKPOINT", "SOLVER.LAYER_DECAY"),
    ),
    (
        lambda c: task_of(c) == "pretrain",
        "acts in fine-tuning only: MONITOR.PERIOD and KNN.PERIOD say when pre-training evaluates",
        ("TRAIN.EVAL_PERIOD",),
    ),
    (lambda c: task_of(c) != "pretrain", "acts in pre-training only", PRETRAIN_ONLY),
    (
        lambda c: method_of(c) not in ("mae", "mff"),
        "acts in masked autoencoders only",
        (
            "MASK.MAE_RND_MASK",
            "MASK.DECODER_DEPTH",
            "MASK.DECODER_EMBED_DIM",
            "MASK.DECODER_NUM_HEADS",
            "MASK.DECODER_CLS_TOKEN",
            "MASK.DECODER_SEP_POS_EMBED",
        ),
    ),
    (
        lambda c: c.MVIT.USE_FIXED_SINCOS_POS,
        "has no effect: MVIT.USE_FIXED_SINCOS_POS fixes the decoder's positions, too",
        ("MASK.DECODER_SEP_POS_EMBED",),
    ),
    (
        lambda c: task_of(c) == "pretrain" and modality_of(c) == "video" and drawing_of(c) != "cube",
        "acts where cubes, or tubes and frames of their kind, are hidden only",
        ("AUG.MASK_WINDOW_SIZE",),
    ),
    (
        lambda c: task_of(c) == "pretrain" and target_of(c) != "hog",
        "acts where HOG is predicted only",
        ("HOG.BINS", "HOG.CELL", "HOG.GAUSSIAN_WINDOW"),
    ),
    (
        lambda c: task_of(c) == "pretrain" and (corruption_of(c), drawing_of(c)) not in BLOCKS,
        "acts with AUG.MASK_TYPE block and with tubes of blocks only",
        ("AUG.MAX_MASK_PATCHES_PER_BLOCK",),
    ),
    (lambda c: method_of(c) != "mff", "acts with MASK.METHOD mff only", ("MFF.LAYERS",)),
    (
        lambda c: task_of(c) == "finetune" or target_of(c) != "pixel",
        "acts where pre-training predicts pixels only",
        ("MASK.NORM_PRED_PIXEL", "MASK.PIXEL_ORDER", "MASK.PIXEL_VARIANCE", "MASK.TIME_STRIDE_LOSS"),
    ),
    (lambda c: not c.MASK.NORM_PRED_PIXEL, "acts with MASK.NORM_PRED_PIXEL only", ("MASK.PIXEL_VARIANCE",)),
    (
        lambda c: task_of(c) == "finetune" or drawing_of(c) != "random" and method_of(c) not in ("mae", "mff"),
        "acts where every image hides the same number of tokens only: random masks and masked autoencoders",
        ("MASK.COUNT",),
    ),
    (lambda c: not c.MVIT.QKV_BIAS, "acts with MVIT.QKV_BIAS only", ("MVIT.KEY_BIAS",)),
    (
        lambda c: not c.MVIT.USE_FIXED_SINCOS_POS and (modality_of(c) == "video" or not _decodes(c)),
        "acts with MVIT.USE_FIXED_SINCOS_POS and in masked autoencoders of images only",
        ("MVIT.SINCOS_FIRST",),
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
        (lambda c, kind=kind: not corrupts(c, kind), f"acts in pre-training with MFM.CORRUPTION {kind} only", keys)
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
    (
        lambda c: task_of(c) == "finetune" and c.MVIT.USE_MEAN_POOLING,
        "has no effect: behind MVIT.USE_MEAN_POOLING the norm is never a pre-trained encoder's",
        ("MVIT.FRESH_NORM",),
    ),
    (lambda c: not c.BN.USE_PRECISE_STATS, "acts with BN.USE_PRECISE_STATS only", ("BN.NUM_BATCHES_PRECISE",)),
    (
        lambda c: c.DATA.TRAIN_CROP_TYPE != "padded",
        "acts with DATA.TRAIN_CROP_TYPE padded only",
        ("DATA.TRAIN_RESIZE_SHORT_SIDE", "DATA.TRAIN_CROP_PADDING"),
    ),
    (
        lambda c: c.DATA.TRAIN_CROP_TYPE == "padded",
        "acts with DATA.TRAIN_CROP_TYPE resized only",
        ("DATA.TRAIN_JITTER_SCALES_RELATIVE", "DATA.TRAIN_JITTER_ASPECT_RELATIVE"),
    ),
    (
        lambda c: bool(c.TEST.RESIZE_SIZES),
        "has no effect: TEST.RESIZE_SIZES says what images are resized to",
        ("DATA.IN_VAL_CROP_RATIO",),
    ),
    (
        lambda c: task_of(c) == "pretrain" and len(c.TEST.RESIZE_SIZES) > 1,
        "has one size too many: pre-training evaluates at the first only",
        ("TEST.RESIZE_SIZES",),
    ),
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
        ("MIXUP.ALPHA", "MIXUP.CUTMIX_ALPHA", "MIXUP.PROB", "MIXUP.SWITCH_PROB", "MIXUP.PARTNER"),
    ),
    (
        lambda c: not c.MIXUP.ENABLE and not c.MIXUP.LABEL_SMOOTH_ALWAYS,
        "acts with MIXUP.ENABLE or MIXUP.LABEL_SMOOTH_ALWAYS only",
        ("MIXUP.LABEL_SMOOTH_VALUE", "MIXUP.LABEL_SMOOTH_OVER"),
    ),
    (
        lambda c: c.KNN.PERIOD == 0 and task_of(c) == "pretrain" or task_of(c) in ("finetune", "probe"),
        "acts with TASK knn, or KNN.PERIOD above 0 in pre-training",
        ("KNN.K", "KNN.TEMPERATURE"),
    ),
    (
        lambda c: (
            (c.KNN.PERIOD == 0 and task_of(c) == "pretrain" or task_of(c) in ("finetune", "probe"))
            and "neighbours" not in pictures_of(c)
        ),
        "acts with TASK knn, KNN.PERIOD above 0 in pre-training, and in pictures of neighbours only",
        ("KNN.NUM_TRAIN",),
    ),
    (
        lambda c: (c.KNN.PERIOD == 0 or task_of(c) != "pretrain") and "neighbours" not in pictures_of(c),
        "acts with KNN.PERIOD above 0 in pre-training and in pictures of neighbours only",
        ("PICTURE.NUM_NEIGHBOURS",),
    ),
    (
        lambda c: task_of(c) == "finetune" and arch_of(c) != "vit",
        "shows attention, which a ViT has",
        ("MONITOR.NUM_PICTURES",),
    ),
    (
        lambda c: not pictures_of(c),
        "acts with TASK visualise only",
        ("PICTURE.KIND", "PICTURE.INPUT", "PICTURE.NUM_IMAGES"),
    ),
    (lambda c: "gradient" not in pictures_of(c), "acts in pictures of kind gradient only", ("PICTURE.CLASS",)),
    (
        lambda c: "reconstruction" not in pictures_of(c),
        "acts in pictures of kind reconstruction only",
        ("PICTURE.SEED",),
    ),
    (
        lambda c: "attention" not in pictures_of(c) and not _reports_attention(c),
        "acts in pictures of kind attention only",
        ("PICTURE.HEAD_FUSION",),
    ),
    (
        lambda c: not {"attention", "gradient"} & set(pictures_of(c)) and not _reports_attention(c),
        "acts in pictures of kind attention and gradient only",
        ("PICTURE.DISCARD_RATIO", "PICTURE.LAYER"),
    ),
    (lambda c: task_of(c) != "knn", "acts with TASK knn only", ("KNN.FEATURES", "KNN.REUSE_FEATURES")),
    (
        lambda c: c.SOLVER.OPTIMIZING_METHOD == "adamw",
        "acts with SOLVER.OPTIMIZING_METHOD sgd and lars only",
        ("SOLVER.MOMENTUM",),
    ),
    (
        lambda c: c.SOLVER.OPTIMIZING_METHOD != "sgd",
        "acts with SOLVER.OPTIMIZING_METHOD sgd only",
        ("SOLVER.DAMPENING", "SOLVER.NESTEROV"),
    ),
    (
        lambda c: c.SOLVER.OPTIMIZING_METHOD != "adamw",
        "acts with SOLVER.OPTIMIZING_METHOD adamw only",
        ("SOLVER.BETAS",),
    ),
    (
        lambda c: c.SOLVER.OPTIMIZING_METHOD != "lars",
        "acts with SOLVER.OPTIMIZING_METHOD lars only",
        ("SOLVER.LARS_ADAPT_1D",),
    ),
    (
        lambda c: c.SOLVER.LR_POLICY == "constant",
        "acts with SOLVER.LR_POLICY cosine only",
        (
            "SOLVER.COSINE_END_LR",
            "SOLVER.COSINE_AFTER_WARMUP",
            "SOLVER.COSINE_END_LR_ABSOLUTE",
            "SOLVER.WARMUP_TO_BASE_LR",
        ),
    ),
    (
        lambda c: c.SOLVER.WARMUP_EPOCHS == 0,
        "acts with SOLVER.WARMUP_EPOCHS above 0 only",
        (
            "SOLVER.WARMUP_START_LR",
            "SOLVER.COSINE_AFTER_WARMUP",
            "SOLVER.WARMUP_START_LR_ABSOLUTE",
            "SOLVER.WARMUP_TO_BASE_LR",
            "SOLVER.WARMUP_INCLUSIVE",
        ),
    ),
    (
        lambda c: c.SOLVER.COSINE_AFTER_WARMUP,
        "acts with SOLVER.COSINE_AFTER_WARMUP False only",
        ("SOLVER.WARMUP_TO_BASE_LR",),
    ),
    (
        lambda c: c.SOLVER.LAYER_DECAY == 1,
        "acts with SOLVER.LAYER_DECAY below 1 only",
        ("SOLVER.COSINE_END_LR_ABSOLUTE", "SOLVER.WARMUP_START_LR_ABSOLUTE"),
    ),
    (
        lambda c: c.SOLVER.LR_REFERENCE_BATCH == 0,
        "acts with SOLVER.LR_REFERENCE_BATCH above 0 only",
        ("SOLVER.LR_REFERENCE_SCALES",),
    ),
    (
        lambda c: c.SOLVER.CLIP_GRAD_VAL is not None,
        "has no effect: SOLVER.CLIP_GRAD_VAL goes first",
        ("SOLVER.CLIP_GRAD_L2NORM",),
    ),
    (lambda c: c.TRAIN.PRECISION != "auto", "acts with TRAIN.PRECISION auto only", ("TRAIN.MIXED_PRECISION",)),
    (
        trains,
        "acts where nothing is trained only: TRAIN.ENABLE False, TASK knn and TASK visualise",
        ("TEST.CHECKPOINT_FILE_PATH",),
    ),
    (
        lambda c: not c.TRAIN.ENABLE,
        "acts with TRAIN.ENABLE only",
        ("TRAIN.CHECKPOINT_FILE_PATH", "TRAIN.STOP_STEP", "TRAIN.EMA_DECAY", "TRAIN.COMPILE"),
    ),
)
"""(condition, why, keys): where the condition holds, the keys cannot act; one that is set is warned of."""


def warnings(cfg: CfgNode) -> Iterator[str]:
    """One for each key that is set and cannot act."""
    silent = set()
    if task_of(cfg) == "knn":
        keys = [key for key, _ in flatten(get_cfg()) if key.split(".")[0] in UNTRAINED and key not in UNTRAINED_TOO]
        silent = {warning.split()[0] for warning in _name(cfg, tuple(keys), "")}
        if silent:
            yield f"{', '.join(sorted(silent))} cannot act: TASK knn trains nothing."
    for holds, why, keys in IDLE:
        if holds(cfg):
            yield from _name(cfg, tuple(key for key in keys if key not in silent), why)
    if target_of(cfg) == "spectrum" and task_of(cfg) == "pretrain" and cfg.NUM_GPUS * cfg.NUM_SHARDS > 1:
        for key in ("MFM.AVE_SPECTRUM", "MFM.BATCH_MATRIX"):
            if value_of(cfg, key):
                yield f"{key} True makes a loss over each process's own images; the result depends on their number."
    if modality_of(cfg) == "video" and cfg.DATA.DECODING_BACKEND == "torchvision":
        yield "DATA.DECODING_BACKEND torchvision: torchvision no longer reads videos; PyAV does in its place (pyav)."
    if task_of(cfg) == "pretrain" and not cfg.AUG.GEN_MASK_LOADER and not cfg.MASK.MAE_RND_MASK:
        yield "AUG.GEN_MASK_LOADER False has no effect: masks are always made in the loader."


def _name(cfg: CfgNode, keys: tuple[str, ...], why: str) -> Iterator[str]:
    default = dict(flatten(get_cfg()))
    for key in keys:
        value = value_of(cfg, key)
        if value != default[key] and not (key in ALREADY_TRUE and value == ALREADY_TRUE[key]):
            yield f"{key} {value} {why}."
