"""MViTv2 and space-time ViTs start as PySlowFast's do. (The decoder of MAE is in test_video_mae.py.)"""

from __future__ import annotations

import pytest
import torch
from paths import CONFIGS
from pyslowfast_starts import assert_normal, check_classifier, check_start
from recipe_files import shrunk

from mfm_video.models import build_model

CLIPS = {"DATA__TRAIN_CROP_SIZE": 64, "DATA__TEST_CROP_SIZE": 64, "DATA__NUM_FRAMES": 4}
NARROW = {"MVIT__EMBED_DIM": 64, "MVIT__NUM_HEADS": 4}


def small(name: str, **more):
    torch.manual_seed(0)
    return build_model(shrunk(CONFIGS / "masked_ssl" / f"{name}.yaml", **CLIPS, **more))


def test_maskfeat():
    """At its full width: its first tables of relative positions have few numbers as it is."""
    model = small("k400_MVITv2_S_16x4_MaskFeat_PT")
    tables = [name for name, _ in model.backbone.named_parameters() if "rel_pos" in name]
    assert len(tables) == 3 * model.backbone.depth
    check_start(model.backbone, bias=0.02)
    check_start(model.head, bias=0.0)
    assert_normal(model.corruption.mask_token, "mask token")


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("k400_MVITv2_S_16x4_FT", {}), ("k400_VIT_B_16x4_FT", {**NARROW, "MVIT__DEPTH": 2})],
)
def test_finetuning(name, sizes):
    model = small(name, **sizes)
    check_start(model.backbone, bias=0.02)
    check_classifier(model.head, scale=0.001)


def test_encoder_of_mae():
    model = small("k400_VIT_B_16x4_MAE_PT", **NARROW, MVIT__DEPTH=2, MASK__PRETRAIN_DEPTH=[1])
    tables = {name for name, _ in model.backbone.named_parameters() if "pos_embed" in name}
    assert tables == {f"pos_embed.{part}" for part in ("spatial", "temporal", "cls")}
    check_start(model.backbone, bias=0.02)
