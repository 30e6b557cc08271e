"""Learning rates, parameter groups, model sizes and mask statistics of PySlowFast's image recipes."""

from __future__ import annotations

import json

import pytest
import torch
from golden_cases import cases
from paths import CONFIGS
from pyslowfast_checks import check_groups

from mfm_core.config import load_config, plan_run
from mfm_core.engine.dry_run import describe_run
from mfm_core.masking.block import BlockMask
from mfm_core.optim.schedule import LRSchedule
from mfm_image.models import build_model, example_input


def data_of(kind: str) -> list[tuple[str, dict, dict]]:
    """(name, entry, tolerance) of a kind of case whose entries lie in data.json."""
    found = []
    for folder in cases(f"pyslowfast/{kind}"):
        tolerance = json.loads((folder / "case.json").read_text())["tolerance"]
        found.append((json.loads((folder / "data.json").read_text()), tolerance))
    return found


def entries(kind: str, section: str | None = None):
    for data, tolerance in data_of(kind):
        for name, entry in (data[section] if section else data).items():
            yield pytest.param(name, entry, tolerance, id=name)


@pytest.mark.parametrize("name, entry, tolerance", entries("schedule", "lr"))
def test_learning_rate(name, entry, tolerance):
    schedule = LRSchedule(
        base=entry["base_lr"],
        end=entry["end_lr"],
        warmup_start=entry["warmup_start_lr"],
        warmup_epochs=entry["warmup_epochs"],
        max_epoch=entry["max_epoch"],
        policy=entry["policy"],
        cosine_after_warmup=entry["cosine_starts_after_warmup"],
    )
    for epoch, lr in zip(entry["epoch"], entry["lr"]):
        assert schedule(epoch) == pytest.approx(lr, rel=tolerance["rtol"], abs=tolerance["atol"])


def image_recipe(name: str):
    """The configuration of a recipe and its model on the meta device; skips what is not about images."""
    path = CONFIGS / "masked_ssl" / f"{name}.yaml"
    if not name.startswith("in1k_"):
        pytest.skip("not an image recipe")
    cfg = load_config(str(path))
    with torch.device("meta"):
        return cfg, build_model(cfg)


@pytest.mark.parametrize("name, entry, tolerance", entries("schedule", "param_groups"))
def test_parameter_groups(name, entry, tolerance):
    cfg, model = image_recipe(name)
    check_groups(model, cfg, entry, tolerance["rtol"])


@pytest.mark.parametrize("name, entry, tolerance", entries("model_stats"))
def test_model_size(name, entry, tolerance):
    cfg, model = image_recipe(name)
    plan = plan_run(cfg, files=1_281_167, world_size=1)
    description = describe_run(model, example_input(cfg, model.backbone.grid), cfg, plan, "fp32", "cuda")
    assert description.parameters == entry["parameters"]
    assert (1, *model.backbone.grid) == tuple(entry["token_grid"])
    assert description.macs / 1e9 == pytest.approx(entry["gflops"], rel=tolerance["gflops_rtol"])


@pytest.mark.parametrize("name, entry, tolerance", entries("masks"))
def test_mask_statistics(name, entry, tolerance):
    if entry["kind"] != "2d blocks":
        pytest.skip("not an image mask")
    masker = BlockMask(tuple(entry["window"]), entry["ratio"])
    assert masker.requested == entry["requested"]
    generator = torch.Generator().manual_seed(0)
    masks = torch.stack([masker(generator) for _ in range(entry["draws"])]).float()
    share = masks.flatten(1).mean(dim=1)
    # Both means are estimates of the same length, so their difference has sqrt(2) standard errors.
    error = entry["standard_error_of_mean_fraction"] * 2**0.5
    assert float(share.mean()) == pytest.approx(entry["masked_fraction"]["mean"], abs=4 * error)
    assert float(share.max()) <= entry["requested"] / masks[0].numel() + 1e-6
    full = (masks.flatten(1).sum(dim=1) == entry["requested"]).float().mean()
    assert float(full) == pytest.approx(entry["masked_count"]["fraction_of_draws_reaching_requested"], abs=0.04)
    expected = torch.tensor(entry["probability_map"])
    torch.testing.assert_close(masks.mean(dim=0), expected, atol=0.04, rtol=0)
