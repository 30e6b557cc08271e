"""Sizes, FLOPs, parameter groups and learning rates of PySlowFast's space-time ViTs, from its Kinetics recipes."""

from __future__ import annotations

import json

import pytest
import torch
from clip_models import released_names
from golden_cases import cases
from paths import CONFIGS
from pyslowfast_checks import check_groups

from mfm_core.config import load_config, plan_run
from mfm_core.engine.dry_run import describe_run
from mfm_core.optim.build import build_optimizer
from mfm_video.models import build_model, example_input

KINETICS_FILES = 239_975


def entries(kind: str, section: str | None = None):
    """(name, entry, tolerance) of the space-time ViTs in a kind of case."""
    for folder in cases(f"pyslowfast/{kind}"):
        tolerance = json.loads((folder / "case.json").read_text())["tolerance"]
        data = json.loads((folder / "data.json").read_text())
        for name, entry in (data[section] if section else data).items():
            if name.startswith("k400_VIT_"):
                yield pytest.param(name, entry, tolerance, id=name)


def recipe(name: str):
    """The configuration and its model, without content."""
    cfg = load_config(str(CONFIGS / "masked_ssl" / f"{name}.yaml"))
    with torch.device("meta"):
        return cfg, build_model(cfg)


@pytest.mark.slow
@pytest.mark.parametrize("name, entry, tolerance", entries("model_stats"))
def test_model_size(name, entry, tolerance):
    cfg, model = recipe(name)
    plan = plan_run(cfg, files=KINETICS_FILES, world_size=1)
    description = describe_run(model, example_input(cfg, model.backbone.grid), cfg, plan, "fp32", "cuda")
    assert description.parameters == entry["parameters"]
    assert len(list(model.parameters())) == entry["num_tensors"]
    rest = [p for n, p in released_names(model).items() if not p.startswith(("pred_head", "head", "decoder", "mask_"))]
    own = dict(model.named_parameters())
    sizes = {theirs: own[ours].numel() for ours, theirs in released_names(model).items()}
    assert sum(sizes[theirs] for theirs in rest) == entry["parameters_without_prediction_head"]
    assert list(model.backbone.grid) == entry["token_grid"] == entry["final_feat_size"]
    assert list(model.backbone.patch_stride) == entry["final_feat_stride"]
    if "prediction_dim" in entry:
        assert model.target.dim == entry["prediction_dim"]
    assert description.macs / 1e9 == pytest.approx(entry["gflops"], rel=tolerance["gflops_rtol"])


@pytest.mark.parametrize("name, entry, tolerance", entries("schedule", "param_groups"))
def test_parameter_groups(name, entry, tolerance):
    cfg, model = recipe(name)
    check_groups(model, cfg, entry, tolerance["rtol"], released_names(model))


@pytest.mark.slow
@pytest.mark.parametrize("size", ["B", "L", "H"])
def test_groups_of_fine_tuning(size):
    """Layer 0: class token, all position tables and the patch embedding; block i: layer i + 1; norm and head: the last.

    (The notes of the golden schedule, which has no rows of a space-time ViT.) Positions decay, biases and norms do not.
    """
    cfg, model = recipe(f"k400_VIT_{size}_16x4_FT")
    decay, depth = cfg.SOLVER.LAYER_DECAY, cfg.MVIT.DEPTH
    scales = {}
    for group in build_optimizer(model, cfg).param_groups:
        for name in group["names"]:
            ndim = dict(model.named_parameters())[name].ndim
            assert group["weight_decay"] == (0.05 if ndim > 1 else 0.0), name
            scales[name] = group["lr_scale"]
    tables = {"backbone.pos_embed.spatial", "backbone.pos_embed.temporal", "backbone.pos_embed.cls"}
    assert tables <= scales.keys()
    for name, scale in scales.items():
        block = int(name.split(".")[2]) + 1 if name.startswith("backbone.blocks.") else None
        layer = 0 if name in tables | {"backbone.cls_token"} or ".patch_embed." in name else block or depth + 1
        assert scale == pytest.approx(decay ** (depth + 1 - layer), rel=1e-9), name


def test_no_decay_of_positions_reaches_all_tables():
    cfg = load_config(
        str(CONFIGS / "masked_ssl" / "k400_VIT_B_16x4_MAE_PT.yaml"),
        ["SOLVER.NO_DECAY", "pos_embed", "MASK.DECODER_SEP_POS_EMBED", "True"],
    )
    with torch.device("meta"):
        groups = build_optimizer(build_model(cfg), cfg).param_groups
    spared = {n for group in groups if group["weight_decay"] == 0 for n in group["names"] if "pos_embed" in n}
    parts = ("spatial", "temporal", "cls")
    assert spared == {f"{owner}.pos_embed.{part}" for owner in ("backbone", "head") for part in parts}
