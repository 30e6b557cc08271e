"""What a key may hold beyond the type of its default: None, one of a few words, a range, a length."""

from __future__ import annotations

NULLABLE: dict[str, type] = {
    "AUG.COLOR_JITTER": float,
    "AUG.MAX_MASK_PATCHES_PER_BLOCK": int,
    "MVIT.POOL_KVQ_KERNEL": list,
    "MVIT.POOL_KV_STRIDE_ADAPTIVE": list,
    "SOLVER.CLIP_GRAD_VAL": float,
    "SOLVER.CLIP_GRAD_L2NORM": float,
}
"""Keys that may be None, and the type of their values otherwise."""

CHOICES: dict[str, tuple] = {
    "TASK": ("", "ssl", "ssl_eval", "pretrain", "finetune"),
    "DEVICE": ("auto", "cpu", "cuda"),
    "AUG.INTERPOLATION": ("bicubic", "bilinear", "random"),
    "AUG.RE_MODE": ("pixel", "rand", "const"),
    "MODEL.MODEL_NAME": ("", "MaskMViT", "MViT"),
    "MODEL.ARCH": ("maskmvit", "mvit", "vit", "resnet"),
    "MIXUP.PARTNER": ("reverse", "next"),
    "MIXUP.LABEL_SMOOTH_OVER": ("all", "others"),
    "MODEL.LOSS_FUNC": ("multi_mse", "cross_entropy", "soft_cross_entropy", "bce"),
    "MVIT.SIZE": ("", "Ti", "S", "B", "L", "H"),
    "MASK.HEAD_TYPE": ("separate", "separate_xformer"),
    "MASK.METHOD": ("", "maskfeat", "mae", "mff", "mfm"),
    "MASK.TARGET": ("", "hog", "pixel", "spectrum"),
    "AUG.MASK_TYPE": ("", "block", "random"),
    "MFM.CORRUPTION": ("frequency", "sr", "deblur", "denoise"),
    "RESNET.DEPTH": (50, 101, 152),
    "SOLVER.OPTIMIZING_METHOD": ("adamw", "sgd"),
    "SOLVER.LR_POLICY": ("cosine", "constant"),
    "SOLVER.LR_REFERENCE_SCALES": ("base", "all"),
    "TRAIN.DATASET": ("imagenet", "kinetics"),
    "TEST.DATASET": ("imagenet", "kinetics"),
    "TRAIN.PRECISION": ("auto", "fp32", "bf16", "fp16"),
    "TRAIN.NONFINITE": ("stop", "skip"),
    "DIST.STRATEGY": ("auto", "single", "ddp"),
}
"""Keys that take one of a few words."""

WORD_LISTS: dict[str, tuple[str, ...]] = {
    "SOLVER.NO_DECAY": ("cls_token", "pos_embed", "mask_token"),
}
"""Keys that take a list of any of these words."""

WHOLE_LISTS = ("TEST.RESIZE_SIZES",)
"""Keys that are empty by default and take a list of whole numbers."""

_INF = float("inf")
RANGES: dict[str, tuple[float, float]] = {
    "NUM_GPUS": (0, _INF),
    "NUM_SHARDS": (1, _INF),
    "LOG_PERIOD": (1, _INF),
    "DATA.STD": (1e-6, _INF),
    "DATA.TRAIN_CROP_SIZE": (1, _INF),
    "DATA.TEST_CROP_SIZE": (1, _INF),
    "DATA.IN_VAL_CROP_RATIO": (0, 1),
    "DATA.TRAIN_JITTER_SCALES_RELATIVE": (1e-6, 1),
    "DATA.TRAIN_JITTER_ASPECT_RELATIVE": (1e-6, _INF),
    "DATA.LABEL_FRACTION": (1e-9, 1),
    "DATA.MAX_BAD_SHARE": (0, 1),
    "DATA_LOADER.NUM_WORKERS": (0, _INF),
    "AUG.NUM_SAMPLE": (1, _INF),
    "AUG.REPEATED_SAMPLER": (1, _INF),
    "AUG.COLOR_JITTER": (0, _INF),
    "AUG.RE_PROB": (0, 1),
    "AUG.RE_COUNT": (1, _INF),
    "AUG.MASK_RATIO": (0, 1),
    "AUG.MAX_MASK_PATCHES_PER_BLOCK": (1, _INF),
    "MIXUP.ALPHA": (0, _INF),
    "MIXUP.CUTMIX_ALPHA": (0, _INF),
    "MIXUP.PROB": (0, 1),
    "MIXUP.SWITCH_PROB": (0, 1),
    "MIXUP.LABEL_SMOOTH_VALUE": (0, 1),
    "MODEL.NUM_CLASSES": (1, _INF),
    "MODEL.DROPOUT_RATE": (0, 1),
    "MVIT.EMBED_DIM": (1, _INF),
    "MVIT.DEPTH": (1, _INF),
    "MVIT.NUM_HEADS": (1, _INF),
    "MVIT.MLP_RATIO": (1e-6, _INF),
    "MVIT.PATCH_KERNEL": (1, _INF),
    "MVIT.PATCH_STRIDE": (1, _INF),
    "MVIT.PATCH_PADDING": (0, _INF),
    "MVIT.DROPPATH_RATE": (0, 1),
    "MVIT.HEAD_INIT_STD": (0, _INF),
    "HOG.BINS": (1, _INF),
    "HOG.CELL": (1, _INF),
    "HOG.GAUSSIAN_WINDOW": (0, _INF),
    "SOLVER.BASE_LR": (0, _INF),
    "SOLVER.LR_REFERENCE_BATCH": (0, _INF),
    "SOLVER.LR_LAG_STEPS": (0, _INF),
    "SOLVER.MAX_EPOCH": (1, _INF),
    "SOLVER.COSINE_END_LR": (0, _INF),
    "SOLVER.WARMUP_START_LR": (0, _INF),
    "SOLVER.BETAS": (0, 0.999999),
    "SOLVER.MOMENTUM": (0, 1),
    "SOLVER.WEIGHT_DECAY": (0, _INF),
    "SOLVER.LAYER_DECAY": (0, 1),
    "SOLVER.CLIP_GRAD_VAL": (0, _INF),
    "SOLVER.CLIP_GRAD_L2NORM": (0, _INF),
    "TRAIN.BATCH_SIZE": (1, _INF),
    "TRAIN.ACCUM_STEPS": (1, _INF),
    "TRAIN.EVAL_PERIOD": (1, _INF),
    "TRAIN.CHECKPOINT_PERIOD": (1, _INF),
    "TRAIN.CHECKPOINT_STEPS": (0, _INF),
    "TRAIN.CHECKPOINT_KEEP": (0, _INF),
    "TRAIN.CHECKPOINT_MIN_MATCH": (0, 1),
    "TRAIN.EMA_DECAY": (0, 0.999999999),
    "TRAIN.KILL_LOSS_EXPLOSION_FACTOR": (0, _INF),
    "TRAIN.STOP_STEP": (0, _INF),
    "TEST.BATCH_SIZE": (1, _INF),
    "TEST.RESIZE_SIZES": (1, _INF),
    "MONITOR.PERIOD": (0, _INF),
    "MONITOR.NUM_IMAGES": (1, _INF),
    "MONITOR.PICTURE_PERIOD": (0, _INF),
    "MONITOR.NUM_PICTURES": (0, _INF),
    "KNN.PERIOD": (0, _INF),
    "KNN.K": (1, _INF),
    "KNN.TEMPERATURE": (1e-6, _INF),
    "KNN.NUM_TRAIN": (0, _INF),
    "DIST.TIMEOUT": (1e-3, _INF),
}
"""The lowest and the highest value of a number, or of each number in a list."""

LENGTHS: dict[str, tuple[int, ...]] = {
    "DATA.MEAN": (3,),
    "DATA.STD": (3,),
    "DATA.TRAIN_JITTER_SCALES_RELATIVE": (0, 2),
    "DATA.TRAIN_JITTER_ASPECT_RELATIVE": (0, 2),
    "SOLVER.BETAS": (2,),
}
"""How many numbers a list may have, where that is fixed."""

NOT_EMPTY = ("MASK.PRETRAIN_DEPTH", "KNN.K")
"""Lists that need at least one element."""
