"""PySlowFast's weights through the recipe files of clips: a wrong word in a YAML file gives other numbers."""

from __future__ import annotations

import torch
from golden_cases import load_case
from recipe_files import each, files, only_if, same_conventions, shrunk

from mfm_core.checkpoint.init_from import init_from
from mfm_core.config.plan import arch_of
from mfm_core.masking.enlarged import enlarge
from mfm_core.masking.random import mask_of_noise
from mfm_video.models import build_model

MAE_PT, VIT_FT = "masked_ssl/k400_VIT_?_16x4_MAE_PT", "masked_ssl/k400_VIT_?_16x4_FT"
MASKFEAT_PT, MVIT_FT = "masked_ssl/k400_MVITv2_?_16x4_MaskFeat_PT", "masked_ssl/k400_MVITv2_?_16x4_FT"
STRIDES = ("pool_q_stride", "pool_kv_stride_adaptive")
"""What says how a model grows and shrinks, beside its size."""
CONVENTIONS = {
    "MVIT.CLS_EMBED_ON": "cls_token",
    "MVIT.USE_ABS_POS": "use_abs_pos",
    "MVIT.SEP_POS_EMBED": "separate_pos_embed",
    "MVIT.REL_POS_SPATIAL": "rel_pos_spatial",
    "MVIT.REL_POS_TEMPORAL": "rel_pos_temporal",
    "MVIT.RESIDUAL_POOLING": "residual_pooling",
    "MVIT.DIM_MUL_IN_ATT": "dim_change_inside_attention",
    "MVIT.QKV_BIAS": "qkv_bias",
    "MVIT.MODE": "pool_mode",
    "MVIT.POOL_KVQ_KERNEL": "pool_qkv_kernel",
}
DECODER = {
    "MASK.DECODER_SEP_POS_EMBED": "decoder_separate_pos_embed",
    "MASK.TIME_STRIDE_LOSS": "loss_on_every_second_frame_only",
    "MASK.NORM_PRED_PIXEL": "normalise_pixels",
}
"""What a file of MAE says of its decoder and its target."""


def test_every_recipe_has_a_case():
    assert files(MAE_PT, VIT_FT, MASKFEAT_PT, MVIT_FT) == files("masked_ssl/k400_*")


def sizes_of(config: dict) -> dict[str, object]:
    """Overrides for the sizes of a case, the frames among them."""
    names = ("patch_kernel", "patch_stride", "patch_padding", "embed_dim", "depth", "num_heads", "mlp_ratio")
    grown = ("dim_mul", "head_mul", *STRIDES) if config["dim_mul"] else ()
    return {
        "DATA__TRAIN_CROP_SIZE": config["image_size"],
        "DATA__TEST_CROP_SIZE": config["image_size"],
        "DATA__NUM_FRAMES": config["num_frames"],
        "MODEL__NUM_CLASSES": config["num_classes"] or 1,
        **{f"MVIT__{name.upper()}": config[name] for name in (*names, *grown)},
    }


def built(folder, path, names=CONVENTIONS, **more):
    """The case, its arrays, and the recipe's model of its size with its weights."""
    case, io = load_case(folder)
    cfg = shrunk(path, **sizes_of(case["config"]), **more)
    only_if(same_conventions(cfg, case["config"], names), folder)
    assert (arch_of(cfg) == "mvit") == bool(case["config"]["dim_mul"])
    model = build_model(cfg).eval()
    report = init_from(model, str(folder / "weights.pyth"))
    assert not (report.missing or report.unused or report.other_shape or report.resampled or report.notes), report
    return case, io, model


def close(case) -> dict[str, float]:
    return {key: case["tolerance"][key] for key in ("rtol", "atol")}


@each("pyslowfast/vit_mae_3d", MAE_PT)
def test_mae(folder, path):
    config = load_case(folder)[0]["config"]
    sizes = {
        "MASK__PRETRAIN_DEPTH": config["predict_from_block"],
        "MASK__DECODER_EMBED_DIM": config["decoder_dim"],
        "MASK__DECODER_DEPTH": config["decoder_depth"],
        "AUG__MASK_RATIO": config["mask_ratio"],
    }
    case, io, model = built(folder, path, CONVENTIONS | DECODER, **sizes)
    noise = io["in_noise"]
    assert model.num_visible == config["kept_tokens"]
    mask = mask_of_noise(noise, noise.shape[1] - model.num_visible).unflatten(1, model.backbone.grid)
    torch.testing.assert_close(model(io["in_input"], mask).loss, io["out_loss"], **close(case))


@each("pyslowfast/maskfeat_mvit_3d", MASKFEAT_PT)
def test_maskfeat(folder, path):
    config = load_case(folder)[0]["config"]
    case, io, model = built(folder, path, MASK__PRETRAIN_DEPTH=config["predict_from_block"])
    output = model(io["in_input"], enlarge(io["in_mask"].bool(), model.backbone.grid))
    torch.testing.assert_close(output.target, io["out_label_all_tokens"], **close(case))
    torch.testing.assert_close(output.loss, io["out_loss"], **close(case))


@each("pyslowfast/vit_cls_3d", VIT_FT)
def test_vit_finetuning(folder, path):
    check_logits(*built(folder, path))


@each("pyslowfast/mvit_cls_3d", MVIT_FT)
def test_mvit_finetuning(folder, path):
    check_logits(*built(folder, path))


def check_logits(case, io, model) -> None:
    """Those of the mean over the tokens."""
    torch.testing.assert_close(model(io["in_input"]), io["out_logits_mean"], **close(case))
