"""Attention and gradient rollout against MAE-priv: every recorded mask, attention and gradient."""

from __future__ import annotations

import re

import pytest
import torch
from golden_cases import cases, load_case

from mfm_core.config import get_cfg
from mfm_image.models import build_model
from mfm_image.rollout import attention_rollout, before_softmax, gradient_rollout, recomputed_attention


def classifier(case: dict, folder):
    """The case's classifier with its weights; MAE-priv's keys have no bias, which is a bias of zeros."""
    model, cfg = case["config"], get_cfg()
    cfg.MODEL.MODEL_NAME, cfg.MODEL.NUM_CLASSES = "MViT", model["num_classes"]
    cfg.TRAIN.DATASET = cfg.TEST.DATASET = "imagenet"
    cfg.DATA.TRAIN_CROP_SIZE = cfg.DATA.TEST_CROP_SIZE = model["img_size"]
    cfg.MVIT.PATCH_2D, cfg.MVIT.PATCH_PADDING = True, [0, 0]
    cfg.MVIT.PATCH_KERNEL = cfg.MVIT.PATCH_STRIDE = [model["patch_size"]] * 2
    for key in ("embed_dim", "depth", "num_heads", "mlp_ratio"):
        cfg.MVIT[key.upper()] = model[key]
    cfg.MVIT.CLS_EMBED_ON, cfg.MVIT.USE_MEAN_POOLING = model["use_cls_token"], not model["use_cls_token"]
    built = build_model(cfg)
    state = torch.load(folder / "weights.pth", weights_only=True)["model"]
    for name in [n for n in state if n.endswith(".q_bias")]:
        q, v = state.pop(name), state.pop(name.replace("q_bias", "v_bias"))
        state[name.replace("q_bias", "qkv.bias")] = torch.cat([q, torch.zeros_like(q), v])
    names = (("fc_norm.", "head.norm."), ("head.", "head.projection."), ("", "backbone."))
    renamed = {next(new + n[len(old) :] for old, new in names if n.startswith(old)): t for n, t in state.items()}
    built.load_state_dict(renamed)
    return built.eval()


@pytest.fixture(params=cases("mae_priv/rollout"), ids=lambda p: p.name)
def recorded(request):
    """The case, its arrays, and what our model gives: logits, attention, gradients after the softmax."""
    case, io = load_case(request.param)
    model = classifier(case, request.param)
    with recomputed_attention(model.backbone) as attention:
        logits = model(io["in_image"])
        gradient = torch.autograd.grad(logits[:, case["config"]["category_index"]].sum(), attention)
    return case, io, logits.detach(), [a.detach() for a in attention], list(gradient)


def test_attention_and_gradients(recorded):
    case, io, logits, attention, gradient = recorded
    torch.testing.assert_close(logits, io["out_logits"], **case["tolerance"])
    torch.testing.assert_close(torch.cat(attention), io["out_attn"], **case["tolerance"])
    captured = torch.cat([before_softmax(a, g) for a, g in zip(attention, gradient)]).flip(0)
    torch.testing.assert_close(captured, io["out_captured_grads"], rtol=1e-3, atol=1e-3 * float(captured.std()))


def test_masks(recorded):
    case, io, _, attention, gradient = recorded
    seen = 0
    for name, expected in io.items():
        if found := re.fullmatch(r"out_mask_(\w+?)_([\d.]+?)(?:_layer(\d+))?", name):
            fusion, share, layer = found[1], float(found[2]), found[3]
            chosen = attention if layer is None else [attention[int(layer)]]
            ours = attention_rollout(chosen, 1, pooled=False, fusion=fusion, discard=share, published=True)
        elif found := re.fullmatch(r"out_grad_mask_([\d.]+?)(_second_call)?", name):
            times = 2 if found[2] else 1  # the lists that are never cleared
            share = float(found[1])
            ours = gradient_rollout(attention * times, gradient * times, 1, False, share, published=True)
        else:
            continue
        torch.testing.assert_close(ours.view_as(expected), expected, **case["tolerance"], msg=lambda m, n=name: n + m)
        seen += 1
    masks = len(case["config"]["head_fusions"]) * len(case["config"]["discard_ratios"])
    assert seen >= masks + len(case["config"]["discard_ratios"])


def test_the_default_is_not_the_published_arithmetic(recorded):
    """Where nothing is dropped and rows sum to one the two agree; fused by the maximum they must not."""
    _, io, _, attention, gradient = recorded
    mean = attention_rollout(attention, 1, pooled=False)
    torch.testing.assert_close(mean.view_as(io["out_mask_mean_0.0"]), io["out_mask_mean_0.0"], rtol=1e-3, atol=2e-5)
    for ours, theirs in (
        (attention_rollout(attention, 1, False, "max"), io["out_mask_max_0.0"]),
        (gradient_rollout(attention, gradient, 1, False), io["out_grad_mask_0.0"]),
    ):
        assert (ours.view_as(theirs) - theirs).abs().max() > 1e-3
