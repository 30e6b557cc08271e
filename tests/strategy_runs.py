"""Training steps of tiny models under any strategy, from memory: each world of processes is started once for many."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from paths import CONFIGS
from tiny_runs import TINY, tiny_clip_config, tiny_config

from mfm_core.checkpoint.io import save_atomic
from mfm_core.checkpoint.resume import restore
from mfm_core.checkpoint.state import whole_state
from mfm_core.config import load_config, plan_run
from mfm_core.data.listing import PathTable
from mfm_core.engine.run import build_trainer
from mfm_core.engine.start import Setup
from mfm_core.engine.trainer import Trainer
from mfm_core.errors import UserError
from mfm_core.interfaces import Batch
from mfm_core.parallel import sharded_ddp
from mfm_core.parallel.world import World, join_world, leave_world
from mfm_image.backbones import resnet
from mfm_image.models import build_model as image_model
from mfm_video.models import build_model as video_model

BATCH = 12
SMALL = [
    *("TRAIN.BATCH_SIZE", BATCH),
    *("SOLVER.MAX_EPOCH", 2),
    *("SOLVER.WARMUP_EPOCHS", 0.2),
    *("SOLVER.WARMUP_START_LR", 1e-4),
    *("SOLVER.WEIGHT_DECAY", 0.05),
    *("SOLVER.COSINE_END_LR", 0.0),
    *("SOLVER.CLIP_GRAD_L2NORM", "None"),
    *("TRAIN.NONFINITE", "skip"),
]
TOKENS = ["DATA.TRAIN_CROP_SIZE", 16, "DATA.TEST_CROP_SIZE", 16, "MVIT.EMBED_DIM", 16]
SOLVERS = {
    "adamw": ["SOLVER.OPTIMIZING_METHOD", "adamw", "SOLVER.BASE_LR", 1e-3],
    "sgd": ["SOLVER.OPTIMIZING_METHOD", "sgd", "SOLVER.BASE_LR", 0.05],
    "lars": ["SOLVER.OPTIMIZING_METHOD", "lars", "SOLVER.BASE_LR", 0.5],
}
AUTOENCODER = [*("MASK.METHOD", "mff", "MFF.LAYERS", "[0]", "MASK.PRED_HOG", False, "MASK.DECODER_DEPTH", 1)]
AUTOENCODER += ["MASK.DECODER_EMBED_DIM", 32, "AUG.MASK_TYPE", "random", "AUG.MASK_RATIO", 0.75]


@dataclass(frozen=True)
class Case:
    """What is trained, and how.

    kind: see `config_of`. parts: micro-batches of each process in a step. batch: inputs in a step, whether or not they
    can be divided. twist: a function of `TWISTS`. stop: the step after which the run is built anew and continues.
    factor: the gradients of one process are computed so many times too large, as those of each of several are.
    """

    name: str
    strategy: str = "single"
    kind: str = "maskfeat"
    solver: str = "adamw"
    overrides: tuple = ()
    precision: str = "fp32"
    parts: int = 1
    batch: int = BATCH
    steps: int = 20
    twist: str = ""
    stop: int = 0
    factor: int = 1


def config_of(case: Case, folder: Path):
    """A tiny configuration: maskfeat, mff, classifier, resnet, probe or mvit (MaskFeat on clips)."""
    own = [*SMALL, *SOLVERS[case.solver], "DIST.STRATEGY", case.strategy, "TRAIN.ACCUM_STEPS", 1, *case.overrides]
    if case.kind == "mvit":
        return tiny_clip_config("maskfeat", folder, folder, *own)
    if case.kind == "probe":
        probe = [*TINY, *TOKENS, "MODEL.NUM_CLASSES", 3, "OUTPUT_DIR", folder, *own]
        return load_config(str(CONFIGS / "demo" / "probe.yaml"), list(map(str, probe)))
    shape = ["MODEL.ARCH", "resnet"] if case.kind == "resnet" else TOKENS
    shape = [*shape, *AUTOENCODER] if case.kind == "mff" else shape
    kind = "pretrain" if case.kind in ("maskfeat", "mff") else "finetune"
    return tiny_config(kind, folder, folder, *shape, *own)


class MemoryTask:
    """Inputs from a seed: what a training step needs of a task."""

    files = BATCH * 10
    warnings: list[str] = []
    summary_input = ()

    def __init__(self, cfg, case: Case, world: World) -> None:
        torch.manual_seed(0)
        self.cfg, self.case, self.world = cfg, case, world
        self.model = (video_model if case.kind == "mvit" else image_model)(cfg)
        if case.kind == "probe":
            self.model.head.batch_norm.sum_over_processes = world.all_sum
        names = PathTable("", [str(i) for i in range(self.files)])
        self.train_set = SimpleNamespace(listing=SimpleNamespace(paths=names, labels=np.zeros(self.files)))
        self.pretrains = cfg.MASK.ENABLE
        self.calls = 0
        """Of `loss`, in this process."""

    def prepare(self, batch: Batch) -> Batch:
        return batch

    def weight(self, batch: Batch) -> torch.Tensor:
        return self.model.weight(batch.mask) if self.pretrains else torch.tensor(float(len(batch)))

    def metrics(self) -> dict[str, torch.Tensor]:
        return self.model.metrics() if self.pretrains else {}

    def loss(self, model, batch: Batch) -> torch.Tensor:
        if self.case.twist:
            TWISTS[self.case.twist](self)
        self.calls += 1
        if self.pretrains:
            loss = model(batch.inputs, batch.mask).loss
        else:
            logits = model(batch.inputs).float().flatten(0, -2)
            loss = torch.nn.functional.cross_entropy(logits, batch.labels.repeat(len(logits) // len(batch)))
        return loss * self.spoil() if self.case.twist == "faults" else loss

    @property
    def step(self) -> int:
        return self.calls // self.case.parts

    @property
    def part(self) -> int:
        """The current micro-batch's number among those of all processes."""
        return self.world.rank * self.case.parts + self.calls % self.case.parts

    def spoil(self) -> float:
        """What is wrong with the last micro-batch of all, before the first step of momentum and later."""
        calls = self.calls - 1
        last = calls % self.case.parts == self.case.parts - 1 and self.world.rank == self.world.size - 1
        return {0: float("nan"), 5: float("inf")}.get(calls // self.case.parts, 1.0) if last else 1.0

    def batch(self, step: int) -> Batch:
        """This process's part of the step's inputs; the parts of the processes differ by one input at most."""
        generator, size = torch.Generator().manual_seed(1000 + step), self.case.batch
        shape = self.cfg.DATA.TRAIN_CROP_SIZE, self.cfg.DATA.TRAIN_CROP_SIZE
        shape = (self.cfg.DATA.NUM_FRAMES, *shape) if self.case.kind == "mvit" else shape
        inputs = torch.randn(size, 3, *shape, generator=generator)
        labels = torch.randint(3, (size,), generator=generator)
        own = torch.arange(size).tensor_split(self.world.size)[self.world.rank]
        mask = self.masks(size, generator)[own] if self.pretrains else None
        return Batch(inputs[own], labels[own], mask, own)

    def masks(self, size: int, generator: torch.Generator) -> torch.Tensor:
        """MaskFeat hides another number of tokens of each input, at least one; an autoencoder always as many."""
        grid = self.model.backbone.grid
        places = torch.rand(size, torch.Size(grid).numel(), generator=generator).argsort(dim=1)
        if self.case.kind == "mff":
            return (places >= self.model.num_visible).view(size, *grid)
        hidden = torch.randint(1, places.shape[1], (size, 1), generator=generator)
        return (places < hidden).view(size, *grid)


def idle_in_turns(task: MemoryTask) -> None:
    """The last block takes part in every other step only."""
    task.model.depths = (task.step % 2,)


def idle_in_parts(task: MemoryTask) -> None:
    """The last block takes part in every other micro-batch only, the first of all included."""
    task.model.depths = ((task.part + 1) % 2,)


def idle_in_the_last(task: MemoryTask) -> None:
    """The last block takes part in the first of each process's two micro-batches, not in the second."""
    task.model.depths = (1 - task.calls % 2,)


TWISTS: dict[str, Callable[[MemoryTask], None]] = {
    "idle in turns": idle_in_turns,
    "idle in parts": idle_in_parts,
    "idle in the last": idle_in_the_last,
    "faults": lambda task: None,
    "one infinity": lambda task: None,
    "no buckets": lambda task: None,
}


@contextmanager
def small_resnets() -> Iterator[None]:
    """Inside, ResNets are built small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet, "LAYERS", dict.fromkeys(resnet.LAYERS, (1, 1, 1, 1)))
        patch.setattr(resnet, "STEM", 4)
        patch.setattr(resnet, "PLANES", (2, 3, 4, 6))
        yield


def trainer_of(case: Case, world: World, folder: Path) -> Trainer:
    """The real one, as a run builds it."""
    sharded_ddp.BUCKET = 600 if case.twist == "no buckets" else 2**23
    cfg = config_of(case, folder)
    with small_resnets():
        task = MemoryTask(cfg, case, world)
        plan = replace(plan_run(cfg, task.files, world.size), accum_steps=case.parts)
        trainer = build_trainer(Setup(cfg, task, plan, world, folder, case.precision, []))
    trainer.model.train()
    trainer.state.scaler._init_scale = 2.0**26  # so that fp16 overflows at first
    # where gradients are shared out, only one process can see it
    if case.twist == "one infinity" and (world.rank == world.size - 1 or case.strategy == "ddp"):
        overflow_once(trainer)
    if case.factor > 1:
        enlarge_gradients(trainer, case.factor)
    return trainer


def enlarge_gradients(trainer: Trainer, factor: int) -> None:
    """Bf16 rounds three times a gradient otherwise than the gradient."""
    scaler = trainer.state.scaler
    scale, unscale = scaler.scale, scaler.unscale_

    def divide(optimizer) -> None:
        unscale(optimizer)
        for parameter in trainer.state.model.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(factor)

    scaler.scale, scaler.unscale_ = lambda loss: scale(loss * factor), divide


def overflow_once(trainer: Trainer) -> None:
    """At step 9 one gradient of this process's share is infinite, before anyone has looked at it."""
    scaler = trainer.state.scaler
    unscale = scaler.unscale_

    def spoilt(optimizer) -> None:
        if trainer.state.step == 9:
            next(p for group in optimizer.param_groups for p in group["params"] if p.numel()).grad.fill_(float("inf"))
        unscale(optimizer)

    scaler.unscale_ = spoilt


def steps_of(trainer: Trainer, until: int) -> list[torch.Tensor]:
    """Trains; the norms of the gradients."""
    task: MemoryTask = trainer.task
    task.calls = trainer.state.step * task.case.parts
    return [trainer.train_step(task.batch(step))[1] for step in range(trainer.state.step, until)]


def whole(trainer: Trainer, norms: list[torch.Tensor]) -> dict[str, Any]:
    """All that a checkpoint would hold, the gradient norms, and the loss scale of every process."""
    state = whole_state(trainer.state, trainer.plan, trainer.saver.cfg)
    scales = trainer.world.gather(trainer.state.scaler.get_scale())
    metrics = {name: float(value) for name, value in trainer.task.metrics().items()}
    return {**state, "norms": torch.stack(norms), "scales": scales, "metrics": metrics}


def run_case(case: Case, world: World, folder: Path) -> dict[str, Any]:
    """What `whole` says after the case; or the one line of a refusal."""
    try:
        trainer = trainer_of(case, world, folder)
        norms = steps_of(trainer, case.stop or case.steps)
        if case.stop:
            content = whole(trainer, norms)
            path = folder / f"{case.name}.pyth"
            if world.is_main:
                save_atomic(content, path)
            world.barrier()
            trainer = resumed(case, world, folder, path)
            norms += steps_of(trainer, case.steps)
        return whole(trainer, norms)
    except UserError as error:
        return {"refused": str(error)}


def resumed(case: Case, world: World, folder: Path, path: Path) -> Trainer:
    """A new trainer that continues from the file."""
    trainer = trainer_of(case, world, folder)
    content = torch.load(path, weights_only=True)
    restore(content, trainer.state, trainer.plan, trainer.saver.cfg.RNG_SEED, path)
    return trainer


Run = Callable[[Case, World, Path], dict[str, Any]]


def _worker(rank: int, size: int, port: int, cases: list[Case], folder: Path, run: Run) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    world = join_world("cpu", timeout_s=240.0)
    found = {case.name: run(case, world, folder) for case in cases}
    if world.is_main:
        torch.save(found, folder / "found.pth")
    world.barrier()
    leave_world()


def in_world(size: int, cases: list[Case], folder: Path, run: Run = run_case, timeout_s: float = 900.0) -> dict:
    """What `run` returns for each case on the main one of `size` processes, by the case's name."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    context = mp.start_processes(
        _worker, (size, port, cases, folder, run), nprocs=size, start_method="spawn", join=False
    )
    deadline = time.monotonic() + timeout_s
    try:
        while not context.join(timeout=1.0):
            assert time.monotonic() < deadline, f"{size} processes take longer than {timeout_s} s"
    finally:
        for process in context.processes:
            process.kill()
    return torch.load(folder / "found.pth", weights_only=True)


def furthest(one: dict, other: dict, part: str = "model_state") -> float:
    """The largest difference of any number in two states."""
    assert one[part].keys() == other[part].keys() and one[part]
    return max((one[part][name].double() - t.double()).abs().max().item() for name, t in other[part].items())


def furthest_moment(one: dict, other: dict) -> float:
    """The largest difference of any number that the optimizers keep, relative to the largest of its tensor."""
    ours, theirs = one["optimizer_state"], other["optimizer_state"]
    assert [g["params"] for g in ours["param_groups"]] == [g["params"] for g in theirs["param_groups"]]
    assert [g.keys() for g in ours["param_groups"]] == [g.keys() for g in theirs["param_groups"]]
    assert ours["state"].keys() == theirs["state"].keys()
    worst = 0.0
    for number, slots in theirs["state"].items():
        assert slots.keys() == ours["state"][number].keys()
        for slot, tensor in slots.items():
            difference = (ours["state"][number][slot].double() - tensor.double()).abs().max()
            worst = max(worst, float(difference / tensor.abs().max().clamp(min=1e-3)))
    return worst


def continue_case(case: Case, world: World, folder: Path) -> dict[str, Any]:
    """Continues from the file that the case's `twist` names, to `case.steps`."""
    path = folder.parent / f"{case.twist}.pyth"
    trainer = resumed(replace(case, twist=""), world, folder, path)
    return whole(trainer, steps_of(trainer, case.steps))
