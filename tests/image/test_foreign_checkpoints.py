"""torchvision's and timm's models, saved and loaded by path: the same features and logits from our models."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from classifiers import resnet_classifier, vit_classifier
from safetensors.torch import save_file
from torch import nn

from mfm_core.checkpoint.init_from import init_from
from mfm_core.errors import UserError
from mfm_image.models import build_model

CLASSES = 5


def vit_config(size: str, side: int = 64, patch: int = 16, mean_pooling: bool = False, cls_token: bool = True):
    return vit_classifier(side, patch, CLASSES, SIZE=size, USE_MEAN_POOLING=mean_pooling, CLS_EMBED_ON=cls_token)


def resnet_config(depth: int = 50, side: int = 64):
    return resnet_classifier(depth, side, CLASSES)


def stirred(model: nn.Module) -> nn.Module:
    """Random values everywhere, those of norms and statistics too, so that nothing fits by being 0 or 1."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.ndim <= 1 and tensor.is_floating_point():
                low = 0.5 if "var" in name or "weight" in name else -0.5
                tensor.uniform_(low, low + 1.0, generator=generator)
            if name in ("cls_token", "pos_embed", "class_token", "encoder.pos_embedding"):
                tensor.normal_(std=0.5, generator=generator)
    return model.eval()


def assert_same_logits(cfg, theirs: nn.Module, path, side: int, content=None) -> None:
    torch.save(theirs.state_dict() if content is None else content, path)
    model = build_model(cfg).eval()
    report = init_from(model, str(path), min_match=1.0)
    assert not (report.missing or report.unused or report.other_shape), report.lines()
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        torch.testing.assert_close(model(images), theirs(images), rtol=1e-4, atol=1e-4)


def test_torchvision_vit(tmp_path):
    """224 pixels, for it takes no others; class token, final norm on all tokens, epsilon 1e-6."""
    theirs = torchvision.models.vit_b_16(weights=None, num_classes=CLASSES)
    nn.init.normal_(theirs.heads.head.weight, std=0.02)  # zeros by default
    assert_same_logits(vit_config("B", side=224), stirred(theirs), tmp_path / "vit_b_16.pth", side=224)


@pytest.mark.parametrize(("pool", "cls_token"), [("token", True), ("avg", True), ("avg", False)])
def test_timm_vit(pool, cls_token, tmp_path):
    options = {"global_pool": pool, "class_token": cls_token, "num_classes": CLASSES, "img_size": 64}
    theirs = stirred(timm.create_model("vit_tiny_patch16_224", **options))
    cfg = vit_config("Ti", mean_pooling=pool == "avg", cls_token=cls_token)
    assert_same_logits(cfg, theirs, tmp_path / "x.pth", side=64)
    state = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    assert_same_logits(cfg, theirs, tmp_path / "wrapped.pth", 64, {"state_dict": state, "arch": "vit", "epoch": 3})


def test_timm_norm_before_the_mean(tmp_path):
    """Without class token, and with the norm on the tokens."""
    options = {"global_pool": "avg", "class_token": False, "fc_norm": False, "num_classes": CLASSES, "img_size": 64}
    theirs = stirred(timm.create_model("vit_tiny_patch16_224", **options))
    assert_same_logits(vit_config("Ti", cls_token=False), theirs, tmp_path / "x.pth", side=64)


def test_timm_positions_without_a_row_for_the_class_token(tmp_path):
    options = {"no_embed_class": True, "num_classes": CLASSES, "img_size": 64}
    theirs = stirred(timm.create_model("vit_tiny_patch16_224", **options))
    assert_same_logits(vit_config("Ti"), theirs, tmp_path / "x.pth", side=64)


def test_timm_features_from_safetensors(tmp_path):
    theirs = stirred(timm.create_model("vit_small_patch16_224", num_classes=0, img_size=64))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    model = build_model(vit_config("S")).eval()
    report = init_from(model, str(tmp_path / "model.safetensors"))
    assert report.missing == ["head.projection.weight", "head.projection.bias"] and not report.unused
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        tokens = model.head.norm(model.encode(images))
        torch.testing.assert_close(tokens, theirs.forward_features(images), rtol=1e-4, atol=1e-4)


def test_timm_average_is_for_testing(tmp_path):
    """Its `state_dict_ema`, as our own moving average."""
    weights, average = (timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, img_size=64) for _ in range(2))
    content = {"state_dict": weights.state_dict(), "state_dict_ema": stirred(average).state_dict()}
    torch.save(content, tmp_path / "x.pth")
    for wanted, source in ((False, weights), (True, average)):
        model = build_model(vit_config("Ti"))
        init_from(model, str(tmp_path / "x.pth"), average=wanted)
        assert torch.equal(model.head.norm.bias.data, source.norm.bias.data)


@pytest.mark.parametrize("source", ["torchvision", "timm", "encoder."])
def test_resnet(source, tmp_path):
    cfg = resnet_config()
    if source == "timm":
        theirs = stirred(timm.create_model("resnet50", num_classes=CLASSES))
    else:
        theirs = stirred(torchvision.models.resnet50(weights=None, num_classes=CLASSES))
    content = {"model": {f"encoder.{n}": t for n, t in theirs.state_dict().items()}} if source == "encoder." else None
    assert_same_logits(cfg, theirs, tmp_path / "x.pth", 64, content)


def test_resnets_of_other_depth_and_kind(tmp_path):
    cfg, path = resnet_config(), tmp_path / "x.pth"
    cases = {
        "resnet101": "RESNET.DEPTH",
        "resnet18": "RESNET.DEPTH",
        "vit_tiny_patch16_224": "a ViT's, and this model is a ResNet; MODEL.ARCH",
    }
    for name, part in cases.items():
        torch.save(timm.create_model(name).state_dict(), path)
        with pytest.raises(UserError) as caught:
            init_from(build_model(cfg), str(path))
        assert part in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)
