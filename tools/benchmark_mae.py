"""MAE's training step at its ratio of hidden tokens beside steps of the same ViT that computes all tokens.

All sides are `Trainer.train_step` of the same encoder on the same pictures, with normalised pixels as the target:
MaskFeat's wiring, where a mask token stands for what is hidden and a linear layer predicts; MAE with one or two tokens
hidden, encoder and decoder alike; and MAE as its recipe has it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from benchmark_step import Way, build_step
from benchmark_timing import Row, median_times
from fvcore.common.config import CfgNode

from mfm_core.config import load_config
from mfm_image.models import build_model

CONFIGS = Path(__file__).parent.parent / "configs" / "mae"
FILES = ("in1k_VIT_B_16_PT_800e", "priv_VIT_B_GAP_PT_400e", "in1k_VIT_L_16_PT_800e")
"""ViT-B with the decoders of MAE (512 x 8) and MAE-priv (384 x 4), and ViT-L with MAE's: a decoder sees all tokens, and
what MAE saves depends on how much smaller it is than the encoder."""
LARGE_NEEDS = 22 * 1024**3
"""Bytes of main memory that the three ViT-L, their moments and activations take on a CPU."""


def benchmark_mae(args: argparse.Namespace) -> Iterator[Row]:
    """For each model, a row for each of the two ways to compute all tokens, beside MAE; ViT-L where there is memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    small = torch.device(args.device).type == "cpu" and memory < LARGE_NEEDS
    for file in FILES[:-1] if small else FILES:
        yield from _rows(args, file)


def _rows(args: argparse.Namespace, file: str) -> Iterator[Row]:
    way = Way.from_args(args)
    size = way.size
    configs = _configs(args, file, size)
    with way.threads_set():
        built = {name: build_step(cfg, way) for name, cfg in configs.items()}
        times = median_times({name: run for name, (run, _, _) in built.items()}, args.repeats, way.device)
    told = {name: _told(size / times[name], macs, peak) for name, (_, peak, macs) in built.items()}
    for other in list(built)[1:]:
        case = f"{' '.join([file, *args.set])}, {way}: {other}, beside MAE"
        yield Row("mae", case, way.threads, times[other], times["MAE"], f"{told[other]}; MAE {told['MAE']}")


def _configs(args: argparse.Namespace, file: str, size: int) -> dict[str, CfgNode]:
    """MAE first, then the two that compute all tokens."""
    path = str(CONFIGS / f"{file}.yaml")
    common = ["TRAIN.BATCH_SIZE", str(size), "TRAIN.ACCUM_STEPS", "1", *args.set]
    mae = load_config(path, common)
    with torch.device("meta"):
        encoder = build_model(mae).backbone
    last = f"[{encoder.depth - 1}]"
    maskfeat = ["MASK.METHOD", "maskfeat", "MASK.HEAD_TYPE", "separate", "MASK.PRETRAIN_DEPTH", last]
    fewest = ["AUG.MASK_RATIO", str(1.5 / torch.Size(encoder.grid).numel())]
    return {
        "MAE": mae,
        "MaskFeat's wiring": load_config(path, [*common, *maskfeat]),
        "MAE with next to nothing hidden": load_config(path, [*common, *fewest]),
    }


def _told(speed: float, macs: float, peak: float | None) -> str:
    memory = f", peak memory {peak:.1f} GB" if peak is not None else ""
    return f"{speed:.{1 if speed < 100 else 0}f} images/s, {macs / 1e9:.3g} GFLOPs forward{memory}"
