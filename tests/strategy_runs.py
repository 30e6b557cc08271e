"""Training steps of tiny models under any strategy, without files: each world of processes is started once."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from tiny_runs import tiny_config

from mfm_core.checkpoint.resume import whole_state
from mfm_core.config import plan_run
from mfm_core.engine.run import build_trainer
from mfm_core.engine.trainer import Trainer
from mfm_core.interfaces import Batch
from mfm_core.parallel.world import World, join_world, leave_world

STEPS, BATCH = 20, 12
SMALL = [
    *("DATA.TRAIN_CROP_SIZE", 16),
    *("DATA.TEST_CROP_SIZE", 16),
    *("MVIT.EMBED_DIM", 16),
    *("TRAIN.BATCH_SIZE", BATCH),
    *("SOLVER.MAX_EPOCH", 2),
    *("SOLVER.WARMUP_EPOCHS", 0.2),
    *("SOLVER.WEIGHT_DECAY", 0.05),
    *("SOLVER.COSINE_END_LR", 0.0),
    *("SOLVER.CLIP_GRAD_L2NORM", "None"),
]
SOLVERS = {
    "adamw": ["SOLVER.OPTIMIZING_METHOD", "adamw", "SOLVER.BASE_LR", 1e-3],
    "sgd": ["SOLVER.OPTIMIZING_METHOD", "sgd", "SOLVER.BASE_LR", 0.05],
    "lars": ["SOLVER.OPTIMIZING_METHOD", "lars", "SOLVER.BASE_LR", 0.5],
}


@dataclass(frozen=True)
class Case:
    """What is trained, how. name: of the case; kind, overrides: of `tiny_config`, over `SMALL`.

    change: called with the trainer before the first step. cut: the ranks' and micro-batches' sizes do not matter to
    what is trained, or where they do, how many parts one process cuts the batch into.
    """

    name: str
    strategy: str = "single"
    kind: str = "pretrain"
    overrides: tuple = ()
    precision: str = "fp32"
    change: str = ""
    batch: int = BATCH
    steps: int = STEPS


class MemoryTask:
    """Batches from a seed, and a model from a seed: what a training step needs of a task."""

    files = BATCH * STEPS // 2
    warnings: list[str] = []
    summary_input = ()

    def __init__(self, cfg) -> None:
        from mfm_image.models import build_model

        torch.manual_seed(0)
        self.cfg, self.model = cfg, build_model(cfg)
        self.train_set = range(self.files)
        self.pretrains = cfg.MASK.ENABLE

    def prepare(self, batch: Batch) -> Batch:
        return batch

    def weight(self, batch: Batch) -> torch.Tensor:
        return self.model.weight(batch.mask) if self.pretrains else torch.tensor(float(len(batch)))

    def loss(self, model, batch: Batch) -> torch.Tensor:
        if self.pretrains:
            return model(batch.inputs, batch.mask).loss
        return torch.nn.functional.cross_entropy(model(batch.inputs).float(), batch.labels)

    def batch(self, step: int, size: int, rank: int, world: int) -> Batch:
        """Process `rank`'s part of step `step`'s `size` inputs; the parts differ by one at most."""
        generator = torch.Generator().manual_seed(1000 + step)
        side = self.cfg.DATA.TRAIN_CROP_SIZE
        inputs = torch.randn(size, 3, side, side, generator=generator)
        labels = torch.randint(3, (size,), generator=generator)
        share = torch.rand(size, 1, 1, generator=generator) * 0.6 + 0.2
        grid = self.model.backbone.grid if self.pretrains else (1, 1)
        mask = torch.rand(size, *grid, generator=generator) < share
        mask[:, 0, 0] = True
        own = torch.arange(size).tensor_split(world)[rank]
        return Batch(inputs[own], labels[own], mask[own], own)


def trainer_of(case: Case, world: World, folder: Path) -> Trainer:
    """The real one, as a run builds it."""
    overrides = [*SMALL, "DIST.STRATEGY", case.strategy, *case.overrides]
    cfg = tiny_config(case.kind, folder, folder, *overrides)
    task = MemoryTask(cfg)
    plan = plan_run(cfg, task.files, world.size)
    trainer = build_trainer(cfg, task, plan, world, folder, case.precision, [])
    trainer.model.train()
    if case.change:
        CHANGES[case.change](trainer)
    return trainer


CHANGES: dict[str, Callable[[Trainer], None]] = {}


def change(function: Callable[[Trainer], None]) -> Callable[[Trainer], None]:
    CHANGES[function.__name__] = function
    return function


def steps_of(trainer: Trainer, case: Case, world: World) -> dict[str, Any]:
    """Trains, and returns everything a checkpoint would hold, with the gradient norms."""
    norms = []
    for step in range(trainer.state.step, case.steps):
        batch = trainer.task.batch(step, case.batch, world.rank, world.size)
        norms.append(trainer.train_step(batch)[1])
    state = whole_state(trainer.state, trainer.plan, trainer.cfg)
    return {**state, "norms": torch.stack(norms)}


def run_case(case: Case, world: World, folder: Path) -> dict[str, Any]:
    return steps_of(trainer_of(case, world, folder / case.name), case, world)


def _worker(rank: int, size: int, port: int, cases: list[Case], folder: Path, run: Callable) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    world = join_world("cpu", 120.0)
    found = {case.name: run(case, world, folder) for case in cases}
    if rank == 0:
        torch.save(found, folder / "found.pth")
    world.barrier()
    leave_world()


def in_world(size: int, cases: list[Case], folder: Path, run: Callable = run_case) -> dict[str, Any]:
    """What `run(case, world, folder)` returns on the main one of `size` processes, by the case's name."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    mp.start_processes(_worker, (size, port, cases, folder, run), nprocs=size, start_method="spawn")
    return torch.load(folder / "found.pth", weights_only=True)


def furthest(one: dict, other: dict, part: str = "model_state") -> float:
    """The largest difference of any number in two states."""
    assert one[part].keys() == other[part].keys()
    return max((one[part][name].double() - t.double()).abs().max().item() for name, t in other[part].items())
