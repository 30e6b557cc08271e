"""mmpretrain's recipes of MaskFeat beside our files: their values in our keys, parameter groups and learning rates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
import torch
from golden_cases import cases, load_case
from paths import CONFIGS
from torch import nn

from mfm_core.checkpoint.formats import read_checkpoint
from mfm_core.config import flatten, load_config, plan_run
from mfm_core.optim.build import build_optimizer

FILES = {
    "maskfeat_pt_300e": "in1k_VIT_B_MaskFeat_PT_300e",
    "maskfeat_ft_100e": "in1k_VIT_B_MaskFeat_FT",
    "maskfeat_video_pt_16x32": "k400_MVITv2_S_16x4_MaskFeat_16xb32_PT",
    "maskfeat_video_pt_8x32": "k400_MVITv2_S_16x4_MaskFeat_8xb32_PT",
    "maskfeat_video_ft_100e": "k400_MVITv2_S_16x4_FT",
}
"""Their recipes and our files."""


def load(name: str, *overrides: object):
    """The configuration of one of mmpretrain's recipes."""
    return load_config(str(CONFIGS / "maskfeat" / f"{FILES[name]}.yaml"), [*map(str, overrides)])


def recipes(*names: str):
    """Parameters of a test: (name, recipe), of those that the golden cases have."""
    found = [
        pytest.param(name, load_case(folder)[0]["recipes"][name], id=f"{folder.name}-{name}")
        for folder in cases("mmpretrain/recipes")
        for name in names
        if name in load_case(folder)[0]["recipes"]
    ]
    return pytest.mark.parametrize(("name", "recipe"), found)


def entries(kind: str, section: str, *names: str) -> Iterator[tuple[str, dict, dict]]:
    """(name, entry, tolerance) of those names that the golden cases of a kind have in a section."""
    for folder in cases(kind):
        case, _ = load_case(folder)
        for name in names:
            if name in case[section]:
                yield name, case[section][name], case["tolerance"]


def common_keys(recipe: dict) -> dict[str, object]:
    """What every recipe says, in our keys."""
    optimizer, (warmup, cosine) = recipe["optimizer"], recipe["schedule"]
    end = cosine["eta_min"] if "eta_min" in cosine else cosine["eta_min_ratio"] * optimizer["lr"]
    assert warmup["by_epoch"] and cosine["begin"] == warmup["end"] and cosine["end"] == recipe["max_epochs"]
    assert recipe["train_dataloader"]["sampler"]["shuffle"] and "drop_last" not in recipe["train_dataloader"]
    pixels = recipe["data_preprocessor"]
    return {
        "SOLVER.OPTIMIZING_METHOD": optimizer["type"].lower(),
        "SOLVER.BASE_LR": optimizer["lr"],
        "SOLVER.BETAS": optimizer["betas"],
        "SOLVER.WEIGHT_DECAY": optimizer["weight_decay"],
        "SOLVER.CLIP_GRAD_L2NORM": (recipe["clip_grad"] or {}).get("max_norm"),
        "SOLVER.MAX_EPOCH": recipe["max_epochs"],
        "SOLVER.WARMUP_EPOCHS": warmup["end"],
        "SOLVER.WARMUP_START_LR": warmup["start_factor"] * optimizer["lr"],
        "SOLVER.WARMUP_INCLUSIVE": True,
        "SOLVER.COSINE_AFTER_WARMUP": True,
        "SOLVER.COSINE_END_LR": end,
        "TRAIN.BATCH_SIZE": recipe["total_batch"],
        "TRAIN.MIXED_PRECISION": recipe["amp"],
        "DATA.MEAN": [n / 255 for n in pixels["mean"]],
        "DATA.STD": [n / 255 for n in pixels["std"]],
        "DATA_LOADER.DROP_LAST": False,
        "MVIT.DROPPATH_RATE": recipe["model"]["backbone"].get("drop_path_rate", 0.0),
    }


def check_keys(cfg, expected: dict[str, object]) -> None:
    """The keys' values, tuples as lists; numbers but for rounding."""
    ours = dict(flatten(cfg))
    for key, value in expected.items():
        own = list(ours[key]) if isinstance(ours[key], tuple) else ours[key]
        numbers = value if isinstance(value, list) else [value]
        close = all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in numbers)
        assert own == (pytest.approx(value, rel=1e-6) if close else value), key


def check_learning_rates(cfg, entry: dict, tolerance: dict) -> None:
    """At every published point, of every group."""
    plan = plan_run(cfg, entry["iters_per_epoch"] * cfg.TRAIN.BATCH_SIZE, world_size=8)
    assert len(entry["points"]) > 10
    for point in entry["points"]:
        ours = [plan.lr(int(point[0]), scale) for scale in entry["lr_scales_of_columns"]]
        assert ours == pytest.approx(point[2:], rel=tolerance["rtol"], abs=tolerance["atol"]), point


def our_names(theirs: Iterable[str]) -> dict[str, str]:
    """Our name of each of a model's parameters -> theirs, as checkpoints are read; HOG's constants are left out."""
    checkpoint = read_checkpoint({"state_dict": {name: torch.empty(0) for name in theirs}}, "x.pth")
    assert not checkpoint.unread
    if "head.projection.weight" in checkpoint.state:
        for norm in (checkpoint.layout.pooled_norm, checkpoint.layout.token_norm):
            checkpoint.rename(norm or "no norm", "head.norm.")
    return checkpoint.theirs


def check_groups(model: nn.Module, cfg, entry: dict, tolerance: dict) -> None:
    """Learning-rate scale and weight decay of every parameter, by name."""
    names = our_names(entry["params"])
    groups = build_optimizer(model, cfg).param_groups
    ours = {name: [g["lr_scale"], g["weight_decay"]] for g in groups for name in g["names"]}
    assert ours.keys() == names.keys()
    for name, values in ours.items():
        assert values == pytest.approx(entry["params"][names[name]], rel=max(tolerance["rtol"], 1e-6)), name


def check_size(model: nn.Module, counts: dict, shapes: dict[str, list[int]]) -> None:
    """The number of parameters, and each one's name and shape."""
    own = dict(model.named_parameters())
    assert sum(p.numel() for p in own.values()) == counts["total"] == counts["trainable"]
    theirs = {ours: shapes[name] for ours, name in our_names(shapes).items()}
    assert {name: list(p.shape) for name, p in own.items()} == theirs
