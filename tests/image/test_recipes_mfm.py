"""The recipes of configs/mfm beside the published ones: values, full-size parameters, and steps of small copies."""

from __future__ import annotations

import pytest
import torch
from golden_cases import cases, load_case
from paths import CONFIGS

from mfm_core.config import load_config, plan_run
from mfm_core.engine.dry_run import describe_run
from mfm_core.methods.parts import masks_from_cfg
from mfm_core.optim.build import build_optimizer, follow
from mfm_image.backbones import resnet
from mfm_image.data.build import train_transform
from mfm_image.models import build_model, example_input

FOLDER = CONFIGS / "mfm"
RECIPES = sorted(path for path in FOLDER.glob("*.yaml") if not path.stem.endswith(("base", "_FT")))
SMALL = ["DATA.TRAIN_CROP_SIZE", "64", "DATA.TEST_CROP_SIZE", "64"]
SMALL_VIT = ["MVIT.SIZE", "", "MVIT.EMBED_DIM", "24", "MVIT.DEPTH", "2", "MVIT.NUM_HEADS", "2"]


def official():
    """(name, recipe) of each published pre-training recipe."""
    for folder in cases("mfm_official/recipes"):
        for name, recipe in load_case(folder)[0]["config"]["recipes"].items():
            if "pretrain" in name:
                yield pytest.param(name, recipe, id=name)


@pytest.mark.parametrize("name, recipe", official())
def test_values(name, recipe):
    cfg, theirs, scaled = load_config(str(FOLDER / f"{name}.yaml")), recipe["merged_config"], recipe["scaled"]
    data, train, vit = theirs["DATA"], theirs["TRAIN"], theirs["MODEL"]["VIT"]
    assert scaled["effective_batch"] == cfg.TRAIN.BATCH_SIZE * cfg.NUM_SHARDS
    schedule = plan_run(cfg, files=1_281_167, world_size=8).schedule
    rates = (schedule.base, schedule.warmup_start, schedule.end)
    assert rates == pytest.approx((scaled["lr"], scaled["warmup_lr"], scaled["min_lr"]), rel=1e-6)
    assert (train["EPOCHS"], train["WARMUP_EPOCHS"]) == (cfg.SOLVER.MAX_EPOCH, cfg.SOLVER.WARMUP_EPOCHS)
    assert train["OPTIMIZER"]["NAME"] == cfg.SOLVER.OPTIMIZING_METHOD
    assert list(cfg.SOLVER.BETAS) == train["OPTIMIZER"]["BETAS"]
    assert (train["WEIGHT_DECAY"], train["LAYER_DECAY"]) == (cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.LAYER_DECAY)
    assert train["CLIP_GRAD"] == cfg.SOLVER.CLIP_GRAD_L2NORM
    assert (theirs["AMP_OPT_LEVEL"] != "O0") == cfg.TRAIN.MIXED_PRECISION
    assert data["FILTER_TYPE"].replace("mfm", "frequency") == cfg.MFM.CORRUPTION
    if cfg.MFM.CORRUPTION == "frequency":
        ours = (cfg.MFM.LOW_PASS_RATIO, cfg.MFM.RADIUS, cfg.MFM.RADIUS_OUTER)
        assert ours == (data["SAMPLE_RATIO"], data["MASK_RADIUS1"], data["MASK_RADIUS2"])
    degradations = [f"{section}_{key}" for section in ("BLUR", "NOISE") for key in data[section]]
    for key in degradations:
        section, field = key.split("_", 1)
        assert cfg.MFM[key.replace("GRAY_NOISE", "GREY")] == data[section][field], key
    assert data["SR_FACTOR"] == cfg.MFM.SR_FACTOR
    for key, value in theirs["MODEL"]["FREQ_LOSS"].items():
        assert cfg.MFM[key] == value, key
    model = meta_model(cfg)
    assert model.loss.reduction == theirs["MODEL"]["RECOVER_TARGET_TYPE"]
    if theirs["MODEL"]["TYPE"] == "vit":
        attention = model.backbone.blocks[0].attn
        ours = (model.backbone.embed_dim, model.backbone.depth, attention.num_heads, model.backbone.patch_stride[0])
        assert ours == (vit["EMBED_DIM"], vit["DEPTH"], vit["NUM_HEADS"], vit["PATCH_SIZE"])
        assert theirs["MODEL"]["DROP_PATH_RATE"] == cfg.MVIT.DROPPATH_RATE
        assert (cfg.MVIT.LAYER_SCALE_INIT_VALUE or None) == vit["INIT_VALUES"]
    else:
        assert list(resnet.LAYERS[cfg.RESNET.DEPTH]) == theirs["MODEL"]["RESNET"]["LAYERS"]
    check_crop(cfg, data["IMG_SIZE"], (data["MIN_CROP_SCALE"], 1.0), (3 / 4, 4 / 3), data["INTERPOLATION"])


def check_crop(cfg, size, scale, ratio, interpolation):
    assert size == cfg.DATA.TRAIN_CROP_SIZE
    assert tuple(cfg.DATA.TRAIN_JITTER_SCALES_RELATIVE) == pytest.approx(scale)
    assert tuple(cfg.DATA.TRAIN_JITTER_ASPECT_RELATIVE) == pytest.approx(ratio, rel=1e-4)
    assert interpolation == cfg.AUG.INTERPOLATION
    assert cfg.DATA.RANDOM_FLIP and not cfg.AUG.ENABLE
    train_transform(cfg)


def meta_model(cfg):
    with torch.device("meta"):
        return build_model(cfg)


def coincheung():
    for folder in cases("mfm_coincheung/recipes"):
        yield pytest.param(load_case(folder)[0]["config"]["pretrain"], id=folder.name)


@pytest.mark.parametrize("theirs", coincheung())
def test_values_of_the_other_implementation(theirs):
    arguments = theirs["arguments"]
    cfg = load_config(str(FOLDER / f"coincheung__{arguments['model']}__img224__300ep.yaml"))
    assert theirs["global_batch"] == cfg.TRAIN.BATCH_SIZE * cfg.NUM_SHARDS
    assert (arguments["lr"], arguments["lr_min"]) == (cfg.SOLVER.BASE_LR, cfg.SOLVER.COSINE_END_LR)
    assert pytest.approx(theirs["lr_per_epoch_first"][0]) == cfg.SOLVER.WARMUP_START_LR
    assert cfg.SOLVER.COSINE_AFTER_WARMUP
    assert (arguments["epochs"], arguments["lr_warmup_epochs"]) == (cfg.SOLVER.MAX_EPOCH, cfg.SOLVER.WARMUP_EPOCHS)
    assert arguments["clip_grad_norm"] == cfg.SOLVER.CLIP_GRAD_L2NORM
    assert arguments["amp"] == cfg.TRAIN.MIXED_PRECISION
    assert (theirs["mask_rad"], theirs["loss_gamma"]) == (cfg.MFM.RADIUS, cfg.MFM.LOSS_GAMMA)
    model = meta_model(cfg)
    (group,), (expected,) = build_optimizer(model, cfg).param_groups, theirs["param_groups"]
    assert len(group["params"]) == expected["n_tensors"]
    assert sum(p.numel() for p in group["params"]) == expected["n_params"]
    assert (group["weight_decay"], list(group["betas"])) == (expected["weight_decay"], expected["betas"])
    steps = {step["op"]: step["args"] for step in theirs["dali_pipeline"]}
    crop, normal = steps["decoders.image_random_crop"], steps["crop_mirror_normalize"]
    assert "TRIANGULAR" in steps["resize"]["interp_type"]
    check_crop(cfg, normal["crop"][0], crop["random_area"], crop["random_aspect_ratio"], "bilinear")
    assert [255 * value for value in cfg.DATA.MEAN] == pytest.approx(normal["mean"])
    assert [255 * value for value in cfg.DATA.STD] == pytest.approx(normal["std"])


def full_sizes():
    """(recipe, parameters of the whole, of the encoder, of the decoder)."""
    for folder in cases("mfm_official/model_stats"):
        for name, entry in load_case(folder)[0]["config"]["models"].items():
            if name.endswith("_pretrain"):
                recipe = f"mfm_pretrain__{name.removesuffix('_pretrain')}__img224__300ep"
                yield pytest.param(recipe, entry["total"], entry["decoder"], id=recipe)
    for folder in cases("mfm_coincheung/resnet"):
        for name, entry in load_case(folder)[0]["config"]["full_models"].items():
            recipe = f"coincheung__{name}__img224__300ep"
            yield pytest.param(recipe, entry["pretrain_total"], entry["decoder"], id=recipe)


@pytest.mark.parametrize("recipe, total, decoder", full_sizes())
def test_parameters(recipe, total, decoder):
    model = meta_model(load_config(str(FOLDER / f"{recipe}.yaml")))
    assert sum(p.numel() for p in model.parameters()) == total
    assert sum(p.numel() for p in model.head.projections.parameters()) == decoder


def optimizer_groups():
    for folder in cases("mfm_official/recipes"):
        for name, entry in load_case(folder)[0]["config"]["optimizer_groups"].items():
            if "pretrain" in name:
                yield pytest.param(f"{name}__img224__300ep", entry["groups"], id=name)


@pytest.mark.parametrize("recipe, groups", optimizer_groups())
def test_parameter_groups(recipe, groups):
    """Kernels decay; biases, norms, class token and positions do not."""
    cfg = load_config(str(FOLDER / f"{recipe}.yaml"))
    model = meta_model(cfg)
    ours = {group["weight_decay"]: group for group in build_optimizer(model, cfg).param_groups}
    assert ours.keys() == {group["weight_decay"] for group in groups}
    for theirs in groups:
        group = ours[theirs["weight_decay"]]
        assert sum(p.numel() for p in group["params"]) == theirs["n_params"]
        assert (list(group["betas"]), group["eps"]) == (theirs["betas"], theirs["eps"])


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_full_size_describes_itself(path):
    cfg = load_config(str(path))
    model = meta_model(cfg)
    plan = plan_run(cfg, files=1_281_167, world_size=8)
    description = describe_run(model, example_input(cfg, model.backbone.grid), cfg, plan, "bf16", "cuda")
    assert description.parameters == sum(p.numel() for p in model.parameters())
    assert {what: shape for what, shape, _ in description.stages}["target"][1:] == (
        model.backbone.grid[0] * model.backbone.grid[1],
        model.target.dim,
    )


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_small_copy_learns(path, monkeypatch):
    """Steps on the same four images bring the loss down."""
    monkeypatch.setattr(resnet, "LAYERS", dict.fromkeys(resnet.LAYERS, (1, 1, 1, 1)))
    monkeypatch.setattr(resnet, "STEM", 4)
    monkeypatch.setattr(resnet, "PLANES", (2, 3, 4, 6))
    cfg = load_config(str(path), [*SMALL, *(SMALL_VIT if "vit" in path.stem else [])])
    torch.manual_seed(0)
    model = build_model(cfg)
    assert model.head.projections[0].bias.any(), "their decoder starts as torch starts it"
    if "vit" in path.stem:
        assert float(model.backbone.blocks[0].mlp.fc1.weight.detach().abs().max()) <= 0.02
    optimizer = build_optimizer(model, cfg)
    follow(optimizer, lambda scale: scale * cfg.SOLVER.BASE_LR)
    images, generator = torch.randn(4, 3, 64, 64).cumsum(-1).cumsum(-2) / 64, torch.Generator().manual_seed(0)
    masks = masks_from_cfg(cfg, model.backbone.grid)
    mask = torch.stack([masks(generator, image) for image in images])
    losses = []
    for _ in range(4):
        output = model(images, mask)
        losses.append(output.loss.item())
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] and all(map(torch.isfinite, torch.tensor(losses)))
