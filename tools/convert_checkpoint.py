"""Writes a checkpoint of ours in timm's layout: python tools/convert_checkpoint.py CHECKPOINT OUT [--ema]

OUT ends in .safetensors or .pth. What is printed loads it; what timm's model has no place for is named.
With an OUT that ends in .pyth, a checkpoint in parts (TRAIN.CHECKPOINT_FORMAT sharded) becomes one file of ours.
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
from mfm_core.nn.presets import size_from_cfg


def content_of(path: str) -> dict[str, Any]:
    """What is in a checkpoint of a run of ours. Raises UserError for any other."""
    content = load_file_state(path, key="CHECKPOINT")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"CHECKPOINT: {path} is no checkpoint that a run of ours wrote.")
    return content


def consolidate(path: str, out: str) -> list[str]:
    """Writes a checkpoint as one file that runs continue from; what the user should know. Raises UserError."""
    save_atomic(content_of(path), Path(out), remedy="choose another OUT")
    return [f"{out}: give it to TRAIN.CHECKPOINT_FILE_PATH or TEST.CHECKPOINT_FILE_PATH"]


def convert(path: str, out: str, average: bool = False) -> tuple[TimmModel, CfgNode]:
    """Writes `out`; returns what is in it, and the configuration of the run. Raises UserError."""
    if not out.endswith((".safetensors", ".pth")):
        raise UserError(f"OUT {out} must end in .safetensors or .pth (timm), or .pyth (one file of ours).")
    content = content_of(path)
    state = content["ema_state" if average else "model_state"]
    if not state:
        raise UserError(f"--ema: {path} holds no moving average; the run had TRAIN.EMA_DECAY 0.")
    cfg = CfgNode(yaml.safe_load(content["cfg"]))
    model = to_timm(state, facts_of(cfg), path)
    save_atomic(model.state, Path(out), remedy="choose another OUT")
    return model, cfg


def facts_of(cfg: CfgNode) -> ViTFacts:
    """What the configuration says of a ViT beyond its tensors."""
    return ViTFacts(
        cfg.DATA.TRAIN_CROP_SIZE, size_from_cfg(cfg)[2], tuple(cfg.MVIT.PATCH_STRIDE), cfg.MVIT.USE_MEAN_POOLING
    )


def lines(model: TimmModel, cfg: Any, out: str) -> list[str]:
    """What the user should know."""
    said = [model.call(out), f"images: normalised by mean {list(cfg.DATA.MEAN)} and std {list(cfg.DATA.STD)}"]
    return said + ([f"left out: {', '.join(model.left_out)}"] if model.left_out else [])


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after one line that says what is wrong."""
    parser = argparse.ArgumentParser(description="Write a checkpoint of ours in timm's layout.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoints/checkpoint_* of a run, file or folder")
    parser.add_argument("out", metavar="OUT", help="the file to write: .safetensors or .pth; .pyth for one of ours")
    parser.add_argument("--ema", action="store_true", help="the moving average of the weights instead of the weights")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.out.endswith(".pyth"):
            if chosen.ema:
                raise UserError(f"--ema is for timm's layout; {chosen.out} holds the average beside the weights.")
            said = consolidate(chosen.checkpoint, chosen.out)
        else:
            said = lines(*convert(chosen.checkpoint, chosen.out, chosen.ema), chosen.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
