"""Rules across keys: impossible combinations are refused, keys that cannot act in this run are named (`idle.py`).

A rule here is about the configuration alone; whether the data fit is found out when they are read.
"""

from __future__ import annotations

from collections.abc import Iterator

from fvcore.common.config import CfgNode

from mfm_core.config.defaults import get_cfg
from mfm_core.config.idle import warnings
from mfm_core.config.load import value_of
from mfm_core.config.plan import (
    MULTISCALE,
    arch_of,
    corruption_of,
    corrupts,
    drawing_of,
    method_of,
    modality_of,
    pictures_of,
    reports_attention,
    schedule_of,
    target_of,
    task_of,
)
from mfm_core.config.tables import LENGTHS, NOT_EMPTY, RANGES, WEIGHTED
from mfm_core.errors import UserError
from mfm_core.nn.presets import SIZES


def validate(cfg: CfgNode) -> list[str]:
    """Raises UserError for what cannot work; returns one warning for each key that is set and cannot act."""
    for message in _refusals(cfg):
        raise UserError(message)
    return list(warnings(cfg))


def _refusals(cfg: CfgNode) -> Iterator[str]:
    yield from _refuse_values(cfg)
    yield from _refuse_model(cfg)
    yield from _refuse_method(cfg)
    yield from _refuse_clips(cfg)
    yield from _refuse_draws(cfg)
    yield from _refuse_pictures(cfg)
    yield from _refuse_solver(cfg)


def _refuse_values(cfg: CfgNode) -> Iterator[str]:
    for key, lengths in LENGTHS.items():
        value = list(value_of(cfg, key))
        if len(value) not in lengths:
            yield f"{key} is {value}; it needs {' or '.join(map(str, lengths))} numbers."
    for key in NOT_EMPTY:
        if not value_of(cfg, key):
            yield f"{key} is empty; it needs at least one number."
    for key, (low, high) in RANGES.items():
        value = value_of(cfg, key)
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
    yield from () if image else _refuse_video_model(cfg)
    if arch_of(cfg) in ("vit", "space_time_vit") and cfg.DATA.TEST_CROP_SIZE != cfg.DATA.TRAIN_CROP_SIZE:
        yield (
            f"DATA.TEST_CROP_SIZE {cfg.DATA.TEST_CROP_SIZE} is not DATA.TRAIN_CROP_SIZE {cfg.DATA.TRAIN_CROP_SIZE}; "
            "a ViT's positions belong to one size."
        )
    if task_of(cfg) == "pretrain" and cfg.DATA.TEST_CROP_SIZE != cfg.DATA.TRAIN_CROP_SIZE:
        yield (
            f"DATA.TEST_CROP_SIZE {cfg.DATA.TEST_CROP_SIZE} is not DATA.TRAIN_CROP_SIZE {cfg.DATA.TRAIN_CROP_SIZE}; "
            "what pre-training predicts belongs to one size."
        )
    if image and cfg.TEST.RESIZE_SIZES and min(cfg.TEST.RESIZE_SIZES) < cfg.DATA.TEST_CROP_SIZE:
        yield (
            f"TEST.RESIZE_SIZES has {min(cfg.TEST.RESIZE_SIZES)}, which is below DATA.TEST_CROP_SIZE "
            f"{cfg.DATA.TEST_CROP_SIZE}: the crop would reach beyond the image."
        )
    if arch_of(cfg) == "resnet" and cfg.TRAIN.COMPILE and cfg.MODEL.ACT_CHECKPOINT:
        yield "TRAIN.COMPILE cannot compile a ResNet's MODEL.ACT_CHECKPOINT (its running statistics); take one of them."
    if cfg.MVIT.NORM != "layernorm":
        yield f"MVIT.NORM is '{cfg.MVIT.NORM}'; it can be layernorm."
    if cfg.MVIT.SIZE and any(cfg.MVIT[k] != get_cfg().MVIT[k] for k in ("EMBED_DIM", "DEPTH", "NUM_HEADS")):
        yield "MVIT.SIZE sets EMBED_DIM, DEPTH and NUM_HEADS; give the size or the three, not both."
    if any(c != 3 for c in cfg.DATA.INPUT_CHANNEL_NUM):
        yield f"DATA.INPUT_CHANNEL_NUM is {cfg.DATA.INPUT_CHANNEL_NUM}; images have 3 channels."


def _refuse_video_model(cfg: CfgNode) -> Iterator[str]:
    if cfg.MVIT.PATCH_2D:
        yield "TRAIN.DATASET kinetics needs MVIT.PATCH_2D False: the patch embedding of clips is three-dimensional."
    if arch_of(cfg) == "resnet":
        yield "MODEL.ARCH resnet is for images; on video take mvit (maskmvit) or vit."
    if cfg.MODEL.ARCH == "vit" and any(cfg.MVIT[key] for key in MULTISCALE):
        yield f"MODEL.ARCH vit has no stages; leave MVIT.{', '.join(MULTISCALE)} empty, or take MODEL.ARCH mvit."
    if cfg.MVIT.USE_ABS_POS and cfg.MVIT.USE_FIXED_SINCOS_POS and cfg.MVIT.SEP_POS_EMBED:
        yield "MVIT.SEP_POS_EMBED learns positions, and MVIT.USE_FIXED_SINCOS_POS fixes them; take one of the two."


def _refuse_method(cfg: CfgNode) -> Iterator[str]:
    yield from REFUSALS[task_of(cfg)](cfg)


TOKENS = {"image": ("block", "random"), "video": ("cube", "tube", "frames", "random")}
WHOLE = ("frequency", "sr", "deblur", "denoise")
VITS, ALL_VITS = ("vit", "space_time_vit"), ("vit", "space_time_vit", "mvit")
COMBINES = {
    # method: backbones, and why no others
    "maskfeat": (ALL_VITS, "hidden patches become a mask token, which only a ViT has a place for"),
    "mae": (VITS, "hidden patches never enter the encoder, which only a plain ViT can do without"),
    "mff": (VITS, "it fuses the layers of a masked autoencoder's ViT"),
    "mfm": (("vit", "resnet"), "the image is corrupted as a whole, not in tokens"),
}
IMAGE_METHODS = ("mff", "mfm")
AUTOENCODER_STARTS = ("mae", "mae_priv", "pyslowfast")
STARTS = {"maskfeat": ("pyslowfast", "mmpretrain"), "mae": AUTOENCODER_STARTS, "mff": AUTOENCODER_STARTS}
"""What MASK.INIT takes; MFM has one start."""


def _refuse_pretraining(cfg: CfgNode) -> Iterator[str]:
    method, target, corruption, arch = method_of(cfg), target_of(cfg), corruption_of(cfg), arch_of(cfg)
    (archs, reason), modality = COMBINES[method], modality_of(cfg)
    corruptions = WHOLE if method == "mfm" else TOKENS[modality]
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
    if modality == "video" and (method in IMAGE_METHODS or target == "spectrum"):
        what = f"MASK.METHOD {method}" if method in IMAGE_METHODS else "MASK.TARGET spectrum"
        yield f"{what} is for images; on video take MASK.METHOD maskfeat or mae, and MASK.TARGET hog or pixel."
    if arch not in archs:
        yield f"MODEL.ARCH {cfg.MODEL.ARCH} cannot be pre-trained by {method}: {reason}."
    if corruption not in corruptions:
        yield f"AUG.MASK_TYPE {corruption} is not for {method}: {reason}; it takes {', '.join(corruptions)}."
    if drawing_of(cfg) in ("block", "cube") and method in ("mae", "mff") and cfg.MASK.MAE_RND_MASK:
        yield f"MASK.MAE_RND_MASK True contradicts AUG.MASK_TYPE {drawing_of(cfg)}; leave one of them out."
    if modality == "video" and cfg.AUG.MASK_TUBE and cfg.AUG.MASK_FRAMES:
        yield "AUG.MASK_TUBE and AUG.MASK_FRAMES exclude each other; leave one of them out."
    if corruption in ("cube", "frames") and drawing_of(cfg) == "cube" and len(cfg.AUG.MASK_WINDOW_SIZE) != 3:
        yield f"AUG.MASK_WINDOW_SIZE {list(cfg.AUG.MASK_WINDOW_SIZE)} needs three numbers, (t, h, w); two do for tubes."
    if method in ("mae", "mff") and cfg.MASK.DECODER_DEPTH == 0:
        yield f"MASK.DECODER_DEPTH is 0; {method} predicts what is hidden by a decoder of at least 1 block, usually 8."
    if cfg.MASK.INIT and cfg.MASK.INIT not in STARTS.get(method, (cfg.MASK.INIT,)):
        yield f"MASK.INIT {cfg.MASK.INIT} is no start of {method}'s; it takes {', '.join(STARTS[method])}."
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
    if corruption not in WHOLE and not 0.0 < cfg.AUG.MASK_RATIO < 1.0:
        yield f"AUG.MASK_RATIO is {cfg.AUG.MASK_RATIO}; pre-training needs a share between 0 and 1, for example 0.4."
    if cfg.MODEL.LOSS_FUNC != "multi_mse":
        yield f"MODEL.LOSS_FUNC is '{cfg.MODEL.LOSS_FUNC}'; pre-training takes multi_mse."


def _refuse_clips(cfg: CfgNode) -> Iterator[str]:
    """What cannot be cut out of a video."""
    if modality_of(cfg) == "image":
        return
    small, large = cfg.DATA.TRAIN_JITTER_SCALES
    if small > large:
        yield f"DATA.TRAIN_JITTER_SCALES is {[small, large]}; the first is the smallest short side."
    if small < cfg.DATA.TEST_CROP_SIZE:
        yield (
            f"DATA.TRAIN_JITTER_SCALES begins with {small}, to which tests of one crop resize; that is below "
            f"DATA.TEST_CROP_SIZE {cfg.DATA.TEST_CROP_SIZE}."
        )
    if not cfg.DATA.PATH_LABEL_SEPARATOR:
        yield "DATA.PATH_LABEL_SEPARATOR is empty; something has to stand between path and label, usually ' '."


def _refuse_draws(cfg: CfgNode) -> Iterator[str]:
    """What MFM's degradations draw from."""
    for key, weights in WEIGHTED.items():
        if len(value_of(cfg, key)) != len(value_of(cfg, weights)) or not sum(value_of(cfg, weights)) > 0:
            yield f"{weights} needs a probability for each of {key} {value_of(cfg, key)}, and not zeros only."
    if any(size % 2 == 0 for size in cfg.MFM.BLUR_KERNEL_SIZE):
        yield f"MFM.BLUR_KERNEL_SIZE {cfg.MFM.BLUR_KERNEL_SIZE} must be odd, so that kernels have a centre."
    size = cfg.DATA.TRAIN_CROP_SIZE
    if corrupts(cfg, "deblur") and max(cfg.MFM.BLUR_KERNEL_SIZE) // 2 >= size:
        yield f"MFM.BLUR_KERNEL_SIZE {max(cfg.MFM.BLUR_KERNEL_SIZE)} is too large for DATA.TRAIN_CROP_SIZE {size}."
    if corrupts(cfg, "sr") and size < cfg.MFM.SR_FACTOR:
        yield f"MFM.SR_FACTOR {cfg.MFM.SR_FACTOR} leaves nothing of DATA.TRAIN_CROP_SIZE {size}."


def _refuse_classifier(cfg: CfgNode) -> Iterator[str]:
    if cfg.MODEL.MODEL_NAME == "MaskMViT":
        yield "TASK finetune needs MODEL.MODEL_NAME MViT."
    if cfg.MODEL.LOSS_FUNC == "multi_mse":
        yield "MODEL.LOSS_FUNC multi_mse is for pre-training; take cross_entropy, soft_cross_entropy or bce."
    for key in ("ENABLE", "LABEL_SMOOTH_ALWAYS"):
        if cfg.MIXUP[key] and cfg.MODEL.LOSS_FUNC == "cross_entropy":
            yield f"MIXUP.{key} makes soft labels and needs MODEL.LOSS_FUNC soft_cross_entropy or bce."
    if cfg.MIXUP.LABEL_SMOOTH_OVER == "others" and cfg.MODEL.NUM_CLASSES < 2:
        yield "MIXUP.LABEL_SMOOTH_OVER others needs other classes, and MODEL.NUM_CLASSES is 1; take all."
    if cfg.MIXUP.ENABLE and cfg.MIXUP.ALPHA <= 0 and cfg.MIXUP.CUTMIX_ALPHA <= 0:
        yield "MIXUP.ENABLE is on, but MIXUP.ALPHA and MIXUP.CUTMIX_ALPHA are 0; give one of them, or switch it off."


def _refuse_pictures(cfg: CfgNode) -> Iterator[str]:
    kinds = pictures_of(cfg)
    if "all" in kinds:
        yield f"PICTURE.KIND is {list(cfg.PICTURE.KIND)}; all stands alone."
    if "reconstruction" in kinds and task_of(cfg) != "pretrain":
        yield "PICTURE.KIND reconstruction needs a pre-training model, and this config describes a classifier."
    if "gradient" in kinds and task_of(cfg) != "finetune":
        yield "PICTURE.KIND gradient explains a class and needs a classifier; this config describes pre-training."
    if {"attention", "gradient"} & set(kinds) and arch_of(cfg) != "vit":
        yield f"PICTURE.KIND attention and gradient need a ViT's attention; MODEL.ARCH {cfg.MODEL.ARCH} has none."
    elif {"attention", "gradient"} & set(kinds) or reports_attention(cfg):
        _, depth, _ = SIZES.get(cfg.MVIT.SIZE, (0, cfg.MVIT.DEPTH, 0))
        if depth <= cfg.PICTURE.LAYER:
            yield f"PICTURE.LAYER is {cfg.PICTURE.LAYER}, but the model's blocks are 0 to {depth - 1}; -1 takes all."
    if "gradient" in kinds and cfg.PICTURE.CLASS >= cfg.MODEL.NUM_CLASSES:
        yield f"PICTURE.CLASS is {cfg.PICTURE.CLASS}, but MODEL.NUM_CLASSES is {cfg.MODEL.NUM_CLASSES}; counted from 0."


def _refuse_probe(cfg: CfgNode) -> Iterator[str]:
    lrs = list(cfg.PROBE.LRS)
    if cfg.MODEL.MODEL_NAME == "MaskMViT":
        yield "TASK probe needs MODEL.MODEL_NAME MViT."
    if cfg.MODEL.LOSS_FUNC != "cross_entropy":
        yield f"MODEL.LOSS_FUNC is '{cfg.MODEL.LOSS_FUNC}'; a linear probe takes cross_entropy."
    if cfg.TRAIN.EMA_DECAY > 0:
        yield "TRAIN.EMA_DECAY averages the weights of a whole model; a linear probe has none, set it to 0."
    if len(set(lrs)) < len(lrs):
        yield f"PROBE.LRS is {lrs}; each learning rate is probed once."
    if lrs and cfg.SOLVER.BASE_LR == 0:
        yield "PROBE.LRS are probed relative to SOLVER.BASE_LR, which is 0; give it one of them."
    if len(lrs) > 1 and cfg.SOLVER.CLIP_GRAD_L2NORM and not cfg.SOLVER.CLIP_GRAD_VAL:
        yield "SOLVER.CLIP_GRAD_L2NORM would tie the learning rates of PROBE.LRS together; set it to None."
    if cfg.PROBE.BATCH_NORM and cfg.TRAIN.BATCH_SIZE * cfg.NUM_SHARDS // cfg.TRAIN.ACCUM_STEPS < 2:
        yield "PROBE.BATCH_NORM needs two inputs or more in a micro-batch; raise TRAIN.BATCH_SIZE."


def _refuse_knn(cfg: CfgNode) -> Iterator[str]:
    if cfg.KNN.FEATURES.startswith("cls") and (arch_of(cfg) == "resnet" or not cfg.MVIT.CLS_EMBED_ON):
        yield f"KNN.FEATURES {cfg.KNN.FEATURES} needs an encoder with a class token; take mean or mean_raw."


REFUSALS = {
    "pretrain": _refuse_pretraining,
    "finetune": _refuse_classifier,
    "probe": _refuse_probe,
    "knn": _refuse_knn,
}


def _refuse_solver(cfg: CfgNode) -> Iterator[str]:
    if cfg.SOLVER.LR_REFERENCE_BATCH > 0 and cfg.SOLVER.BASE_LR_SCALE_NUM_SHARDS:
        yield (
            "SOLVER.LR_REFERENCE_BATCH scales the learning rate by the batch of all machines; set "
            "SOLVER.BASE_LR_SCALE_NUM_SHARDS False."
        )
    if cfg.DIST.STRATEGY == "single" and cfg.NUM_SHARDS > 1:
        yield f"DIST.STRATEGY single runs in one process, and NUM_SHARDS is {cfg.NUM_SHARDS}; take auto."
    if cfg.SOLVER.OPTIMIZING_METHOD == "sgd" and cfg.SOLVER.NESTEROV and cfg.SOLVER.MOMENTUM and cfg.SOLVER.DAMPENING:
        yield f"SOLVER.DAMPENING {cfg.SOLVER.DAMPENING} has no place in Nesterov's momentum; set SOLVER.NESTEROV False."
    schedule = schedule_of(cfg, cfg.NUM_SHARDS)
    if schedule.policy == "cosine" and schedule.end >= schedule.base:
        yield (
            f"SOLVER.COSINE_END_LR {cfg.SOLVER.COSINE_END_LR} is not below SOLVER.BASE_LR {cfg.SOLVER.BASE_LR}"
            + (f" (for this batch {schedule.base:g})." if cfg.SOLVER.LR_REFERENCE_BATCH else ".")
        )
    if not 0 <= cfg.SOLVER.WARMUP_EPOCHS < cfg.SOLVER.MAX_EPOCH:
        yield (
            f"SOLVER.WARMUP_EPOCHS {cfg.SOLVER.WARMUP_EPOCHS} is not below SOLVER.MAX_EPOCH {cfg.SOLVER.MAX_EPOCH}; "
            "shorten the warm-up with the run."
        )
    if cfg.TRAIN.ENABLE and cfg.TEST.ENABLE and cfg.TRAIN.DATASET != cfg.TEST.DATASET:
        yield f"TEST.DATASET {cfg.TEST.DATASET} is not TRAIN.DATASET {cfg.TRAIN.DATASET}."
