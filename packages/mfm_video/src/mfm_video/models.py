"""Registers what video adds to the core's models: its backbones."""

from __future__ import annotations

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from mfm_core.config import task_of
from mfm_core.interfaces import Grid
from mfm_core.methods.parts import BACKBONES, masks_from_cfg
from mfm_core.models import build_model
from mfm_video.backbones.mvit import mvit_from_cfg
from mfm_video.backbones.space_time_vit import space_time_vit_from_cfg

__all__ = ["build_model", "example_input"]

BACKBONES.register("mvit")(mvit_from_cfg)
BACKBONES.register("space_time_vit")(space_time_vit_from_cfg)


def example_input(cfg: CfgNode, grid: Grid) -> tuple[Tensor, ...]:
    """Meta tensors for one input of the model's forward pass."""
    side = cfg.DATA.TRAIN_CROP_SIZE
    clip = torch.empty(1, 3, cfg.DATA.NUM_FRAMES, side, side, device="meta")
    if task_of(cfg) == "pretrain":
        mask = masks_from_cfg(cfg, grid)(torch.Generator(), torch.zeros(()))
        return clip, mask[None].to("meta")
    return (clip,)
