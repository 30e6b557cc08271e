"""TASK visualise: pictures of what a trained model sees, as PNG files and a page that shows them."""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from mfm_core.checkpoint.init_from import init_from
from mfm_core.checkpoint.resume import newest_checkpoint
from mfm_core.config import pictures_of, validate
from mfm_core.config.plan import device_of, task_of
from mfm_core.data.loader import death_of_worker, eval_loader
from mfm_core.data.seeding import derive_seed
from mfm_core.engine.log import prepare_folder, setup_logging
from mfm_core.engine.run import exit_with, memory_full, working_in
from mfm_core.errors import UserError
from mfm_core.methods.parts import masks_from_cfg
from mfm_core.mirror import Mirror
from mfm_core.objective import EncoderModel
from mfm_core.parallel.world import World, choose_device, number_of
from mfm_core.paths import is_remote, local_path
from mfm_core.probe.features import collect_indexed
from mfm_core.report.document import write_gallery
from mfm_core.report.exhibits import Animation, save_gif
from mfm_core.report.neighbours import find_neighbours, nearest, neighbours_sheet
from mfm_core.report.panels import save_png
from mfm_core.report.runs import Picture
from mfm_core.tasks.modality import Modality
from mfm_core.tasks.shown import Drawn, Shown, Studio, from_dataset, from_path

logger = logging.getLogger(__name__)
HEADS_NEEDED = {"reconstruction", "gradient"}
"""Kinds that ask the head; the others ask the backbone alone."""


def visualise(cfg: CfgNode, modality: Modality) -> int:
    """Draws what PICTURE asks for and returns the exit code; of several processes the first does it."""
    try:
        if number_of("RANK", 0):
            return 0
        device, mirror = choose_device(device_of(cfg)), None
        if is_remote(cfg.OUTPUT_DIR):
            mirror = Mirror(cfg.OUTPUT_DIR)
            mirror.fetch()
            cfg = working_in(mirror.folder, cfg)
        folder = prepare_folder(cfg.OUTPUT_DIR)
        setup_logging(folder)
        for warning in validate(cfg):
            logger.warning("warning: %s", warning)
        _draw_all(cfg, modality, folder, device)
        if mirror is not None:
            mirror.push()
        return 0
    except UserError as error:
        return exit_with(error)
    except torch.OutOfMemoryError as error:
        return exit_with(memory_full(error, device, "lower PICTURE.NUM_IMAGES or TEST.BATCH_SIZE, or set DEVICE cpu"))
    except RuntimeError as error:
        if death := death_of_worker(error, cfg.DATA_LOADER.NUM_WORKERS):
            return exit_with(death)
        raise


def _draw_all(cfg: CfgNode, modality: Modality, folder: Path, device: torch.device) -> None:
    model = modality.build_model(cfg).to(device).eval()
    path, notes = _load_weights(cfg, model, folder)
    classes = modality.classes(cfg) if _reads_data(cfg) else ()
    if cfg.DATA.PATH_TO_DATA_DIR and not _reads_data(cfg):
        lacking = "no names of classes, and no neighbours"
        logger.warning("warning: DATA.PATH_TO_DATA_DIR %s does not exist: %s.", cfg.DATA.PATH_TO_DATA_DIR, lacking)
    studio = Studio(cfg, model, _shown(cfg, modality, classes), classes, device)
    painters = {"reconstruction": _reconstruction, "neighbours": _neighbours}
    pictures = []
    for kind in _kinds(cfg):
        drawn = modality.draw[kind](studio) if kind in modality.draw else painters[kind](studio, modality)
        for name, picture, caption in drawn:
            moving = isinstance(picture, Animation)
            file = folder / "pictures" / f"{name}.{'gif' if moving else 'png'}"
            (save_gif if moving else save_png)(picture, file)
            pictures.append(Picture(file, caption=caption))
            logger.info("%s: %s", name, file)
    source = cfg.PICTURE.INPUT or f"{cfg.DATA.PATH_TO_DATA_DIR}/{_split(cfg, modality)}"
    page = folder / "pictures.html"
    write_gallery(
        page,
        f"Pictures of {os.path.basename(path)}",
        f"{path} · {len(studio.shown.names)} of {source}",
        notes,
        pictures,
    )
    logger.info("all of them: %s", page)


def _load_weights(cfg: CfgNode, model: EncoderModel, folder: Path) -> tuple[str, list[str]]:
    """Loads the whole model, or the backbone where that is enough; the file, and what there is to know about it."""
    path = cfg.TEST.CHECKPOINT_FILE_PATH or str(newest_checkpoint(folder / "checkpoints") or "")
    if not path:
        raise UserError(
            f"TEST.CHECKPOINT_FILE_PATH is empty and OUTPUT_DIR {folder} has no checkpoints; name the weights to show."
        )
    report = init_from(model, path, min_match=1.0, key="TEST.CHECKPOINT_FILE_PATH", average=True, cfg=cfg)
    lacking = report.missing + report.other_shape
    kinds = HEADS_NEEDED & set(_kinds(cfg))
    if lacking and kinds:
        raise UserError(
            f"{path} lacks {', '.join(lacking)}, which pictures of kind {' and '.join(sorted(kinds))} need; "
            "set PICTURE.KIND to attention or neighbours, or take another checkpoint."
        )
    for line in [f"weights from {path}", *report.lines()]:
        logger.info("%s", line)
    for warning in report.warnings:
        logger.warning("warning: %s", warning)
    return path, [f"Not in the checkpoint, and not needed here: {', '.join(lacking)}"] if lacking else []


def _kinds(cfg: CfgNode) -> list[str]:
    """As configured; "all" leaves neighbours out where there are no training images to search."""
    kinds = pictures_of(cfg)
    if list(cfg.PICTURE.KIND) == ["all"] and not _reads_data(cfg):
        kinds.remove("neighbours")
    return kinds


def _reads_data(cfg: CfgNode) -> bool:
    """Whether there is a data folder to read, or must be: it may be on another machine where PICTURE.INPUT is shown."""
    folder = cfg.DATA.PATH_TO_DATA_DIR
    return bool(folder) and (not cfg.PICTURE.INPUT or is_remote(folder) or Path(folder).is_dir())


def _shown(cfg: CfgNode, modality: Modality, classes: tuple[str, ...]) -> Shown:
    if cfg.PICTURE.INPUT:
        source = local_path(cfg.PICTURE.INPUT, "PICTURE.INPUT")
        return from_path(source, partial(modality.read, cfg), cfg.PICTURE.NUM_IMAGES, modality.is_one)
    return from_dataset(modality.eval_set(cfg, _split(cfg, modality), classes), cfg.PICTURE.NUM_IMAGES)


def _split(cfg: CfgNode, modality: Modality) -> str:
    """Which files of the data folder are shown: of validation, which pre-training can be without."""
    return "val" if modality.has_val(cfg) or task_of(cfg) != "pretrain" else "train"


def _reconstruction(studio: Studio, modality: Modality) -> list[Drawn]:
    """What pre-training predicts."""
    cfg, model, inputs = studio.cfg, studio.model, studio.shown.inputs
    draw = masks_from_cfg(cfg, model.backbone.grid)
    seeds = [derive_seed(cfg.PICTURE.SEED, "picture", i) for i in range(len(inputs))]
    masks = torch.stack([draw(torch.Generator().manual_seed(s), one) for s, one in zip(seeds, inputs)])
    inputs = inputs.to(studio.device)
    with torch.inference_mode():
        output = model(inputs, masks.to(studio.device))
        return modality.reconstruct(cfg, model, inputs, output, studio.shown.names)


def _neighbours(studio: Studio, modality: Modality) -> list[Drawn]:
    """Nearest training files in feature space."""
    cfg, shown, device = studio.cfg, studio.shown, studio.device
    dataset = modality.eval_set(cfg, "train", studio.classes, cfg.KNN.NUM_TRAIN)
    bank, _, index = collect_indexed(studio.model.features, eval_loader(cfg, dataset, World(device=device)), device)
    with torch.inference_mode():
        queries = studio.model.features(shown.inputs.to(device)).cpu()
    similarity, rows = nearest(queries, bank, cfg.PICTURE.NUM_NEIGHBOURS)
    stills = partial(modality.stills, cfg)
    found = find_neighbours(dataset, index[rows], similarity, stills)
    names = [name or file for name, file in zip(shown.classes, shown.names)]
    known = "; framed where of the query's class" if any(shown.classes) else ""
    caption = f"nearest of {len(index):,} training {modality.noun} with their cosine similarity{known}"
    return [("neighbours", neighbours_sheet(stills(shown.inputs), names, found), caption)]
