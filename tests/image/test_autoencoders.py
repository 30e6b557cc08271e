"""What every masked autoencoder promises: it sees no hidden pixel, learns, compiles, and combines with any target."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from autoencoders import autoencoder_config, encoded
from torch import nn

from mfm_core.config import get_cfg
from mfm_core.errors import UserError
from mfm_core.interfaces import Batch
from mfm_core.methods.parts import masks_from_cfg
from mfm_core.nn.attention import Attention, KeylessBiasAttention
from mfm_core.optim.build import build_optimizer, follow
from mfm_core.targets.pixel import PixelTarget
from mfm_image.models import build_model

CURVES = json.loads((Path(__file__).parent / "loss_curves.json").read_text())
"""Losses of 20 steps on a fixed batch, recorded when these methods passed the golden cases."""


def config(method="mae", **changes):
    small = {"image": 64, "patch": 16, "width": 48, "depth": 3, "heads": 3, "ratio": 0.75}
    decoder = {"decoder_width": 32, "decoder_depth": 2, "decoder_heads": 4}
    layers = {"layers": [0, 1]} if method == "mff" else {}
    return autoencoder_config(method=method, **{**small, **decoder, **layers, **changes})


def model_and_batch(cfg, images=4, seed=0):
    """The model, pictures, and the masks that the loader would draw."""
    torch.manual_seed(seed)
    model = build_model(cfg)
    side = cfg.DATA.TRAIN_CROP_SIZE
    pictures = nn.functional.interpolate(torch.randn(images, 3, 8, 8), size=(side, side), mode="bicubic")
    masker, generator = masks_from_cfg(cfg, model.backbone.grid), torch.Generator().manual_seed(seed)
    return model, pictures, torch.stack([masker(generator, picture) for picture in pictures])


def over_pixels(mask, patch):
    """(B, h, w) over tokens to (B, 1, H, W) over pixels."""
    return mask.repeat_interleave(patch, dim=1).repeat_interleave(patch, dim=2)[:, None]


@pytest.mark.parametrize("masks", ["random", "block"])
@pytest.mark.parametrize("cls_token", [True, False])
@pytest.mark.parametrize("method", ["mae", "mff"])
def test_hidden_pixels_are_never_seen(method, cls_token, masks):
    cfg = config(method, cls_token=cls_token)
    cfg.AUG.MASK_TYPE = masks
    model, images, mask = model_and_batch(cfg)
    hidden = over_pixels(mask, 16)
    first = model(images, mask)
    assert (first.mask.sum(dim=1) == 16 - model.num_visible).all()
    other = model(torch.where(hidden, torch.randn_like(images), images), mask)
    assert torch.equal(first.prediction, other.prediction)
    assert not torch.equal(first.target, other.target)
    seen = model(torch.where(hidden, images, torch.randn_like(images)), mask)
    assert not torch.allclose(first.prediction, seen.prediction, atol=1e-3)


def test_the_encoder_gets_the_visible_tokens_only():
    model, images, mask = model_and_batch(config())
    shapes = []
    model.backbone.blocks[0].register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape)))
    model.head.blocks[0].register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape)))
    model(images, mask)
    assert shapes == [(4, 1 + 4, 48), (4, 1 + 16, 32)]


def test_tokens_return_to_their_places():
    """With no blocks in between, a visible place depends on its own token, and a hidden one on none."""
    model, _, mask = model_and_batch(config())
    model.head.blocks = nn.ModuleList()
    keep = (~mask.flatten(1)).nonzero()[:, 1].reshape(4, -1)
    tokens = torch.randn(4, 1 + keep.shape[1], 48)
    before, changed = model.head(tokens, keep), tokens.clone()
    changed[:, 2] = torch.randn(48)
    moved = (model.head(changed, keep) - before).abs().amax(dim=-1) > 1e-6
    assert moved.nonzero().tolist() == [[i, int(keep[i, 1])] for i in range(4)]


@pytest.mark.parametrize("method", ["mae", "mff"])
def test_twenty_steps_follow_the_recorded_curve(method):
    losses = twenty_steps(method)
    assert losses[-1] < 0.95  # 1 is what the mean of each patch gives
    assert losses == pytest.approx(CURVES[method], rel=2e-3)


def twenty_steps(method):
    cfg = config(method)
    cfg.SOLVER.OPTIMIZING_METHOD, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.BETAS = "adamw", 0.05, (0.9, 0.95)
    model, images, mask = model_and_batch(cfg)
    optimizer = build_optimizer(model, cfg)
    follow(optimizer, lambda scale: scale * 5e-3)
    losses = []
    for _ in range(20):
        loss = model(images, mask).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("masks", ["random", "block"])
@pytest.mark.parametrize("target", ["hog", "pixel"])
@pytest.mark.parametrize("method", ["maskfeat", "mae", "mff"])
def test_any_target_and_mask_combine(method, target, masks):
    cfg = config(method)
    cfg.MASK.TARGET, cfg.AUG.MASK_TYPE, cfg.MASK.PRETRAIN_DEPTH = target, masks, [2]
    model, images, mask = model_and_batch(cfg)
    output = model(images, mask)
    assert output.prediction.shape == output.target.shape == (4, 16, {"hog": 108, "pixel": 768}[target])
    per_token = (output.prediction - output.target).square().mean(dim=-1)
    torch.testing.assert_close(output.loss, per_token[mask.flatten(1)].mean())
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    batch = Batch(images, torch.zeros(4), mask, torch.arange(4))
    assert float(model.weight(batch.mask)) == mask.sum()


@pytest.mark.parametrize("method", ["mae", "mff"])
def test_one_graph(method):
    model, images, mask = model_and_batch(config(method))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images, mask).loss, model(images, mask).loss)


@pytest.mark.parametrize("key_bias", [True, False])
@pytest.mark.parametrize("method", ["mae", "mff"])
def test_bf16_is_close(method, key_bias):
    model, images, mask = model_and_batch(config(method, key_bias=key_bias))
    expected = model(images, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(images, mask)
    output.loss.backward()
    assert output.prediction.dtype == output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=1e-2)
    assert model.head.mask_token.grad.isfinite().all() and model.head.mask_token.grad.abs().max() > 0


def test_checkpointed_activations_change_nothing():
    gradients = []
    for on in (False, True):
        cfg = config()
        cfg.MODEL.ACT_CHECKPOINT = on
        model, images, mask = model_and_batch(cfg)
        model(images, mask).loss.backward()
        gradients.append(nn.utils.parameters_to_vector([p.grad for p in model.parameters() if p.requires_grad]))
    assert torch.equal(*gradients)


def test_fusion_starts_even_and_feels_its_gradient():
    model, images, mask = model_and_batch(config("mff"))
    assert [round(float(w), 6) for w in model.metrics().values()] == [round(1 / 3, 6)] * 3
    keep = (~mask.flatten(1)).nonzero()[:, 1].reshape(4, -1)
    first, second, last = features = encoded(model, images, keep)
    expected = (model.neck.proj_layers[0](first) + model.neck.proj_layers[1](second) + last) / 3
    torch.testing.assert_close(model.neck(features), expected)
    model(images, mask).loss.backward()
    assert model.neck.proj_weights.grad.abs().min() > 0
    assert not any(value.requires_grad for value in model.metrics().values())


def test_keyless_bias_is_a_key_bias_of_zero():
    torch.manual_seed(0)
    ours, full = KeylessBiasAttention(48, 3, qkv_bias=True), Attention(48, 3, qkv_bias=True)
    nn.init.normal_(ours.q_bias)
    nn.init.normal_(ours.v_bias)
    assert [name for name, _ in ours.named_parameters()][:3] == ["q_bias", "v_bias", "qkv.weight"]
    state = {k: v for k, v in ours.state_dict().items() if k not in ("q_bias", "v_bias")}
    full.load_state_dict({**state, "qkv.bias": torch.cat([ours.q_bias, torch.zeros(48), ours.v_bias])})
    x = torch.randn(2, 7, 48)
    torch.testing.assert_close(ours(x), full(x))
    with torch.no_grad():  # and a bias on the keys changes nothing
        full.qkv.bias[48:96] = 3.0
    torch.testing.assert_close(ours(x), full(x), rtol=1e-4, atol=1e-5)
    assert {n for n, _ in KeylessBiasAttention(48, 3).named_parameters()} == {"qkv.weight", "proj.weight", "proj.bias"}


def test_weights_start_as_in_mae():
    torch.manual_seed(0)
    model = build_model(config(width=192, decoder_width=64))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            bound = math.sqrt(6 / (module.in_features + module.out_features))
            assert 0.95 * bound < module.weight.abs().max() <= bound and not module.bias.any(), name
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all() and not module.bias.any(), name
    patches = model.backbone.patch_embed.proj.weight
    assert 0.95 < patches.abs().max() / math.sqrt(6 / (192 + 768)) <= 1
    for token in (model.backbone.cls_token, model.head.mask_token):
        assert 0.012 < token.std() < 0.028


@pytest.mark.parametrize("normalise", ["none", "unbiased", "biased"])
@pytest.mark.parametrize("order", ["hwc", "chw"])
def test_pixel_targets_become_the_image_again(order, normalise):
    images = torch.randn(2, 3, 32, 48)
    target = PixelTarget((16, 16), order, normalise)
    tokens = target(images)
    assert tokens.shape == (2, 6, target.dim) and tokens.dtype == torch.float32
    torch.testing.assert_close(target.to_images(tokens, images), images, rtol=1e-4, atol=1e-4)
    if normalise != "none":
        torch.testing.assert_close(tokens.mean(dim=-1), torch.zeros(2, 6), rtol=0, atol=1e-5)
        torch.testing.assert_close(tokens.var(dim=-1, correction=int(normalise == "unbiased")), torch.ones(2, 6))


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("AUG.MASK_RATIO", 0.01, None),
        ("AUG.MASK_RATIO", 0.97, "AUG.MASK_RATIO"),
        ("MASK.DECODER_EMBED_DIM", 30, "MASK.DECODER_EMBED_DIM"),
        ("MASK.DECODER_NUM_HEADS", 5, "MASK.DECODER_NUM_HEADS"),
        ("MASK.PRETRAIN_DEPTH", [1], "MASK.PRETRAIN_DEPTH"),
        ("MFF.LAYERS", [1, 0], "MFF.LAYERS"),
        ("MFF.LAYERS", [0, 2], "MFF.LAYERS"),
        ("MVIT.PATCH_KERNEL", [24, 24], "MVIT.PATCH_KERNEL"),
    ],
)
def test_what_cannot_be_built_is_refused(key, value, part):
    cfg = config("mff")
    section, leaf = key.split(".")
    cfg[section][leaf] = value
    if leaf == "PATCH_KERNEL":
        cfg.MVIT.PATCH_PADDING = [4, 4]
    if part is None:
        build_model(cfg)
        return
    with pytest.raises(UserError, match=part) as error:
        build_model(cfg)
    assert "\n" not in str(error.value)


def test_defaults_of_pyslowfast_mean_mae():
    """MASK.MAE_ON with HEAD_TYPE separate_xformer, as its files have it."""
    cfg = config()
    cfg.MASK.METHOD, cfg.MASK.MAE_ON, cfg.MASK.HEAD_TYPE, cfg.MASK.MAE_RND_MASK = "", True, "separate_xformer", True
    cfg.MASK.PRETRAIN_DEPTH = [2]
    assert get_cfg().MASK.NORM_PRED_PIXEL
    model = build_model(cfg)
    assert type(model).__name__ == "MaskedAutoencoder" and model.target.normalise == "unbiased"
