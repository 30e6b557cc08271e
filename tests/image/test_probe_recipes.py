"""The linear-probe and k-NN recipes: what the projects published, at full size on the meta device."""

from __future__ import annotations

import math

import pytest
import torch
from golden_cases import cases, load_case
from paths import CONFIGS

from mfm_core.config import load_config, plan_run, schedule_of, validate
from mfm_image.data.build import eval_transform
from mfm_image.models import build_model

IMAGES = 1_281_167


def recipe(name: str):
    return load_config(str(CONFIGS / "probe" / f"{name}.yaml"))


def counts(cfg) -> tuple[int, int, int]:
    """Parameters, trained parameters, and numbers in buffers of the model."""
    with torch.device("meta"):
        model = build_model(cfg)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained), sum(b.numel() for b in model.buffers())


def priv_recipes():
    for folder in cases("mae_priv/recipes"):
        case, _ = load_case(folder)
        for name, entry in case["recipes"].items():
            if name.startswith("lincls/"):
                yield pytest.param(entry, id=name.removeprefix("lincls/").removesuffix(".yaml"))


@pytest.mark.parametrize("entry", priv_recipes())
def test_mae_priv(entry, request):
    args, effective = entry["args"], entry["effective"]
    cfg = recipe("mae_priv_" + request.node.callspec.id.replace("ViT-", "VIT_"))
    assert validate(cfg) == []
    plan = plan_run(cfg, IMAGES, world_size=effective["gpus_in_launch_scripts"])
    assert plan.batch_size == effective["total_batch"] and plan.epochs == args["epochs"]
    assert plan.steps_per_epoch == effective["iterations_per_epoch_imagenet1k"]
    for step, lr in zip(effective["schedule_iterations"], effective["schedule_lr"]):
        assert plan.lr(step) == pytest.approx(lr, rel=1e-6, abs=1e-12), step
    # their LARS is plain SGD where there is no weight decay; their SGD is Nesterov's
    assert ("sgd", args["opt"] == "sgd") == (cfg.SOLVER.OPTIMIZING_METHOD, cfg.SOLVER.NESTEROV)
    assert (args["momentum"], args["weight_decay"]) == (cfg.SOLVER.MOMENTUM, cfg.SOLVER.WEIGHT_DECAY)
    assert (args["use_cls_token"], not args["use_cls_token"]) == (cfg.MVIT.CLS_EMBED_ON, cfg.MVIT.USE_MEAN_POOLING)
    assert {"small": "S", "base": "B"}[args["model"].split("_")[1]] == cfg.MVIT.SIZE
    assert not cfg.AUG.ENABLE and not cfg.MIXUP.ENABLE and args["train_interpolation"] == cfg.AUG.INTERPOLATION
    assert (cfg.PROBE.LAYER_NORM, cfg.PROBE.BATCH_NORM, cfg.PROBE.BATCH_NORM_EPS) == (False, True, 1e-5)
    assert cfg.TRAIN.MIXED_PRECISION


@pytest.mark.parametrize("folder", cases("mmpretrain/recipes"), ids=lambda p: p.name)
def test_mff(folder):
    theirs = load_case(folder)[0]["recipes"]["mff_linear_90e"]
    cfg = recipe("mff_VIT_B")
    assert validate(cfg) == []
    plan = plan_run(cfg, IMAGES, theirs["gpus_from_file_name"])
    warmup, cosine = theirs["schedule"]
    assert (plan.batch_size, plan.epochs) == (theirs["total_batch"], theirs["max_epochs"])
    schedule, lr = schedule_of(cfg, 1), theirs["optimizer"]["lr"]
    assert (schedule.base, schedule.end, schedule.warmup_epochs) == (lr, cosine["eta_min"], warmup["end"])
    assert theirs["amp"] == cfg.TRAIN.MIXED_PRECISION
    assert math.isclose(schedule.warmup_start, warmup["start_factor"] * lr)
    assert theirs["optimizer"]["type"] == "LARS" and cfg.SOLVER.OPTIMIZING_METHOD == "lars" and cfg.SOLVER.LARS_ADAPT_1D
    for key in ("momentum", "weight_decay"):
        assert cfg.SOLVER[key.upper()] == theirs["optimizer"][key]
    crop, flip = theirs["train_pipeline"][2:4]
    assert (crop["type"], crop["interpolation"]) == ("MAERandomResizedCrop", 3) and cfg.DATA.TRAIN_CROP_CLAMP
    assert flip == {"type": "torchvision/RandomHorizontalFlip", "p": 0.5} and cfg.DATA.RANDOM_FLIP
    edge, centre = theirs["test_pipeline"][1:3]
    assert (edge["scale"], edge["edge"]) == (256, "short") and eval_transform(cfg).short_side == 256
    assert centre["crop_size"] == cfg.DATA.TEST_CROP_SIZE


@pytest.mark.parametrize("folder", cases("mmpretrain/layer_decay"), ids=lambda p: p.name)
def test_learning_rates_of_mff(folder):
    case, _ = load_case(folder)
    entry = case["schedules"].get("mff_linear_90e")
    if entry is None:
        pytest.skip("not this recipe")
    plan = plan_run(recipe("mff_VIT_B"), entry["iters_per_epoch"] * entry["total_batch"], entry["gpus_from_file_name"])
    for step, _, lr in entry["points"]:
        close = pytest.approx(lr, rel=case["tolerance"]["rtol"], abs=case["tolerance"]["atol"])
        assert plan.lr(int(step)) == close, step


@pytest.mark.parametrize("folder", cases("mmpretrain/model_stats"), ids=lambda p: p.name)
def test_mff_size(folder):
    theirs = load_case(folder)[0]["counts"]["mff_linear_vit_base"]
    assert counts(recipe("mff_VIT_B")) == (theirs["total"], theirs["trainable"], theirs["buffers"])


@pytest.mark.parametrize("folder", cases("mae/model_stats"), ids=lambda p: p.name)
@pytest.mark.parametrize(("size", "name"), [("B", "base_patch16"), ("L", "large_patch16"), ("H", "huge_patch14")])
def test_mae_size(folder, size, name):
    models = load_case(folder)[0]["outputs"]
    theirs = models[f"classify/vit_{name}/img_size=224,num_classes=1000,global_pool=False"]
    total, trained, _ = counts(recipe(f"mae_VIT_{size}"))
    assert total == theirs["total"] and trained == theirs["by_top_level_name"]["head"]
    cfg = recipe(f"mae_VIT_{size}")
    assert validate(cfg) == [] and schedule_of(cfg, 1).base == pytest.approx(0.1 * cfg.TRAIN.BATCH_SIZE / 256)
    assert cfg.TRAIN.MIXED_PRECISION


@pytest.mark.parametrize("folder", cases("mae_priv/model_stats"), ids=lambda p: p.name)
@pytest.mark.parametrize(("size", "name"), [("S", "small"), ("B", "base")])
def test_mae_priv_size(folder, size, name):
    """Their tables are no parameters, and their norm gives way to the BatchNorm."""
    theirs = load_case(folder)[0]["outputs"][f"vit_{name}_patch16_224/num_classes=1000,use_cls_token=False"]
    cfg = recipe(f"mae_priv_VIT_{size}_GAP")
    with torch.device("meta"):
        table = build_model(cfg).backbone.pos_embed.numel()
    parts = theirs["by_top_level_name"]
    total, trained, _ = counts(cfg)
    assert total - table == theirs["parameters"] - parts["fc_norm"] and trained == parts["head"]


@pytest.mark.parametrize("folder", cases("mae_priv/knn"), ids=lambda p: p.name)
def test_mae_priv_knn(folder):
    theirs = load_case(folder)[0]["config"]["tool_defaults"]
    cfg = recipe("mae_priv_VIT_S_GAP_knn")
    assert validate(cfg) == []
    assert (list(cfg.KNN.K), cfg.KNN.TEMPERATURE) == (theirs["nb_knn"], theirs["temperature"])
    assert int(cfg.DATA.TEST_CROP_SIZE / cfg.DATA.IN_VAL_CROP_RATIO) == 256
    assert (cfg.KNN.FEATURES, cfg.DATA.TEST_INTERPOLATION) == ("mean_raw", "bilinear")
