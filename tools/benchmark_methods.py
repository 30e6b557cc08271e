"""The pre-training step of every image method at full size: images per second and peak memory, beside MaskFeat's.

All steps are `Trainer.train_step` with the methods' own recipes, at one batch size, in turns in one process. On a GPU
the memory is what the allocator handed out; on a CPU each method takes its steps in a process of its own, too, whose
resident memory grows by so much.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

from benchmark_step import Way, build_step
from benchmark_timing import Row, median_times
from fvcore.common.config import CfgNode

from mfm_core.config import load_config

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = {
    "MaskFeat, ViT-B": "masked_ssl/in1k_VIT_B_MaskFeat_PT",
    "MAE, ViT-B": "mae/in1k_VIT_B_16_PT_800e",
    "MFF, ViT-B": "mff/in1k_VIT_B_MFF_PT_300e",
    "MFM, ViT-B": "mfm/mfm_pretrain__vit_base__img224__300ep",
    "MFM, ResNet-50": "mfm/mfm_pretrain__resnet50__img224__300ep",
}
STATUS = Path("/proc/self/status")


def benchmark_methods(args: argparse.Namespace) -> Iterator[Row]:
    """A row for each method; the plain side is MaskFeat's step."""
    way = Way.from_args(args)
    common = ["TRAIN.BATCH_SIZE", str(way.size), "TRAIN.ACCUM_STEPS", "1", *args.set]
    configs = {name: load_config(str(CONFIGS / f"{path}.yaml"), common) for name, path in RECIPES.items()}
    resident = {name: peak_resident(cfg, way) for name, cfg in configs.items()} if way.threads else {}
    steps: dict[str, Callable] = {}
    told: dict[str, str] = {}
    with way.threads_set():
        for name, cfg in configs.items():
            steps[name], peak, macs = build_step(cfg, way)
            peak = resident.get(name, peak)
            memory = "" if peak is None else f", peak memory {peak:.1f} GB"
            told[name] = f"{macs / 1e9:.3g} GFLOPs forward{memory}"
        times = median_times(steps, args.repeats, way.device)
    base = times[next(iter(steps))]
    for name, seconds in times.items():
        case = " ".join([name, *args.set]) + f", {way}, beside MaskFeat"
        yield Row("methods", case, way.threads, base, seconds, f"{way.size / seconds:.3g} images/s, {told[name]}")


def peak_resident(cfg: CfgNode, way: Way) -> float | None:
    """GB of main memory that three training steps of a fresh process take; None where the system does not tell."""
    if not STATUS.exists():
        return None
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(_grown, cfg, way).result()


def _grown(cfg: CfgNode, way: Way) -> float:
    before = _resident("VmRSS")
    run, _, _ = build_step(cfg, replace(way, compiled=False))
    for _ in range(3):
        run()
    return (_resident("VmHWM") - before) / 1e9


def _resident(field: str) -> int:
    """Bytes: VmRSS is what is resident now, VmHWM the most that ever was."""
    return int(re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text())[1]) * 1024
