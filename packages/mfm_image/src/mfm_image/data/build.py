"""Builds folders, transforms and data sets from the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from fvcore.common.config import CfgNode

from mfm_core.config.plan import task_of
from mfm_core.errors import UserError
from mfm_core.interfaces import MaskGenerator
from mfm_core.paths import require_local
from mfm_image.data.dataset import ImageDataset
from mfm_image.data.folder import ImageFolder
from mfm_image.data.transforms import EvalTransform, PaddedTransform, TrainTransform

EVAL_SEED = 0
"""Which images and masks look after a run does not depend on its seed, so that runs can be compared."""


def train_transform(cfg: CfgNode, erase: bool = True) -> TrainTransform:
    """The training augmentation of DATA and AUG, with or without random erasing."""
    augment = cfg.AUG.ENABLE
    kind = partial(PaddedTransform, short_side=cfg.DATA.TRAIN_RESIZE_SHORT_SIDE, padding=cfg.DATA.TRAIN_CROP_PADDING)
    return (kind if cfg.DATA.TRAIN_CROP_TYPE == "padded" else TrainTransform)(
        cfg.DATA.TRAIN_CROP_SIZE,
        cfg.DATA.MEAN,
        cfg.DATA.STD,
        scale=cfg.DATA.TRAIN_JITTER_SCALES_RELATIVE or (0.08, 1.0),
        ratio=cfg.DATA.TRAIN_JITTER_ASPECT_RELATIVE or (3 / 4, 4 / 3),
        interpolation=cfg.AUG.INTERPOLATION,
        flip=0.5 if cfg.DATA.RANDOM_FLIP else 0.0,
        auto_augment=cfg.AUG.AA_TYPE if augment else "",
        color_jitter=cfg.AUG.COLOR_JITTER if augment else None,
        jitter_on_top=cfg.AUG.COLOR_JITTER_ON_TOP,
        erase_prob=cfg.AUG.RE_PROB if augment and erase else 0.0,
        erase_mode=cfg.AUG.RE_MODE,
        erase_count=cfg.AUG.RE_COUNT,
        clamp_crop=cfg.DATA.TRAIN_CROP_CLAMP,
    )


def eval_transform(cfg: CfgNode, short_side: int = 0) -> EvalTransform:
    """Resize, to `short_side` or the first of TEST.RESIZE_SIZES where there are any, and centre crop."""
    return EvalTransform(
        cfg.DATA.TEST_CROP_SIZE,
        cfg.DATA.MEAN,
        cfg.DATA.STD,
        cfg.DATA.IN_VAL_CROP_RATIO,
        interpolation=cfg.DATA.TEST_INTERPOLATION,
        short_side=short_side or next(iter(cfg.TEST.RESIZE_SIZES), 0),
    )


def train_dataset(cfg: CfgNode, masks: MaskGenerator | None = None, fraction: float = 1.0) -> ImageDataset:
    """The augmented training images; `fraction` of the labels of each class."""
    folder = ImageFolder(data_root(cfg), "train", fraction=fraction, seed=cfg.RNG_SEED, needs_labels=needs_labels(cfg))
    return ImageDataset(
        folder,
        train_transform(cfg),
        cfg.RNG_SEED,
        num_samples=cfg.AUG.NUM_SAMPLE,
        mask_generator=masks,
        first_view=train_transform(cfg, erase=False) if cfg.AUG.RE_SPLIT and cfg.AUG.NUM_SAMPLE > 1 else None,
    )


def eval_dataset(
    cfg: CfgNode,
    split: str,
    classes: Sequence[str],
    count: int = 0,
    masks: MaskGenerator | None = None,
) -> ImageDataset:
    """Images of `split` without augmentation; `count` of them, at least one of each class, 0 for all."""
    folder = ImageFolder(data_root(cfg), split, classes=classes, needs_labels=needs_labels(cfg))
    if 0 < count < len(folder):
        folder = folder.subset(count / len(folder), EVAL_SEED)
    return ImageDataset(folder, eval_transform(cfg), EVAL_SEED, mask_generator=masks, train=False)


def resized(cfg: CfgNode, dataset: ImageDataset, short_side: int) -> ImageDataset:
    """The same images of evaluation, resized to another short side."""
    return ImageDataset(dataset.listing, eval_transform(cfg, short_side), dataset.seed, train=False)


def needs_labels(cfg: CfgNode) -> bool:
    """Whether images must lie in class folders: for all but pre-training."""
    return task_of(cfg) != "pretrain"


def data_root(cfg: CfgNode) -> str:
    """The data folder; raises UserError where the configuration names none, or an address."""
    if not cfg.DATA.PATH_TO_DATA_DIR:
        raise UserError("DATA.PATH_TO_DATA_DIR is empty; name the folder that holds train/<class>/ and val/<class>/.")
    return require_local(cfg.DATA.PATH_TO_DATA_DIR, "DATA.PATH_TO_DATA_DIR", "the image folder")
