"""Published weights through the pre-training files: a wrong word in one gives another loss than the golden case has."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from autoencoders import mask_from
from golden_cases import load_case
from recipe_files import (
    COINCHEUNG,
    COVERED,
    DEBLUR,
    DENOISE,
    MAE_PT,
    MASKFEAT_PT,
    MFF_PT,
    MFM_RESNET,
    MFM_VIT,
    PRIV_CLS_PT,
    PRIV_GAP_PT,
    SR,
    WITHOUT_CASE,
    check_computed,
    close,
    each,
    files,
    maskfeat_sizes,
    mm_images,
    mm_sizes,
    normalised,
    only_if,
    same_conventions,
    shrunk,
    sizes_of,
    start_released,
    start_whole,
    vit_sizes,
)
from torch import Tensor

from mfm_core.config.plan import method_of
from mfm_core.masking.random import hidden_tokens
from mfm_core.methods.parts import masks_from_cfg
from mfm_core.nn.patchify import patchify
from mfm_image.backbones import resnet
from mfm_image.models import build_model


def test_every_recipe_has_a_case():
    every = {path.stem for path in files("mae/*", "mff/*", "mfm/*", "probe/*", "masked_ssl/in1k_*")}
    assert {path.stem for path in files(*COVERED)} == every - WITHOUT_CASE


# ---- masked autoencoders ---------------------------------------------------------------------------------------------


def decoder_sizes(config: dict) -> dict[str, object]:
    return {
        "MASK__DECODER_EMBED_DIM": config["decoder_embed_dim"],
        "MASK__DECODER_DEPTH": config["decoder_depth"],
        "MASK__DECODER_NUM_HEADS": config["decoder_num_heads"] or 0,
    }


def check_loss(cfg, folder, images: Tensor, loss: Tensor, tables: tuple[Tensor, Tensor]) -> None:
    """The loss of a pre-training recipe with a released file's weights, hiding what the noise says.

    tables: the positions that the recipe computes, of the encoder and of the decoder.
    """
    (case, io), model = load_case(folder), build_model(cfg)
    check_computed(cfg, model, backbone=tables[0], head=tables[1])
    start_whole(model, folder / "weights.pth")
    output = model.eval()(images, mask_from(io["in_noise"], model))
    torch.testing.assert_close(output.loss, loss, **close(case))


@each("mae/pretrain", MAE_PT)
def test_mae_pretraining(folder, path):
    case, io = load_case(folder)
    config = case["config"]
    cfg = shrunk(path, **sizes_of(config), **decoder_sizes(config), AUG__MASK_RATIO=config["mask_ratio"])
    assert method_of(cfg) == "mae"
    tables = (io["out_pos_embed"], io["out_decoder_pos_embed"])
    check_loss(cfg, folder, io["in_image"], io["out_loss_norm_pix"], tables)
    for tokens, ratio, kept in case["kept_tokens"]:
        assert tokens - hidden_tokens(tokens, ratio, cfg.MASK.COUNT) == kept, (tokens, ratio)


@each("mae_priv/pretrain_gap", PRIV_GAP_PT, "mae_priv/pretrain_cls", PRIV_CLS_PT)
def test_mae_priv_pretraining(folder, path):
    case, io = load_case(folder)
    config = case["config"]
    sizes = sizes_of(config, "encoder_") | decoder_sizes(config)
    cfg = shrunk(path, **sizes, AUG__MASK_RATIO=config["mask_ratio"])
    loss = io["out_loss_unbatched" if cfg.MASK.NORM_PRED_PIXEL else "out_loss_raw_unbatched"]
    assert ("_raw_" not in path.stem) == cfg.MASK.NORM_PRED_PIXEL
    tables = (io["out_encoder_pos_embed"], io["out_decoder_pos_embed"])
    check_loss(cfg, folder, io["in_image"], loss, tables)
    for tokens, ratio, masked, _ in case["mask_sizes"]:
        assert hidden_tokens(tokens, ratio, cfg.MASK.COUNT) == masked, (tokens, ratio)


@each("mmpretrain/mff_pretrain", MFF_PT)
def test_mff_pretraining(folder, path):
    case, io = load_case(folder)
    config = case["config"]["model"]
    sizes = mm_sizes(config["backbone"]) | decoder_sizes(config["neck"])
    sizes |= {
        "MFF__LAYERS": config["backbone"]["out_indices"][:-1],
        "AUG__MASK_RATIO": config["backbone"]["mask_ratio"],
    }
    cfg = shrunk(path, **sizes)
    only_if(config["head"]["norm_pix"], folder)
    assert method_of(cfg) == "mff"
    images = mm_images(cfg, io["in_image_rgb_u8"], io["in_image"])
    check_loss(cfg, folder, images, io["out_loss"], (io["out_sincos_enc"], io["out_sincos_dec"]))


# ---- MFM and its siblings --------------------------------------------------------------------------------------------


@pytest.fixture
def narrow(monkeypatch):
    """Gives ResNets of every depth the widths of a case."""

    def shrink(config: dict) -> None:
        monkeypatch.setattr(resnet, "LAYERS", dict.fromkeys(resnet.LAYERS, tuple(config["layers"])))
        monkeypatch.setattr(resnet, "STEM", config["stem_channels"])
        monkeypatch.setattr(resnet, "PLANES", tuple(config["stage_planes"]))

    return shrink


def image_sizes(config: dict) -> dict[str, object]:
    return {"DATA__TRAIN_CROP_SIZE": config["image_size"], "DATA__TEST_CROP_SIZE": config["image_size"]}


def drawn(cfg, model, low_pass: list) -> Tensor:
    """The masks (B, H, W) of a recipe, low-pass ones where `low_pass` says so."""
    masks = masks_from_cfg(cfg, model.backbone.grid)
    return torch.stack([masks.low_pass if low else masks.high_pass for low in low_pass])


def check_mfm(cfg, folder, case, io, loss: Tensor) -> None:
    config, model = case["config"], build_model(cfg)
    only_if((config["filter_type"], config["recover_target_type"]) == ("mfm", "masked"), folder)
    assert list(model.backbone.patch_stride) == [config["encoder_stride"]] * 2
    start_whole(model, folder / "weights.pth")
    images = normalised(cfg, 255 * io["in_image"])
    hidden = drawn(cfg, model, config["mask_is_low_pass"])
    assert torch.equal(hidden, ~io["in_mask"].bool())
    exact = {"rtol": 1e-4, "atol": 2e-5}
    torch.testing.assert_close(model.corruption(images, hidden), io["out_encoder_input"], **exact)
    torch.testing.assert_close(model.eval()(images, hidden).loss, loss, **exact)


def mfm_values(config: dict) -> dict[str, object]:
    return {"MFM__RADIUS": config["mask_radius"], "MFM__LOSS_GAMMA": config["loss_gamma"]}


@each("mfm_official/vit", MFM_VIT)
def test_mfm(folder, path):
    case, io = load_case(folder)
    cfg = shrunk(path, **sizes_of(case["config"]), **mfm_values(case["config"]))
    check_mfm(cfg, folder, case, io, io["out_loss"])


@each("mfm_official/resnet", MFM_RESNET)
def test_mfm_with_a_resnet(folder, path, narrow):
    case, io = load_case(folder)
    narrow(case["config"])
    cfg = shrunk(path, **image_sizes(case["config"]), **mfm_values(case["config"]))
    check_mfm(cfg, folder, case, io, io["out_eval_loss"])


@each("mfm_coincheung/resnet", COINCHEUNG)
def test_mfm_as_coincheung_has_it(folder, path, narrow):
    case, io = load_case(folder)
    config = case["config"]
    narrow(config)
    cfg = shrunk(path, **image_sizes(config), MFM__RADIUS=config["rad"])
    model = build_model(cfg)
    start_whole(model, folder / "weights.pth")
    count = len(io["in_image"])  # image j meets row (j + B // 2) mod B there
    hidden = drawn(cfg, model, [not config["index"][(j + count // 2) % count] for j in range(count)])
    torch.testing.assert_close(model.corruption(io["in_image"], hidden), io["out_filtered"], rtol=1e-4, atol=5e-5)
    torch.testing.assert_close(model.eval()(io["in_image"], hidden).loss, io["out_eval_loss"], **close(case))
    torch.testing.assert_close(model.train()(io["in_image"], hidden).loss, io["out_train_loss"], **close(case))


def degraded(path, side: int):
    """A sibling's configuration and small model on images of this size."""
    sizes = {"DATA__TRAIN_CROP_SIZE": side, "DATA__TEST_CROP_SIZE": side}
    cfg = shrunk(path, **(sizes if "resnet" in path.stem else vit_sizes(side, 16, 24, 1, 2, 4.0)))
    return cfg, build_model(cfg)


def check_distance(model, images: Tensor, prediction: Tensor, loss: Tensor, tolerance: dict) -> None:
    """The recipe's loss of a given prediction, by the tokens of its model."""
    tokens = patchify(prediction, model.backbone.patch_stride, "chw")
    value = model.loss(tokens, model.target(images), torch.empty(len(images), 0))
    torch.testing.assert_close(value, loss, **tolerance)


@each("mfm_official/degradations", SR)
def test_super_resolution(folder, path, narrow):
    case, io = load_case(folder)
    narrow({"layers": [1] * 4, "stem_channels": 2, "stage_planes": [2, 2, 2, 2]})
    cfg, model = degraded(path, case["config"]["photo_size"])
    factor = case["config"]["sr"]["recipe_factor"]
    images = normalised(cfg, 255 * io["in_photo"])
    seen = model.corruption(images, torch.empty(len(images), 0))
    torch.testing.assert_close(seen, io[f"out_sr{factor}_encoder_input"], **close(case))
    check_distance(model, images, io[f"in_sr{factor}_pred"], io[f"out_sr{factor}_loss"], close(case))


@each("mfm_official/degradations", DENOISE)
def test_denoising(folder, path, narrow):
    case, io = load_case(folder)
    narrow({"layers": [1] * 4, "stem_channels": 2, "stage_planes": [2, 2, 2, 2]})
    cfg, model = degraded(path, case["config"]["photo_size"])
    images = normalised(cfg, 255 * io["in_photo"])
    noise = io["in_noise_hwc"].permute(2, 0, 1)[None] * 75 / 255
    torch.testing.assert_close(model.corruption(images, noise), io["out_denoise_encoder_input"], rtol=1e-4, atol=5e-5)
    prediction = io[f"in_sr{case['config']['sr']['recipe_factor']}_pred"]
    check_distance(model, images, prediction, io["out_denoise_loss_same_pred"], close(case))
    drawn = masks_from_cfg(cfg, model.backbone.grid)(torch.Generator().manual_seed(0), images[0])
    assert float(drawn.std()) == pytest.approx(75 / 255, rel=0.03) and not torch.equal(drawn[0], drawn[1])


@each("mfm_official/degradations", DEBLUR)
def test_deblurring(folder, path, narrow):
    """The kernel of the drawn size is the recorded one, whatever is drawn: they are isotropic, of one width."""
    case, io = load_case(folder)
    narrow({"layers": [1] * 4, "stem_channels": 2, "stage_planes": [2, 2, 2, 2]})
    cfg, model = degraded(path, case["config"]["photo_size"])
    draws, generator, seen = masks_from_cfg(cfg, model.backbone.grid), torch.Generator().manual_seed(0), set()
    for _ in range(40):
        kernel = draws(generator, io["in_photo"][0])
        used = kernel[kernel.any(dim=1)][:, kernel.any(dim=0)]
        recorded = io.get(f"out_kernel_iso_s5_k{len(used)}")
        if recorded is not None:
            torch.testing.assert_close(used, recorded, rtol=1e-4, atol=1e-7)
            seen.add(len(used))
    assert len(seen) == sum(name.startswith("out_kernel_iso_s5") for name in io)
    assert model.loss.reduction == "normal"


# ---- PySlowFast's MaskFeat -------------------------------------------------------------------------------------------


@each("pyslowfast/maskfeat_vit_2d", MASKFEAT_PT)
def test_maskfeat_pretraining(folder, path):
    case, io = load_case(folder)
    config = case["config"]
    cfg = shrunk(path, **maskfeat_sizes(config), MASK__PRETRAIN_DEPTH=config["predict_from_block"])
    only_if(same_conventions(cfg, config, {"MVIT.CLS_EMBED_ON": "cls_token", "HOG.BINS": "hog_bins"}), folder)
    model = build_model(cfg)
    start_released(model, folder)
    mask = F.interpolate(io["in_mask"][:, None].float(), size=model.backbone.grid, mode="nearest")[:, 0].bool()
    output = model.eval()(io["in_input"], mask)
    torch.testing.assert_close(output.target, io["out_label_all_tokens"], **close(case))
    torch.testing.assert_close(output.loss, io["out_loss"], **close(case))
