"""mmpretrain's video MaskFeat, and mmaction2's classifier that starts from it."""

from __future__ import annotations

import pytest
import torch
from golden_cases import cases, load_case

from mfm_core.checkpoint.formats import read_checkpoint
from mfm_core.checkpoint.init_from import init_from
from mfm_core.config import get_cfg
from mfm_core.losses.masked import MaskedMSE
from mfm_core.masking.enlarged import enlarge
from mfm_video.models import build_model

OUR_NAMES = {
    "backbone.mask_token": "corruption.mask_token",
    "backbone.patch_embed.projection": "backbone.patch_embed.proj",
    "neck.fc": "head.projections.0",
}


def config_of(backbone: dict, target: dict | None = None):
    """The configuration of an mmaction2 backbone, with a class token, and of a HOG generator."""
    cfg, arch = get_cfg(), backbone["arch"]
    cfg.TRAIN.DATASET = cfg.TEST.DATASET = "kinetics"
    cfg.DATA.TRAIN_CROP_SIZE = cfg.DATA.TEST_CROP_SIZE = backbone["spatial_size"]
    cfg.DATA.NUM_FRAMES = backbone["temporal_size"]
    cfg.MODEL.MODEL_NAME, cfg.MODEL.ARCH = "MViT" if target is None else "MaskMViT", "mvit"
    mvit = cfg.MVIT
    mvit.PATCH_PADDING, mvit.POOL_KVQ_KERNEL = [1, 3, 3], [3, 3, 3]
    mvit.EMBED_DIM, mvit.DEPTH, mvit.NUM_HEADS = arch["embed_dims"], arch["num_layers"], arch["num_heads"]
    down, widen = arch["downscale_indices"], arch["dim_mul_indices"]
    mvit.POOL_Q_STRIDE = [[i, 1, 2, 2] if i in down else [i, 1, 1, 1] for i in range(mvit.DEPTH)]
    mvit.POOL_KV_STRIDE_ADAPTIVE = backbone["adaptive_kv_stride"]
    mvit.DIM_MUL = [[i, 2.0] for i in widen]
    mvit.HEAD_MUL = [[i, 2.0] for i in sorted({*down, *widen})]
    mvit.DIM_MUL_IN_ATT = backbone["dim_mul_in_attention"]
    mvit.USE_ABS_POS = False
    mvit.REL_POS_SPATIAL = mvit.REL_POS_TEMPORAL = mvit.RESIDUAL_POOLING = True
    mvit.DROPPATH_RATE = backbone["drop_path_rate"]
    cfg.MASK.PRED_HOG, cfg.MASK.PRETRAIN_DEPTH = True, [mvit.DEPTH - 1]
    if target is not None:
        cfg.HOG.BINS, cfg.HOG.CELL, cfg.HOG.GAUSSIAN_WINDOW = target["nbins"], target["pool"], target["gaussian_window"]
    return cfg


def clips_of(case: dict, io: dict) -> torch.Tensor:
    preprocessor = case["config"]["model"]["data_preprocessor"]
    mean, std = (torch.tensor(preprocessor[key]).view(3, 1, 1, 1) for key in ("mean", "std"))
    return (io["in_video_rgb_u8"].float() - mean) / std


@pytest.mark.parametrize("folder", cases("mmpretrain/maskfeat_video"), ids=lambda p: p.name)
def test_maskfeat(folder):
    case, io = load_case(folder)
    tolerance, parts = case["tolerance"], case["config"]["model"]
    model = build_model(config_of(parts["backbone"], parts["target_generator"]))
    report = init_from(model, str(folder / "weights.pth"))
    assert report.layout == "mmpretrain MaskFeat on video"
    assert not report.missing and not report.unused and not report.other_shape and not report.resampled

    backbone, clips = model.backbone, clips_of(case, io)
    mask = enlarge(io["in_mask"].bool(), backbone.grid)
    output = model(clips, mask)
    torch.testing.assert_close(output.mask.float(), io["out_token_mask"])
    stable = io["out_hog_stable"]
    torch.testing.assert_close(output.target[stable], io["out_hog"][stable], atol=2e-3, rtol=tolerance["rtol"])
    torch.testing.assert_close(output.loss, io["out_loss"], **case["tolerance_end_to_end"])

    # The last norm sees the class token, too. With the published target all numbers are as exact as theirs.
    hidden = enlarge(mask, backbone.embed_grid).flatten(1)
    last = backbone.encode(model.corruption(backbone.embed(clips), hidden), [backbone.depth - 1])[0]
    torch.testing.assert_close(model.head.transforms[0](last)[:, 0], io["out_latent_cls"], **tolerance)
    torch.testing.assert_close(output.prediction, io["out_pred"], **tolerance)
    loss = MaskedMSE()(model.head([last[:, 1:]])[0], io["out_hog"], mask.flatten(1))
    torch.testing.assert_close(loss, io["out_loss"], **tolerance)
    loss.backward()
    check_gradients(model, case, io)


def check_gradients(model, case, io):
    parameters = dict(model.named_parameters())
    for name in (name for name in io if name.startswith("out_grad/")):
        ours = name.removeprefix("out_grad/")
        for theirs, mine in OUR_NAMES.items():
            ours = ours.replace(theirs, mine) if ours.startswith(theirs) else ours
        torch.testing.assert_close(parameters[ours].grad, io[name], **case["tolerance"])
    norm = torch.stack([p.grad.norm() for p in parameters.values()]).norm()
    torch.testing.assert_close(norm, io["out_grad_norm"], **case["tolerance"])


@pytest.mark.parametrize("folder", cases("mmpretrain/maskfeat_video"), ids=lambda p: p.name)
def test_classifier_starts_from_maskfeat(folder):
    case, io = load_case(folder)
    parts = case["config"]["finetune_model"]
    cfg = config_of(parts["backbone"])
    cfg.MODEL.NUM_CLASSES, cfg.MODEL.DROPOUT_RATE = parts["cls_head"]["num_classes"], 0.0
    model = build_model(cfg).eval()
    report = init_from(model, str(folder / "weights.pth"))
    resized = {f"backbone.{name}" for name in case["ft_resized_rel_pos"]}
    assert set(report.resampled) == resized
    assert set(report.missing) == {
        f"head.{layer}.{part}" for layer in ("norm", "projection") for part in ("weight", "bias")
    }
    assert {name for name in report.unused if name.startswith("backbone.")} == set(case["ft_ignored"])
    state = model.state_dict()
    for name in case["ft_resized_rel_pos"]:
        torch.testing.assert_close(state[f"backbone.{name}"], io[f"out_ft_resized/{name}"], **case["tolerance"])

    state["head.norm.weight"].fill_(1.0)
    state["head.norm.bias"].fill_(0.0)
    state["head.projection.weight"].copy_(io["in_ft_cls_head.fc_cls.weight"])
    state["head.projection.bias"].copy_(io["in_ft_cls_head.fc_cls.bias"])
    clips = clips_of(case, io)
    tokens = model.head.norm(model.encode(clips))
    torch.testing.assert_close(tokens[:, 0], io["out_ft_cls_token"], **case["tolerance"])
    torch.testing.assert_close(tokens[:, 1:].mean(dim=1), io["out_ft_patch_mean"], **case["tolerance"])
    torch.testing.assert_close(model(clips), io["out_ft_logits"], **case["tolerance"])


@pytest.mark.parametrize("folder", cases("mmpretrain/maskfeat_video"), ids=lambda p: p.name)
def test_classifier_checkpoint(folder):
    """The whole fine-tuned checkpoint of mmaction2, by its names and shapes."""
    case, _ = load_case(folder)
    parts = case["config"]["finetune_model"]
    cfg = config_of(parts["backbone"])
    cfg.MODEL.NUM_CLASSES = parts["cls_head"]["num_classes"]
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in case["ft_state_dict_shapes"].items()}
        own = build_model(cfg).state_dict()
    checkpoint = read_checkpoint({"state_dict": state}, "x.pth")
    assert checkpoint.layout.name == "mmaction2 MViT" and not checkpoint.unread
    checkpoint.rename(checkpoint.layout.token_norm, "head.norm.")
    assert {name: t.shape for name, t in checkpoint.state.items()} == {name: t.shape for name, t in own.items()}
