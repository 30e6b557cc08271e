"""MAE against facebookresearch/mae: masks, latent, prediction, losses, patches, positions, sizes, weight decay."""

from __future__ import annotations

import pytest
import torch
from autoencoders import MAE, autoencoder_config, decay_of, encoded, load, mask_from, meta_model, our_name, parameters
from golden_cases import cases, load_case

from mfm_core.losses.masked import MaskedMSE
from mfm_core.masking.random import hidden_tokens
from mfm_core.nn.patchify import patchify, unpatchify
from mfm_core.nn.pos_embed import sincos_2d
from mfm_core.optim.build import build_optimizer
from mfm_core.targets.pixel import PixelTarget
from mfm_image.models import build_model

SIZES = {"base": "B", "large": "L", "huge": "H"}


def config_of(model: dict):
    """The configuration of a case's model."""
    return autoencoder_config(
        method="mae",
        image=model["img_size"],
        patch=model["patch_size"],
        width=model["embed_dim"],
        depth=model["depth"],
        heads=model["num_heads"],
        mlp_ratio=model["mlp_ratio"],
        decoder_width=model["decoder_embed_dim"],
        decoder_depth=model["decoder_depth"],
        decoder_heads=model["decoder_num_heads"],
        ratio=model["mask_ratio"],
    )


@pytest.mark.parametrize("folder", cases("mae/pretrain"), ids=lambda p: p.name)
def test_pretraining(folder):
    case, io = load_case(folder)
    close = {k: case["tolerance"][k] for k in ("rtol", "atol")}
    model = load(build_model(config_of(case["config"])), folder / "weights.pth", MAE)
    images, noise = io["in_image"], io["in_noise"]
    mask = mask_from(noise, model)
    assert torch.equal(mask.flatten(1), io["out_mask"].bool())

    order = io["out_ids_restore"].argsort(dim=1)
    keep = order[:, : model.num_visible]
    latent = model.head.encoder_norm(encoded(model, images, keep)[-1])
    torch.testing.assert_close(latent, io["out_latent"], **close)

    output = model(images, mask)
    torch.testing.assert_close(output.prediction, io["out_pred"], **close)
    torch.testing.assert_close(output.loss, io["out_loss_norm_pix"], **close)
    assert torch.equal(output.mask, mask.flatten(1))
    for normalise, suffix in (("none", ""), ("unbiased", "_norm_pix")):
        target = PixelTarget(model.backbone.patch_stride, "hwc", normalise)(images)
        torch.testing.assert_close(
            MaskedMSE()(output.prediction, target, output.mask), io[f"out_loss{suffix}"], **close
        )
        for token in range(noise.shape[1]):
            for i in range(len(images)):
                one = torch.zeros(1, noise.shape[1], dtype=torch.bool)
                one[0, token] = True
                alone = MaskedMSE()(output.prediction[i : i + 1], target[i : i + 1], one)
                torch.testing.assert_close(alone, io[f"out_patch_loss{suffix}"][i, token], **close)


@pytest.mark.parametrize("folder", cases("mae/pretrain"), ids=lambda p: p.name)
def test_patches(folder):
    case, io = load_case(folder)
    patch = case["config"]["patch_size"]
    assert torch.equal(patchify(io["in_image"], patch, "hwc"), io["out_patchify"])
    side = case["config"]["img_size"] // patch
    image = unpatchify(io["out_pred"][:1], (side, side), patch, case["config"]["in_chans"], "hwc")[0]
    assert torch.equal(image, io["out_unpatchify_pred_image0"])


@pytest.mark.parametrize("folder", cases("mae/pretrain"), ids=lambda p: p.name)
def test_positions_are_theirs_without_loading(folder):
    case, io = load_case(folder)
    model = build_model(config_of(case["config"]))
    torch.testing.assert_close(model.backbone.pos_embed.data, io["out_pos_embed"], rtol=0, atol=1e-6)
    torch.testing.assert_close(model.head.pos_embed.data, io["out_decoder_pos_embed"], rtol=0, atol=1e-6)
    grid = model.backbone.grid
    other = sincos_2d(grid, model.backbone.embed_dim, cls_token=True, first="row")
    assert not torch.allclose(other, io["out_pos_embed"], atol=1e-3)


@pytest.mark.parametrize("folder", cases("mae/pretrain"), ids=lambda p: p.name)
def test_kept_tokens(folder):
    case, _ = load_case(folder)
    for tokens, ratio, kept in case["kept_tokens"]:
        assert tokens - hidden_tokens(tokens, ratio, "visible") == kept, (tokens, ratio)


def stats():
    for folder in cases("mae/model_stats"):
        for name, entry in load_case(folder)[0]["outputs"].items():
            if name.startswith("pretrain/"):
                yield pytest.param(name, entry, id=name)


def full_size(name: str):
    """The configuration of pretrain/mae_vit_<size>_patch<n>/img_size=<n>."""
    _, model, options = name.split("/")
    _, _, size, patch = model.split("_")
    return autoencoder_config(
        method="mae",
        image=int(options.split("=")[1]),
        patch=int(patch.removeprefix("patch")),
        size=SIZES[size],
        decoder_depth=8,
        decoder_heads=16,
        ratio=0.75,
    )


@pytest.mark.parametrize("name, entry", stats())
def test_model_size(name, entry):
    model = meta_model(full_size(name))
    assert parameters(model) == (entry["total"], entry["trainable"])
    parts: dict[str, int] = {}
    for ours, parameter in model.named_parameters():
        parts[ours] = parameter.numel()
    for theirs, count in entry["by_top_level_name"].items():
        dot = "" if theirs.endswith(("token", "embed")) and theirs not in ("patch_embed", "decoder_embed") else "."
        prefix = our_name(theirs + dot, MAE)
        assert sum(n for name, n in parts.items() if name.startswith(prefix)) == count, theirs


@pytest.mark.parametrize("folder", cases("mae/layer_decay"), ids=lambda p: p.name)
def test_weight_decay_of_pretraining(folder):
    case, _ = load_case(folder)
    expected = case["outputs"]["pretrain_weight_decay"]
    _, _, size, patch = case["config"]["pretrain_model"].split("_")
    cfg = full_size(f"pretrain/mae_vit_{size}_{patch}/img_size=224")
    cfg.SOLVER.OPTIMIZING_METHOD, cfg.SOLVER.WEIGHT_DECAY = "adamw", case["config"]["weight_decay"]
    cfg.SOLVER.ZERO_WD_1D_PARAM, cfg.MVIT.ZERO_DECAY_POS_CLS = True, False
    model = meta_model(cfg)
    own = dict(model.named_parameters())
    found = decay_of(build_optimizer(model, cfg), own)
    ours = {name: found[name][1] if p.requires_grad else "frozen" for name, p in own.items()}
    assert ours == {our_name(name, MAE): decay for name, decay in expected.items()}
