"""Runs of a few steps for tests: configurations small enough for seconds, and the whole run in this process."""

from __future__ import annotations

import json
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


QUIET = ["MONITOR.PERIOD", "0", "MONITOR.PICTURE_PERIOD", "0", "MONITOR.NUM_PICTURES", "0", "KNN.PERIOD", "0"]
TINY_CLIPS = [
    *("DEVICE", "cpu"),
    *("NUM_GPUS", "1"),
    *("TRAIN.PRECISION", "fp32"),
    *("TRAIN.BATCH_SIZE", "4"),
    *("SOLVER.MAX_EPOCH", "2"),
    *("SOLVER.WARMUP_EPOCHS", "0.5"),
    *("DATA.NUM_FRAMES", "4"),
    *("DATA.SAMPLING_RATE", "2"),
    *("DATA.TARGET_FPS", "30"),
    *("DATA.DECODING_BACKEND", "pyav"),
    *("DATA.DECODING_SHORT_SIZE", "36"),
    *("DATA.TRAIN_JITTER_SCALES", "[32, 36]"),
    *("DATA.TRAIN_CROP_SIZE", "32"),
    *("DATA.TEST_CROP_SIZE", "32"),
    *("DATA.TRAIN_CROP_NUM_TEMPORAL", "1"),
    *("DATA_LOADER.NUM_WORKERS", "0"),
    *("LOG_PERIOD", "1"),
    *("LOG_MODEL_INFO", "False"),
    *("TEST.BATCH_SIZE", "4"),
    *("KNN.K", "[3]"),
]
FOUR_BLOCKS = [
    *("MVIT.EMBED_DIM", "16"),
    *("MVIT.NUM_HEADS", "1"),
    *("MVIT.DIM_MUL", "[[1, 2.0]]"),
    *("MVIT.HEAD_MUL", "[[1, 2.0]]"),
    *("MVIT.PATCH_KERNEL", "[3, 7, 7]"),
    *("MVIT.PATCH_STRIDE", "[2, 4, 4]"),
    *("MVIT.PATCH_PADDING", "[1, 3, 3]"),
    *("MVIT.POOL_KV_STRIDE_ADAPTIVE", "[1, 4, 4]"),
]
TWO_PLAIN_BLOCKS = [
    *("MVIT.EMBED_DIM", "24"),
    *("MVIT.DEPTH", "2"),
    *("MVIT.NUM_HEADS", "2"),
    *("MVIT.PATCH_KERNEL", "[2, 8, 8]"),
    *("MVIT.PATCH_STRIDE", "[2, 8, 8]"),
]
CLIP_RUNS = {
    # What is pre-trained, and what is fine-tuned from it: the multiscale model pools once more then, as in its recipe.
    "maskfeat": (
        "demo_video/pretrain",
        [*FOUR_BLOCKS, "MVIT.POOL_Q_STRIDE", "[[0, 1, 1, 1], [1, 1, 2, 2], [2, 1, 1, 1], [3, 1, 1, 1]]"]
        + ["AUG.MASK_WINDOW_SIZE", "[2, 4, 4]", "MASK.PRETRAIN_DEPTH", "[3]"],
    ),
    "mvit": (
        "demo_video/finetune",
        [*FOUR_BLOCKS, "MVIT.POOL_Q_STRIDE", "[[0, 1, 1, 1], [1, 1, 2, 2], [2, 1, 2, 2], [3, 1, 1, 1]]"]
        + ["MODEL.NUM_CLASSES", "3"],
    ),
    "mae": (
        "masked_ssl/k400_VIT_B_16x4_MAE_PT",
        [*TWO_PLAIN_BLOCKS, "MASK.PRETRAIN_DEPTH", "[1]", "MASK.DECODER_DEPTH", "1", "MASK.DECODER_EMBED_DIM", "32"],
    ),
    "vit": ("masked_ssl/k400_VIT_B_16x4_FT", [*TWO_PLAIN_BLOCKS, "MODEL.NUM_CLASSES", "3"]),
}
PRETRAINED_BY = {"mvit": "maskfeat", "vit": "mae"}


def tiny_clip_config(kind: str, data: Path, output: Path, *overrides: object):
    """One of `CLIP_RUNS`, shrunk: 32 x 32 pixels, 4 frames, 3 steps an epoch with 12 training clips."""
    file, own = CLIP_RUNS[kind]
    paths = ["DATA.PATH_TO_DATA_DIR", str(data), "OUTPUT_DIR", str(output)]
    return load_config(str(CONFIGS / f"{file}.yaml"), [*TINY_CLIPS, *own, *paths, *map(str, overrides)])


def last_state(output: Path) -> dict:
    """The content of the run's newest checkpoint."""
    paths = (output / "checkpoints").glob("checkpoint_*.pyth")
    states = [torch.load(path, weights_only=True) for path in paths]
    return max(states, key=lambda state: state["step"])


def log_of(output: Path, kind: str) -> list[dict]:
    """The lines of one kind in the run's log."""
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def assert_same(one: dict, other: dict, atol: float = 0.0) -> None:
    """Equal model, moving average and optimizer state; bit for bit where atol is 0."""
    for part in ("model_state", "ema_state"):
        for name, tensor in (one[part] or {}).items():
            torch.testing.assert_close(tensor, other[part][name], rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
    for key, slots in one["optimizer_state"]["state"].items():
        for slot, tensor in slots.items():
            torch.testing.assert_close(tensor, other["optimizer_state"]["state"][key][slot], rtol=0, atol=atol)
