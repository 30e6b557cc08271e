"""MAE's training step at its ratio of hidden tokens beside steps of the same ViT that computes all tokens.

All sides are `Trainer.train_step` of the same encoder on the same pictures, with normalised pixels as the target:
MaskFeat's wiring, where a mask token stands for what is hidden and a linear layer predicts; MAE with a single token
hidden, encoder and decoder alike; and MAE as its recipe has it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from benchmark_step import make_batch, measured, our_step
from benchmark_timing import Row, median_times, threads_of
from fvcore.common.config import CfgNode

from mfm_core.config import load_config
from mfm_core.engine.precision import computes_bf16
from mfm_image.models import build_model

CONFIG = Path(__file__).parent.parent / "configs" / "mae" / "in1k_VIT_B_16_PT_800e.yaml"


def benchmark_mae(args: argparse.Namespace) -> Iterator[Row]:
    """A row for each of the two ways to compute all tokens, beside MAE."""
    device = torch.device(args.device)
    cpu = device.type == "cpu"
    size = args.batch or (8 if cpu else 128)
    precision = "bf16" if computes_bf16(device) else "fp32"
    compiled = args.compile if args.compile is not None else not cpu
    threads = max(args.threads) if cpu else 0
    with threads_of(threads) if cpu else nullcontext():
        built = {name: _step(cfg, size, device, precision, compiled) for name, cfg in _configs(args, size).items()}
        times = median_times({name: run for name, (run, _) in built.items()}, args.repeats, device)
    told = {name: _told(size / times[name], peak) for name, (_, peak) in built.items()}
    how = f"{precision}{', compiled' if compiled else ''}"
    for other in list(built)[1:]:
        case = f"{' '.join(['ViT-B', *args.set])}, batch {size}, {how}: {other}, beside MAE"
        yield Row("mae", case, threads, times[other], times["MAE"], f"{told[other]}; MAE {told['MAE']}")


def _configs(args: argparse.Namespace, size: int) -> dict[str, CfgNode]:
    """MAE first, then the two that compute all tokens."""
    common = ["TRAIN.BATCH_SIZE", str(size), "TRAIN.ACCUM_STEPS", "1", *args.set]
    mae = load_config(str(CONFIG), common)
    with torch.device("meta"):
        encoder = build_model(mae).backbone
    maskfeat = [
        "MASK.METHOD",
        "maskfeat",
        "MASK.HEAD_TYPE",
        "separate",
        "MASK.PRETRAIN_DEPTH",
        f"[{encoder.depth - 1}]",
    ]
    single = ["AUG.MASK_RATIO", str(0.5 / torch.Size(encoder.grid).numel())]
    return {
        "MAE": mae,
        "MaskFeat's wiring": load_config(str(CONFIG), [*common, *maskfeat]),
        "MAE with one token hidden": load_config(str(CONFIG), [*common, *single]),
    }


def _step(cfg: CfgNode, size: int, device: torch.device, precision: str, compiled: bool):
    """One training step of the configuration's model, and the GB that it holds at most (on a GPU)."""
    torch.manual_seed(0)
    model = build_model(cfg).to(device).train()
    batch = make_batch(cfg, model.backbone.grid, size, device)
    return measured(lambda: our_step(cfg, model, batch, precision, compiled), device)


def _told(speed: float, peak: float | None) -> str:
    memory = f", peak memory {peak:.1f} GB" if peak is not None else ""
    return f"{speed:.{1 if speed < 100 else 0}f} images/s{memory}"
