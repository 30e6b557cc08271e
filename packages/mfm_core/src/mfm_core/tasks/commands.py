"""What `tools/run_net.py` calls for either modality: train, test or visualise, dry-run, doctor."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from mfm_core.config import RunPlan, plan_run, task_of, validate
from mfm_core.config.plan import device_of, trains
from mfm_core.engine.dry_run import describe_run
from mfm_core.engine.precision import choose_precision
from mfm_core.engine.run import run
from mfm_core.errors import UserError
from mfm_core.interfaces import Task
from mfm_core.parallel.world import World, choose_device
from mfm_core.paths import is_remote
from mfm_core.tasks.classification import check_classes
from mfm_core.tasks.finetune import FinetuneTask
from mfm_core.tasks.knn import KnnTask
from mfm_core.tasks.modality import Modality
from mfm_core.tasks.pretrain import PretrainTask
from mfm_core.tasks.probe import ProbeTask
from mfm_core.tasks.visualise import visualise

TASKS = {"pretrain": PretrainTask, "finetune": FinetuneTask, "probe": ProbeTask, "knn": KnnTask}


def main(cfg: CfgNode, modality: Modality) -> int:
    """One process of a run: trains, tests where TRAIN.ENABLE is off, or draws pictures; returns the exit code."""
    if cfg.TASK == "visualise":
        return visualise(cfg, modality)
    return run(cfg, partial(_build_task, modality))


def _build_task(modality: Modality, cfg: CfgNode, world: World, precision: str) -> Task:
    return TASKS[task_of(cfg)](cfg, world, precision, modality)


def dry_run(cfg: CfgNode, modality: Modality) -> list[str]:
    """The lines of `--dry-run`; where the data folder is missing, the published number of files is assumed.

    Raises UserError for what the run would refuse.
    """
    warnings = validate(cfg)
    files, note = _count_files(cfg, modality)
    plan = _plan(cfg, files, warnings)
    with torch.device("meta"):
        model = modality.build_model(cfg)
    modality.check_transforms(cfg)  # what is wrong with their keys shall be said here, too
    device = device_of(cfg)
    precision = choose_precision(cfg.TRAIN.PRECISION, cfg.TRAIN.MIXED_PRECISION, choose_device(device))
    example = modality.example_input(cfg, model.backbone.grid)
    description = describe_run(model, example, cfg, plan, precision, "cpu" if device == "cpu" else "cuda")
    return [f"task: {plan.task}; {note}", *description.lines(), *(f"warning: {w}" for w in warnings)]


def _count_files(cfg: CfgNode, modality: Modality) -> tuple[int, str]:
    """The number of training files, and where it is from; 0 where none are needed."""
    folder = cfg.DATA.PATH_TO_DATA_DIR
    if not folder or not (is_remote(folder) or Path(folder).is_dir()):
        published, files = modality.published
        return files, f"data: no folder given or found; {published}'s file count is assumed"
    classifies = task_of(cfg) in ("finetune", "probe")
    if classifies and trains(cfg):
        check_classes(cfg, len(modality.classes(cfg)))
    fraction = cfg.DATA.LABEL_FRACTION if classifies else 1.0
    return modality.count_files(cfg, fraction) if trains(cfg) else 0, f"data: {folder}"


def _plan(cfg: CfgNode, files: int, warnings: list[str]) -> RunPlan:
    """For NUM_GPUS processes; where the batch cannot be shared by so many, for one, and a warning says so."""
    world_size = max(1, cfg.NUM_GPUS) * cfg.NUM_SHARDS
    try:
        return plan_run(cfg, files, world_size)
    except UserError as error:
        if world_size == cfg.NUM_SHARDS:
            raise
        plan = plan_run(cfg, files, cfg.NUM_SHARDS)
        warnings.append(f"NUM_GPUS {cfg.NUM_GPUS} is more than one batch serves, the above is for one: {error}")
        return plan


def doctor(cfg: CfgNode, modality: Modality) -> tuple[list[str], bool]:
    """What there is to say about the data, line by line, and whether all is well."""
    report = modality.check_data(cfg)
    return report.lines(), report.healthy
