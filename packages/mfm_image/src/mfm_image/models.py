"""Registers what images add to the core's models: their backbones and methods."""

from __future__ import annotations

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from mfm_core.config import task_of
from mfm_core.interfaces import Grid
from mfm_core.methods.parts import BACKBONES, masks_from_cfg
from mfm_core.models import build_model
from mfm_image.backbones.resnet import resnet_from_cfg
from mfm_image.backbones.vit import vit_from_cfg
from mfm_image.methods import mff, mfm  # noqa: F401  importing a method registers it

__all__ = ["build_model", "example_input"]

BACKBONES.register("vit")(vit_from_cfg)
BACKBONES.register("resnet")(resnet_from_cfg)


def example_input(cfg: CfgNode, grid: Grid) -> tuple[Tensor, ...]:
    """Meta tensors for one input of the model's forward pass."""
    image = torch.empty(1, 3, cfg.DATA.TRAIN_CROP_SIZE, cfg.DATA.TRAIN_CROP_SIZE, device="meta")
    if task_of(cfg) == "pretrain":
        mask = masks_from_cfg(cfg, grid)(torch.Generator(), torch.zeros(image.shape[1:]))
        return image, mask[None].to("meta")
    return (image,)
