"""Released layouts: which name becomes which of ours, and what is done to tensors that a model has in another form."""

from __future__ import annotations

import pytest
import torch
from golden_cases import cases, load_case
from torch import nn

from mfm_core.checkpoint.fit import fit_axes, fit_positions
from mfm_core.checkpoint.formats import Checkpoint, read_checkpoint
from mfm_core.checkpoint.init_from import init_from
from mfm_core.errors import UserError
from mfm_core.heads.classification import ClassificationHead
from mfm_core.nn.pos_embed import resample_positions
from mfm_core.nn.vit import VisionTransformer
from mfm_core.objective import Classifier

BLOCK = {
    f"{layer}.{part}"
    for layer in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    for part in ("weight", "bias")
}
KEYLESS = BLOCK - {"attn.qkv.bias"} | {"attn.q_bias", "attn.v_bias"}


def pairs(*layers: str) -> set[str]:
    return {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}


def blocks(prefix: str, depth: int, names=BLOCK) -> set[str]:
    return {f"{prefix}blocks.{i}.{name}" for i in range(depth) for name in names}


def vit(depth: int, names=BLOCK, cls_token: bool = True) -> set[str]:
    """All names of our ViT."""
    single = {"backbone.pos_embed", "backbone.patch_embed.proj.weight", "backbone.patch_embed.proj.bias"}
    return single | ({"backbone.cls_token"} if cls_token else set()) | blocks("backbone.", depth, names)


def decoder(depth: int, names=BLOCK) -> set[str]:
    """All names of the transformer decoder."""
    layers = pairs("head.encoder_norm", "head.embed", "head.norm", "head.projection")
    return {"head.mask_token", "head.pos_embed"} | layers | blocks("head.", depth, names)


def read(names_and_shapes: dict, key: str = "model") -> Checkpoint:
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in names_and_shapes.items()}
    return read_checkpoint({key: state}, "x.pth")


def shapes_of(path, key: str) -> dict:
    return {name: tensor.shape for name, tensor in torch.load(path, weights_only=True)[key].items()}


# ---- names ------------------------------------------------------------------------------------------------------


def test_mmpretrain_at_full_size():
    fusion = {"neck.proj_weights"} | {f"neck.{n}" for i in range(5) for n in pairs(f"proj_layers.{i}")}
    expected = {
        "mff_pretrain_vit_base": vit(12) | decoder(8) | fusion,
        "mff_finetune_vit_base": vit(12) | pairs("head.fc_norm", "head.projection"),
        "maskfeat_pretrain_vit_base": vit(12)
        | {"corruption.mask_token"}
        | pairs("head.transforms.0.0", "head.projections.0"),
    }
    for folder in cases("mmpretrain/model_stats"):
        case, _ = load_case(folder)
        for model, names in expected.items():
            checkpoint = read(case["state_dict_shapes"][model], "state_dict")
            assert checkpoint.layout.name.startswith("mmpretrain") and not checkpoint.unread
            assert set(checkpoint.state) == names
    mlp = checkpoint.state["backbone.blocks.3.mlp.fc1.weight"], checkpoint.state["backbone.blocks.3.mlp.fc2.weight"]
    assert [tuple(t.shape) for t in mlp] == [(3072, 768), (768, 3072)]
    assert checkpoint.theirs["backbone.blocks.3.norm2.bias"] == "backbone.layers.3.ln2.bias"
    assert checkpoint.theirs["head.transforms.0.0.bias"] == "backbone.ln1.bias"


def test_mfm_at_full_size():
    for folder in cases("mfm_official/model_stats"):
        case, _ = load_case(folder)
        for name, model in case["config"]["models"].items():
            if "pretrain" not in name or "state_dict" not in model:
                continue
            checkpoint = read(model["state_dict"])
            assert checkpoint.layout.name == "official MFM" and not checkpoint.unread
            backbone = {n.removeprefix("backbone.") for n in checkpoint.state if n.startswith("backbone.")}
            encoder = {n.removeprefix("encoder.") for n in model["state_dict"] if n.startswith("encoder.")}
            head = pairs("head.projections.0")
            if "resnet" not in name:
                encoder -= pairs("norm")
                head |= pairs("head.transforms.0.0")
            assert backbone == encoder
            assert {n for n in checkpoint.state if not n.startswith("backbone.")} == head


@pytest.mark.parametrize(
    ("kind", "layout", "depths"),
    [
        ("mae/pretrain", "MAE", ("depth", "decoder_depth")),
        ("mae_priv/pretrain_gap", "MAE-priv", ("encoder_depth", "decoder_depth")),
        ("mae_priv/pretrain_cls", "MAE-priv", ("encoder_depth", "decoder_depth")),
    ],
)
def test_autoencoders(kind, layout, depths):
    for folder in cases(kind):
        case, _ = load_case(folder)
        config = case["config"]
        names = KEYLESS if layout == "MAE-priv" else BLOCK
        checkpoint = read(shapes_of(folder / "weights.pth", "model"))
        assert checkpoint.layout.name == layout and not checkpoint.unread
        encoder_depth, decoder_depth = (config[depth] for depth in depths)
        encoder = vit(encoder_depth, names, config.get("use_cls_token", True))
        assert set(checkpoint.state) == encoder | decoder(decoder_depth, names)
        width = config["decoder_embed_dim"]
        assert checkpoint.state["head.norm.weight"].shape == (width,)
        assert checkpoint.state["head.encoder_norm.weight"].shape == checkpoint.state["head.embed.weight"].shape[1:]
        assert checkpoint.state["head.projection.weight"].shape[1] == width


@pytest.mark.parametrize("kind", ["mfm_official/resnet", "mfm_coincheung/resnet"])
def test_resnets(kind):
    for folder in cases(kind):
        shapes = shapes_of(folder / "weights.pth", "model")
        checkpoint = read(shapes)
        assert not checkpoint.unread
        theirs = {n.removeprefix("encoder.") for n in shapes if not n.startswith("decoder.")}
        assert set(checkpoint.state) == {f"backbone.{n}" for n in theirs} | pairs("head.projections.0")


def test_our_own_names_stay():
    maskfeat = pairs("head.transforms.0.0", "head.projections.0")
    for head in (pairs("head.norm", "head.projection"), decoder(2), maskfeat):
        names = vit(2) | head
        checkpoint = read(dict.fromkeys(names, (2,)), "model_state")
        assert checkpoint.layout.name == "this project's" and checkpoint.theirs == {name: name for name in names}


def test_names_of_no_row_are_said():
    names = {"dist_token", "head_dist.weight", "norm.weight", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"}
    checkpoint = read(dict.fromkeys(names, (2,)))
    assert sorted(checkpoint.unread) == ["dist_token", "head_dist.weight"]
    assert "dist_token" in checkpoint.leftovers() and "norm.weight" in checkpoint.leftovers()


# ---- the norm of a read-out -------------------------------------------------------------------------------------


def classifier(classes=3, cls_token=True, mean_pooling=True, fresh_norm=False, width=24, seed=0) -> Classifier:
    torch.manual_seed(seed)
    backbone = VisionTransformer((16, 16), (8, 8), (8, 8), (0, 0), width, 2, num_heads=2, cls_token=cls_token)
    head = ClassificationHead(width, classes, backbone.num_prefix_tokens, mean_pooling, fresh_norm=fresh_norm)
    return Classifier(backbone, head)


def pretrained(**head: torch.Tensor) -> dict:
    """Our checkpoint of a pre-training run with these tensors in its head."""
    state = {n: t for n, t in classifier(seed=1).state_dict().items() if n.startswith("backbone.")}
    return {"model_state": state | head}


def autoencoder(width: int = 24) -> dict:
    """Its decoder is as wide as the encoder, and predicts as many numbers as there are classes."""
    layers = {"encoder_norm": (width,), "embed": (width, width), "norm": (width,), "projection": (3, width)}
    head = {f"head.{name}.weight": torch.randn(shape) for name, shape in layers.items()}
    biases = {f"head.{name}.bias": torch.randn(shape[0]) for name, shape in layers.items()}
    return pretrained(**head, **biases)


@pytest.mark.parametrize(
    ("mean_pooling", "fresh_norm", "taken"), [(False, False, True), (True, False, False), (False, True, False)]
)
def test_a_decoder_s_norm_is_no_classifier_s(mean_pooling, fresh_norm, taken, tmp_path):
    """Same names, same shapes, another thing: only the encoder's norm may come in, and only for the class token."""
    content = autoencoder()
    torch.save(content, tmp_path / "x.pyth")
    model = classifier(mean_pooling=mean_pooling, fresh_norm=fresh_norm)
    before = {name: t.clone() for name, t in model.head.state_dict().items()}
    report = init_from(model, str(tmp_path / "x.pyth"))
    for part in ("weight", "bias"):
        expected = content["model_state"][f"head.encoder_norm.{part}"] if taken else before[f"norm.{part}"]
        assert torch.equal(model.head.state_dict()[f"norm.{part}"], expected)
        assert torch.equal(model.head.state_dict()[f"projection.{part}"], before[f"projection.{part}"])
        assert f"head.norm.{part}" in report.unused and f"head.projection.{part}" in report.unused
        assert (f"head.encoder_norm.{part}" in report.unused) is not taken


def test_an_autoencoder_of_clips_hands_its_norm_to_both_read_outs(tmp_path):
    """PySlowFast calls all three norms the same, and loads by name. Its separate positions have names of their own."""
    content = autoencoder()["model_state"]
    positions = {f"backbone.pos_embed.{part}": torch.zeros(1, 4, 24) for part in ("spatial", "temporal")}
    theirs = {"decoder_embed.weight": (2,), "mask_token": (2,), "pred_head.projections.0.weight": (2,)}
    theirs |= {f"dec_pos_embed_{part}": (2,) for part in ("spatial", "temporal", "class")}
    checkpoint = read(theirs)
    assert {f"head.pos_embed.{part}" for part in ("spatial", "temporal", "cls")} <= set(checkpoint.state)
    torch.save({"model_state": content | positions}, tmp_path / "x.pyth")
    for mean_pooling in (False, True):
        model = classifier(mean_pooling=mean_pooling)
        init_from(model, str(tmp_path / "x.pyth"))
        assert torch.equal(model.head.norm.weight.data, content["head.encoder_norm.weight"])


def test_maskfeat_s_norm_stays_with_its_predictions(tmp_path):
    """As in PySlowFast. MFM's, which all tokens pass, is taken over."""
    norm = {f"head.transforms.0.0.{part}": torch.randn(24) for part in ("weight", "bias")}
    for mask_token, taken in ((True, False), (False, True)):
        content = pretrained(**norm, **({"corruption.mask_token": torch.zeros(1, 1, 24)} if mask_token else {}))
        torch.save(content, tmp_path / "x.pyth")
        model = classifier(mean_pooling=False)
        report = init_from(model, str(tmp_path / "x.pyth"))
        assert ("head.norm.weight" in report.loaded) is taken
        assert torch.equal(model.head.norm.weight.data, norm["head.transforms.0.0.weight"]) is taken


# ---- forms ------------------------------------------------------------------------------------------------------


class Keyless(nn.Module):
    """The names of an attention without key bias, in a model without anything else."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.patch_embed = classifier().backbone.patch_embed
        self.backbone.blocks = nn.ModuleList(nn.Module() for _ in range(2))
        for block in self.backbone.blocks:
            block.attn = nn.Module()
            block.attn.q_bias, block.attn.v_bias = (nn.Parameter(torch.zeros(width)) for _ in range(2))
            block.attn.qkv = nn.Linear(width, 3 * width, bias=False)


def test_biases_are_joined_and_parted(tmp_path):
    whole = classifier(seed=1)
    for i, block in enumerate(whole.backbone.blocks):
        nn.init.normal_(block.attn.qkv.bias, generator=torch.Generator().manual_seed(i))
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    parted = Keyless()
    report = init_from(parted, str(tmp_path / "whole.pth"))
    assert not report.missing and any("2 attentions" in line for line in report.lines())
    for here, there in zip(parted.backbone.blocks, whole.backbone.blocks):
        assert torch.equal(here.attn.q_bias, there.attn.qkv.bias[:24])
        assert torch.equal(here.attn.v_bias, there.attn.qkv.bias[48:])

    images = torch.randn(2, 3, 16, 16)
    state = {n: t for n, t in whole.state_dict().items() if not n.endswith("qkv.bias")} | parted.state_dict()
    torch.save(state, tmp_path / "parted.pth")
    joined = classifier()
    report = init_from(joined, str(tmp_path / "parted.pth"))
    assert not report.missing and not report.unused
    assert joined.backbone.blocks[0].attn.qkv.bias[24:48].abs().max() == 0
    torch.testing.assert_close(joined(images), whole(images), rtol=1e-5, atol=1e-6)


def test_axes_of_length_one():
    table = torch.arange(6.0).view(2, 3, 1, 1)
    assert torch.equal(fit_axes(table, torch.Size((2, 3))), table[:, :, 0, 0])
    assert fit_axes(torch.ones(3), torch.Size((3, 1, 1, 1))).shape == (3, 1, 1, 1)
    assert fit_axes(table, torch.Size((3, 2))).shape == (2, 3, 1, 1)


def test_positions_of_every_kind():
    square, prefix = torch.randn(1, 17, 4), torch.randn(1, 16, 4)
    got, _ = fit_positions(square, 7, (2, 3), True, "x")
    assert torch.equal(got, resample_positions(square, (4, 4), (2, 3), 1)) and torch.equal(got[:, 0], square[:, 0])
    got, _ = fit_positions(prefix, 6, (2, 3), False, "x")
    assert torch.equal(got, resample_positions(prefix, (4, 4), (2, 3), 0))
    got, said = fit_positions(square, 16, (4, 4), True, "x")
    assert torch.equal(got, square[:, 1:]) and "class token" in said
    got, said = fit_positions(prefix, 17, (4, 4), True, "x")
    assert torch.equal(got[:, 1:], prefix) and got[:, 0].abs().max() == 0 and "class token" in said
    got, _ = fit_positions(square[:, :7], 6, (2, 3), True, "x")  # of the wanted grid, though of no square
    assert torch.equal(got, square[:, 1:7])
    with pytest.raises(UserError, match="no square grid"):
        fit_positions(square[:, :13], 17, (4, 4), True, "x")
    with pytest.raises(UserError, match="CLS_EMBED_ON"):
        fit_positions(prefix, 17, (4, 4), False, "x")
    with pytest.raises(UserError):
        fit_positions(square[:, :0], 17, (4, 4), True, "x")


def test_two_architectures(tmp_path):
    resnet = {"conv1.weight": torch.zeros(4, 3, 7, 7), "layer1.0.conv1.weight": torch.zeros(4, 4, 1, 1)}
    path = tmp_path / "resnet.pth"
    torch.save(resnet, path)
    with pytest.raises(UserError, match="ResNet's, and this model is a ViT; MODEL.ARCH") as caught:
        init_from(classifier(), str(path), min_match=0.0)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
