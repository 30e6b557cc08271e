"""MAE against BUPT-PRIV/MAE-priv: with and without class token, its counts, positions, targets, losses and sizes."""

from __future__ import annotations

import re

import pytest
import torch
from autoencoders import (
    MAE_PRIV,
    autoencoder_config,
    decay_of,
    encoded,
    load,
    mask_from,
    meta_model,
    our_name,
    parameters,
)
from golden_cases import cases, load_case

from mfm_core.losses.masked import MaskedMSE
from mfm_core.masking.random import hidden_tokens
from mfm_core.optim.build import build_optimizer
from mfm_core.targets.pixel import PixelTarget
from mfm_image.models import build_model

PRIV = {
    "method": "mae",
    "key_bias": False,
    "first": "row",
    "count": "hidden",
    "decoder_cls_token": False,
    "order": "chw",
    "variance": "biased",
}
SIZES = {"small": "S", "base": "B", "large": "L", "huge": "H"}
FOLDERS = cases("mae_priv/pretrain_gap") + cases("mae_priv/pretrain_cls")


def config_of(model: dict):
    """The configuration of a case's model."""
    return autoencoder_config(
        **PRIV,
        image=model["img_size"],
        patch=model["patch_size"],
        width=model["encoder_embed_dim"],
        depth=model["encoder_depth"],
        heads=model["encoder_num_heads"],
        mlp_ratio=model["mlp_ratio"],
        cls_token=model["use_cls_token"],
        decoder_width=model["decoder_embed_dim"],
        decoder_depth=model["decoder_depth"],
        decoder_heads=model["decoder_num_heads"] or 0,
        ratio=model["mask_ratio"],
    )


@pytest.mark.parametrize("shuffle", ["batched", "unbatched"])
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_pretraining(folder, shuffle):
    case, io = load_case(folder)
    close = {k: case["tolerance"][k] for k in ("rtol", "atol")}
    suffix = "" if shuffle == "batched" else "_unbatched"
    model = load(build_model(config_of(case["config"])), folder / "weights.pth", MAE_PRIV)
    images, noise = io["in_image"], io["in_noise"]
    noise = noise[:1].expand_as(noise) if shuffle == "batched" else noise
    mask = mask_from(noise, model)

    order = io[f"out_shuffle{suffix}"]
    keep = order[:, : model.num_visible]
    hidden = torch.zeros_like(mask.flatten(1)).scatter_(1, order[:, model.num_visible :], True)
    assert torch.equal(mask.flatten(1), hidden)
    tokens = encoded(model, images, keep)[-1][:, model.backbone.num_prefix_tokens :]
    torch.testing.assert_close(model.head.encoder_norm(tokens), io[f"out_encoded{suffix}"], **close)

    output = model(images, mask)
    torch.testing.assert_close(output.loss, io[f"out_loss{suffix}"], **close)
    raw = PixelTarget(model.backbone.patch_stride, "chw", "none")(images)
    raw_loss = MaskedMSE()(output.prediction, raw, output.mask)
    torch.testing.assert_close(raw_loss, io[f"out_loss_raw{suffix}"], **close)
    torch.testing.assert_close(raw[0], io["out_target_raw_image0"], **close)
    torch.testing.assert_close(output.target[0], io["out_target_norm_image0"], **close)
    if shuffle == "batched":
        torch.testing.assert_close(output.prediction, io["out_pred"], **close)
        for target, name in ((output.target, "out_patch_loss"), (raw, "out_patch_loss_raw")):
            losses = (output.prediction - target).square().mean(dim=-1)
            torch.testing.assert_close(losses, io[name], **close)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_positions_are_theirs_without_loading(folder):
    case, io = load_case(folder)
    model = build_model(config_of(case["config"]))
    torch.testing.assert_close(model.backbone.pos_embed.data, io["out_encoder_pos_embed"], rtol=0, atol=1e-5)
    torch.testing.assert_close(model.head.pos_embed.data, io["out_decoder_pos_embed"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_mask_sizes(folder):
    case, _ = load_case(folder)
    for tokens, ratio, masked, visible in case["mask_sizes"]:
        assert hidden_tokens(tokens, ratio, "hidden") == masked == tokens - visible, (tokens, ratio)


def stats():
    for folder in cases("mae_priv/model_stats"):
        for name, entry in load_case(folder)[0]["outputs"].items():
            if name.startswith("pretrain_"):
                yield pytest.param(name, entry, id=name)


def full_size(name: str):
    """The configuration of pretrain_mae_<size>_patch<n>_<image>/decoder_dim=…,…"""
    size, patch, image = re.match(r"pretrain_mae_(\w+)_patch(\d+)_(\d+)", name).groups()
    options = dict(pair.split("=") for pair in name.split("/")[1].split(","))
    heads = options["decoder_num_heads"]
    return autoencoder_config(
        **PRIV,
        image=int(image),
        patch=int(patch),
        size=SIZES[size],
        cls_token=options["use_cls_token"] == "True",
        decoder_width=int(options["decoder_dim"]),
        decoder_depth=int(options["decoder_depth"]),
        decoder_heads=0 if heads == "None" else int(heads),
        ratio=0.75,
    )


@pytest.mark.parametrize("name, entry", stats())
def test_model_size(name, entry):
    model = meta_model(full_size(name))
    total, trained = parameters(model)
    assert trained == entry["trainable"] == entry["parameters"]
    assert total - trained == entry["buffers"]
    assert model.head.blocks[0].attn.num_heads == entry["decoder_heads"]
    parts = entry["by_top_level_name"]
    own = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    encoder = sum(n for name, n in own.items() if name.startswith(("backbone.", "head.encoder_norm.")))
    assert encoder == parts["encoder"] == entry["encoder_only"]
    assert sum(n for name, n in own.items() if name.startswith("head.embed.")) == parts["encoder_to_decoder"]
    assert own["head.mask_token"] == parts["mask_token"]


@pytest.mark.parametrize("folder", cases("mae_priv/recipes"), ids=lambda p: p.name)
def test_weight_decay_of_pretraining(folder):
    case, _ = load_case(folder)
    expected = case["optimizers"]["pretrain"]["param_lr_scale_and_weight_decay"]
    args = case["recipes"][case["optimizers"]["pretrain"]["config"]]["args"]
    cfg = full_size(
        f"{args['model']}/decoder_dim={args['decoder_dim']},decoder_depth={args['decoder_depth']},"
        f"decoder_num_heads={args['decoder_num_heads']},use_cls_token={args['use_cls_token']}"
    )
    cfg.SOLVER.OPTIMIZING_METHOD, cfg.SOLVER.WEIGHT_DECAY = "adamw", args["weight_decay"]
    cfg.SOLVER.ZERO_WD_1D_PARAM, cfg.MVIT.ZERO_DECAY_POS_CLS, cfg.SOLVER.NO_DECAY = True, False, ["mask_token"]
    model = meta_model(cfg)
    found = decay_of(build_optimizer(model, cfg), dict(model.named_parameters()))
    assert found == {our_name(name, MAE_PRIV): tuple(pair) for name, pair in expected.items()}
