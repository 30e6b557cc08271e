"""The fine-tuning recipes beside the published ones, value by value; each is described in full and takes a step."""

from __future__ import annotations

import json
import math

import pytest
import torch
from golden_cases import cases, load_case
from paths import CONFIGS
from tiny_runs import TINY, last_state

from mfm_core.config import flatten, load_config, plan_run, validate
from mfm_core.errors import UserError
from mfm_core.optim.build import build_optimizer
from mfm_core.parallel.world import World
from mfm_core.tasks.finetune import mixer_from_cfg
from mfm_image.data.build import eval_transform, train_transform
from mfm_image.entry import dry_run, main
from mfm_image.models import build_model

RECIPES = sorted(path for folder in ("mae", "mff", "mfm") for path in (CONFIGS / folder).glob("*_FT.yaml"))
MAE_PRIV = {
    "finetune/ViT-B_100E_GAP.yaml": "in1k_VIT_B_MAEpriv_GAP_100e_FT",
    "finetune/ViT-L_50E_GAP.yaml": "in1k_VIT_L_MAEpriv_GAP_50e_FT",
    "finetune/ViT-S_100E_GAP.yaml": "in1k_VIT_S_MAEpriv_GAP_100e_FT",
    "finetune/ViT-S_50E_CLS-Token.yaml": "in1k_VIT_S_MAEpriv_CLS_50e_FT",
    "finetune/ViT-S_50E_GAP.yaml": "in1k_VIT_S_MAEpriv_GAP_50e_FT",
    "finetune/ViT-S_50E_GAP_erasing.yaml": "in1k_VIT_S_MAEpriv_GAP_50e_erasing_FT",
}


def load(folder: str, name: str, *overrides: object):
    return load_config(str(CONFIGS / folder / f"{name}.yaml"), [*map(str, overrides)])


def found(kind: str):
    return pytest.mark.parametrize("folder", cases(kind), ids=lambda p: f"{p.parent.name}-{p.name}")


def built(cfg):
    """The model on the meta device, and its optimizer."""
    with torch.device("meta"):
        model = build_model(cfg)
    return model, build_optimizer(model, cfg)


def by_depth(cfg) -> list[float]:
    model, _ = built(cfg)
    return [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.backbone.blocks]


def check_keys(cfg, expected: dict) -> None:
    """The keys' values, those of lists as lists."""
    ours = {key: list(value) if isinstance(value, tuple) else value for key, value in flatten(cfg)}
    assert {key: ours[key] for key in expected} == expected


def check_timm_arguments(cfg, args: dict) -> None:
    """The options of the scripts of MAE and MAE-priv, which share their names."""
    expected = {
        "SOLVER.OPTIMIZING_METHOD": args.get("opt", "adamw"),
        "SOLVER.MAX_EPOCH": args["epochs"],
        "SOLVER.WARMUP_EPOCHS": args["warmup_epochs"],
        "SOLVER.COSINE_END_LR": args["min_lr"],
        "SOLVER.LR_REFERENCE_BATCH": 256,
        "SOLVER.BETAS": [0.9, 0.999],
        "SOLVER.WEIGHT_DECAY": args["weight_decay"],
        "SOLVER.LAYER_DECAY": args["layer_decay"],
        "SOLVER.CLIP_GRAD_L2NORM": args["clip_grad"],
        "MIXUP.ENABLE": True,
        "MIXUP.ALPHA": args["mixup"],
        "MIXUP.CUTMIX_ALPHA": args["cutmix"],
        "MIXUP.PROB": args["mixup_prob"],
        "MIXUP.SWITCH_PROB": args["mixup_switch_prob"],
        "MIXUP.LABEL_SMOOTH_VALUE": args["smoothing"],
        "MIXUP.LABEL_SMOOTH_OVER": "all",
        "MIXUP.PARTNER": "reverse",
        "AUG.RE_PROB": args["reprob"],
        "AUG.RE_COUNT": args["recount"],
        "AUG.RE_MODE": args["remode"],
        "AUG.AA_TYPE": args["aa"],
        "DATA.TRAIN_CROP_SIZE": args["input_size"],
        "DATA.TEST_CROP_SIZE": args["input_size"],
        "MODEL.NUM_CLASSES": args["nb_classes"],
        "MODEL.LOSS_FUNC": "soft_cross_entropy",
        "TRAIN.EMA_DECAY": 0.0,
        "TRAIN.MIXED_PRECISION": True,  # both scripts always autocast
    }
    check_keys(cfg, expected)
    assert args["mixup_mode"] == "batch" and not args.get("model_ema")
    assert by_depth(cfg)[-1] == pytest.approx(args["drop_path"])
    _, optimizer = built(cfg)
    assert optimizer.param_groups[0]["eps"] == args.get("opt_eps", 1e-8)


def check_crop_and_flip(transform, size: int) -> None:
    assert (transform.size, transform.scale, transform.flip) == (size, (0.08, 1.0), 0.5)
    assert transform.ratio == pytest.approx((3 / 4, 4 / 3), abs=1e-4) and transform.interpolations == ("bicubic",)


@found("mae/layer_decay")
def test_mae(folder):
    case, _ = load_case(folder)
    for size, name in (("B", "base"), ("L", "large"), ("H", "huge")):
        entry = case["outputs"]["schedules"].get(f"finetune_vit_{name}")
        if entry is None:
            continue
        args, cfg = entry["args"], load("mae", f"in1k_VIT_{size}_MAE_FT")
        check_timm_arguments(cfg, args)
        expected = {
            "SOLVER.BASE_LR": args["blr"],
            "TRAIN.BATCH_SIZE": entry["effective_batch"],
            "MVIT.USE_MEAN_POOLING": args["global_pool"],
            "MVIT.SIZE": size,
            "MVIT.HEAD_INIT_STD": 2e-5,
        }
        check_keys(cfg, expected)
        schedule = plan_run(cfg, 1_281_167, world_size=8).schedule
        ours = [schedule(epoch) for epoch in entry["epochs_float"]]
        assert ours == pytest.approx(entry["lr"], rel=case["tolerance"]["rtol"], abs=case["tolerance"]["atol"])
        check_crop_and_flip(train_transform(cfg), 224)
        assert eval_transform(cfg).short_side == 256


@pytest.mark.parametrize(("size", "drop_path", "patch"), [("L", 0.2, 16), ("H", 0.3, 14)])
def test_larger_models_of_mae(size, drop_path, patch):
    """What facebookresearch/mae's FINETUNE.md gives for them."""
    expected = {
        "MVIT.SIZE": size,
        "MVIT.DROPPATH_RATE": drop_path,
        "MVIT.PATCH_KERNEL": [patch, patch],
        "SOLVER.BASE_LR": 0.001,
        "SOLVER.MAX_EPOCH": 50,
        "SOLVER.WARMUP_EPOCHS": 5,
        "SOLVER.LAYER_DECAY": 0.75,
        "TRAIN.BATCH_SIZE": 1024,
        "AUG.RE_PROB": 0.25,
    }
    check_keys(load("mae", f"in1k_VIT_{size}_MAE_FT"), expected)


@found("mae/model_stats")
def test_sizes_of_mae(folder):
    case, _ = load_case(folder)
    for size, name in (("B", "base_patch16"), ("L", "large_patch16"), ("H", "huge_patch14")):
        entry = case["outputs"].get(f"classify/vit_{name}/img_size=224,num_classes=1000,global_pool=True")
        if entry is not None:
            model, _ = built(load("mae", f"in1k_VIT_{size}_MAE_FT"))
            assert sum(p.numel() for p in model.parameters()) == entry["total"]


@found("mae_priv/recipes")
def test_mae_priv(folder):
    case, _ = load_case(folder)
    names = [name for name in case["recipes"] if name.startswith("finetune/")]
    assert set(names) <= set(MAE_PRIV)
    for name in names:
        entry, cfg = case["recipes"][name], load("mae", MAE_PRIV[name])
        args, run = entry["args"], entry["effective"]
        check_timm_arguments(cfg, args)
        expected = {
            "SOLVER.BASE_LR": args["lr"],
            "TRAIN.BATCH_SIZE": run["total_batch"],
            "MVIT.SIZE": {"small": "S", "base": "B", "large": "L"}[args["model"].split("_")[1]],
            "MVIT.CLS_EMBED_ON": args["use_cls_token"],
            "MVIT.USE_MEAN_POOLING": not args["use_cls_token"],
            "MVIT.HEAD_INIT_SCALE": args["init_scale"],
            "MODEL.DROPOUT_RATE": args["drop"],
            "DATA.MEAN": entry["train_transform"]["mean"],
            "DATA.STD": entry["train_transform"]["std"],
        }
        check_keys(cfg, expected)
        plan = plan_run(cfg, 1_281_167, world_size=8)
        assert plan.steps_per_epoch == run["iterations_per_epoch_imagenet1k"]
        ours = [plan.lr(step) for step in run["schedule_iterations"]]
        assert ours == pytest.approx(run["schedule_lr"], rel=case["tolerance"]["rtol"], abs=case["tolerance"]["atol"])
        shown, transform = entry["train_transform"], train_transform(cfg)
        check_crop_and_flip(transform, shown["crop"]["size"][0])
        assert list(transform.scale) == shown["crop"]["scale"] and shown["crop"]["interpolation"] == "bicubic"
        assert transform.recolor.num_layers == shown["rand_augment"]["ops_per_image"]
        assert len(transform.recolor.ops) == shown["rand_augment"]["num_available_ops"]
        erasing = shown.get("random_erasing", {"probability": 0.0})["probability"]
        assert (transform.erase.probability if transform.erase else 0.0) == erasing
        assert eval_transform(cfg).short_side == int(224 / (224 / 256))


@found("mmpretrain/recipes")
def test_mff(folder):
    case, _ = load_case(folder)
    recipe, cfg = case["recipes"].get("mff_ft_100e"), load("mff", "in1k_VIT_B_MFF_FT")
    if recipe is None:
        pytest.skip("not this recipe")
    optimizer, head, (warmup, cosine) = recipe["optimizer"], recipe["model"]["head"], recipe["schedule"]
    steps = {step["type"]: step for step in recipe["train_pipeline"]}
    test = {step["type"]: step for step in recipe["test_pipeline"]}
    augment = steps["RandAugment"]
    mixup, cutmix = (entry["alpha"] for entry in recipe["model"]["train_cfg"]["augments"])
    expected = {
        "SOLVER.BASE_LR": optimizer["lr"],
        "SOLVER.WEIGHT_DECAY": optimizer["weight_decay"],
        "SOLVER.BETAS": optimizer["betas"],
        "SOLVER.LAYER_DECAY": recipe["paramwise"]["layer_decay_rate"],
        "SOLVER.MAX_EPOCH": recipe["max_epochs"],
        "SOLVER.WARMUP_EPOCHS": warmup["end"],
        "SOLVER.COSINE_END_LR": cosine["eta_min"],
        "SOLVER.CLIP_GRAD_L2NORM": recipe["clip_grad"],
        "TRAIN.BATCH_SIZE": recipe["total_batch"],
        "TRAIN.MIXED_PRECISION": recipe["amp"],
        "MVIT.USE_MEAN_POOLING": recipe["model"]["backbone"]["out_type"] == "avg_featmap",
        "MVIT.HEAD_INIT_STD": head["init_cfg"][0]["std"],
        "MVIT.HEAD_INIT_SCALE": 1.0,
        "MODEL.NUM_CLASSES": head["num_classes"],
        "MIXUP.ALPHA": mixup,
        "MIXUP.CUTMIX_ALPHA": cutmix,
        "MIXUP.PARTNER": "random",
        "MIXUP.LABEL_SMOOTH_VALUE": head["loss"]["label_smooth_val"],
        "AUG.AA_TYPE": f"rand-m{augment['magnitude_level']}-mstd{augment['magnitude_std']}-inc1",
        "AUG.RE_PROB": steps["RandomErasing"]["erase_prob"],
        "AUG.RE_MODE": "pixel" if "fill_std" in steps["RandomErasing"] else "const",
        "AUG.INTERPOLATION": steps["RandomResizedCrop"]["interpolation"],
        "DATA.TEST_CROP_SIZE": test["CenterCrop"]["crop_size"],
    }
    check_keys(cfg, expected)
    start = cfg.SOLVER.WARMUP_START_LR
    assert start == pytest.approx(warmup["start_factor"] * optimizer["lr"])
    assert by_depth(cfg)[-1] == pytest.approx(recipe["model"]["backbone"]["drop_path_rate"])
    assert augment["policies"] == "timm_increasing" and augment["num_policies"] == 2
    check_crop_and_flip(train_transform(cfg), steps["RandomResizedCrop"]["scale"])
    assert eval_transform(cfg).short_side == test["ResizeEdge"]["scale"]
    pixels = recipe["data_preprocessor"]
    assert [255 * x for x in cfg.DATA.MEAN] == pytest.approx(pixels["mean"], abs=1e-6)
    assert [255 * x for x in cfg.DATA.STD] == pytest.approx(pixels["std"], abs=1e-6)


@found("mmpretrain/layer_decay")
def test_learning_rates_of_mff(folder):
    case, _ = load_case(folder)
    entry, cfg = case["schedules"].get("mff_ft_100e"), load("mff", "in1k_VIT_B_MFF_FT")
    if entry is None:
        pytest.skip("not this recipe")
    plan = plan_run(cfg, 1_281_167, world_size=8)
    assert plan.steps_per_epoch == entry["iters_per_epoch"]
    for point in entry["points"]:
        ours = [plan.lr(int(point[0]), scale) for scale in entry["lr_scales_of_columns"]]
        assert ours == pytest.approx(point[2:], rel=case["tolerance"]["rtol"], abs=case["tolerance"]["atol"])


@pytest.mark.parametrize("drop_last", [True, False])
def test_odd_batches_of_mff(drop_last):
    """Pairs drawn at random need no even number of images, which epochs without rest do not have."""
    odd = ["TRAIN.BATCH_SIZE", 5, "DATA_LOADER.DROP_LAST", drop_last]
    assert mixer_from_cfg(load("mff", "in1k_VIT_B_MFF_FT", *odd), World()).partner == "random"
    reverse = load("mff", "in1k_VIT_B_MFF_FT", *odd, "MIXUP.PARTNER", "reverse")
    if drop_last:
        with pytest.raises(UserError, match="5 is odd; .* MIXUP.PARTNER next or random"):
            mixer_from_cfg(reverse, World())
    else:
        mixer_from_cfg(reverse, World())


MFM = {
    "finetune__vit_base__img224__100ep": "in1k_VIT_B_MFM_FT",
    "finetune__vit_small__img224__200ep": "in1k_VIT_S_MFM_FT",
}


@found("mfm_official/recipes")
def test_mfm(folder):
    case, _ = load_case(folder)
    for name, file in MFM.items():
        entry, cfg = case["config"]["recipes"].get(name), load("mfm", file)
        if entry is None:
            continue
        merged, scaled = entry["merged_config"], entry["scaled"]
        train, aug, vit = merged["TRAIN"], merged["AUG"], merged["MODEL"]["VIT"]
        expected = {
            "SOLVER.BASE_LR": train["BASE_LR"],
            "SOLVER.WARMUP_START_LR": train["WARMUP_LR"],
            "SOLVER.COSINE_END_LR": train["MIN_LR"],
            "SOLVER.MAX_EPOCH": train["EPOCHS"],
            "SOLVER.WARMUP_EPOCHS": train["WARMUP_EPOCHS"],
            "SOLVER.WEIGHT_DECAY": train["WEIGHT_DECAY"],
            "SOLVER.LAYER_DECAY": train["LAYER_DECAY"],
            "SOLVER.BETAS": train["OPTIMIZER"]["BETAS"],
            "SOLVER.CLIP_GRAD_L2NORM": train["CLIP_GRAD"],
            "TRAIN.BATCH_SIZE": scaled["effective_batch"],
            "TRAIN.MIXED_PRECISION": merged["AMP_OPT_LEVEL"] != "O0",
            "MVIT.USE_MEAN_POOLING": vit["USE_MEAN_POOLING"],
            "AUG.AA_TYPE": aug["AUTO_AUGMENT"],
            "AUG.RE_PROB": aug["REPROB"],
            "AUG.RE_MODE": aug["REMODE"],
            "AUG.RE_COUNT": aug["RECOUNT"],
            "MIXUP.ALPHA": aug["MIXUP"],
            "MIXUP.CUTMIX_ALPHA": aug["CUTMIX"],
            "MIXUP.PROB": aug["MIXUP_PROB"],
            "MIXUP.SWITCH_PROB": aug["MIXUP_SWITCH_PROB"],
            "MIXUP.LABEL_SMOOTH_VALUE": merged["MODEL"]["LABEL_SMOOTHING"],
            "MODEL.NUM_CLASSES": merged["MODEL"]["NUM_CLASSES"],
        }
        check_keys(cfg, expected)
        schedule = plan_run(cfg, 1_281_167, world_size=8).schedule
        assert (schedule.base, schedule.warmup_start, schedule.end) == pytest.approx(
            (scaled["lr"], scaled["warmup_lr"], scaled["min_lr"]), rel=1e-6
        )
        assert by_depth(cfg)[-1] == pytest.approx(merged["MODEL"]["DROP_PATH_RATE"])
        model, _ = built(cfg)
        assert (model.backbone.embed_dim, model.backbone.depth) == (vit["EMBED_DIM"], vit["DEPTH"])
        assert model.backbone.blocks[0].attn.num_heads == vit["NUM_HEADS"] and vit["INIT_VALUES"] is None
        check_mfm_transforms(cfg, entry)


def check_mfm_transforms(cfg, entry) -> None:
    transform = train_transform(cfg)
    check_crop_and_flip(transform, 224)
    steps = {step["kind"]: step for step in entry["train_transform"] if isinstance(step, dict)}
    augment, ours = steps["RandAugment"], transform.recolor
    assert ours.num_layers == augment["ops_per_image"] and ours.choice_weights is augment["op_choice_weights"]
    assert [op.aug_fn.on_image.__name__ for op in ours.ops] == augment["op_names"]
    levels = [op.level_fn.__name__ if op.level_fn else None for op in ours.ops]
    assert levels == augment["op_level_functions"]
    assert {op.kwargs["resample"] for op in ours.ops} == {augment["hparams"]["interpolation"]}
    erasing = {key: value for key, value in steps["RandomErasing"].items() if key != "kind"}
    for key, value in erasing.items():
        assert getattr(transform.erase, key) == (pytest.approx(tuple(value)) if isinstance(value, list) else value), key
    assert {(op.prob, op.magnitude, op.magnitude_std) for op in ours.ops} == {
        (augment["op_probability"], augment["magnitude"], augment["magnitude_std"])
    }
    assert ours.ops[0].hparams["translate_const"] == augment["hparams"]["translate_const"]
    assert list(ours.ops[0].hparams["img_mean"]) == augment["hparams"]["img_mean"]
    assert entry["eval_transform"][0].startswith(f"Resize(size={eval_transform(cfg).short_side}, interpolation=bicubic")


@found("mfm_official/schedule")
def test_learning_rates_of_mfm(folder):
    case, io = load_case(folder)
    for name, file in (("finetune__vit_base", "in1k_VIT_B_MFM_FT"), ("finetune__vit_small", "in1k_VIT_S_MFM_FT")):
        if name not in case["config"]["runs"]:
            continue
        run, cfg = case["config"]["runs"][name], load("mfm", file)
        if run["accumulation_steps"] > 1:  # see test_golden_solver.py
            continue
        plan = plan_run(cfg, run["images"], world_size=8)
        assert plan.steps_per_epoch == run["iterations_per_epoch"]
        ours = [
            [plan.lr(step, scale) for scale in run["groups"]["lr_scale"]]
            for step in io[f"in_{name}_iteration"].tolist()
        ]
        expected = io[f"out_{name}_lr_used_in_iteration"].double()
        torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), expected, **case["tolerance"])


@found("mfm_coincheung/recipes")
def test_coincheung(folder):
    case, io = load_case(folder)
    entry, cfg = case["config"]["finetune"], load("mfm", "in1k_R50_MFM_100e_FT")
    args = entry["arguments"]
    expected = {
        "TRAIN.BATCH_SIZE": entry["global_batch"],
        "TRAIN.MIXED_PRECISION": args["amp"],
        "TRAIN.EMA_DECAY": 0.0,
        "RESNET.DEPTH": int(args["model"].removeprefix("resnet")),
        "MODEL.LOSS_FUNC": "bce",
        "SOLVER.OPTIMIZING_METHOD": args["opt"],
        "SOLVER.MAX_EPOCH": args["epochs"],
        "SOLVER.BASE_LR": args["lr"],
        "SOLVER.BETAS": entry["param_groups"][0]["betas"],
        "SOLVER.WEIGHT_DECAY": args["weight_decay"],
        "SOLVER.ZERO_WD_1D_PARAM": False,
        "SOLVER.CLIP_GRAD_L2NORM": args["clip_grad_norm"],
        "MIXUP.ENABLE": True,
        "MIXUP.ALPHA": args["mixup_alpha"],
        "MIXUP.CUTMIX_ALPHA": args["cutmix_alpha"],
        "MIXUP.PROB": 1.0,
        "MIXUP.SWITCH_PROB": 0.5,
        "MIXUP.PARTNER": "next",
        "MIXUP.LABEL_SMOOTH_VALUE": args["label_smoothing"],
        "MIXUP.LABEL_SMOOTH_OVER": "others",
        "DATA.TRAIN_CROP_SIZE": args["train_crop_size"],
        "DATA.TEST_CROP_SIZE": args["val_crop_size"],
        "AUG.AA_TYPE": args["auto_augment"],
        "AUG.RE_PROB": args["random_erase"],
        "AUG.REPEATED_SAMPLER": args["ra_reps"] if args["ra_sampler"] else 1,
    }
    assert not args["model_ema"]
    check_keys(cfg, expected)
    transform = train_transform(cfg)
    check_crop_and_flip(transform, args["train_crop_size"])
    assert repr(transform.recolor) == entry["train_transform"][2]
    normalise = entry["eval_transform"][-1]
    assert f"mean={tuple(cfg.DATA.MEAN)}" in normalise and f"std={tuple(cfg.DATA.STD)}" in normalise
    assert eval_transform(cfg).short_side == args["val_resize_size"]
    plan = plan_run(cfg, 1_281_167, world_size=8)
    ours = [plan.lr(epoch * plan.steps_per_epoch + epoch % 5) for epoch in range(args["epochs"])]
    tolerance = {"rel": case["tolerance"]["rtol"], "abs": case["tolerance"]["atol"]}
    assert ours == pytest.approx(io["out_finetune_lr_by_epoch"].tolist(), **tolerance)


def test_resnets_start_as_torchvision_s():
    torch.manual_seed(0)
    model = build_model(load("mfm", "in1k_R50_MFM_100e_FT"))
    assert all(block.bn3.weight.all() for block in model.backbone.layer1), "no branch starts at zero"
    bound = 2048**-0.5
    for values in (model.head.projection.weight.detach(), model.head.projection.bias.detach()):
        assert 0.95 * bound < float(values.abs().max()) <= bound
        assert float(values.std()) == pytest.approx(bound / 3**0.5, rel=0.1)


# --- each recipe ---------------------------------------------------------------------------------------------------

SHRUNK = [
    *TINY,
    *("MVIT.SIZE", "", "MODEL.NUM_CLASSES", "3"),
    *("TEST.RESIZE_SIZES", "[]", "TRAIN.STOP_STEP", "1", "KNN.K", "[20]"),
]
"""A run of one step on three classes."""


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe_is_described_at_full_size(path):
    cfg = load_config(str(path))
    assert validate(cfg) == []
    lines = dry_run(cfg)
    schedule = plan_run(cfg, 1_281_167, world_size=8).schedule
    assert any(
        f"{schedule.warmup_start:g} -> {schedule.base:g} in {schedule.warmup_epochs:g}" in line for line in lines
    )
    assert not any("warning" in line for line in lines)


@pytest.mark.parametrize(
    ("folder", "name", "std", "bias"),
    [
        ("mae", "in1k_VIT_B_MAE_FT", 2e-5, 0.0),
        ("mae", "in1k_VIT_B_MAEpriv_GAP_100e_FT", 2e-5, 0.0),  # 0.02 times 0.001
        ("mff", "in1k_VIT_B_MFF_FT", 2e-5, 0.0),
        ("mfm", "in1k_VIT_B_MFM_FT", 2e-5, 0.0),
        ("masked_ssl", "in1k_VIT_B_MaskFeat_FT", 2e-5, 2e-5),  # PySlowFast's biases start at 0.02, scaled here
    ],
)
def test_start_of_the_classifier(folder, name, std, bias):
    cfg = load(folder, name, "MVIT.SIZE", "", "MVIT.EMBED_DIM", 96, "MVIT.DEPTH", 1, "MVIT.NUM_HEADS", 3)
    head = build_model(cfg).head.requires_grad_(False)
    assert float(head.projection.weight.std()) == pytest.approx(std, rel=0.02)
    assert float(head.projection.weight.abs().max()) > 3 * std  # a normal distribution that nothing truncates
    assert torch.allclose(head.projection.bias, torch.tensor(bias)) and (head.norm.weight == 1).all()
    assert torch.allclose(head.norm.bias, torch.tensor(0.02 if bias else 0.0))


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_shrunk_recipe_takes_a_step(path, photo_folder, tmp_path):
    """Its classifier starts with next to no opinion: three classes are equally likely."""
    cfg = load_config(str(path))
    side = str(2 * cfg.MVIT.PATCH_KERNEL[-1]) if cfg.MVIT.PATCH_2D else "32"
    size = ["DATA.TRAIN_CROP_SIZE", side, "DATA.TEST_CROP_SIZE", side]
    where = ["DATA.PATH_TO_DATA_DIR", str(photo_folder), "OUTPUT_DIR", str(tmp_path)]
    pairs = zip(SHRUNK[::2], SHRUNK[1::2])
    shrunk = [word for key, value in pairs if cfg.MVIT.PATCH_2D or "MVIT" not in key for word in (key, value)]
    small = load_config(str(path), [*shrunk, *size, *where])
    assert main(small) == 0
    state, plan = last_state(tmp_path), plan_run(small, 24, world_size=1)
    assert state["step"] == 1
    for group in state["optimizer_state"]["param_groups"]:
        assert group["lr"] == pytest.approx(plan.lr(0, group["lr_scale"]))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    step = next(line for line in lines if line["kind"] == "step")
    indifferent = {"bce": math.log(2), "soft_cross_entropy": math.log(3)}[cfg.MODEL.LOSS_FUNC]
    assert step["loss"] == pytest.approx(indifferent, abs=0.5 if cfg.MODEL.ARCH == "resnet" else 0.01)
    assert not [line for line in lines if line["kind"] == "warning"]
