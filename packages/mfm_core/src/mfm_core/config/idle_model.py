"""Keys of models, methods and tasks that cannot act in a run: under which condition, and why."""

from __future__ import annotations

from fvcore.common.config import CfgNode

from mfm_core.config.defaults import get_cfg
from mfm_core.config.plan import (
    arch_of,
    corruption_of,
    corrupts,
    drawing_of,
    method_of,
    modality_of,
    target_of,
    task_of,
    trains,
)
from mfm_core.config.rule import Rule

VIEWS = (
    "DATA.USE_OFFSET_SAMPLING",
    "DATA.ENSEMBLE_METHOD",
    "TEST.NUM_ENSEMBLE_VIEWS",
    "TEST.NUM_SPATIAL_CROPS",
    "TEST.NUM_TEMPORAL_CLIPS",
)
"""Of a video, in its test."""
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
    "AUG.MASK_TUBE",
    "AUG.MASK_FRAMES",
    "AUG.MASK_WINDOW_SIZE",
    "MASK.TIME_STRIDE_LOSS",
    "MASK.DECODER_SEP_POS_EMBED",
    *VIEWS,
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
    "AUG.MASK_EXACT",
    "AUG.MASK_TUBE",
    "AUG.MASK_FRAMES",
    "AUG.MASK_WINDOW_SIZE",
    "MASK.ENABLE",
    "MASK.PRED_HOG",
    "MASK.PRETRAIN_DEPTH",
    "MASK.HEAD_TYPE",
    "MASK.MAE_ON",
    "MASK.METHOD",
    "MASK.INIT",
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
    "MVIT.HEAD_INIT_NORM_BIAS",
    "MVIT.FRESH_NORM",
)
CLASSIFIER_ONLY = ("DATA.LABEL_FRACTION", "MODEL.NUM_CLASSES", "MVIT.USE_MEAN_POOLING")
BLOCKS = (("block", "block"), ("cube", "cube"), ("tube", "cube"))
"""What is hidden and how it is drawn, where blocks have a largest size."""
PROBE_ONLY = ("PROBE.LRS", "PROBE.LAYER_NORM", "PROBE.BATCH_NORM", "PROBE.BATCH_NORM_EPS")


def _decodes(cfg: CfgNode) -> bool:
    """Whether the model is a masked autoencoder."""
    return task_of(cfg) != "finetune" and method_of(cfg) in ("mae", "mff")


MODEL_RULES: tuple[Rule, ...] = (
    (lambda c: modality_of(c) == "image", "acts on video only", VIDEO_ONLY),
    (lambda c: modality_of(c) == "video", "acts on images only", IMAGE_ONLY),
    (
        lambda c: modality_of(c) == "video" and task_of(c) != "finetune",
        "acts in tests of a fine-tuned classifier only: others look at the middle of each video",
        VIEWS,
    ),
    (
        lambda c: modality_of(c) == "video" and task_of(c) == "finetune" and bool(c.TEST.NUM_TEMPORAL_CLIPS),
        "has no effect: TEST.NUM_TEMPORAL_CLIPS says how many clips there are",
        ("TEST.NUM_ENSEMBLE_VIEWS",),
    ),
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
        "acts with AUG.MASK_TYPE block or cube, and with tubes of blocks, only",
        ("AUG.MAX_MASK_PATCHES_PER_BLOCK",),
    ),
    (
        lambda c: task_of(c) == "pretrain" and (method_of(c), corruption_of(c)) != ("maskfeat", "block"),
        "acts where MaskFeat hides blocks of images only",
        ("AUG.MASK_EXACT",),
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
    (
        lambda c: arch_of(c) != "resnet",
        "has no effect: the model has no BatchNorm",
        ("BN.USE_PRECISE_STATS", "BN.NORM_TYPE"),
    ),
    (
        lambda c: arch_of(c) == "resnet" and (task_of(c) == "probe" or not trains(c)),
        "acts in training of the whole model only",
        ("BN.NORM_TYPE",),
    ),
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
        ("AUG.MASK_RATIO", "AUG.MAX_MASK_PATCHES_PER_BLOCK", "MASK.PRETRAIN_DEPTH", "MASK.HEAD_TYPE", "MASK.INIT"),
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
    (
        lambda c: task_of(c) == "finetune" and arch_of(c) == "resnet" and c.MVIT.HEAD_INIT_STD == 0,
        "has no effect: with MVIT.HEAD_INIT_STD 0 the classifier starts as torch starts linear layers",
        ("MVIT.HEAD_INIT_BIAS",),
    ),
    (
        lambda c: task_of(c) == "finetune" and arch_of(c) == "resnet",
        "acts in ViTs only: a ResNet's classifier has no norm of its own",
        ("MVIT.HEAD_INIT_NORM_BIAS",),
    ),
    (lambda c: not c.BN.USE_PRECISE_STATS, "acts with BN.USE_PRECISE_STATS only", ("BN.NUM_BATCHES_PRECISE",)),
)
