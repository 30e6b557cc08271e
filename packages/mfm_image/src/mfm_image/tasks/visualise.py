"""TASK visualise: pictures of what a trained model sees, as PNG files and a page that shows them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from PIL import Image

from mfm_core.checkpoint.init_from import init_from
from mfm_core.checkpoint.resume import newest_checkpoint
from mfm_core.config import pictures_of, validate
from mfm_core.data.loader import eval_loader
from mfm_core.data.seeding import derive_seed
from mfm_core.engine.log import prepare_folder, setup_logging
from mfm_core.engine.run import exit_with
from mfm_core.errors import UserError
from mfm_core.methods.parts import masks_from_cfg
from mfm_core.objective import EncoderModel
from mfm_core.parallel.world import World, choose_device
from mfm_core.probe.features import collect_indexed
from mfm_core.report.document import write_gallery
from mfm_core.report.neighbours import find_neighbours, nearest, neighbours_sheet
from mfm_core.report.panels import save_png
from mfm_core.report.pixels import Pixels
from mfm_core.report.runs import Picture
from mfm_image.data.build import data_root, eval_dataset, eval_transform
from mfm_image.modality import classes
from mfm_image.models import build_model
from mfm_image.pictures.attention import attention_sheet, gradient_sheet, heat_caption
from mfm_image.pictures.inputs import Shown, from_dataset, from_path
from mfm_image.pictures.reconstruction import reconstruction_sheet

logger = logging.getLogger(__name__)
HEADS_NEEDED = {"reconstruction", "gradient"}
"""Kinds that ask the head; the others ask the backbone alone."""


@dataclass(frozen=True)
class Studio:
    """What every picture is drawn with."""

    cfg: CfgNode
    model: EncoderModel
    shown: Shown
    pixels: Pixels
    classes: tuple[str, ...]
    """Of the data folder; empty where there is none."""
    device: torch.device


def visualise(cfg: CfgNode) -> int:
    """Draws what PICTURE asks for and returns the exit code; of several processes the first does it."""
    if int(os.environ.get("RANK", "0")):
        return 0
    try:
        folder = prepare_folder(cfg.OUTPUT_DIR)
        setup_logging(folder)
        for warning in validate(cfg):
            logger.warning("warning: %s", warning)
        _draw_all(cfg, folder)
        return 0
    except UserError as error:
        return exit_with(error)


def _draw_all(cfg: CfgNode, folder: Path) -> None:
    device = choose_device(cfg.DEVICE)
    model = build_model(cfg).to(device).eval()
    path, notes = _load_weights(cfg, model, folder)
    studio = Studio(cfg, model, _shown(cfg), Pixels(cfg.DATA.MEAN, cfg.DATA.STD), _classes(cfg), device)
    pictures = []
    for kind in _kinds(cfg):
        image, caption = KINDS[kind](studio)
        file = folder / "pictures" / f"{kind}.png"
        save_png(image, file)
        pictures.append(Picture(file, caption=caption))
        logger.info("%s: %s", kind, file)
    source = cfg.PICTURE.INPUT or f"{data_root(cfg)}/val"
    page = folder / "pictures.html"
    write_gallery(page, f"Pictures of {path.name}", f"{path} · {len(studio.shown.names)} of {source}", notes, pictures)
    logger.info("all of them: %s", page)


def _load_weights(cfg: CfgNode, model: EncoderModel, folder: Path) -> tuple[Path, list[str]]:
    """Loads the whole model, or the backbone where that is enough; the file, and what there is to know about it."""
    path = Path(cfg.TEST.CHECKPOINT_FILE_PATH) if cfg.TEST.CHECKPOINT_FILE_PATH else None
    path = path or newest_checkpoint(folder / "checkpoints")
    if path is None:
        raise UserError(
            f"TEST.CHECKPOINT_FILE_PATH is empty and OUTPUT_DIR {folder} has no checkpoints; name the weights to show."
        )
    report = init_from(model, str(path), min_match=1.0, key="TEST.CHECKPOINT_FILE_PATH", average=True)
    lacking = report.missing + report.other_shape
    kinds = HEADS_NEEDED & set(_kinds(cfg))
    if lacking and kinds:
        raise UserError(
            f"{path} lacks {', '.join(lacking)}, which pictures of kind {' and '.join(sorted(kinds))} need; "
            "set PICTURE.KIND to attention or neighbours, or take another checkpoint."
        )
    for line in [f"weights from {path}", *report.lines()]:
        logger.info("%s", line)
    return path, [f"Not in the checkpoint, and not needed here: {', '.join(lacking)}"] if lacking else []


def _kinds(cfg: CfgNode) -> list[str]:
    """As configured; "all" leaves neighbours out where there are no training images to search."""
    kinds = pictures_of(cfg)
    if list(cfg.PICTURE.KIND) == ["all"] and not cfg.DATA.PATH_TO_DATA_DIR:
        kinds.remove("neighbours")
    return kinds


def _classes(cfg: CfgNode) -> tuple[str, ...]:
    if not cfg.DATA.PATH_TO_DATA_DIR:
        return ()
    return classes(cfg)


def _shown(cfg: CfgNode) -> Shown:
    if cfg.PICTURE.INPUT:
        return from_path(cfg.PICTURE.INPUT, eval_transform(cfg), cfg.PICTURE.NUM_IMAGES)
    data_root(cfg)
    return from_dataset(eval_dataset(cfg, "val", _classes(cfg)), cfg.PICTURE.NUM_IMAGES)


def _reconstruction(studio: Studio) -> tuple[Image.Image, str]:
    """Image, input, target, prediction, and the prediction completed with what was seen."""
    cfg, model, images = studio.cfg, studio.model, studio.shown.images
    draw = masks_from_cfg(cfg, model.backbone.grid)
    seeds = [derive_seed(cfg.PICTURE.SEED, "picture", i) for i in range(len(images))]
    masks = torch.stack([draw(torch.Generator().manual_seed(s), image) for s, image in zip(seeds, images)])
    images = images.to(studio.device)
    with torch.inference_mode():
        output = model(images, masks.to(studio.device))
        return reconstruction_sheet(model, images, output, studio.pixels, studio.shown.names)


def _attention(studio: Studio) -> tuple[Image.Image, str]:
    """Attention rollout."""
    keys = studio.cfg.PICTURE
    how = (keys.HEAD_FUSION, keys.DISCARD_RATIO, keys.LAYER)
    images = studio.shown.images.to(studio.device)
    return attention_sheet(studio.model, images, studio.pixels, *how, studio.shown.names), heat_caption(*how)


def _gradient(studio: Studio) -> tuple[Image.Image, str]:
    """Gradient rollout."""
    keys, names = studio.cfg.PICTURE, studio.classes
    if len(names) != studio.cfg.MODEL.NUM_CLASSES:  # another data set's names would mislead
        names = tuple(f"class {i}" for i in range(studio.cfg.MODEL.NUM_CLASSES))
    images, how = studio.shown.images.to(studio.device), (keys.DISCARD_RATIO, keys.LAYER)
    captions = studio.shown.names
    image = gradient_sheet(studio.model, images, studio.pixels, keys.CLASS, *how, names.__getitem__, captions)
    return image, heat_caption("", *how)


def _neighbours(studio: Studio) -> tuple[Image.Image, str]:
    """Nearest training images in feature space."""
    cfg, shown, device = studio.cfg, studio.shown, studio.device
    data_root(cfg)
    dataset = eval_dataset(cfg, "train", studio.classes, cfg.KNN.NUM_TRAIN)
    bank, _, index = collect_indexed(studio.model.features, eval_loader(cfg, dataset, World(device=device)), device)
    with torch.inference_mode():
        queries = studio.model.features(shown.images.to(device)).cpu()
    similarity, rows = nearest(queries, bank, cfg.PICTURE.NUM_NEIGHBOURS)
    found = find_neighbours(dataset, index[rows], similarity, studio.pixels)
    names = [name or file for name, file in zip(shown.classes, shown.names)]
    known = "; framed where of the query's class" if any(shown.classes) else ""
    caption = f"nearest of {len(index):,} training images with their cosine similarity{known}"
    return neighbours_sheet(studio.pixels(shown.images), names, found), caption


KINDS: dict[str, Callable[[Studio], tuple[Image.Image, str]]] = {
    "reconstruction": _reconstruction,
    "attention": _attention,
    "gradient": _gradient,
    "neighbours": _neighbours,
}
"""PICTURE.KIND -> what draws it: the picture and its caption."""
