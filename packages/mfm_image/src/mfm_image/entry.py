"""What `tools/run_net.py` calls for images: train, test or visualise, dry-run, doctor."""

from __future__ import annotations

from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from mfm_core.config import plan_run, task_of, validate
from mfm_core.config.plan import IMAGENET_TRAIN_IMAGES
from mfm_core.engine.dry_run import describe_run
from mfm_core.engine.precision import choose_precision
from mfm_core.engine.run import run
from mfm_core.interfaces import Task
from mfm_core.parallel.world import World, choose_device
from mfm_image.data.build import data_root, eval_transform, train_transform
from mfm_image.data.doctor import check_folder
from mfm_image.data.folder import ImageFolder
from mfm_image.models import build_model, example_input
from mfm_image.tasks.finetune import FinetuneTask
from mfm_image.tasks.knn import KnnTask
from mfm_image.tasks.pretrain import PretrainTask
from mfm_image.tasks.probe import ProbeTask
from mfm_image.tasks.visualise import visualise

TASKS = {"pretrain": PretrainTask, "finetune": FinetuneTask, "probe": ProbeTask, "knn": KnnTask}


def main(cfg: CfgNode) -> int:
    """One process of a run; returns the exit code."""
    return COMMANDS.get(cfg.TASK, train)(cfg)


def train(cfg: CfgNode) -> int:
    """Trains, or tests where TRAIN.ENABLE is off."""
    return run(cfg, _build_task)


COMMANDS = {"visualise": visualise}
"""TASK -> what does it, where that is not training a model."""


def _build_task(cfg: CfgNode, world: World, precision: str) -> Task:
    return TASKS[task_of(cfg)](cfg, world, precision)


def dry_run(cfg: CfgNode) -> list[str]:
    """The lines of `--dry-run`; where the data folder is missing, ImageNet-1k's number of files is assumed."""
    warnings = validate(cfg)
    world_size = max(1, cfg.NUM_GPUS) * cfg.NUM_SHARDS
    folder = Path(cfg.DATA.PATH_TO_DATA_DIR)
    if cfg.DATA.PATH_TO_DATA_DIR and folder.is_dir():
        fraction = cfg.DATA.LABEL_FRACTION if task_of(cfg) in ("finetune", "probe") else 1.0
        files, note = len(ImageFolder(folder, "train", fraction=fraction)), f"data: {folder}"
    else:
        files, note = IMAGENET_TRAIN_IMAGES, "data: no folder given or found; ImageNet-1k's file count is assumed"
    plan = plan_run(cfg, files, world_size)
    with torch.device("meta"):
        model = build_model(cfg)
    train_transform(cfg), eval_transform(cfg)  # what is wrong with their keys shall be said here, too
    device = choose_device(cfg.DEVICE)
    precision = choose_precision(cfg.TRAIN.PRECISION, cfg.TRAIN.MIXED_PRECISION, device)
    description = describe_run(model, example_input(cfg, model.backbone.grid), plan, precision)
    return [f"task: {plan.task}; {note}", *description.lines(), *(f"warning: {w}" for w in warnings)]


def doctor(cfg: CfgNode) -> tuple[list[str], bool]:
    """What there is to say about the data folder, line by line, and whether all is well."""
    report = check_folder(data_root(cfg), workers=cfg.DATA_LOADER.NUM_WORKERS)
    return report.lines(), report.healthy
