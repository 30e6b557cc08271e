"""Video MAE and classification with a space-time ViT against PySlowFast: outputs, gradients, optimizer steps."""

from __future__ import annotations

import pytest
import torch
from clip_models import golden_config, released_names
from golden_cases import cases, load_case
from pyslowfast_checks import check_gradients, check_steps

from mfm_core.checkpoint.init_from import init_from
from mfm_core.losses.classification import soft_cross_entropy
from mfm_core.masking.random import mask_of_noise
from mfm_core.targets.pixel import PixelTarget
from mfm_video.models import build_model


def load(folder, cfg):
    model = build_model(cfg)
    report = init_from(model, str(folder / "weights.pyth"))
    assert not report.missing and not report.other_shape and not report.unused and not report.notes
    return model


def autoencoder_config(case):
    model = case["config"]
    cfg = golden_config(model)
    cfg.MODEL.LOSS_FUNC, cfg.MASK.ENABLE, cfg.AUG.MASK_RATIO = model["loss"], True, model["mask_ratio"]
    cfg.MASK.MAE_ON, cfg.MASK.HEAD_TYPE = model["mae"], model["head"]
    cfg.MASK.PRETRAIN_DEPTH = model["predict_from_block"]
    cfg.MASK.DECODER_EMBED_DIM, cfg.MASK.DECODER_DEPTH = model["decoder_dim"], model["decoder_depth"]
    cfg.MASK.DECODER_NUM_HEADS = model["decoder_heads"]
    cfg.MASK.DECODER_SEP_POS_EMBED = model["decoder_separate_pos_embed"]
    cfg.MASK.TIME_STRIDE_LOSS = model["loss_on_every_second_frame_only"]
    cfg.MASK.NORM_PRED_PIXEL = model["normalise_pixels"]
    return cfg


@pytest.mark.parametrize("folder", cases("pyslowfast/vit_mae_3d"), ids=lambda p: p.name)
def test_autoencoder(folder):
    case, io = load_case(folder)
    tolerance = {k: case["tolerance"][k] for k in ("rtol", "atol")}
    cfg = autoencoder_config(case)
    model = load(folder, cfg)
    clips, noise, grid = io["in_input"], io["in_noise"], model.backbone.grid
    assert list(grid) == case["config"]["token_grid"] and model.num_visible == case["config"]["kept_tokens"]
    assert model.target.dim == case["config"]["prediction_dim"]
    mask = mask_of_noise(noise, noise.shape[1] - model.num_visible).unflatten(1, grid)
    output = model(clips, mask)
    assert torch.equal(output.mask, io["out_mask"].bool())
    torch.testing.assert_close(output.prediction[output.mask], io["out_pred"], **tolerance)
    torch.testing.assert_close(output.target[output.mask], io["out_label"], **tolerance)
    first = io["out_label_all_first4tokens"]
    torch.testing.assert_close(output.target[:, : first.shape[1]], first, **tolerance)
    torch.testing.assert_close(output.loss, io["out_loss"], **tolerance)

    # theirs keeps the visible tokens in the order of their noise, ours in that of the grid
    shuffled = noise.argsort(dim=1)[:, : model.num_visible]
    keep, order = shuffled.sort(dim=1)
    latent = model.head.encoder_norm(model.backbone.encode(model.backbone.embed(clips), model.depths, keep)[-1])
    theirs = io["out_latent"]
    in_order = theirs[:, 1:].gather(1, order[..., None].expand(-1, -1, theirs.shape[2]))
    torch.testing.assert_close(latent[:, :1], theirs[:, :1], **tolerance)
    torch.testing.assert_close(latent[:, 1:], in_order, **tolerance)

    output.loss.backward()
    check_gradients(model, case, released_names(model))
    check_steps(model, cfg, case, io, lambda: model(clips, mask).loss)


@pytest.mark.parametrize("folder", cases("pyslowfast/vit_mae_3d"), ids=lambda p: p.name)
def test_patches_of_all_frames(folder):
    case, io = load_case(folder)
    expected = io["out_full_tube_patches_first4tokens"]
    patches = PixelTarget(case["config"]["patch_stride"], normalise="none")(io["in_input"])
    assert torch.equal(patches[:, : expected.shape[1]], expected)


@pytest.mark.parametrize("folder", cases("pyslowfast/vit_cls_3d"), ids=lambda p: p.name)
def test_classifier(folder):
    case, io = load_case(folder)
    tolerance = {k: case["tolerance"][k] for k in ("rtol", "atol")}
    cfg = golden_config(case["config"])
    cfg.MODEL.NUM_CLASSES = case["config"]["num_classes"]
    for readout, mean_pooling in (("mean", True), ("cls", False)):
        cfg.MVIT.USE_MEAN_POOLING = mean_pooling
        check_readout(load(folder, cfg).eval(), io, readout, tolerance)

    cfg.MVIT.CLS_EMBED_ON = False
    model = build_model(cfg)
    state = torch.load(folder / "weights.pyth", weights_only=True)["model_state"]
    if "pos_embed" in state:
        state["pos_embed"] = state["pos_embed"][:, 1:]
    names = {theirs: ours for ours, theirs in released_names(model).items()}
    model.load_state_dict({names[n]: t for n, t in state.items() if n not in ("cls_token", "pos_embed_class")})
    check_readout(model.eval(), io, "nocls", tolerance)

    cfg.MVIT.CLS_EMBED_ON, cfg.MVIT.USE_MEAN_POOLING = True, True
    model = load(folder, cfg)
    loss = soft_cross_entropy(model(io["in_input"]), io["in_soft_target"])
    torch.testing.assert_close(loss, io["out_loss"], **tolerance)
    loss.backward()
    check_gradients(model, case, released_names(model))
    check_steps(model, cfg, case, io, lambda: soft_cross_entropy(model(io["in_input"]), io["in_soft_target"]))


def check_readout(model, io, readout, tolerance):
    features = model.head.features(model.encode(io["in_input"]))
    logits = model(io["in_input"])
    torch.testing.assert_close(features, io[f"out_features_{readout}"], **tolerance)
    torch.testing.assert_close(logits, io[f"out_logits_{readout}"], **tolerance)
    torch.testing.assert_close(logits.softmax(dim=1), io[f"out_prob_{readout}"], **tolerance)
