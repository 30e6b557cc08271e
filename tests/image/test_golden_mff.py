"""MAE and MFF against mmpretrain: fused layers, latent, prediction, losses, gradients, positions, sizes, groups."""

from __future__ import annotations

import pytest
import torch
from autoencoders import (
    MMPRETRAIN,
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
from mfm_core.optim.build import build_optimizer
from mfm_core.targets.pixel import PixelTarget
from mfm_image.data.transforms import Normalize
from mfm_image.models import build_model

ARCHS = {"b": {"embed_dims": 768, "num_layers": 12, "num_heads": 12, "feedforward_channels": 3072}}
FOLDERS = cases("mmpretrain/mae_pretrain") + cases("mmpretrain/mff_pretrain")


def config_of(model: dict, image: int = 224):
    """The configuration of a model as mmpretrain's config describes it."""
    backbone, decoder = model["backbone"], model["neck"]
    arch = ARCHS[backbone["arch"]] if isinstance(backbone["arch"], str) else backbone["arch"]
    layers = {"layers": backbone["out_indices"][:-1]} if model["type"] == "MFF" else {}
    if layers:
        assert backbone["out_indices"][-1] == arch["num_layers"] - 1
    return autoencoder_config(
        method=model["type"].lower(),
        image=backbone.get("img_size", image),
        patch=backbone["patch_size"],
        width=arch["embed_dims"],
        depth=arch["num_layers"],
        heads=arch["num_heads"],
        mlp_ratio=arch["feedforward_channels"] / arch["embed_dims"],
        first="row",
        decoder_width=decoder["decoder_embed_dim"],
        decoder_depth=decoder["decoder_depth"],
        decoder_heads=decoder["decoder_num_heads"],
        ratio=backbone["mask_ratio"],
        normalise=model["head"]["norm_pix"],
        **layers,
    )


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_pretraining(folder):
    case, io = load_case(folder)
    close = {k: case["tolerance"][k] for k in ("rtol", "atol")}
    model = load(build_model(config_of(case["config"]["model"])), folder / "weights.pth", MMPRETRAIN)
    images, mask = io["in_image"], mask_from(io["in_noise"], model)
    assert torch.equal(mask.flatten(1), io["out_mask"].bool())

    keep = io["out_ids_restore"].argsort(dim=1)[:, : model.num_visible]
    features = encoded(model, images, keep)
    latent = features[-1] if model.neck is None else model.neck(features)
    torch.testing.assert_close(model.head.encoder_norm(latent), io["out_latent"], **close)

    output = model(images, mask)
    torch.testing.assert_close(output.prediction, io["out_pred"], **close)
    torch.testing.assert_close(output.target, io["out_target"], **close)
    torch.testing.assert_close(output.loss, io["out_loss"], **close)
    raw = PixelTarget(model.backbone.patch_stride, "hwc", "none")(images)
    torch.testing.assert_close(MaskedMSE()(output.prediction, raw, output.mask), io["out_loss_no_norm_pix"], **close)

    output.loss.backward()
    own = dict(model.named_parameters())
    gradients = {name.removeprefix("out_grad/"): t for name, t in io.items() if name.startswith("out_grad/")}
    assert gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[our_name(name, MMPRETRAIN)].grad, gradient, **close)
    norm = torch.nn.utils.get_total_norm([p.grad for p in own.values() if p.grad is not None])
    torch.testing.assert_close(norm, io["out_grad_norm"], **close)
    assert all(p.grad is not None for p in own.values() if p.requires_grad)


@pytest.mark.parametrize("folder", cases("mmpretrain/mff_pretrain"), ids=lambda p: p.name)
def test_fusion(folder):
    case, io = load_case(folder)
    close = {k: case["tolerance"][k] for k in ("rtol", "atol")}
    model = load(build_model(config_of(case["config"]["model"])), folder / "weights.pth", MMPRETRAIN)
    logged = model.metrics()
    assert list(logged) == [f"fusion_weight/layer_{i}" for i in range(len(model.depths))]
    torch.testing.assert_close(torch.stack(list(logged.values())), io["out_fusion_weights"], **close)
    keep = io["out_ids_restore"].argsort(dim=1)[:, : model.num_visible]
    features = encoded(model, io["in_image"], keep)
    for i, layer in enumerate(model.neck.proj_layers):
        torch.testing.assert_close(layer(features[i]), io[f"out_proj_feat_{i}"], **close)
    unfused = model.head.encoder_norm(features[-1])
    torch.testing.assert_close(unfused, io["out_extract_feat_masked_latent"], **close)


@pytest.mark.parametrize("folder", cases("mmpretrain/mae_pretrain"), ids=lambda p: p.name)
def test_features_of_the_whole_image(folder):
    case, io = load_case(folder)
    model = load(build_model(config_of(case["config"]["model"])), folder / "weights.pth", MMPRETRAIN)
    features = model.head.encoder_norm(model.backbone.tokens(io["in_image"]))
    close = {k: case["tolerance"][k] for k in ("rtol", "atol")}
    torch.testing.assert_close(features, io["out_raw_feat"], **close)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_input_and_positions(folder):
    case, io = load_case(folder)
    model = build_model(config_of(case["config"]["model"]))
    torch.testing.assert_close(model.backbone.pos_embed.data, io["out_sincos_enc"], rtol=0, atol=1e-6)
    torch.testing.assert_close(model.head.pos_embed.data, io["out_sincos_dec"], rtol=0, atol=1e-6)
    stage = case["config"]["model"]["data_preprocessor"]
    normalize = Normalize(*([n / 255 for n in stage[key]] for key in ("mean", "std")))
    for pixels, image in zip(io["in_image_rgb_u8"], io["in_image"]):
        torch.testing.assert_close(normalize(pixels), image, rtol=1e-5, atol=1e-5)


def recipes(name: str):
    """The merged config of a published recipe."""
    for folder in cases("mmpretrain/recipes"):
        yield load_case(folder)[0]["recipes"][name]


@pytest.mark.parametrize("folder", cases("mmpretrain/model_stats"), ids=lambda p: p.name)
@pytest.mark.parametrize("method", ["MFF", "MAE"])
def test_model_size(folder, method):
    case, _ = load_case(folder)
    entry = case["counts"][f"{method.lower()}_pretrain_vit_base"]
    recipe = next(recipes("mff_pt_300e"))
    model = meta_model(config_of({**recipe["model"], "type": method}))
    assert parameters(model) == (entry["total"], entry["trainable"])
    shapes = case["state_dict_shapes"].get(f"{method.lower()}_pretrain_vit_base")
    if shapes:
        own = {name: list(t.shape) for name, t in model.state_dict().items()}
        assert own == {our_name(name, MMPRETRAIN): shape for name, shape in shapes.items()}


@pytest.mark.parametrize("folder", cases("mmpretrain/layer_decay"), ids=lambda p: p.name)
def test_weight_decay_of_pretraining(folder):
    case, _ = load_case(folder)
    found = 0
    for name in ("mff_pt_300e", "mff_pt_800e"):
        if name not in case["groups"]:
            continue
        expected, found = case["groups"][name], found + 1
        cfg = config_of(next(recipes(name))["model"])
        cfg.SOLVER.OPTIMIZING_METHOD, cfg.SOLVER.WEIGHT_DECAY = "adamw", expected["base_weight_decay"]
        cfg.SOLVER.ZERO_WD_1D_PARAM, cfg.MVIT.ZERO_DECAY_POS_CLS, cfg.SOLVER.NO_DECAY = True, True, ["mask_token"]
        model = meta_model(cfg)
        ours = decay_of(build_optimizer(model, cfg), dict(model.named_parameters()))
        theirs = {
            our_name(n, MMPRETRAIN): p for n, p in expected["params"].items() if n not in expected["not_trainable"]
        }
        assert ours.keys() == theirs.keys()
        for parameter, pair in theirs.items():
            assert ours[parameter] == pytest.approx(pair), parameter
    assert found
