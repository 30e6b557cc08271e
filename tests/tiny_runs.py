"""Runs of a few steps for tests: configurations small enough for seconds, and the whole run in this process."""

from __future__ import annotations

from pathlib import Path

import torch
from paths import CONFIGS

from mfm_core.config import load_config

TINY = [
    *("DEVICE", "cpu"),
    *("NUM_GPUS", "1"),
    *("TRAIN.PRECISION", "fp32"),
    *("TRAIN.BATCH_SIZE", "8"),
    *("SOLVER.MAX_EPOCH", "2"),
    *("SOLVER.WARMUP_EPOCHS", "0.5"),
    *("DATA.TRAIN_CROP_SIZE", "32"),
    *("DATA.TEST_CROP_SIZE", "32"),
    *("MVIT.EMBED_DIM", "24"),
    *("MVIT.DEPTH", "2"),
    *("MVIT.NUM_HEADS", "2"),
    *("DATA_LOADER.NUM_WORKERS", "0"),
    *("LOG_PERIOD", "1"),
    *("LOG_MODEL_INFO", "False"),
    *("TEST.BATCH_SIZE", "4"),
    *("KNN.K", "[3]"),
]


def tiny_config(kind: str, data: Path, output: Path, *overrides: object):
    """The demo configuration `kind` (pretrain | finetune), shrunk."""
    depth = ["MASK.PRETRAIN_DEPTH", "[1]"] if kind == "pretrain" else ["MODEL.NUM_CLASSES", "3"]
    paths = ["DATA.PATH_TO_DATA_DIR", str(data), "OUTPUT_DIR", str(output)]
    return load_config(str(CONFIGS / "demo" / f"{kind}.yaml"), [*TINY, *depth, *paths, *map(str, overrides)])


def last_state(output: Path) -> dict:
    """The content of the run's newest checkpoint."""
    paths = (output / "checkpoints").glob("checkpoint_*.pyth")
    states = [torch.load(path, weights_only=True) for path in paths]
    return max(states, key=lambda state: state["step"])


def assert_same(one: dict, other: dict, atol: float = 0.0) -> None:
    """Equal model, moving average and optimizer state; bit for bit where atol is 0."""
    for part in ("model_state", "ema_state"):
        for name, tensor in (one[part] or {}).items():
            torch.testing.assert_close(tensor, other[part][name], rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
    for key, slots in one["optimizer_state"]["state"].items():
        for slot, tensor in slots.items():
            torch.testing.assert_close(tensor, other["optimizer_state"]["state"][key][slot], rtol=0, atol=atol)
