"""Learning rates, step by step, and parameter groups, name by name, beside those of every project.

PySlowFast's are in test_golden_schedule.py.
"""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch
from golden_cases import cases, load_case
from parameter_groups import assert_same_groups, by_name, groups_of

from mfm_core.config import get_cfg, plan_run
from mfm_core.optim.build import build_optimizer, follow
from mfm_image.models import build_model


def config(**solver):
    """Defaults for an image run with these SOLVER keys; cosine after warm-up, as all but MFM have it."""
    cfg = get_cfg()
    cfg.TRAIN.DATASET = cfg.TEST.DATASET = "imagenet"
    cfg.DATA.TRAIN_CROP_SIZE = cfg.DATA.TEST_CROP_SIZE = 224
    cfg.SOLVER.COSINE_AFTER_WARMUP = True
    for key, value in solver.items():
        cfg.SOLVER[key] = type(cfg.SOLVER[key])(value)
    return cfg


def plan_of(cfg, batch: int, steps_per_epoch: int):
    """The plan of a run with that many steps per epoch, at that batch over all machines."""
    cfg.TRAIN.BATCH_SIZE = batch
    return plan_run(cfg, files=steps_per_epoch * batch, world_size=1)


def groups_at(plan, step: int, scales: list[float]) -> list[float]:
    """The learning rates that an optimizer with these groups has at a step."""
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr_scale": scale} for scale in scales], lr=1.0)
    follow(optimizer, lambda scale: plan.lr(step, scale))
    return [group["lr"] for group in optimizer.param_groups]


def found(kind: str):
    return pytest.mark.parametrize("folder", cases(kind), ids=lambda p: f"{p.parent.name}-{p.name}")


def assert_close(ours, theirs, tolerance):
    ours, theirs = (torch.as_tensor(values, dtype=torch.float64) for values in (ours, theirs))
    torch.testing.assert_close(ours, theirs, rtol=tolerance["rtol"], atol=tolerance["atol"])


# --- learning rates ------------------------------------------------------------------------------------------------


@found("mae/layer_decay")
def test_mae(folder):
    """At fractional epochs; the batch scales the base alone."""
    case, io = load_case(folder)
    for name, entry in case["outputs"]["schedules"].items():
        args = entry["args"]
        cfg = config(
            BASE_LR=args["blr"],
            LR_REFERENCE_BATCH=256,
            COSINE_END_LR=args["min_lr"],
            WARMUP_START_LR=0,
            WARMUP_EPOCHS=args["warmup_epochs"],
            MAX_EPOCH=args["epochs"],
        )
        schedule = plan_of(cfg, entry["effective_batch"], 1000).schedule
        epochs, expected = io[f"in_epochs_{name}"].tolist(), io[f"out_lr_{name}"].tolist()
        assert_close([schedule(epoch) for epoch in epochs], expected, case["tolerance"])
        small = [schedule.scaled(0.1)(epoch) for epoch in epochs]
        assert_close(small, [0.1 * lr for lr in expected], case["tolerance"])


def mfm_plan(run, base):
    """base: the learning rate for 512 images; the warm-up start and the end are MFM's, given for 512, too."""
    batch = run["world_size"] * run["batch_per_gpu"] * run["accumulation_steps"]
    per_512 = 512 / batch
    cfg = config(
        BASE_LR=base,
        LR_REFERENCE_BATCH=512,
        LR_REFERENCE_SCALES="all",
        COSINE_END_LR=run["scaled_min_lr"] * per_512,
        COSINE_END_LR_ABSOLUTE=True,
        COSINE_AFTER_WARMUP=False,
        WARMUP_START_LR=run["scaled_warmup_lr"] * per_512,
        WARMUP_START_LR_ABSOLUTE=True,
        WARMUP_TO_BASE_LR=True,
        WARMUP_EPOCHS=run["warmup_epochs"],
        MAX_EPOCH=run["epochs"],
        LR_LAG_STEPS=1,
    )
    return plan_of(cfg, batch, run["iterations_per_epoch"])


@found("mfm_official/schedule")
def test_mfm(folder):
    """Warm-up from an absolute start, a cosine that does not start again, an absolute end, one step late.

    (With accumulation theirs is late by one micro-batch, ours by one step: accumulation changes nothing here.)
    """
    case, io = load_case(folder)
    for name, run in case["config"]["runs"].items():
        if run["accumulation_steps"] > 1:
            continue
        batch = run["world_size"] * run["batch_per_gpu"] * run["accumulation_steps"]
        plan = mfm_plan(run, run["scaled_lr"] * 512 / batch)
        scales = run["groups"]["lr_scale"] if run["groups"] else [1.0]
        steps = io[f"in_{name}_iteration"].tolist()
        ours = [groups_at(plan, step, scales) for step in steps]
        assert_close(ours, io[f"out_{name}_lr_used_in_iteration"], case["tolerance"])
        assert_close(groups_at(plan, 0, [scales[0]]), run["lr_before_first_iteration"][:1], case["tolerance"])


@found("mmpretrain/layer_decay")
def test_mmpretrain(folder):
    """Per step; warm-up reaches the base on its last one; the end is absolute, or a share of each group's base."""
    case, _ = load_case(folder)
    for entry in case["schedules"].values():
        warmup, cosine = entry["schedulers"]
        base = entry["config_base_lr"]
        ratio = cosine.get("eta_min_ratio")
        cfg = config(
            BASE_LR=base,
            COSINE_END_LR=cosine.get("eta_min", 0.0) if ratio is None else ratio * base,
            COSINE_END_LR_ABSOLUTE=ratio is None,
            WARMUP_START_LR=warmup["start_factor"] * base,
            WARMUP_INCLUSIVE=True,
            WARMUP_EPOCHS=warmup["end"],
            MAX_EPOCH=entry["max_epochs"],
        )
        plan = plan_of(cfg, entry["total_batch"], entry["iters_per_epoch"])
        scales = entry["lr_scales_of_columns"]
        ours = [groups_at(plan, int(point[0]), scales) for point in entry["points"]]
        assert_close(ours, [point[2:] for point in entry["points"]], case["tolerance"])


@found("mae_priv/recipes")
def test_mae_priv(folder):
    """linspace(0, lr, warm-up steps), then half a cosine one step short of its end."""
    case, _ = load_case(folder)
    for entry in case["recipes"].values():
        args, run = entry["args"], entry["effective"]
        cfg = config(
            BASE_LR=args["lr"],
            LR_REFERENCE_BATCH=256,
            COSINE_END_LR=args["min_lr"],
            WARMUP_START_LR=0,
            WARMUP_INCLUSIVE=True,
            WARMUP_EPOCHS=args["warmup_epochs"],
            MAX_EPOCH=args["epochs"],
        )
        plan = plan_of(cfg, run["total_batch"], run["iterations_per_epoch_imagenet1k"])
        assert plan.schedule.base == pytest.approx(run["lr"], rel=case["tolerance"]["rtol"])
        ours = [plan.lr(step) for step in run["schedule_iterations"]]
        assert_close(ours, run["schedule_lr"], case["tolerance"])
        assert plan.lr(run["schedule_iterations"][-1], 0.1) == pytest.approx(0.1 * ours[-1])


@found("mfm_coincheung/recipes")
def test_coincheung(folder):
    """Once per epoch, from a share of the base."""
    case, io = load_case(folder)
    for stage in ("pretrain", "finetune"):
        args = case["config"][stage]["arguments"]
        cfg = config(
            BASE_LR=args["lr"],
            LR_PER_EPOCH=True,
            COSINE_END_LR=args["lr_min"],
            WARMUP_START_LR=args["lr"] * args["lr_warmup_decay"],
            WARMUP_EPOCHS=args["lr_warmup_epochs"],
            MAX_EPOCH=args["epochs"],
        )
        plan = plan_of(cfg, case["config"][stage]["global_batch"], 7)
        for step in (0, 3, 6):
            ours = [plan.lr(7 * epoch + step) for epoch in range(args["epochs"])]
            assert_close(ours, io[f"out_{stage}_lr_by_epoch"], case["tolerance"])


# --- parameter groups ----------------------------------------------------------------------------------------------


def size_of(model: str) -> tuple[str, int]:
    """Our letter for timm's name, and the patch: vit_base_patch16_224 is B, 16."""
    size, patch = re.search(r"vit_(\w+)_patch(\d+)", model).groups()
    return {"tiny": "Ti", "small": "S", "base": "B", "large": "L", "huge": "H"}[size], int(patch)


def classifier(size="B", patch=16, cls=True, positions="learned", classes=1000, **solver):
    cfg = config(ZERO_WD_1D_PARAM=True, OPTIMIZING_METHOD="adamw", **solver)
    cfg.MODEL.MODEL_NAME, cfg.MODEL.ARCH, cfg.MODEL.NUM_CLASSES = "MViT", "vit", classes
    return vit(cfg, size, patch, cls, positions)


def vit(cfg, size, patch, cls, positions):
    cfg.MVIT.SIZE, cfg.MVIT.PATCH_2D = size, True
    cfg.MVIT.PATCH_KERNEL, cfg.MVIT.PATCH_STRIDE, cfg.MVIT.PATCH_PADDING = [patch] * 2, [patch] * 2, [0, 0]
    cfg.MVIT.CLS_EMBED_ON, cfg.MVIT.USE_FIXED_SINCOS_POS = cls, positions == "sincos"
    cfg.MVIT.USE_MEAN_POOLING, cfg.MVIT.ZERO_DECAY_POS_CLS = True, False
    return cfg


def pretrainer(method, size="B", cls=True, positions="sincos", no_decay=(), **mask):
    """A pre-training run's configuration; the parameter groups ask for no more."""
    cfg = vit(config(ZERO_WD_1D_PARAM=True, OPTIMIZING_METHOD="adamw", NO_DECAY=no_decay), size, 16, cls, positions)
    cfg.TASK, cfg.MODEL.MODEL_NAME, cfg.MODEL.ARCH = "pretrain", "MaskMViT", "vit"
    cfg.MASK.ENABLE, cfg.MASK.METHOD, cfg.MASK.PRETRAIN_DEPTH, cfg.AUG.MASK_RATIO = True, method, [11], 0.4
    for key, value in mask.items():
        cfg.MASK[key] = value
    return cfg


SPARED = ("cls_token", "pos_embed")


@found("mae/layer_decay")
def test_groups_of_mae_finetuning(folder):
    case, _ = load_case(folder)
    about, out = case["config"], case["outputs"]
    cfg = classifier(
        *size_of(about["model"]),
        classes=about["nb_classes"],
        WEIGHT_DECAY=about["weight_decay"],
        LAYER_DECAY=about["layer_decay"],
        NO_DECAY=SPARED,
    )
    cfg.MVIT.USE_MEAN_POOLING, cfg.MVIT.DROPPATH_RATE = about["global_pool"], about["drop_path"]
    assert_same_groups(cfg, out["param_lr_scale_and_weight_decay"], case["tolerance"]["rtol"])
    with torch.device("meta"):
        model = build_model(cfg)
    values = Counter(
        (
            round(group["lr_scale"], 9),
            group["weight_decay"],
            len(group["params"]),
            sum(map(torch.numel, group["params"])),
        )
        for group in build_optimizer(model, cfg).param_groups
    )
    keys = ("weight_decay", "num_tensors", "num_values")
    assert values == Counter((round(g["lr_scale"], 9), *(g[k] for k in keys)) for g in out["groups_in_order"])
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.backbone.blocks]
    assert rates == pytest.approx(out["drop_path_per_block"])


@found("mmpretrain/layer_decay")
def test_groups_of_mmpretrain_finetuning(folder):
    case, _ = load_case(folder)
    for name, entry in case["groups"].items():
        if name not in ("mff_ft_100e", "maskfeat_ft_100e"):
            continue
        cfg = classifier(
            WEIGHT_DECAY=entry["base_weight_decay"],
            LAYER_DECAY=entry["paramwise"]["layer_decay_rate"],
            NO_DECAY=SPARED,
        )
        assert_same_groups(cfg, entry["params"], case["tolerance"]["rtol"])


@found("mmpretrain/layer_decay")
def test_groups_of_mmpretrain_maskfeat(folder):
    """MaskFeat spares the mask token, and not the class token and the positions."""
    case, _ = load_case(folder)
    for name, entry in case["groups"].items():
        if name != "maskfeat_pt_300e":
            continue
        cfg = pretrainer("maskfeat", positions="learned", no_decay=("mask_token",), PRED_HOG=True)
        cfg.SOLVER.WEIGHT_DECAY = entry["base_weight_decay"]
        assert_same_groups(cfg, entry["params"], case["tolerance"]["rtol"])


@found("mae_priv/recipes")
def test_groups_of_mae_priv_finetuning(folder):
    case, _ = load_case(folder)
    entry = case["optimizers"]["finetune"]
    args = case["recipes"][entry["config"]]["args"]
    cfg = classifier(
        *size_of(args["model"]),
        cls=args["use_cls_token"],
        positions="sincos",
        classes=args["nb_classes"],
        WEIGHT_DECAY=args["weight_decay"],
        LAYER_DECAY=args["layer_decay"],
        NO_DECAY=SPARED,
    )
    assert_same_groups(cfg, entry["param_lr_scale_and_weight_decay"], case["tolerance"]["rtol"])
    groups = groups_of(cfg)
    assert len(groups) == entry["num_groups"]
    assert groups[0]["betas"] == tuple(entry["defaults"]["betas"]) and groups[0]["eps"] == entry["defaults"]["eps"]


@found("mfm_official/recipes")
def test_groups_of_mfm_finetuning(folder):
    case, _ = load_case(folder)
    for name, entry in case["config"]["optimizer_groups"].items():
        if not name.startswith("finetune__vit_"):
            continue
        groups = entry["groups"]
        decay = max(group["weight_decay"] for group in groups)
        rate = next(group["lr_scale"] for group in reversed(groups) if group["lr_scale"] < 1)
        size = {"base": "B", "small": "S"}[name.removeprefix("finetune__vit_")]
        cfg = classifier(size, WEIGHT_DECAY=decay, LAYER_DECAY=rate, NO_DECAY=SPARED)
        if all("names" in group for group in groups):
            theirs = {n: [group["lr_scale"], group["weight_decay"]] for group in groups for n in group["names"]}
            assert_same_groups(cfg, theirs, case["tolerance"]["rtol"])
        ours = {
            (round(g["lr_scale"], 8), g["weight_decay"]): sum(map(torch.numel, g["params"])) for g in groups_of(cfg)
        }
        theirs = {(round(g["lr_scale"], 8), g["weight_decay"]): g["n_params"] for g in groups}
        assert ours.keys() == theirs.keys()
        width, scales = {"B": 768, "S": 384}[size], sorted({scale for scale, _ in theirs})
        for (scale, decay), values in theirs.items():
            key_bias = width if decay == 0 and scale in scales[1:-1] else 0  # in each block; theirs has none
            assert ours[scale, decay] == values + key_bias, (scale, decay)


@found("mfm_coincheung/recipes")
def test_groups_of_coincheung(folder):
    """Nothing is spared: one group."""
    case, _ = load_case(folder)
    entry = case["config"]["finetune"]
    cfg = config(OPTIMIZING_METHOD="adamw", WEIGHT_DECAY=entry["arguments"]["weight_decay"])
    cfg.MODEL.MODEL_NAME, cfg.MODEL.ARCH = "MViT", "resnet"
    cfg.MODEL.NUM_CLASSES = entry["arguments"]["num_classes"]
    groups = groups_of(cfg)
    assert [(len(g["params"]), sum(map(torch.numel, g["params"])), g["weight_decay"]) for g in groups] == [
        (g["n_tensors"], g["n_params"], g["weight_decay"]) for g in entry["param_groups"]
    ]


def counts(theirs: dict[str, float]) -> dict[float, int]:
    """How many tensors have each weight decay; biases of queries and values count as one, as in our blocks."""
    merged = {re.sub(r"\.[qv]_bias$", ".qkv.bias", name): decay for name, decay in theirs.items() if decay != "frozen"}
    return Counter(merged.values())


def assert_same_counts(method, cfg, theirs):
    """What the methods of other files call their parameters is theirs to say; how many decay is compared."""
    ours = Counter(decay for _, decay in by_name(groups_of(cfg)).values())
    assert ours == counts(theirs)


@found("mae/layer_decay")
def test_groups_of_mae_pretraining(folder):
    """Class token and mask token decay."""
    case, _ = load_case(folder)
    cfg = pretrainer("mae", HEAD_TYPE="separate_xformer", DECODER_DEPTH=8, DECODER_EMBED_DIM=512)
    cfg.SOLVER.WEIGHT_DECAY = case["config"]["weight_decay"]
    assert_same_counts("mae", cfg, case["outputs"]["pretrain_weight_decay"])


@found("mmpretrain/layer_decay")
def test_groups_of_mff_pretraining(folder):
    case, _ = load_case(folder)
    for name, entry in case["groups"].items():
        if name != "mff_pt_300e":
            continue
        tables = ("cls_token", "pos_embed", "mask_token")
        cfg = pretrainer("mff", no_decay=tables, HEAD_TYPE="separate_xformer", DECODER_DEPTH=8, DECODER_EMBED_DIM=512)
        cfg.SOLVER.WEIGHT_DECAY = entry["base_weight_decay"]
        assert_same_counts("mff", cfg, {name: decay for name, (_, decay) in entry["params"].items()})


@found("mae_priv/recipes")
def test_groups_of_mae_priv_pretraining(folder):
    """The mask token is spared."""
    case, _ = load_case(folder)
    entry = case["optimizers"]["pretrain"]
    args = case["recipes"][entry["config"]]["args"]
    cfg = pretrainer(
        "mae",
        size_of(args["model"].replace("pretrain_mae_", "vit_"))[0],
        cls=args["use_cls_token"],
        no_decay=("mask_token",),
        HEAD_TYPE="separate_xformer",
        DECODER_DEPTH=args["decoder_depth"],
        DECODER_EMBED_DIM=args["decoder_dim"],
    )
    cfg.SOLVER.WEIGHT_DECAY = args["weight_decay"]
    theirs = {name: decay for name, (_, decay) in entry["param_lr_scale_and_weight_decay"].items()}
    assert_same_counts("mae", cfg, theirs)
