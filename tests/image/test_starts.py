"""MaskFeat and its fine-tuning on images start as PySlowFast's do."""

from __future__ import annotations

import torch
from paths import CONFIGS
from pyslowfast_starts import assert_normal, check_classifier, check_start
from recipe_files import shrunk, vit_sizes

from mfm_image.models import build_model

SMALL = vit_sizes(64, 16, 96, 2, 3, 4.0)


def small(name: str, **more):
    torch.manual_seed(0)
    return build_model(shrunk(CONFIGS / "masked_ssl" / f"{name}.yaml", **SMALL, **more))


def test_maskfeat():
    model = small("in1k_VIT_B_MaskFeat_PT", MASK__PRETRAIN_DEPTH=[1])
    check_start(model.backbone, bias=0.02)
    check_start(model.head, bias=0.0)
    assert_normal(model.corruption.mask_token, "mask token")


def test_finetuning():
    model = small("in1k_VIT_B_MaskFeat_FT")
    check_start(model.backbone, bias=0.02)
    check_classifier(model.head, scale=0.001)
