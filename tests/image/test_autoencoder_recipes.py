"""Every file of configs/mae and configs/mff: the published sizes and hyper-parameters, and a step of a small copy."""

from __future__ import annotations

import re

import pytest
import torch
from autoencoders import meta_model, parameters
from golden_cases import cases, load_case
from paths import CONFIGS

from mfm_core.checkpoint.init_from import init_from
from mfm_core.config import flatten, load_config, schedule_of, validate
from mfm_core.config.plan import IMAGENET_TRAIN_IMAGES, plan_run
from mfm_core.methods.parts import masks_from_cfg
from mfm_core.optim.build import build_optimizer, follow
from mfm_image.data.build import train_transform
from mfm_image.models import build_model

FILES = sorted(
    p for folder in ("mae", "mff") for p in (CONFIGS / folder).glob("*.yaml") if not p.stem.endswith(("base", "_FT"))
)
PRIV_SIZES = {"S": "small", "B": "base", "L": "large", "H": "huge", "G": "giant"}
UNLISTED = {"priv_VIT_H_GAP_PT_100e", "priv_VIT_G_GAP_PT_100e", "in1k_VIT_S_MFF_PT_300e", "in1k_VIT_S_MFF_PT_800e"}
"""Of models whose size no golden case has."""


def each_file():
    return pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")


def listed_sizes(cfg, name: str) -> list[int]:
    """The trained parameters that the golden cases give for a file's model."""
    sizes = []
    if name.startswith("priv_"):
        size = PRIV_SIZES[name.split("_")[2]]
        patch, decoder = cfg.MVIT.PATCH_STRIDE[0], cfg.MASK
        key = (
            f"pretrain_mae_{size}_patch{patch}_224/decoder_dim={decoder.DECODER_EMBED_DIM},decoder_depth="
            f"{decoder.DECODER_DEPTH},decoder_num_heads=None,use_cls_token={cfg.MVIT.CLS_EMBED_ON}"
        )
        kind, section = "mae_priv/model_stats", "outputs"
    elif "MFF" in name:
        key, kind, section = f"mff_pretrain_vit_{PRIV_SIZES[cfg.MVIT.SIZE]}", "mmpretrain/model_stats", "counts"
    else:
        key = f"pretrain/mae_vit_{PRIV_SIZES[cfg.MVIT.SIZE]}_patch{cfg.MVIT.PATCH_STRIDE[0]}/img_size=224"
        kind, section = "mae/model_stats", "outputs"
    for folder in cases(kind):
        entry = load_case(folder)[0][section].get(key)
        if entry:
            sizes.append(entry["trainable"])
    return sizes


@each_file()
def test_full_size(path):
    cfg = load_config(str(path))
    assert validate(cfg) == []
    assert plan_run(cfg, IMAGENET_TRAIN_IMAGES, world_size=8).steps_per_epoch == (313 if "MFF" in path.stem else 312)
    sizes = listed_sizes(cfg, path.stem)
    assert bool(sizes) != (path.stem in UNLISTED)
    model = meta_model(cfg)
    for size in sizes:
        assert parameters(model)[1] == size
    train_transform(cfg)


@each_file()
def test_a_step_of_a_small_copy(path):
    patch = load_config(str(path)).MVIT.PATCH_STRIDE[0]
    small = {
        "MVIT.SIZE": "",
        "MVIT.EMBED_DIM": 48,
        "MVIT.DEPTH": 2,
        "MVIT.NUM_HEADS": 3,
        "DATA.TRAIN_CROP_SIZE": 4 * patch,
        "DATA.TEST_CROP_SIZE": 4 * patch,
        "MASK.DECODER_DEPTH": 1,
        "MASK.DECODER_EMBED_DIM": 64,
        "MFF.LAYERS": [0],
    }
    cfg = load_config(str(path), [str(word) for pair in small.items() for word in pair])
    torch.manual_seed(0)
    model = build_model(cfg)
    optimizer = build_optimizer(model, cfg)
    follow(optimizer, lambda scale: scale * cfg.SOLVER.BASE_LR)
    images = torch.randn(2, 3, 4 * patch, 4 * patch)
    masker, generator = masks_from_cfg(cfg, model.backbone.grid), torch.Generator().manual_seed(0)
    mask = torch.stack([masker(generator, image) for image in images])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = model(images, mask).loss
    first.backward()
    optimizer.step()
    assert float(model(images, mask).loss.detach()) < float(first.detach())
    for name, parameter in model.named_parameters():
        assert torch.equal(before[name], parameter) != parameter.requires_grad, name


def priv_file(recipe: str) -> str:
    """cfgs/pretrain/…/ViT-S_100E_Norm_GAP.yaml of MAE-priv as our file."""
    size, epochs, read_out = re.fullmatch(r".*ViT-(\w)_(\d+)E_Norm_(.+)\.yaml", recipe).groups()
    kind = {"GAP": "GAP", "CLS-Token": "CLS", "GAP_wo_norm": "GAP_raw"}[read_out]
    return f"priv_VIT_{size}_{kind}_PT_{epochs}e"


def priv_recipes():
    for folder in cases("mae_priv/recipes"):
        for name, recipe in load_case(folder)[0]["recipes"].items():
            if recipe["tool"] == "pretrain":
                yield pytest.param(name, recipe, id=name)


def assert_keys(path, expected: dict) -> None:
    """The file says what is expected; lists of numbers but for the rounding in the recipe."""
    ours = dict(flatten(load_config(str(path))))
    for key, value in expected.items():
        own = list(ours[key]) if isinstance(ours[key], tuple) else ours[key]
        numbers = isinstance(value, (float, list)) and not isinstance(value, bool)
        assert own == (pytest.approx(value, rel=1e-5) if numbers else value), key


@pytest.mark.parametrize("name, recipe", priv_recipes())
def test_hyperparameters_of_mae_priv(name, recipe):
    args, effective, crop = recipe["args"], recipe["effective"], recipe["train_transform"]["crop"]
    size, patch = re.fullmatch(r"pretrain_mae_(\w+)_patch(\d+)_224", args["model"]).groups()
    path = CONFIGS / "mae" / f"{priv_file(name)}.yaml"
    expected = {
        "SOLVER.BASE_LR": args["lr"],
        "TRAIN.BATCH_SIZE": effective["total_batch"],
        "TRAIN.MIXED_PRECISION": True,
        "SOLVER.MAX_EPOCH": args["epochs"],
        "SOLVER.WARMUP_EPOCHS": args["warmup_epochs"],
        "SOLVER.WEIGHT_DECAY": args["weight_decay"],
        "SOLVER.BETAS": args["opt_betas"],
        "SOLVER.COSINE_END_LR": args["min_lr"],
        "SOLVER.CLIP_GRAD_L2NORM": args["clip_grad"],
        "MASK.DECODER_DEPTH": args["decoder_depth"],
        "MASK.DECODER_EMBED_DIM": args["decoder_dim"],
        "MASK.DECODER_NUM_HEADS": args["decoder_num_heads"] or 0,
        "MASK.NORM_PRED_PIXEL": args["normlize_target"],
        "MVIT.CLS_EMBED_ON": args["use_cls_token"],
        "AUG.MASK_RATIO": args["mask_ratio"],
        "MVIT.DROPPATH_RATE": args["drop_path"],
        "MVIT.PATCH_STRIDE": [int(patch)] * 2,
        "DATA.TRAIN_JITTER_SCALES_RELATIVE": crop["scale"],
        "DATA.TRAIN_JITTER_ASPECT_RELATIVE": crop["ratio"],
        "AUG.INTERPOLATION": crop["interpolation"],
        "DATA.MEAN": recipe["train_transform"]["mean"],
        "DATA.STD": recipe["train_transform"]["std"],
    }
    assert_keys(path, expected)
    assert schedule_of(load_config(str(path)), num_shards=1).base == pytest.approx(effective["lr"], rel=1e-6)
    assert size == PRIV_SIZES[load_config(str(path)).MVIT.SIZE or "G"]


@each_file()
def test_the_learning_rate_goes_with_the_batch(path):
    """1.5e-4 for 256 images (MAE, section A.1), on one machine or on several, with the batch that the user has."""
    for overrides, shards, rate in (([], 1, 0.0024), (["512"], 1, 3e-4), (["512"], 8, 0.0024)):
        cfg = load_config(str(path), ["TRAIN.BATCH_SIZE", *overrides] if overrides else [])
        assert schedule_of(cfg, shards).base == pytest.approx(rate)


@pytest.mark.parametrize("epochs", [300, 800])
@pytest.mark.parametrize("folder", cases("mmpretrain/recipes"), ids=lambda p: p.name)
def test_hyperparameters_of_mff(folder, epochs):
    path = CONFIGS / "mff" / f"in1k_VIT_B_MFF_PT_{epochs}e.yaml"
    recipe = load_case(folder)[0]["recipes"][f"mff_pt_{epochs}e"]
    optimizer, (warmup, cosine) = recipe["optimizer"], recipe["schedule"]
    stage, decoder = recipe["data_preprocessor"], recipe["model"]["neck"]
    steps = {step["type"]: step for step in recipe["train_pipeline"]}
    crop = steps["torchvision/RandomCrop"]
    expected = {
        "SOLVER.BASE_LR": optimizer["lr"],
        "TRAIN.BATCH_SIZE": recipe["total_batch"],
        "TRAIN.MIXED_PRECISION": recipe["amp"],
        "SOLVER.BETAS": optimizer["betas"],
        "SOLVER.WEIGHT_DECAY": optimizer["weight_decay"],
        "SOLVER.MAX_EPOCH": recipe["max_epochs"],
        "SOLVER.WARMUP_EPOCHS": warmup["end"],
        "SOLVER.WARMUP_START_LR": warmup["start_factor"] * optimizer["lr"],
        "SOLVER.COSINE_END_LR": cosine.get("eta_min", 0),
        "SOLVER.CLIP_GRAD_L2NORM": recipe["clip_grad"],
        "MFF.LAYERS": recipe["model"]["backbone"]["out_indices"][:-1],
        "AUG.MASK_RATIO": recipe["model"]["backbone"]["mask_ratio"],
        "MASK.DECODER_DEPTH": decoder["decoder_depth"],
        "MASK.DECODER_EMBED_DIM": decoder["decoder_embed_dim"],
        "MASK.DECODER_NUM_HEADS": decoder["decoder_num_heads"],
        "MASK.NORM_PRED_PIXEL": recipe["model"]["head"]["norm_pix"],
        "DATA.MEAN": [n / 255 for n in stage["mean"]],
        "DATA.STD": [n / 255 for n in stage["std"]],
        "DATA.TRAIN_CROP_SIZE": crop["size"],
    }
    assert_keys(path, expected)
    transform = train_transform(load_config(str(path)))
    assert (transform.size, transform.padding, crop["padding_mode"]) == (crop["size"], crop["padding"], "reflect")
    assert transform.short_side == steps["torchvision/Resize"]["size"] and transform.interpolations == ("bilinear",)
    assert transform.flip == steps["torchvision/RandomHorizontalFlip"]["p"]


@pytest.mark.parametrize(("name", "cut"), [("mae/priv_VIT_S_CLS_PT_100e", True), ("mae/in1k_VIT_B_16_PT_800e", False)])
def test_starts(name, cut):
    """MAE-priv cuts its tokens off at one deviation, and leaves two layers as torch starts them."""
    small = ["MVIT.SIZE", "", "MVIT.EMBED_DIM", "192", "MVIT.DEPTH", "1", "MVIT.NUM_HEADS", "3"]
    torch.manual_seed(0)
    model = build_model(load_config(str(CONFIGS / f"{name}.yaml"), small))
    for token in (model.backbone.cls_token.detach(), model.head.mask_token.detach()):
        assert (float(token.abs().max()) <= 0.02) is cut
    projection, embed = model.backbone.patch_embed.proj, model.head.embed
    torch_s, xavier_s = (3 * 16 * 16) ** -0.5, (6 / (3 * 16 * 16 + 192)) ** 0.5
    assert float(projection.weight.detach().abs().max()) == pytest.approx(torch_s if cut else xavier_s, rel=1e-2)
    assert embed.bias.any().item() is cut


def test_the_class_token_of_mae_priv_never_saw_the_encoder_s_norm(tmp_path):
    """So its fine-tuning starts a norm afresh, from a checkpoint of ours as from theirs."""
    small = ["MVIT.SIZE", "", "MVIT.EMBED_DIM", "48", "MVIT.DEPTH", "1", "MVIT.NUM_HEADS", "3"]
    files = (CONFIGS / "mae" / f"{name}.yaml" for name in ("priv_VIT_S_CLS_PT_100e", "in1k_VIT_S_MAEpriv_CLS_50e_FT"))
    pretrained, classifier = (build_model(load_config(str(file), small)) for file in files)
    torch.nn.init.constant_(pretrained.head.encoder_norm.weight, 2.0)
    torch.save({"model_state": pretrained.state_dict()}, tmp_path / "x.pyth")
    report = init_from(classifier, str(tmp_path / "x.pyth"))
    assert "head.norm.weight" in report.missing and bool((classifier.head.norm.weight == 1).all())
