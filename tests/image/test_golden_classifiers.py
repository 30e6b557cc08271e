"""Classifiers from checkpoints of MAE, MAE-priv, mmpretrain and MFM: features, logits, and what is taken of what."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from classifiers import vit_classifier
from golden_cases import cases, load_case
from torch import Tensor

from mfm_core.checkpoint.init_from import InitReport, init_from
from mfm_core.errors import UserError
from mfm_core.losses.classification import soft_cross_entropy
from mfm_core.objective import Classifier, MaskedPrediction
from mfm_image.models import build_model


def config_of(size: int, width: int, depth: int, heads: int, mlp_ratio: float, classes: int, patch: int = 16):
    sizes = {"EMBED_DIM": width, "DEPTH": depth, "NUM_HEADS": heads, "MLP_RATIO": mlp_ratio}
    return vit_classifier(size, patch, classes, HEAD_INIT_SCALE=0.001, **sizes)


def plain_config(case: dict):
    """The classifier of a case of MAE, MAE-priv or MFM."""
    model = case["config"]
    size = model.get("img_size") or model["image_size"]
    sizes = (model[key] for key in ("embed_dim", "depth", "num_heads", "mlp_ratio", "num_classes", "patch_size"))
    return config_of(size, *sizes)


def matching(folder: Path, name: str, other: str) -> Path:
    """The weights of the case `other` of the same set as `folder`, a case called `name`."""
    return folder.parent / folder.name.replace(name, other) / "weights.pth"


def loaded(cfg, path: Path, **keywords) -> tuple[Classifier, InitReport]:
    torch.manual_seed(0)
    model = build_model(cfg)
    return model.eval(), init_from(model, str(path), **keywords)


def check(model: Classifier, images: Tensor, io: dict[str, Tensor], tolerance: dict, suffix: str = "") -> None:
    with torch.no_grad():
        features, logits = model.head.features(model.encode(images)), model(images)
    if f"out_features{suffix}" in io:
        torch.testing.assert_close(features, io[f"out_features{suffix}"], **tolerance)
    torch.testing.assert_close(logits, io[f"out_logits{suffix}"], **tolerance)


def put(model: Classifier, weights: dict[str, Tensor], names: dict[str, str]) -> None:
    """Copies the tensors `names` (ours -> theirs) from a file's weights."""
    for ours, theirs in names.items():
        model.get_parameter(ours).data.copy_(weights[theirs])


def head_names(norm: str) -> dict[str, str]:
    names = {f"head.norm.{part}": f"{norm}.{part}" for part in ("weight", "bias")}
    return names | {f"head.projection.{part}": f"head.{part}" for part in ("weight", "bias")}


def assert_whole(report: InitReport) -> None:
    assert not (report.missing or report.unused or report.other_shape or report.resampled), report


# ---- official MAE ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["classify_gap", "classify_cls"])
def test_mae(name):
    for folder in cases(f"mae/{name}"):
        case, io = load_case(folder)
        cfg = plain_config(case)
        cfg.MVIT.USE_MEAN_POOLING = case["config"]["global_pool"]
        model, report = loaded(cfg, folder / "weights.pth")
        assert_whole(report)
        check(model, io["in_image"], io, case["tolerance"])

        names = head_names("fc_norm" if cfg.MVIT.USE_MEAN_POOLING else "norm")
        model, report = loaded(cfg, matching(folder, name, "pretrain"))
        assert {names[n] for n in report.missing} == set(case["pretrain_load"]["missing"])
        assert set(report.unused) == set(case["pretrain_load"]["unexpected"])
        weights = torch.load(folder / "weights.pth", weights_only=True)["model"]
        put(model, weights, {ours: names[ours] for ours in report.missing})
        check(model, io["in_image"], io, case["tolerance"], "_from_pretrain")


@pytest.mark.parametrize("name", ["classify_gap", "classify_cls"])
def test_mae_in_other_wrappings(name, tmp_path):
    """The released encoders hold neither mask token nor decoder; the two read-outs do not take each other's norm."""
    for folder in cases(f"mae/{name}"):
        case, io = load_case(folder)
        cfg = plain_config(case)
        cfg.MVIT.USE_MEAN_POOLING = case["config"]["global_pool"]
        whole = torch.load(matching(folder, name, "pretrain"), weights_only=True)["model"]
        encoder = {n: t for n, t in whole.items() if "decoder" not in n and n != "mask_token"}
        torch.save({"model": encoder}, tmp_path / "encoder.pth")
        model, report = loaded(cfg, tmp_path / "encoder.pth")
        assert report.unused == (["norm.weight", "norm.bias"] if cfg.MVIT.USE_MEAN_POOLING else [])
        assert all(n.startswith("head.") for n in report.missing)
        same, _ = loaded(cfg, matching(folder, name, "pretrain"))
        for ours, tensor in same.state_dict().items():
            assert torch.equal(model.state_dict()[ours], tensor), ours

        cfg.MVIT.USE_MEAN_POOLING = not cfg.MVIT.USE_MEAN_POOLING
        _, report = loaded(cfg, folder / "weights.pth")
        assert report.missing == ["head.norm.weight", "head.norm.bias"]
        own_norm = "norm" if cfg.MVIT.USE_MEAN_POOLING else "fc_norm"
        assert report.unused == [f"{own_norm}.weight", f"{own_norm}.bias"]


# ---- MAE-priv --------------------------------------------------------------------------------------------------------


def priv_config(case: dict):
    cfg = plain_config(case)
    cfg.MVIT.CLS_EMBED_ON = case["config"]["use_cls_token"]
    cfg.MVIT.USE_MEAN_POOLING = not cfg.MVIT.CLS_EMBED_ON
    cfg.MVIT.USE_FIXED_SINCOS_POS = True
    return cfg


def bare(name: str) -> str:
    """MAE-priv's loader takes these prefixes away."""
    return name.removeprefix("encoder.").removeprefix("backbone.")


@pytest.mark.parametrize("name", ["finetune_gap", "finetune_cls"])
def test_mae_priv(name, tmp_path):
    for folder in cases(f"mae_priv/{name}"):
        case, io = load_case(folder)
        cfg = priv_config(case)
        model, report = loaded(cfg, folder / "weights.pth")
        assert_whole(report)
        check(model, io["in_image"], io, case["tolerance"])

        weights = torch.load(folder / "weights.pth", weights_only=True)["model"]
        for prefix, key in (("backbone.", "module"), ("encoder.", "model")):
            wrapped = {key: {prefix + n: t for n, t in weights.items()}}
            torch.save(wrapped, tmp_path / "wrapped.pth")
            model, report = loaded(cfg, tmp_path / "wrapped.pth")
            assert_whole(report)
            check(model, io["in_image"], io, case["tolerance"])

        path, names = matching(folder, "finetune", "pretrain"), head_names("fc_norm")
        model, report = loaded(cfg, path)
        assert {names[n] for n in report.missing} == set(case["pretrain_load"]["missing"])
        assert {bare(n) for n in report.unused} == set(case["pretrain_load"]["unexpected"])
        head = model.head.projection.weight.detach()
        theirs = case["fresh_head_weight_max_abs_after_load"]
        assert head.abs().max() == pytest.approx(theirs, rel=0.5) and head.std() == pytest.approx(2e-5, rel=0.2)
        put(model, weights, {ours: names[ours] for ours in report.missing})
        check(model, io["in_image"], io, case["tolerance"], "_from_pretrain")


def test_mae_priv_without_class_token_from_a_file_with_one():
    """The original leaves its table alone, here the token's row goes: the same, for the table is fixed."""
    for folder in cases("mae_priv/finetune_gap"):
        case, _ = load_case(folder)
        model, report = loaded(priv_config(case), matching(folder, "finetune_gap", "pretrain_cls"))
        assert {bare(n) for n in report.unused} == set(case["wrong_variant_load"]["unexpected"])
        assert any("without the class token's row" in line for line in report.lines())
        own = torch.load(folder / "weights.pth", weights_only=True)["model"]["pos_embed"]
        torch.testing.assert_close(model.backbone.pos_embed.data, own, rtol=0, atol=1e-6)


def test_mae_priv_with_class_token_from_a_file_without():
    for folder in cases("mae_priv/finetune_cls"):
        case, _ = load_case(folder)
        path = matching(folder, "finetune_cls", "pretrain_gap")
        with pytest.raises(UserError, match="MVIT.CLS_EMBED_ON") as caught:
            loaded(priv_config(case), path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


# ---- mmpretrain ------------------------------------------------------------------------------------------------------


def mm_config(backbone: dict, size: int, classes: int):
    arch = backbone["arch"]
    width = arch["embed_dims"]
    ratio = arch["feedforward_channels"] / width
    return config_of(size, width, arch["num_layers"], arch["num_heads"], ratio, classes, backbone["patch_size"])


def normalised(pixels: Tensor, preprocessor: dict) -> Tensor:
    mean, std = (torch.tensor(preprocessor[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return (pixels.float() - mean) / std


@pytest.mark.parametrize("folder", cases("mmpretrain/mff_classify"), ids=lambda p: p.name)
class TestMmpretrain:
    def build(self, folder: Path, size: int | None = None):
        case, io = load_case(folder)
        finetune = case["config"]["finetune"]
        backbone = finetune["backbone"]
        cfg = mm_config(backbone, size or backbone["img_size"], finetune["head"]["num_classes"])
        cfg.MVIT.USE_MEAN_POOLING = backbone["out_type"] == "avg_featmap"
        return case, io, finetune, cfg

    def test_finetuned(self, folder):
        case, io, finetune, cfg = self.build(folder)
        model, report = loaded(cfg, folder / "weights.pth")
        assert_whole(report)
        images = normalised(io["in_image_rgb_u8"], finetune["data_preprocessor"])
        torch.testing.assert_close(images, io["in_image"], **case["tolerance"])
        with torch.no_grad():
            logits, features = model(images), model.head.features(model.encode(images))
        torch.testing.assert_close(features, io["out_ft_feature"], **case["tolerance"])
        torch.testing.assert_close(logits, io["out_ft_logits"], **case["tolerance"])
        torch.testing.assert_close(logits.softmax(dim=1), io["out_ft_score"], **case["tolerance"])
        smooth, classes = finetune["head"]["loss"]["label_smooth_val"], logits.shape[1]
        hard = torch.nn.functional.one_hot(io["in_label"], classes).float()
        for labels, name in ((hard, "hard"), (io["in_soft_label"], "soft")):
            loss = soft_cross_entropy(logits, labels * (1 - smooth) + smooth / classes)
            torch.testing.assert_close(loss, io[f"out_ft_loss_{name}"], **case["tolerance"])

    def test_from_pretraining(self, folder):
        case, io, finetune, cfg = self.build(folder)
        theirs = {f"head.norm.{part}": f"backbone.ln2.{part}" for part in ("weight", "bias")}
        theirs |= {f"head.projection.{part}": f"head.fc.{part}" for part in ("weight", "bias")}
        model, report = loaded(cfg, folder / finetune["backbone"]["init_cfg"]["checkpoint"])
        assert sorted(theirs[n] for n in report.missing) == sorted(case["missing_keys"])
        ignored = [n for n in report.unused if n.startswith("backbone.")]
        assert sorted(ignored) == sorted(case["ignored_backbone_keys"])
        weights = torch.load(folder / "weights.pth", weights_only=True)["state_dict"]
        put(model, weights, {n: theirs[n] for n in report.missing if "projection" in n})
        torch.nn.init.ones_(model.head.norm.weight)
        torch.nn.init.zeros_(model.head.norm.bias)
        with torch.no_grad():
            logits = model(io["in_image"])
        torch.testing.assert_close(logits, io["out_ft_from_pretrain_logits"], **case["tolerance"])

    def test_another_image_size(self, folder):
        _, io = load_case(folder)
        case, io, finetune, cfg = self.build(folder, size=io["in_image2_rgb_u8"].shape[-1])
        model, report = loaded(cfg, folder / "weights.pth")
        assert report.resampled == ["backbone.pos_embed"] and not report.missing
        torch.testing.assert_close(model.backbone.pos_embed.data, io["out_pos_embed_resized"], **case["tolerance"])
        with torch.no_grad():
            logits = model(normalised(io["in_image2_rgb_u8"], finetune["data_preprocessor"]))
        torch.testing.assert_close(logits, io["out_ft_logits_resized"], **case["tolerance"])

    def test_class_token_keeps_the_final_norm(self, folder):
        """The linear probe's read-out; with MVIT.FRESH_NORM it would not."""
        case, io, _, cfg = self.build(folder)
        cfg.MVIT.USE_MEAN_POOLING = False
        path = folder / case["config"]["linear"]["backbone"]["init_cfg"]["checkpoint"]
        model, report = loaded(cfg, path)
        assert report.missing == ["head.projection.weight", "head.projection.bias"]
        with torch.no_grad():
            features = model.head.features(model.encode(io["in_image"]))
        torch.testing.assert_close(features, io["out_linear_cls_token"], **case["tolerance"])
        cfg.MVIT.FRESH_NORM = True
        _, report = loaded(cfg, path)
        assert "head.norm.weight" in report.missing and "backbone.ln1.weight" in report.unused


@pytest.mark.parametrize("folder", cases("mmpretrain/maskfeat_image"), ids=lambda p: p.name)
def test_mmpretrain_maskfeat(folder):
    """Predictions, loss and gradients of MaskFeat on images, from mmpretrain's weights."""
    case, io = load_case(folder)
    config = case["config"]["model"]
    cfg, generator = mm_config(config["backbone"], config["backbone"]["img_size"], 1), config["target_generator"]
    cfg.TASK, cfg.MASK.ENABLE, cfg.MASK.PRED_HOG = "pretrain", True, True
    cfg.MASK.PRETRAIN_DEPTH = [cfg.MVIT.DEPTH - 1]
    cfg.HOG.BINS, cfg.HOG.CELL, cfg.HOG.GAUSSIAN_WINDOW = (generator[k] for k in ("nbins", "pool", "gaussian_window"))
    model, report = loaded(cfg, folder / "weights.pth", min_match=1.0)
    assert isinstance(model, MaskedPrediction)
    assert_whole(report)
    images = normalised(io["in_image_rgb_u8"], config["data_preprocessor"])
    output = model(images, io["in_mask"].bool())
    torch.testing.assert_close(output.prediction, io["out_pred"], **case["tolerance"])
    torch.testing.assert_close(output.loss, io["out_loss"], **case["tolerance_end_to_end"])
    latent = model.head.transforms[0](
        model.backbone.encode(model.corruption(model.backbone.embed(images), output.mask), [model.backbone.depth - 1])[
            0
        ][:, 0]
    )
    torch.testing.assert_close(latent, io["out_latent_cls"], **case["tolerance"])

    prediction = output.prediction
    model.loss(prediction, io["out_hog"], output.mask).backward()
    names = {
        "corruption.mask_token": "backbone.mask_token",
        "backbone.cls_token": "backbone.cls_token",
        "head.projections.0.bias": "neck.fc.bias",
        "head.transforms.0.0.weight": "backbone.ln1.weight",
    }
    for ours, theirs in names.items():
        gradient = model.get_parameter(ours).grad
        torch.testing.assert_close(gradient, io[f"out_grad/{theirs}"], rtol=1e-3, atol=1e-5)
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    torch.testing.assert_close(norm, io["out_grad_norm"], **case["tolerance_end_to_end"])


# ---- official MFM ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", cases("mfm_official/vit_finetune"), ids=lambda p: p.name)
def test_mfm(folder):
    case, io = load_case(folder)
    cfg = plain_config(case)
    cfg.MVIT.USE_MEAN_POOLING = case["config"]["mean_pooling"]
    model, report = loaded(cfg, folder / "weights.pth")
    assert_whole(report)
    check(model, io["in_image_normalised"], io, case["tolerance"])

    names = head_names("fc_norm")
    model, report = loaded(cfg, matching(folder, "vit_finetune", "vit"))
    assert sorted(names[n] for n in report.missing) == sorted(case["config"]["missing_keys"])
    unused = {bare(n) for n in report.unused}
    assert unused == {*case["config"]["unexpected_keys"], "decoder.0.weight", "decoder.0.bias"}
    joined = cfg.MVIT.DEPTH  # biases of query and value, which are one tensor here
    assert len(report.loaded) == case["config"]["n_keys_taken"] - joined
    put(model, torch.load(folder / "weights.pth", weights_only=True)["model"], {n: names[n] for n in report.missing})
    check(model, io["in_image_normalised"], io, case["tolerance"])

    cfg.MVIT.USE_MEAN_POOLING = False  # then the original's model has the encoder's norm, and loads it
    model, report = loaded(cfg, matching(folder, "vit_finetune", "vit"))
    assert report.missing == ["head.projection.weight", "head.projection.bias"]
    norm = torch.load(matching(folder, "vit_finetune", "vit"), weights_only=True)["model"]["encoder.norm.weight"]
    assert torch.equal(model.head.norm.weight.data, norm)
