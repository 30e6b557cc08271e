"""Images, as the tasks that are shared with video see them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode
from torch import Tensor

from mfm_core.config.plan import IMAGENET_TRAIN_IMAGES, arch_of
from mfm_core.interfaces import BadFile, PretrainOutput
from mfm_core.monitor.settings import setting_name
from mfm_core.objective import Classifier, Pretraining
from mfm_core.report.pixels import Pixels
from mfm_core.tasks.modality import ClassifierTask, Modality
from mfm_core.tasks.shown import Drawn, from_dataset
from mfm_image.data.build import (
    data_root,
    eval_dataset,
    eval_transform,
    needs_labels,
    resized,
    train_dataset,
    train_transform,
)
from mfm_image.data.decode import UnreadableImage, decode_image
from mfm_image.data.doctor import DoctorReport, check_folder
from mfm_image.data.folder import ImageFolder, find_classes
from mfm_image.models import build_model, example_input
from mfm_image.pictures.attention import attention_sheet, draw_attention, draw_gradient, heat_caption
from mfm_image.pictures.reconstruction import reconstruction_sheet


def classes(cfg: CfgNode) -> tuple[str, ...]:
    """The class folders of train/, or `folder.UNLABELLED`."""
    return tuple(find_classes(data_root(cfg), "train", needs_labels(cfg)).classes)


def has_val(cfg: CfgNode) -> bool:
    """Whether the data folder has val/."""
    return (Path(cfg.DATA.PATH_TO_DATA_DIR) / "val").is_dir()


def stills(cfg: CfgNode, images: Tensor) -> list[np.ndarray]:
    """(B, 3, H, W) to B arrays (H, W, 3) uint8."""
    return Pixels(cfg.DATA.MEAN, cfg.DATA.STD)(images)


def reconstruct(
    cfg: CfgNode, model: Pretraining, images: Tensor, output: PretrainOutput, names: Sequence[str]
) -> list[Drawn]:
    """Image, input, target, prediction, and the prediction completed with what was seen."""
    sheet, remarks = reconstruction_sheet(model, images, output, Pixels(cfg.DATA.MEAN, cfg.DATA.STD), names)
    return [("reconstruction", sheet, remarks)]


def explain(task: ClassifierTask, model: Classifier) -> list[Drawn]:
    """Where a ViT looks in a few validation images."""
    cfg = task.cfg
    if arch_of(cfg) != "vit":
        return []
    shown = from_dataset(task.val_loader.dataset, cfg.MONITOR.NUM_PICTURES)
    how = (cfg.PICTURE.HEAD_FUSION, cfg.PICTURE.DISCARD_RATIO, cfg.PICTURE.LAYER)
    pixels = Pixels(cfg.DATA.MEAN, cfg.DATA.STD)
    sheet = attention_sheet(model, shown.inputs.to(task.world.device), pixels, *how, shown.classes)
    return [("attention", sheet, f"attention rollout: {heat_caption(*how)}")]


def at_sizes(task: ClassifierTask, model: Classifier, known: dict[str, float]) -> tuple[dict[str, float], list[Drawn]]:
    """top1/resize_SIZE and top5/resize_SIZE with the short side resized to each of TEST.RESIZE_SIZES, if several.

    The first size is the one that counts, and its accuracy is `known`.
    """
    cfg, dataset = task.cfg, task.val_loader.dataset
    sizes, found = cfg.TEST.RESIZE_SIZES, {}
    for size in sizes if len(sizes) > 1 else ():
        at = known if size == sizes[0] else task.accuracy(model, resized(cfg, dataset, size))
        found |= {setting_name(top, "resize", size): at[top] for top in ("top1", "top5")}
    return found, []


def read(cfg: CfgNode, path: str) -> Tensor | BadFile:
    """The file as evaluation crops it."""
    try:
        pixels = decode_image(path)
    except UnreadableImage as error:
        return BadFile(error.path, error.reason)
    transform = eval_transform(cfg)
    return transform.apply(pixels, transform.plan(*pixels.shape[1:], random.Random(0)))


def seen_as(cfg: CfgNode) -> dict[str, Any]:
    """How evaluation resizes and crops, as its transform has worked it out."""
    transform = eval_transform(cfg)
    return {"crop": [transform.size, transform.short_side, transform.interpolation]}


def count_files(cfg: CfgNode, fraction: float) -> int:
    """Training images, of a share of the labels."""
    return len(ImageFolder(data_root(cfg), "train", fraction=fraction, needs_labels=needs_labels(cfg)))


def check_transforms(cfg: CfgNode) -> None:
    """Builds them."""
    train_transform(cfg), eval_transform(cfg)


def check_data(cfg: CfgNode) -> DoctorReport:
    """Reads every file of the folder."""
    return check_folder(data_root(cfg), workers=cfg.DATA_LOADER.NUM_WORKERS, needs_labels=needs_labels(cfg))


IMAGES = Modality(
    noun="images",
    build_model=build_model,
    example_input=example_input,
    train_set=train_dataset,
    eval_set=eval_dataset,
    classes=classes,
    has_val=has_val,
    stills=stills,
    reconstruct=reconstruct,
    explain=explain,
    draw={"attention": draw_attention, "gradient": draw_gradient},
    finish=at_sizes,
    test_listing=lambda cfg: None,
    tests_itself=False,
    seen_as=seen_as,
    read=read,
    is_one=lambda folder: False,
    published=("ImageNet-1k", IMAGENET_TRAIN_IMAGES),
    count_files=count_files,
    check_transforms=check_transforms,
    check_data=check_data,
)
