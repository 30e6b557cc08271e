"""Keys of data, pictures and training that cannot act in a run: under which condition, and why."""

from __future__ import annotations

from fvcore.common.config import CfgNode

from mfm_core.config.plan import arch_of, device_of, pictures_of, reports_attention, task_of, trains
from mfm_core.config.rule import Rule


def _has_one_lr(cfg: CfgNode) -> bool:
    """Whether all that is trained follows one learning rate."""
    if task_of(cfg) == "probe":
        return set(cfg.PROBE.LRS) <= {cfg.SOLVER.BASE_LR}
    return cfg.SOLVER.LAYER_DECAY == 1


RUN_RULES: tuple[Rule, ...] = (
    (
        lambda c: c.DATA.TRAIN_CROP_TYPE != "padded",
        "acts with DATA.TRAIN_CROP_TYPE padded only",
        ("DATA.TRAIN_RESIZE_SHORT_SIDE", "DATA.TRAIN_CROP_PADDING"),
    ),
    (
        lambda c: c.DATA.TRAIN_CROP_TYPE == "padded",
        "acts with DATA.TRAIN_CROP_TYPE resized only",
        ("DATA.TRAIN_JITTER_SCALES_RELATIVE", "DATA.TRAIN_JITTER_ASPECT_RELATIVE", "DATA.TRAIN_CROP_CLAMP"),
    ),
    (
        lambda c: bool(c.TEST.RESIZE_SIZES),
        "has no effect: TEST.RESIZE_SIZES says what images are resized to",
        ("DATA.IN_VAL_CROP_RATIO",),
    ),
    (
        lambda c: len(c.TEST.RESIZE_SIZES) > 1 and (task_of(c) != "finetune" or bool(pictures_of(c))),
        "has more than one size, of which fine-tuning makes a table; here the first acts only",
        ("TEST.RESIZE_SIZES",),
    ),
    (lambda c: c.AUG.NUM_SAMPLE == 1, "acts with AUG.NUM_SAMPLE above 1 only", ("AUG.RE_SPLIT",)),
    (
        lambda c: not c.AUG.ENABLE,
        "acts with AUG.ENABLE only",
        ("AUG.AA_TYPE", "AUG.COLOR_JITTER", "AUG.COLOR_JITTER_ON_TOP", "AUG.RE_PROB", "AUG.RE_MODE", "AUG.RE_COUNT"),
    ),
    (
        lambda c: c.AUG.ENABLE and c.AUG.RE_PROB == 0,
        "acts with AUG.RE_PROB above 0 only",
        ("AUG.RE_MODE", "AUG.RE_COUNT"),
    ),
    (
        lambda c: c.AUG.ENABLE and bool(c.AUG.AA_TYPE) and not c.AUG.COLOR_JITTER_ON_TOP,
        "has no effect: AUG.AA_TYPE replaces it",
        ("AUG.COLOR_JITTER",),
    ),
    (
        lambda c: c.AUG.ENABLE and not (c.AUG.AA_TYPE and c.AUG.COLOR_JITTER),
        "acts with AUG.AA_TYPE and AUG.COLOR_JITTER only",
        ("AUG.COLOR_JITTER_ON_TOP",),
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
        "acts in pre-training, and in fine-tuning ViTs on images: it shows their attention",
        ("MONITOR.NUM_PICTURES",),
    ),
    (
        lambda c: task_of(c) == "probe",
        "acts in pre-training and fine-tuning only",
        ("MONITOR.NUM_PICTURES",),
    ),
    (
        lambda c: c.MONITOR.NUM_PICTURES == 0 and task_of(c) == "pretrain",
        "acts with MONITOR.NUM_PICTURES above 0 only",
        ("MONITOR.PICTURE_PERIOD",),
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
        lambda c: "attention" not in pictures_of(c) and not reports_attention(c),
        "acts in pictures of kind attention only",
        ("PICTURE.HEAD_FUSION",),
    ),
    (
        lambda c: not {"attention", "gradient"} & set(pictures_of(c)) and not reports_attention(c),
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
        _has_one_lr,
        "acts with several learning rates only: SOLVER.LAYER_DECAY below 1, or in TASK probe those of PROBE.LRS",
        ("SOLVER.COSINE_END_LR_ABSOLUTE", "SOLVER.WARMUP_START_LR_ABSOLUTE"),
    ),
    (
        lambda c: c.SOLVER.LR_REFERENCE_BATCH == 0,
        "acts with SOLVER.LR_REFERENCE_BATCH above 0 only",
        ("SOLVER.LR_REFERENCE_SCALES",),
    ),
    (
        lambda c: bool(c.SOLVER.CLIP_GRAD_VAL),
        "has no effect: SOLVER.CLIP_GRAD_VAL goes first",
        ("SOLVER.CLIP_GRAD_L2NORM",),
    ),
    (lambda c: not trains(c), "acts in training only", ("DIST.STRATEGY", "DATA_LOADER.DROP_LAST")),
    (
        lambda c: device_of(c) == "cpu",
        "has no effect: with DEVICE cpu all lies in main memory",
        ("DIST.CPU_OFFLOAD",),
    ),
    (lambda c: c.DIST.STRATEGY != "ddp", "acts with DIST.STRATEGY ddp only", ("DIST.FIND_UNUSED",)),
    (
        lambda c: c.DIST.STRATEGY != "fsdp2",
        "acts with DIST.STRATEGY fsdp2 only",
        ("DIST.PARAM_PRECISION", "DIST.REDUCE_PRECISION", "DIST.RESHARD_AFTER_FORWARD", "DIST.CPU_OFFLOAD"),
    ),
    (
        lambda c: c.DIST.STRATEGY == "fsdp2" and c.TRAIN.PRECISION == "fp32",
        "has no effect: TRAIN.PRECISION is fp32",
        ("DIST.PARAM_PRECISION", "DIST.REDUCE_PRECISION"),
    ),
    (
        lambda c: c.TRAIN.KILL_LOSS_EXPLOSION_FACTOR == 0,
        "acts with TRAIN.KILL_LOSS_EXPLOSION_FACTOR above 0 only",
        ("TRAIN.EXPLOSION",),
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
        (
            *("TRAIN.CHECKPOINT_FILE_PATH", "TRAIN.STOP_STEP", "TRAIN.EMA_DECAY", "TRAIN.COMPILE"),
            *("TRAIN.CHECKPOINT_FORMAT", "TRAIN.CHECKPOINT_ASYNC"),
        ),
    ),
)
