"""Video MaskFeat and MViTv2 classification against PySlowFast: outputs, gradients, steps, checkpoints, sizes."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from golden_cases import cases, load_case
from mvit_cases import config_of, recipe
from pyslowfast_checks import check_gradients, check_groups, check_steps

from mfm_core.checkpoint.formats import pyslowfast_name
from mfm_core.checkpoint.init_from import init_from
from mfm_core.config.plan import arch_of
from mfm_core.engine.dry_run import forward_macs
from mfm_core.losses.classification import soft_cross_entropy
from mfm_core.masking.enlarged import enlarge
from mfm_video.models import build_model


def load(folder, model):
    report = init_from(model, str(folder / "weights.pyth"))
    assert not report.missing and not report.other_shape and not report.unused and not report.resampled
    return model


@pytest.mark.parametrize("folder", cases("pyslowfast/maskfeat_mvit_3d"), ids=lambda p: p.name)
def test_maskfeat(folder):
    case, io = load_case(folder)
    tolerance = {k: case["tolerance"][k] for k in ("rtol", "atol")}
    cfg = config_of(case["config"], case["config"]["train_steps"])
    model = load(folder, build_model(cfg))
    backbone = model.backbone
    assert arch_of(cfg) == "mvit"
    assert backbone.embed_grid == tuple(case["config"]["token_grid"])
    assert backbone.grid == tuple(case["config"]["feat_size"])
    assert backbone.patch_stride == tuple(case["config"]["feat_stride"])
    assert model.target.dim == case["config"]["prediction_dim"]
    mask = enlarge(io["in_mask"].bool(), backbone.grid)
    output = model(io["in_input"], mask)

    torch.testing.assert_close(output.mask, io["out_token_mask"].bool())
    torch.testing.assert_close(output.prediction, io["out_pred_all_tokens"], **tolerance)
    torch.testing.assert_close(output.target, io["out_label_all_tokens"], **tolerance)
    torch.testing.assert_close(output.prediction[output.mask], io["out_pred"], **tolerance)
    torch.testing.assert_close(output.target[output.mask], io["out_label"], **tolerance)
    torch.testing.assert_close(output.loss, io["out_loss"], **tolerance)
    hidden = enlarge(io["in_mask"].bool(), backbone.embed_grid).flatten(1)
    first, last = backbone.encode(model.corruption(backbone.embed(io["in_input"]), hidden), [0, backbone.depth - 1])
    torch.testing.assert_close(first[:, 0], io["out_block0_cls"], **tolerance)
    torch.testing.assert_close(last, io["out_last_block"], **tolerance)

    output.loss.backward()
    check_gradients(model, case)
    check_steps(model, cfg, case, io, lambda: model(io["in_input"], mask).loss)


@pytest.mark.parametrize("folder", cases("pyslowfast/mvit_cls_3d"), ids=lambda p: p.name)
def test_classifier(folder):
    case, io = load_case(folder)
    tolerance = {k: case["tolerance"][k] for k in ("rtol", "atol")}
    cfg = config_of(case["config"], case["config"]["train_steps"])
    for readout, mean_pooling in (("mean", True), ("cls", False)):
        cfg.MVIT.USE_MEAN_POOLING = mean_pooling
        check_readout(load(folder, build_model(cfg)).eval(), io, readout, tolerance)

    cfg.MVIT.CLS_EMBED_ON = False
    model = build_model(cfg)
    state = torch.load(folder / "weights.pyth", weights_only=True)["model_state"]
    names = {pyslowfast_name(name): name for name in model.state_dict()}
    model.load_state_dict({names[name]: tensor for name, tensor in state.items() if name != "cls_token"})
    check_readout(model.eval(), io, "nocls", tolerance)

    cfg.MVIT.CLS_EMBED_ON = cfg.MVIT.USE_MEAN_POOLING = True
    model = load(folder, build_model(cfg))
    loss = soft_cross_entropy(model(io["in_input"]), io["in_soft_target"])
    torch.testing.assert_close(loss, io["out_loss"], **tolerance)
    loss.backward()
    check_gradients(model, case)
    check_steps(model, cfg, case, io, lambda: soft_cross_entropy(model(io["in_input"]), io["in_soft_target"]))


def check_readout(model, io, readout, tolerance):
    features = model.head.features(model.encode(io["in_input"]))
    logits = model(io["in_input"])
    torch.testing.assert_close(features, io[f"out_features_{readout}"], **tolerance)
    torch.testing.assert_close(logits, io[f"out_logits_{readout}"], **tolerance)
    torch.testing.assert_close(logits.softmax(dim=1), io[f"out_prob_{readout}"], **tolerance)


@pytest.mark.parametrize("folder", cases("pyslowfast/ckpt_transfer"), ids=lambda p: p.name)
def test_fine_tuning_starts_from_pretraining(folder):
    """What is copied, resampled, kept and ignored; and the numbers that come out."""
    case, io = load_case(folder)
    if case["config"]["finetune"]["patch_2d"]:
        pytest.skip("images")
    model, transfer = build_model(config_of(case["config"]["finetune"])).eval(), case["transfer"]
    report = init_from(model, str(folder / "weights.pyth"))
    assert sorted(map(pyslowfast_name, report.missing)) == sorted(transfer["kept_from_new_model"])
    assert sorted(map(pyslowfast_name, report.resampled)) == sorted(transfer["resampled"])
    constants = [name for name in transfer["ignored_checkpoint_keys"] if name.startswith("hogs.")]
    assert sorted(report.unused + constants) == sorted(transfer["ignored_checkpoint_keys"])
    assert len(report.loaded) == transfer["num_copied"] + len(transfer["resampled"])

    tolerance = {k: case["tolerance"][k] for k in ("rtol", "atol")}
    state = model.state_dict()
    names = {pyslowfast_name(name): name for name in state}
    for name in transfer["resampled"]:
        torch.testing.assert_close(state[names[name]], io[f"out_{name}"], **tolerance)
    for name in transfer["kept_from_new_model"]:
        state[names[name]].copy_(io[f"in_ft_{name}"])
    torch.testing.assert_close(model.head.features(model.encode(io["in_input"])), io["out_features"], **tolerance)
    torch.testing.assert_close(model(io["in_input"]), io["out_logits"], **tolerance)


# ---- full size ----------------------------------------------------------------------------------------------------


def entries(kind: str, section: str | None = None):
    for folder in cases(f"pyslowfast/{kind}"):
        tolerance = json.loads((folder / "case.json").read_text())["tolerance"]
        data = json.loads((folder / "data.json").read_text())
        for name, entry in (data[section] if section else data).items():
            if "MVIT" in name:
                yield pytest.param(name, entry, tolerance, id=name)


def on_meta(name: str):
    """The configuration of a recipe, and its model without content."""
    cfg = recipe(name)
    with torch.device("meta"):
        return cfg, build_model(cfg)


@pytest.mark.parametrize("name, entry, tolerance", entries("schedule", "param_groups"))
def test_parameter_groups(name, entry, tolerance):
    cfg, model = on_meta(name)
    check_groups(model, cfg, entry, tolerance["rtol"])


@pytest.mark.parametrize("name, entry, tolerance", entries("model_stats"))
def test_model_size(name, entry, tolerance):
    cfg, model = on_meta(name)
    backbone = model.backbone
    assert sum(p.numel() for p in model.parameters()) == entry["parameters"]
    assert len(list(model.parameters())) == entry["num_tensors"]
    assert [list(grid) for grid in backbone.grids] == entry["feat_size_per_block"]
    assert list(backbone.embed_grid) == entry["token_grid"]
    assert list(backbone.patch_stride) == entry["final_feat_stride"]
    for plan, expected in zip((block.plan for block in backbone.blocks), entry["blocks"], strict=True):
        got = (plan.dim, plan.out_dim, plan.heads, list(plan.q_stride), list(plan.kv_stride))
        assert got == tuple(expected[key] for key in ("dim", "dim_out", "heads", "q_stride", "kv_stride"))

    clip = torch.empty(1, 3, cfg.DATA.NUM_FRAMES, *[cfg.DATA.TRAIN_CROP_SIZE] * 2, device="meta")
    example = (clip,)
    if cfg.MODEL.MODEL_NAME == "MaskMViT":
        example = (clip, torch.empty(1, *backbone.grid, dtype=torch.bool, device="meta"))
    assert forward_macs(model, example) / 1e9 == pytest.approx(entry["gflops"], rel=tolerance["gflops_rtol"])


@pytest.mark.slow
def test_size_of_large():
    """Published with the paper's recipes: 217.25 M for pre-training at 16x4."""
    _, model = on_meta("k400_MVITv2_L_16x4_MaskFeat_PT")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(217.25, abs=0.005)
    assert model.backbone.grid == (8, 14, 14)
    assert on_meta("k400_MVITv2_L_16x4_FT")[1].backbone.grid == (8, 7, 7)


def test_hidden_tokens_are_hidden_at_the_first_resolution():
    """What lies under the mask has no way into the prediction, and what does not has one."""
    folder = cases("pyslowfast/maskfeat_mvit_3d")[0]
    case, io = load_case(folder)
    model = load(folder, build_model(config_of(case["config"])))
    pixels = io["in_input"].clone()
    mask = torch.zeros(len(pixels), *model.backbone.grid, dtype=torch.bool)
    mask[:, :, 1:3, 1:3] = True
    before = model(pixels, mask).prediction
    # The stem's kernels overlap: hidden tokens see 3 pixels beyond their own, visible ones as many of the hidden.
    _, sh, sw = model.backbone.patch_stride
    pixels[..., sh + 3 : 3 * sh - 3, sw + 3 : 3 * sw - 3] = 0
    torch.testing.assert_close(model(pixels, mask).prediction, before, rtol=0, atol=0)
    pixels[..., sh - 3 :, :] = 0
    assert not torch.allclose(model(pixels, mask).prediction, before)
    assert F.mse_loss(model(pixels, ~mask).prediction, before) > 0
