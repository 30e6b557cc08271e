"""Published weights through the files of fine-tuning and probes: a wrong word in one gives other logits or features."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from golden_cases import load_case
from recipe_files import (
    MAE_FT,
    MAE_PROBES,
    MASKFEAT_FT,
    MFF_FT,
    MFF_PROBE,
    MFM_FT,
    PRIV_CLS_FT,
    PRIV_CLS_PROBES,
    PRIV_GAP_FT,
    PRIV_GAP_PROBES,
    check_computed,
    close,
    content,
    each,
    maskfeat_sizes,
    mm_images,
    mm_sizes,
    only_if,
    same_conventions,
    shrunk,
    sizes_of,
    start_released,
    start_whole,
)
from torch import Tensor, nn

from mfm_core.checkpoint.init_from import init_from
from mfm_core.config.plan import task_of
from mfm_image.models import build_model

# ---- fine-tuning -----------------------------------------------------------------------------------------------------


def put(model: nn.Module, weights: dict[str, Tensor], names: dict[str, str]) -> None:
    """Copies the tensors `names` (ours -> theirs) from a file's weights."""
    for ours, theirs in names.items():
        model.get_parameter(ours).data.copy_(weights[theirs])


def named(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")}


def other(folder, name: str, replacement: str):
    """The weights of the pre-training case beside a fine-tuning case."""
    return folder.parent / folder.name.replace(name, replacement) / "weights.pth"


def check_classifier(folder, path, pretrained, config: dict, head: dict[str, str], fixed: bool) -> None:
    """Logits with the fine-tuned weights, and with those of pre-training and the new tensors of the fine-tuned file.

    fixed: whether the recipe computes its positions.
    """
    case, io = load_case(folder)
    cfg, weights = shrunk(path, **sizes_of(config), MODEL__NUM_CLASSES=config["num_classes"]), folder / "weights.pth"
    images, file = io["in_image"] if "in_image" in io else io["in_image_normalised"], content(weights)
    model = build_model(cfg).eval()
    check_computed(cfg, model, **({"backbone": file["pos_embed"]} if fixed else {}))
    start_whole(model, weights)
    torch.testing.assert_close(model(images), io["out_logits"], **close(case))

    model = build_model(cfg).eval()
    assert set(init_from(model, str(pretrained)).missing) == set(head)
    put(model, file, head)
    torch.testing.assert_close(model(images), io.get("out_logits_from_pretrain", io["out_logits"]), **close(case))


HEAD = named("head.norm", "fc_norm") | named("head.projection", "head")


@each("mae/classify_gap", MAE_FT)
def test_mae_finetuning(folder, path):
    config = load_case(folder)[0]["config"]
    check_classifier(folder, path, other(folder, "classify_gap", "pretrain"), config, HEAD, fixed=False)


@each("mae_priv/finetune_gap", PRIV_GAP_FT, "mae_priv/finetune_cls", PRIV_CLS_FT)
def test_mae_priv_finetuning(folder, path):
    config = load_case(folder)[0]["config"]
    check_classifier(folder, path, other(folder, "finetune", "pretrain"), config, HEAD, fixed=True)


@each("mfm_official/vit_finetune", MFM_FT)
def test_mfm_finetuning(folder, path):
    config = load_case(folder)[0]["config"]
    only_if(config["mean_pooling"], folder)
    check_classifier(folder, path, other(folder, "vit_finetune", "vit"), config, HEAD, fixed=False)


@each("mmpretrain/mff_classify", MFF_FT)
def test_mff_finetuning(folder, path):
    case, io = load_case(folder)
    config = case["config"]["finetune"]
    only_if(config["backbone"]["out_type"] == "avg_featmap", folder)
    cfg = shrunk(path, **mm_sizes(config["backbone"]), MODEL__NUM_CLASSES=config["head"]["num_classes"])
    images = mm_images(cfg, io["in_image_rgb_u8"], io["in_image"])
    model = build_model(cfg).eval()
    start_whole(model, folder / "weights.pth")
    torch.testing.assert_close(model(images), io["out_ft_logits"], **close(case))

    model = build_model(cfg).eval()
    report = init_from(model, str(folder / config["backbone"]["init_cfg"]["checkpoint"]))
    projection = named("head.projection", "head.fc")
    assert set(report.missing) == {"head.norm.weight", "head.norm.bias", *projection}
    put(model, content(folder / "weights.pth"), projection)
    torch.testing.assert_close(model(images), io["out_ft_from_pretrain_logits"], **close(case))


@each("pyslowfast/vit_cls_2d", MASKFEAT_FT)
def test_maskfeat_finetuning(folder, path):
    case, io = load_case(folder)
    config = case["config"]
    cfg = shrunk(path, **maskfeat_sizes(config), MODEL__NUM_CLASSES=config["num_classes"])
    only_if(same_conventions(cfg, config, {"MVIT.CLS_EMBED_ON": "cls_token"}), folder)
    model = build_model(cfg).eval()
    start_released(model, folder)
    assert cfg.MVIT.USE_MEAN_POOLING and cfg.MVIT.CLS_EMBED_ON
    torch.testing.assert_close(model(io["in_input"]), io["out_logits_mean"], **close(case))


# ---- linear probes and k-NN ------------------------------------------------------------------------------------------


def put_probe(model, weights: dict[str, Tensor], norm: str, linear: str) -> None:
    """The BatchNorm's statistics and the classifier of a file."""
    for name in ("running_mean", "running_var"):
        getattr(model.head.batch_norm, name).copy_(weights[f"{norm}.{name}"])
    put(model, weights, named("head.probes.0", linear))


@each("mae/linprobe", MAE_PROBES)
def test_mae_probe(folder, path):
    case, io = load_case(folder)
    config = case["config"]
    only_if(not config["global_pool"], folder)
    cfg = shrunk(path, **sizes_of(config), MODEL__NUM_CLASSES=config["num_classes"])
    model = build_model(cfg).eval()
    report = init_from(model, str(folder / "weights.pth"))
    assert all(name.startswith(("head.batch_norm.", "head.probes.")) for name in report.missing)
    torch.testing.assert_close(model.features(io["in_image"]), io["out_eval_features_image"], **close(case))
    put_probe(model, content(folder / "weights.pth"), "head.0", "head.1")
    torch.testing.assert_close(model(io["in_image"])[0], io["out_eval_logits_image"], **close(case))
    assert model.head.batch_norm.eps == float(re.search(r"eps=([\d.e-]+)", config["head"])[1])


@each("mmpretrain/mff_classify", MFF_PROBE)
def test_mff_probe(folder, path):
    case, io = load_case(folder)
    config = case["config"]["linear"]
    only_if(config["backbone"]["out_type"] == "cls_token", folder)
    cfg = shrunk(path, **mm_sizes(config["backbone"]), MODEL__NUM_CLASSES=config["head"]["num_classes"])
    model, images = build_model(cfg).eval(), mm_images(cfg, io["in_image_rgb_u8"], io["in_image"])
    init_from(model, str(folder / config["backbone"]["init_cfg"]["checkpoint"]))
    torch.testing.assert_close(model.features(images), io["out_linear_cls_token"], **close(case))
    weights = content(folder / "linear_weights.pth")
    put_probe(model, weights, "neck.bn", "head.layers.head")
    torch.testing.assert_close(model(images)[0], io["out_linear_logits_eval"], **close(case))
    assert model.head.batch_norm.eps == 1e-6


@each("mae_priv/finetune_gap", PRIV_GAP_PROBES, "mae_priv/finetune_cls", PRIV_CLS_PROBES)
def test_mae_priv_probe(folder, path):
    """The pooled tokens without a norm: what the case's norm then makes of them is known."""
    case, io = load_case(folder)
    config = case["config"]
    cfg = shrunk(path, **sizes_of(config), MODEL__NUM_CLASSES=config["num_classes"])
    model = build_model(cfg).eval()
    weights = content(folder / "weights.pth")
    check_computed(cfg, model, backbone=weights["pos_embed"])
    theirs = sum(t.numel() for name, t in weights.items() if not name.startswith(("fc_norm.", "head.")))
    assert sum(p.numel() for p in model.backbone.parameters()) == theirs
    report = init_from(model, str(folder / "weights.pth"))
    assert all(name.startswith(("head.batch_norm.", "head.probes.")) for name in report.missing)
    features = model.features(io["in_image"])
    assert float(features.std(dim=1).min()) != pytest.approx(1.0, abs=0.05), "a norm has been there"
    normed = F.layer_norm(features, (config["embed_dim"],), weights["fc_norm.weight"], weights["fc_norm.bias"], 1e-6)
    torch.testing.assert_close(normed, io["out_features"], **close(case))
    assert task_of(cfg) == ("knn" if path.stem.endswith("_knn") else "probe")
