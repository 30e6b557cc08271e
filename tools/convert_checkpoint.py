"""Writes a checkpoint of ours in timm's layout: python tools/convert_checkpoint.py CHECKPOINT OUT [--ema]

OUT ends in .safetensors or .pth. What is printed loads it; what timm's model has no place for is named.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from mfm_core.checkpoint.io import load_file_state, save_atomic
from mfm_core.checkpoint.state import FORMAT
from mfm_core.checkpoint.timm_export import TimmModel, ViTFacts, to_timm
from mfm_core.errors import UserError
from mfm_core.nn.presets import SIZES


def convert(path: str, out: str, average: bool = False) -> tuple[TimmModel, CfgNode]:
    """Writes `out`; returns what is in it, and the configuration of the run. Raises UserError."""
    if not out.endswith((".safetensors", ".pth")):
        raise UserError(f"OUT {out} must end in .safetensors or .pth.")
    content = load_file_state(path, key="CHECKPOINT")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"CHECKPOINT: {path} is no checkpoint that a run of ours wrote.")
    state = content["ema_state" if average else "model_state"]
    if not state:
        raise UserError(f"--ema: {path} holds no moving average; the run had TRAIN.EMA_DECAY 0.")
    cfg = CfgNode(yaml.safe_load(content["cfg"]))
    model = to_timm(state, facts_of(cfg), path)
    save_atomic(model.state, Path(out), remedy="choose another OUT")
    return model, cfg


def facts_of(cfg: CfgNode) -> ViTFacts:
    """What the configuration says of a ViT beyond its tensors."""
    heads = SIZES[cfg.MVIT.SIZE][2] if cfg.MVIT.SIZE else cfg.MVIT.NUM_HEADS
    return ViTFacts(cfg.DATA.TRAIN_CROP_SIZE, heads, tuple(cfg.MVIT.PATCH_STRIDE), cfg.MVIT.USE_MEAN_POOLING)


def lines(model: TimmModel, cfg: Any, out: str) -> list[str]:
    """What the user should know."""
    said = [model.call(out), f"images: normalised by mean {list(cfg.DATA.MEAN)} and std {list(cfg.DATA.STD)}"]
    return said + ([f"left out: {', '.join(model.left_out)}"] if model.left_out else [])


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after one line that says what is wrong."""
    parser = argparse.ArgumentParser(description="Write a checkpoint of ours in timm's layout.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoints/checkpoint_*.pyth of a run")
    parser.add_argument("out", metavar="OUT", help="the file to write: .safetensors or .pth")
    parser.add_argument("--ema", action="store_true", help="the moving average of the weights instead of the weights")
    chosen = parser.parse_args(arguments)
    try:
        model, cfg = convert(chosen.checkpoint, chosen.out, chosen.ema)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines(model, cfg, chosen.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
