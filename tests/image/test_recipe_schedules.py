"""Learning rates and parameter groups of the recipe files, step by step and name by name as the golden cases have them.

Those of fine-tuning and of probes are, where a case has them for one file, in the tests of these recipes.
"""

from __future__ import annotations

import json
from functools import partial

import pytest
from autoencoders import MAE, MAE_PRIV, MMPRETRAIN, our_name
from golden_cases import cases, load_case
from parameter_groups import assert_same_groups, groups_of
from parameter_groups import our_name as classifier_name
from paths import CONFIGS
from recipe_files import each, only_if

from mfm_core.config import load_config, plan_run, schedule_of
from mfm_core.config.plan import IMAGENET_TRAIN_IMAGES


def close(case, expected):
    return pytest.approx(expected, rel=case["tolerance"]["rtol"], abs=case["tolerance"]["atol"])


def plan_of(path):
    return plan_run(load_config(str(path)), IMAGENET_TRAIN_IMAGES, world_size=8)


# ---- learning rates --------------------------------------------------------------------------------------------------


def check_epochs(folder, path, name: str) -> None:
    """At the fractional epochs of a schedule of MAE's."""
    case, io = load_case(folder)
    if name not in case["outputs"]["schedules"]:
        pytest.skip("not this schedule")
    entry, plan = case["outputs"]["schedules"][name], plan_of(path)
    schedule, args = plan.schedule, entry["args"]
    theirs = (args["epochs"], args["warmup_epochs"], entry["effective_batch"], args["lr"])
    only_if((plan.epochs, schedule.warmup_epochs, plan.batch_size, schedule.base) == pytest.approx(theirs), folder)
    ours = [schedule(epoch) for epoch in io[f"in_epochs_{name}"].tolist()]
    assert ours == close(case, io[f"out_lr_{name}"].tolist())


@each("mae/layer_decay", "mae/in1k_VIT_?_1?_PT_800e")
def test_mae_pretraining(folder, path):
    check_epochs(folder, path, "pretrain_vit_large")


@each("mae/layer_decay", "mae/in1k_VIT_B_MAE_FT")
def test_mae_finetuning(folder, path):
    check_epochs(folder, path, "finetune_vit_base")


@each("mae/layer_decay", "probe/mae_VIT_B")
def test_mae_probe(folder, path):
    check_epochs(folder, path, "linprobe_vit_base")


@each("mae_priv/recipes", "mae/priv_VIT_?_*_PT_*")
def test_mae_priv_pretraining(folder, path):
    """By the number of epochs: size, class token and target change no learning rate."""
    case, _ = load_case(folder)
    plan = plan_of(path)
    same = [
        entry["effective"]
        for entry in case["recipes"].values()
        if (entry["tool"], entry["args"]["epochs"], entry["args"]["warmup_epochs"])
        == ("pretrain", plan.epochs, plan.schedule.warmup_epochs)
    ]
    only_if(bool(same), folder)
    assert same
    for run in same:
        assert plan.steps_per_epoch == run["iterations_per_epoch_imagenet1k"]
        assert [plan.lr(step) for step in run["schedule_iterations"]] == close(case, run["schedule_lr"])


@each("mmpretrain/layer_decay", "mff/in1k_VIT_?_MFF_PT_*")
def test_mff_pretraining(folder, path):
    case, _ = load_case(folder)
    entry, plan = case["schedules"].get(f"mff_pt_{path.stem.split('_')[-1]}"), plan_of(path)
    if entry is None:
        pytest.skip("not this recipe")
    only_if((plan.epochs, plan.batch_size) == (entry["max_epochs"], entry["total_batch"]), folder)
    assert plan.steps_per_epoch == entry["iters_per_epoch"]
    assert [plan.lr(int(step)) for step, _, _ in entry["points"]] == close(case, [lr for _, _, lr in entry["points"]])


@each("mfm_official/schedule", "mfm/*_pretrain__*")
def test_mfm_pretraining(folder, path):
    """Of all corruptions and backbones: one step late."""
    case, io = load_case(folder)
    plan = plan_of(path)
    for name, run in case["config"]["runs"].items():
        if name.startswith("mfm_pretrain__") and run["accumulation_steps"] == 1:
            only_if((plan.epochs, plan.files) == (run["epochs"], run["images"]), folder)
            assert plan.steps_per_epoch == run["iterations_per_epoch"]
            ours = [plan.lr(step) for step in io[f"in_{name}_iteration"].tolist()]
            assert ours == close(case, io[f"out_{name}_lr_used_in_iteration"].flatten().tolist())


@each("mfm_coincheung/recipes", "mfm/coincheung__*")
def test_coincheung_pretraining(folder, path):
    """Once per epoch."""
    case, io = load_case(folder)
    plan = plan_of(path)
    only_if(plan.epochs == case["config"]["pretrain"]["arguments"]["epochs"], folder)
    ours = [plan.lr(epoch * plan.steps_per_epoch + epoch % 7) for epoch in range(plan.epochs)]
    assert ours == close(case, io["out_pretrain_lr_by_epoch"].tolist())


def pyslowfast():
    for folder in cases("pyslowfast/schedule"):
        for name, entry in json.loads((folder / "data.json").read_text())["lr"].items():
            recipe = CONFIGS / "masked_ssl" / f"{name.split('__')[0]}.yaml"
            if recipe.exists():
                yield pytest.param(folder, recipe, entry, id=name)


@pytest.mark.parametrize(("folder", "path", "entry"), pyslowfast())
def test_pyslowfast(folder, path, entry):
    """On one machine and on several, by which all rates are multiplied."""
    case, schedule = load_case(folder)[0], schedule_of(load_config(str(path)), entry["num_shards"])
    only_if(schedule.max_epoch == entry["max_epoch"], folder)
    assert [schedule(epoch) for epoch in entry["epoch"]] == close(case, entry["lr"])


# ---- parameter groups ------------------------------------------------------------------------------------------------


@each("mae/layer_decay", "mae/in1k_VIT_B_16_PT_*")
def test_groups_of_mae_pretraining(folder, path):
    case = load_case(folder)[0]
    only_if(case["config"]["pretrain_model"] == "mae_vit_base_patch16", folder)
    decays = case["outputs"]["pretrain_weight_decay"]
    trained = {name: [1.0, decay] for name, decay in decays.items() if decay != "frozen"}
    assert_same_groups(load_config(str(path)), trained, rename=partial(our_name, table=MAE))


@each("mae/layer_decay", "mae/in1k_VIT_B_MAE_FT")
def test_groups_of_mae_finetuning(folder, path):
    case, cfg = load_case(folder)[0], load_config(str(path))
    theirs = (case["config"]["model"], case["config"]["layer_decay"])
    only_if(theirs == ("vit_base_patch16", cfg.SOLVER.LAYER_DECAY), folder)
    assert_same_groups(cfg, case["outputs"]["param_lr_scale_and_weight_decay"])


def priv_groups(folder, stage: str) -> dict[str, list[float]]:
    case = load_case(folder)[0]
    entry = case["optimizers"][stage]
    args = case["recipes"][entry["config"]]["args"]
    only_if("_small_patch16" in args["model"] and not args["use_cls_token"], folder)
    return entry["param_lr_scale_and_weight_decay"]


@each("mae_priv/recipes", "mae/priv_VIT_S_GAP_PT_*")
def test_groups_of_mae_priv_pretraining(folder, path):
    expected = priv_groups(folder, "pretrain")
    assert_same_groups(load_config(str(path)), expected, rename=partial(our_name, table=MAE_PRIV))


@each("mae_priv/recipes", "mae/in1k_VIT_S_MAEpriv_GAP_*FT")
def test_groups_of_mae_priv_finetuning(folder, path):
    rename = partial(classifier_name, joined=False)
    assert_same_groups(load_config(str(path)), priv_groups(folder, "finetune"), rename=rename)


def mm_groups(folder, name: str) -> dict[str, list[float]]:
    entry = load_case(folder)[0]["groups"].get(name)
    if entry is None:
        pytest.skip("not this recipe")
    return entry["params"]


@each("mmpretrain/layer_decay", "mff/in1k_VIT_B_MFF_PT_*")
def test_groups_of_mff_pretraining(folder, path):
    expected = mm_groups(folder, "mff_pt_300e")
    assert_same_groups(load_config(str(path)), expected, rename=partial(our_name, table=MMPRETRAIN))


@each("mmpretrain/layer_decay", "mff/in1k_VIT_B_MFF_FT")
def test_groups_of_mff_finetuning(folder, path):
    assert_same_groups(load_config(str(path)), mm_groups(folder, "mff_ft_100e"))


def sums(groups: list[dict], count) -> dict[tuple[float, float], tuple]:
    return {(round(group["lr_scale"], 8), group["weight_decay"]): count(group) for group in groups}


@pytest.mark.parametrize(("size", "name"), [("B", "vit_base"), ("S", "vit_small")])
@pytest.mark.parametrize("folder", cases("mfm_official/recipes"), ids=lambda p: p.name)
def test_groups_of_mfm_finetuning(folder, size, name):
    entry = load_case(folder)[0]["config"]["optimizer_groups"].get(f"finetune__{name}")
    if entry is None:
        pytest.skip("not this recipe")
    groups = groups_of(load_config(str(CONFIGS / "mfm" / f"in1k_VIT_{size}_MFM_FT.yaml")))
    ours = sums(groups, lambda group: sum(p.numel() for p in group["params"]))
    assert ours == sums(entry["groups"], lambda group: group["n_params"])
    assert {(tuple(g["betas"]), g["eps"]) for g in groups} == {(tuple(g["betas"]), g["eps"]) for g in entry["groups"]}


@each("mfm_coincheung/recipes", "mfm/in1k_R50_MFM_100e_FT")
def test_groups_of_coincheung_finetuning(folder, path):
    (group,) = groups_of(load_config(str(path)))
    (expected,) = load_case(folder)[0]["config"]["finetune"]["param_groups"]
    assert len(group["params"]) == expected["n_tensors"] and group["weight_decay"] == expected["weight_decay"]
    assert sum(p.numel() for p in group["params"]) == expected["n_params"]
