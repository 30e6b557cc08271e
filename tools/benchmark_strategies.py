"""The training step of MaskFeat (ViT-B) under each strategy in several processes, beside DistributedDataParallel.

Two processes on a CPU, exchanging by gloo; on GPUs one for each. Every process sees the same number of images; all
strategies run in turns in the same processes, from the same weights.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from multiprocessing.connection import Connection

import torch
import torch.multiprocessing as mp
from benchmark_step import MASKFEAT, images, make_batch, step_under
from benchmark_timing import Row, median_times

from mfm_core.config import load_config
from mfm_core.engine.memory import GB
from mfm_core.engine.precision import choose_precision
from mfm_core.parallel.launch import launch
from mfm_core.parallel.strategies import build_strategy
from mfm_core.parallel.world import World, join_world, leave_world
from mfm_image.models import build_model

WAYS = {
    "ddp": ("DIST.STRATEGY", "ddp"),
    "sharded_ddp": ("DIST.STRATEGY", "sharded_ddp"),
    "fsdp2": ("DIST.STRATEGY", "fsdp2"),
    "fsdp2, RESHARD_AFTER_FORWARD False": ("DIST.STRATEGY", "fsdp2", "DIST.RESHARD_AFTER_FORWARD", "False"),
    "fsdp2, CPU_OFFLOAD True": ("DIST.STRATEGY", "fsdp2", "DIST.CPU_OFFLOAD", "True"),
}
SIZES = {"cpu": 2, "cuda": 32}
"""Images for each process."""
Found = dict[str, tuple[float, float]]
"""Seconds of a step, and the most GB that it takes on a GPU beside what other strategies hold; 0 on a CPU."""


def benchmark_strategies(args: argparse.Namespace) -> Iterator[Row]:
    """A row for each way to train in several processes."""
    on_cpu = torch.device(args.device).type == "cpu"
    processes = 2 if on_cpu else torch.cuda.device_count()
    if processes < 2:
        raise SystemExit("The strategies need two GPUs or more; take --device cpu.")
    size = args.batch or SIZES["cpu" if on_cpu else "cuda"]
    ours, theirs = mp.Pipe(duplex=False)
    launch(_measure, (args.device, size, args.set, args.repeats, theirs), processes)
    found: Found = ours.recv()
    for way, (seconds, gb) in found.items():
        memory = f", peak memory {gb:.1f} GB" if gb else ""
        remark = f"{size * processes / seconds:.3g} images/s{memory}"
        case = " ".join(["ViT-B", *args.set, f"batch {processes} x {size}, {way}"])
        yield Row("strategies", case, 0 if not on_cpu else 1, found["ddp"][0], seconds, remark)


def _measure(device: str, size: int, changes: list[str], repeats: int, pipe: Connection) -> int:
    """What one of the processes does; the main one sends what it found."""
    if device == "cpu":
        torch.set_num_threads(1)
    world = join_world(device, timeout_s=600.0)
    try:
        found = _times(world, size, changes, repeats)
        if world.is_main:
            pipe.send(found)
        world.barrier()
    finally:
        leave_world()
    return 0


def _times(world: World, size: int, changes: list[str], repeats: int) -> Found:
    total = str(size * world.size)
    cfgs = {way: load_config(str(MASKFEAT), ["TRAIN.BATCH_SIZE", total, *own, *changes]) for way, own in WAYS.items()}
    precision = "fp32" if world.device.type == "cpu" else choose_precision("auto", True, world.device)
    torch.manual_seed(0)
    model = build_model(cfgs["ddp"]).to(world.device).train()
    batch = make_batch(cfgs["ddp"], model.backbone.grid, images(cfgs["ddp"], size), world.device)
    steps, gigabytes = {}, {}
    for way, cfg in cfgs.items():
        strategy = build_strategy(cfg.DIST, world, precision)
        before = _allocated(world)
        steps[way] = step_under(strategy, cfg, copy.deepcopy(model), batch, precision)
        gigabytes[way] = _peak(steps[way], world, before)
    times = median_times(steps, repeats, world.device)
    return {way: (seconds, gigabytes[way]) for way, seconds in times.items()}


def _allocated(world: World) -> int:
    return torch.cuda.memory_allocated(world.device) if world.device.type == "cuda" else 0


def _peak(step, world: World, before: int) -> float:
    """GB that the model, its optimizer and a step take at most; the first step makes the optimizer's state."""
    if world.device.type != "cuda":
        return 0.0
    step()
    torch.cuda.reset_peak_memory_stats(world.device)
    step()
    return (torch.cuda.max_memory_allocated(world.device) - before) / GB
