"""Our checkpoints in timm's layout: what the tool prints loads there, strictly, and gives the same numbers."""

from __future__ import annotations

import importlib.util

import pytest
import timm
import torch
from paths import TOOLS
from torch import nn

from mfm_core.checkpoint.timm_export import ViTFacts, to_timm
from mfm_core.config import get_cfg
from mfm_core.errors import UserError
from mfm_image.models import build_model

spec = importlib.util.spec_from_file_location("convert_checkpoint", TOOLS / "convert_checkpoint.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


def config(task: str = "finetune", side: int = 64, patch: int = 16, arch: str = "vit", **vit):
    cfg = get_cfg()
    cfg.TASK, cfg.MODEL.MODEL_NAME, cfg.MODEL.ARCH = task, "", arch
    cfg.TRAIN.DATASET = cfg.TEST.DATASET = "imagenet"
    cfg.DATA.TRAIN_CROP_SIZE = cfg.DATA.TEST_CROP_SIZE = side
    cfg.MODEL.NUM_CLASSES, cfg.MODEL.DROPOUT_RATE = 5, 0.0
    cfg.MASK.ENABLE = cfg.MASK.PRED_HOG = task == "pretrain"
    cfg.MVIT.PATCH_2D, cfg.MVIT.PATCH_PADDING, cfg.MVIT.DROPPATH_RATE = True, [0, 0], 0.0
    cfg.MVIT.PATCH_KERNEL = cfg.MVIT.PATCH_STRIDE = [patch, patch]
    cfg.MVIT.EMBED_DIM, cfg.MVIT.DEPTH, cfg.MVIT.NUM_HEADS = 48, 3, 4
    for key, value in vit.items():
        cfg.MVIT[key] = value
    cfg.MASK.PRETRAIN_DEPTH = [0, 2]
    return cfg


def stirred(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and tensor.ndim <= 1:
                low = 0.5 if "var" in name or "weight" in name else -0.5
                tensor.uniform_(low, low + 1.0, generator=generator)
            elif name.endswith(("cls_token", "pos_embed")):
                tensor.normal_(std=0.5, generator=generator)
    return model.eval()


def save(model: nn.Module, cfg, path, average: nn.Module | None = None) -> str:
    """A checkpoint as a run writes it, as far as the tool reads it."""
    content = {"format": "mfm-1", "model_state": model.state_dict(), "cfg": cfg.dump()}
    torch.save(content | {"ema_state": average.state_dict() if average else None}, path)
    return str(path)


def converted(capsys, checkpoint: str, out, *options: str) -> tuple[nn.Module, str]:
    """timm's model as the printed line makes it, and all that was printed."""
    assert tool.main([checkpoint, str(out), *options]) == 0
    printed = capsys.readouterr().out
    return eval(printed.splitlines()[0], {"timm": timm}).eval(), printed  # the line that the user would copy


READOUTS = {
    "class token": {"USE_MEAN_POOLING": False},
    "mean": {"USE_MEAN_POOLING": True},
    "mean without class token": {"USE_MEAN_POOLING": True, "CLS_EMBED_ON": False},
    "norm, then mean": {"USE_MEAN_POOLING": False, "CLS_EMBED_ON": False},
    "layer scale": {"LAYER_SCALE_INIT_VALUE": 0.1},
    "no biases, other width": {"QKV_BIAS": False, "MLP_RATIO": 2.0},
    "no positions": {"USE_ABS_POS": False},
    "sin-cos positions": {"USE_FIXED_SINCOS_POS": True},
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("readout", READOUTS)
def test_classifiers(readout, suffix, tmp_path, capsys):
    cfg = config(**READOUTS[readout])
    ours = stirred(build_model(cfg))
    theirs, printed = converted(capsys, save(ours, cfg, tmp_path / "x.pyth"), tmp_path / f"out{suffix}")
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), ours(images), rtol=1e-4, atol=1e-4)
        features = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
        torch.testing.assert_close(features, ours.head.features(ours.encode(images)), rtol=1e-4, atol=1e-4)
    assert "left out" not in printed and "mean [0.45, 0.45, 0.45]" in printed


def test_the_usual_sizes_have_timm_s_names(tmp_path, capsys):
    cfg = config(side=224, EMBED_DIM=get_cfg().MVIT.EMBED_DIM, DEPTH=16, NUM_HEADS=1, SIZE="Ti")
    ours = stirred(build_model(cfg))
    theirs, printed = converted(capsys, save(ours, cfg, tmp_path / "x.pyth"), tmp_path / "out.pth")
    assert printed.startswith("timm.create_model('vit_tiny_patch16_224', checkpoint_path=")
    assert ", num_classes=5)" in printed and "embed_dim" not in printed and "img_size" not in printed
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), ours(images), rtol=1e-4, atol=1e-4)


def test_all_sizes_build(monkeypatch):
    """Names and shapes of every size that has a name here, without content."""
    for size, patch, name in (("S", 16, "small"), ("B", 16, "base"), ("L", 16, "large"), ("H", 14, "huge")):
        none = {key: get_cfg().MVIT[key] for key in ("EMBED_DIM", "DEPTH", "NUM_HEADS")}
        cfg = config(side=224, patch=patch, SIZE=size, USE_MEAN_POOLING=True, **none)
        with torch.device("meta"):
            converted = to_timm(build_model(cfg).state_dict(), tool.facts_of(cfg), "x")
            theirs = timm.create_model(converted.name, **converted.arguments)
        assert converted.name == f"vit_{name}_patch{patch}_224"
        expected = {n: t.shape for n, t in theirs.state_dict().items()}
        assert {n: t.shape for n, t in converted.state.items()} == expected
        assert theirs.blocks[0].attn.num_heads == tool.facts_of(cfg).num_heads


@pytest.mark.parametrize("cls_token", [True, False])
def test_pretrained_encoder(cls_token, tmp_path, capsys):
    """Its last norm is timm's final one; what predicts is left out, and said."""
    cfg = config("pretrain", CLS_EMBED_ON=cls_token)
    ours = stirred(build_model(cfg))
    theirs, printed = converted(capsys, save(ours, cfg, tmp_path / "x.pyth"), tmp_path / "out.safetensors")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        tokens = ours.head.transforms[1](ours.backbone.tokens(images))
        torch.testing.assert_close(theirs.forward_features(images), tokens, rtol=1e-4, atol=1e-4)
        expected = tokens[:, 0] if cls_token else tokens.mean(dim=1)
        torch.testing.assert_close(theirs(images), expected, rtol=1e-4, atol=1e-4)
    left_out = printed.splitlines()[-1].removeprefix("left out: ").split(", ")
    rest = ("transforms.0.0", "projections.0", "projections.1")
    assert sorted(left_out) == sorted(
        ["corruption.mask_token", *(f"head.{layer}.{part}" for layer in rest for part in ("weight", "bias"))]
    )


def test_encoders_of_autoencoders_and_biases_in_parts():
    """By names: the encoder's norm, not the decoder's, and zeros for the keys."""
    cfg = config(QKV_BIAS=False)
    encoder = {n: t for n, t in stirred(build_model(cfg)).state_dict().items() if n.startswith("backbone.")}
    biases = {f"backbone.blocks.{i}.attn.{n}_bias": torch.randn(48) for i in range(3) for n in "qv"}
    head = {f"head.{n}.weight": torch.randn(48) for n in ("encoder_norm", "norm", "embed", "projection")}
    head |= {n.replace("weight", "bias"): torch.randn(48) for n in head}
    model = to_timm(encoder | biases | head, ViTFacts(64, 4, (16, 16), True), "x")
    assert model.arguments["num_classes"] == 0 and "global_pool" not in model.arguments
    assert torch.equal(model.state["norm.weight"], head["head.encoder_norm.weight"])
    assert set(model.left_out) == {n for n in head if "encoder_norm" not in n}
    expected = torch.cat(
        [biases["backbone.blocks.1.attn.q_bias"], torch.zeros(48), biases["backbone.blocks.1.attn.v_bias"]]
    )
    assert torch.equal(model.state["blocks.1.attn.qkv.bias"], expected)
    theirs = timm.create_model(model.name, **model.arguments)
    assert set(theirs.state_dict()) == set(model.state)


def test_moving_average(tmp_path, capsys):
    cfg = config()
    weights, average = stirred(build_model(cfg), 1), stirred(build_model(cfg), 2)
    path = save(weights, cfg, tmp_path / "x.pyth", average)
    for source, options in ((weights, []), (average, ["--ema"])):
        theirs, _ = converted(capsys, path, tmp_path / "out.pth", *options)
        assert torch.equal(theirs.norm.bias.data, source.head.norm.bias.data)


@pytest.mark.parametrize("task", ["finetune", "pretrain"])
def test_resnet(task, tmp_path, capsys):
    cfg = config(task, arch="resnet")
    if task == "pretrain":
        cfg.MASK.METHOD, cfg.MASK.PRED_HOG = "mfm", False
    ours = stirred(build_model(cfg))
    theirs, printed = converted(capsys, save(ours, cfg, tmp_path / "x.pyth"), tmp_path / "out.safetensors")
    assert printed.startswith("timm.create_model('resnet50'")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        maps = theirs.forward_features(images).flatten(2).transpose(1, 2)
        torch.testing.assert_close(maps, ours.backbone.tokens(images), rtol=1e-4, atol=1e-4)
        if task == "finetune":
            torch.testing.assert_close(theirs(images), ours(images), rtol=1e-4, atol=1e-4)
    assert ("left out" in printed) is (task == "pretrain")


def test_what_cannot_be_converted(tmp_path, capsys):
    cfg = config()
    path = save(build_model(cfg), cfg, tmp_path / "x.pyth")
    torch.save(build_model(cfg).state_dict(), tmp_path / "bare.pth")
    overlapping = config(PATCH_KERNEL=[20, 20], PATCH_PADDING=[2, 2])
    padded = save(build_model(overlapping), overlapping, tmp_path / "padded.pyth")
    (tmp_path / "file").write_text("")
    for arguments, part in (
        ([str(tmp_path / "absent.pyth"), "x.pth"], "absent.pyth"),
        ([path, "out.bin"], "out.bin"),
        ([path, str(tmp_path / "x.pth"), "--ema"], "EMA_DECAY"),
        ([path, str(tmp_path / "whole.pyth"), "--ema"], "--ema is for timm's layout"),
        ([str(tmp_path / "bare.pth"), str(tmp_path / "x.pth")], "bare.pth"),
        ([padded, str(tmp_path / "x.pth")], "overlap"),
        ([path, str(tmp_path / "file" / "x.pth")], "Cannot write"),
        ([path, str(tmp_path / "file" / "x.safetensors")], "Cannot write"),
    ):
        assert tool.main(arguments) == 2
        error = capsys.readouterr().err
        assert part in error and error.startswith("error: ") and error.count("\n") == 1
    with pytest.raises(UserError, match="no ResNet of this width"):
        narrow = {"backbone.conv1.weight": torch.zeros(8, 3, 7, 7), "backbone.layer1.0.conv1.weight": torch.zeros(8, 8)}
        to_timm(narrow, ViTFacts(64, 1, (16, 16), False), "x")
