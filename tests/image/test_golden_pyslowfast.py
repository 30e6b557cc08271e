"""2-D MaskFeat and classification against PySlowFast: predictions, targets, losses, gradients, optimizer steps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from golden_cases import cases, load_case
from pyslowfast_checks import check_gradients, check_steps
from pyslowfast_names import pyslowfast_name

from mfm_core.checkpoint.init_from import init_from
from mfm_core.config import get_cfg
from mfm_core.losses.classification import soft_cross_entropy
from mfm_image.models import build_model


def config_of(case: dict):
    """The configuration that describes a case's model and training steps."""
    model, steps = case["config"], case["config"]["train_steps"]
    cfg = get_cfg()
    cfg.TRAIN.DATASET = cfg.TEST.DATASET = "imagenet"
    cfg.DATA.TRAIN_CROP_SIZE = cfg.DATA.TEST_CROP_SIZE = model["image_size"]
    cfg.MODEL.MODEL_NAME = model["model"]
    cfg.MODEL.NUM_CLASSES = model["num_classes"] or 1
    cfg.MODEL.DROPOUT_RATE = model["dropout"]
    for key in ("patch_2d", "patch_kernel", "patch_stride", "patch_padding", "embed_dim", "depth", "num_heads"):
        cfg.MVIT[key.upper()] = model[key]
    for key in ("mlp_ratio", "qkv_bias", "use_abs_pos"):
        cfg.MVIT[key.upper()] = model[key]
    cfg.MVIT.CLS_EMBED_ON = model["cls_token"]
    cfg.MVIT.USE_MEAN_POOLING = model["mean_pooling"]
    cfg.MVIT.DROPPATH_RATE = model["droppath"]
    cfg.MVIT.ZERO_DECAY_POS_CLS = False
    cfg.MASK.PRED_HOG = True
    cfg.MASK.PRETRAIN_DEPTH = model.get("predict_from_block", [0])
    cfg.HOG.BINS, cfg.HOG.CELL = model.get("hog_bins", 9), model.get("hog_cell", 8)
    cfg.HOG.GAUSSIAN_WINDOW = model.get("hog_gaussian_window", 0)
    cfg.SOLVER.OPTIMIZING_METHOD = steps["optimizer"]
    cfg.SOLVER.BETAS, cfg.SOLVER.WEIGHT_DECAY = tuple(steps["betas"]), steps["weight_decay"]
    cfg.SOLVER.ZERO_WD_1D_PARAM = steps["zero_weight_decay_for_1d_and_bias"]
    cfg.SOLVER.LAYER_DECAY = steps["layer_decay"]
    return cfg


def load(folder, cfg):
    model = build_model(cfg)
    report = init_from(model, str(folder / "weights.pyth"))
    assert not report.missing and not report.other_shape and not report.unused
    return model


@pytest.mark.parametrize("folder", cases("pyslowfast/maskfeat_vit_2d"), ids=lambda p: p.name)
def test_maskfeat(folder):
    case, io = load_case(folder)
    tolerance = {k: case["tolerance"][k] for k in ("rtol", "atol")}
    cfg = config_of(case)
    model = load(folder, cfg)
    grid = model.backbone.grid
    mask = F.interpolate(io["in_mask"][:, None].float(), size=grid, mode="nearest")[:, 0].bool()
    output = model(io["in_input"], mask)

    torch.testing.assert_close(output.mask, io["out_token_mask"].bool())
    torch.testing.assert_close(output.prediction, io["out_pred_all_tokens"], **tolerance)
    torch.testing.assert_close(output.target, io["out_label_all_tokens"], **tolerance)
    torch.testing.assert_close(output.prediction[output.mask], io["out_pred"], **tolerance)
    torch.testing.assert_close(output.target[output.mask], io["out_label"], **tolerance)
    torch.testing.assert_close(output.loss, io["out_loss"], **tolerance)
    tokens = model.corruption(model.backbone.embed(io["in_input"]), output.mask)
    first, last = model.backbone.encode(tokens, [0, model.backbone.depth - 1])
    torch.testing.assert_close(first[:, 0], io["out_block0_cls"], **tolerance)
    torch.testing.assert_close(last, io["out_last_block"], **tolerance)

    output.loss.backward()
    check_gradients(model, case)
    check_steps(model, cfg, case, io, lambda: model(io["in_input"], mask).loss)


@pytest.mark.parametrize("folder", cases("pyslowfast/vit_cls_2d"), ids=lambda p: p.name)
def test_classifier(folder):
    case, io = load_case(folder)
    tolerance = {k: case["tolerance"][k] for k in ("rtol", "atol")}
    cfg = config_of(case)
    for readout, mean_pooling in (("mean", True), ("cls", False)):
        cfg.MVIT.USE_MEAN_POOLING = mean_pooling
        check_readout(load(folder, cfg).eval(), io, readout, tolerance)

    cfg.MVIT.CLS_EMBED_ON = False
    model = build_model(cfg)
    state = torch.load(folder / "weights.pyth", weights_only=True)["model_state"]
    state["pos_embed"] = state["pos_embed"][:, 1:]
    names = {pyslowfast_name(name): name for name in model.state_dict()}
    model.load_state_dict({names[name]: tensor for name, tensor in state.items() if name != "cls_token"})
    check_readout(model.eval(), io, "nocls", tolerance)

    cfg.MVIT.CLS_EMBED_ON, cfg.MVIT.USE_MEAN_POOLING = True, True
    model = load(folder, cfg)
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
