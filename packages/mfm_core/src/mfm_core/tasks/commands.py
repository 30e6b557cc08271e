"""What `tools/run_net.py` calls for either modality: train or test, dry-run, doctor."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from mfm_core.config import plan_run, task_of, validate
from mfm_core.engine.dry_run import describe_run
from mfm_core.engine.precision import choose_precision
from mfm_core.engine.run import run
from mfm_core.interfaces import Task
from mfm_core.parallel.world import World, choose_device
from mfm_core.tasks.finetune import FinetuneTask
from mfm_core.tasks.knn import KnnTask
from mfm_core.tasks.modality import Modality
from mfm_core.tasks.pretrain import PretrainTask
from mfm_core.tasks.probe import ProbeTask

TASKS = {"pretrain": PretrainTask, "finetune": FinetuneTask, "probe": ProbeTask, "knn": KnnTask}


def train(cfg: CfgNode, modality: Modality) -> int:
    """One process of a run that trains, or tests where TRAIN.ENABLE is off; returns the exit code."""
    return run(cfg, partial(_build_task, modality))


def _build_task(modality: Modality, cfg: CfgNode, world: World, precision: str) -> Task:
    return TASKS[task_of(cfg)](cfg, world, precision, modality)


def dry_run(cfg: CfgNode, modality: Modality) -> list[str]:
    """The lines of `--dry-run`; where the data folder is missing, the published number of files is assumed."""
    warnings = validate(cfg)
    world_size = max(1, cfg.NUM_GPUS) * cfg.NUM_SHARDS
    folder = Path(cfg.DATA.PATH_TO_DATA_DIR)
    if cfg.DATA.PATH_TO_DATA_DIR and folder.is_dir():
        fraction = cfg.DATA.LABEL_FRACTION if task_of(cfg) in ("finetune", "probe") else 1.0
        files, note = modality.count_files(cfg, fraction), f"data: {folder}"
    else:
        published, files = modality.published
        note = f"data: no folder given or found; {published}'s file count is assumed"
    plan = plan_run(cfg, files, world_size)
    with torch.device("meta"):
        model = modality.build_model(cfg)
    modality.check_transforms(cfg)  # what is wrong with their keys shall be said here, too
    precision = choose_precision(cfg.TRAIN.PRECISION, cfg.TRAIN.MIXED_PRECISION, choose_device(cfg.DEVICE))
    description = describe_run(model, modality.example_input(cfg, model.backbone.grid), plan, precision)
    return [f"task: {plan.task}; {note}", *description.lines(), *(f"warning: {w}" for w in warnings)]


def doctor(cfg: CfgNode, modality: Modality) -> tuple[list[str], bool]:
    """What there is to say about the data, line by line, and whether all is well."""
    report = modality.check_data(cfg)
    return report.lines(), report.healthy
