"""An image's weights in a model of clips: equal outputs on clips of equal frames, and position tables of every kind."""

from __future__ import annotations

import pytest
import timm
import torch
from golden_cases import cases, load_case
from torch import nn

from mfm_core.checkpoint.init_from import init_from
from mfm_core.errors import UserError
from mfm_core.heads.classification import ClassificationHead
from mfm_core.heads.decoder import TransformerDecoder
from mfm_core.losses.masked import MaskedMSE
from mfm_core.nn.pos_embed import position_table, resample_positions
from mfm_core.nn.vit import VisionTransformer
from mfm_core.objective import Classifier, MaskedAutoencoder
from mfm_core.targets.pixel import PixelTarget

KERNEL = "backbone.patch_embed.proj.weight"


def vit(axes, side=32, frames=4, positions=None, cls_token=True, width=48):
    """A small ViT on images (2) or clips (3), in which nothing is zero or alike."""
    size, patch = ((side, side), (8, 8)) if axes == 2 else ((frames, side, side), (2, 8, 8))
    kind = positions or ("learned" if axes == 2 else "separable")
    backbone = VisionTransformer(
        size, patch, patch, (0,) * axes, width, depth=2, num_heads=3, cls_token=cls_token, positions=kind
    )
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    return backbone.eval()


def classifier(backbone):
    return Classifier(backbone, ClassificationHead(48, 5, backbone.num_prefix_tokens, mean_pooling=True)).eval()


def autoencoder(backbone, positions):
    target = PixelTarget(backbone.patch_stride, first_frames=len(backbone.grid) == 3)
    head = TransformerDecoder(backbone.grid, 48, target.dim, 32, 1, 2, positions=positions)
    return MaskedAutoencoder(backbone, head, target, MaskedMSE(), num_visible=4, depths=[1])


@pytest.fixture
def load(tmp_path):
    """Starts the second model from a file with the first one's weights; the report."""

    def load(source, model):
        state = source if isinstance(source, dict) else source.state_dict()
        torch.save({"model_state": state}, tmp_path / "x.pyth")
        return init_from(model, str(tmp_path / "x.pyth"))

    return load


@pytest.mark.parametrize("positions", ["separable", "learned", "none"])
def test_a_clip_of_equal_frames_is_its_image(positions, load):
    """Without a class token, whose share of the attention falls with the number of frames, exactly so."""
    image_model = classifier(vit(2, cls_token=False, positions="none" if positions == "none" else "learned"))
    clip_model = classifier(vit(3, cls_token=False, positions=positions))
    report = load(image_model, clip_model)
    assert not report.missing and not report.unused and not report.other_shape
    images = torch.randn(2, 3, 32, 32)
    clips = images[:, :, None].expand(-1, -1, 4, -1, -1)
    expected, found = image_model.backbone.tokens(images), clip_model.backbone.tokens(clips)
    for step in found.unflatten(1, (2, 16)).unbind(1):
        torch.testing.assert_close(step, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(clip_model(clips), image_model(images), atol=1e-4, rtol=1e-4)


def test_what_is_inflated_is_named(load):
    image_model, clip_model = classifier(vit(2)), classifier(vit(3))
    report = load(image_model, clip_model)
    notes = "\n".join(report.notes)
    assert f"{KERNEL} of an image: repeated over 2 frames and divided by 2" in notes
    assert "backbone.pos_embed of an image: the same at every time step" in notes
    assert not report.missing and not report.unused
    assert {KERNEL, "backbone.pos_embed.spatial", "backbone.pos_embed.temporal"} <= set(report.loaded)


def test_separable_positions_of_an_image(load):
    image_model, clip_model = classifier(vit(2)), classifier(vit(3))
    load(image_model, clip_model)
    table, positions = image_model.backbone.pos_embed, clip_model.backbone.pos_embed
    assert torch.equal(positions.cls, table[:, :1]) and torch.equal(positions.spatial, table[:, 1:])
    assert not positions.temporal.any()
    kernel, inflated = image_model.backbone.patch_embed.proj.weight, clip_model.backbone.patch_embed.proj.weight
    torch.testing.assert_close(inflated.sum(dim=2), kernel)
    assert torch.equal(inflated[:, :, 0], inflated[:, :, 1])


def test_one_table_for_all_tokens_is_repeated(load):
    image_model, clip_model = classifier(vit(2)), classifier(vit(3, positions="learned"))
    load(image_model, clip_model)
    table = image_model.backbone.pos_embed
    assert torch.equal(clip_model.backbone.pos_embed, torch.cat([table, table[:, 1:]], dim=1))


def test_fixed_positions_stay(load):
    image_model, clip_model = classifier(vit(2)), classifier(vit(3, positions="sincos"))
    before = clip_model.backbone.pos_embed.clone()
    report = load(image_model, clip_model)
    assert torch.equal(clip_model.backbone.pos_embed, before)
    assert any("stays as it is" in note for note in report.notes)


def test_learned_positions_of_a_frozen_encoder_are_loaded(load):
    image_model, clip_model = classifier(vit(2)), classifier(vit(3, positions="learned"))
    clip_model.requires_grad_(False)
    load(image_model, clip_model)
    assert torch.equal(clip_model.backbone.pos_embed[:, :17], image_model.backbone.pos_embed)


def test_an_image_of_another_size(load):
    image_model, clip_model = classifier(vit(2, side=64)), classifier(vit(3, side=32))
    report = load(image_model, clip_model)
    expected = resample_positions(image_model.backbone.pos_embed, (8, 8), (4, 4), 1)
    assert torch.equal(clip_model.backbone.pos_embed.spatial, expected[:, 1:])
    assert any("resampled from 8 x 8 to 4 x 4" in note for note in report.notes)


def test_class_tokens(load):
    image_model, clip_model = classifier(vit(2)), classifier(vit(3, cls_token=False))
    report = load(image_model, clip_model)
    assert torch.equal(clip_model.backbone.pos_embed.spatial, image_model.backbone.pos_embed[:, 1:])
    assert any("without the class token's row" in note for note in report.notes)
    with pytest.raises(UserError, match="MVIT.CLS_EMBED_ON False"):
        load(classifier(vit(2, cls_token=False)), classifier(vit(3)))


def test_a_timm_model(load):
    theirs = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5
    ).eval()
    model = classifier(vit(3))
    report = load(theirs.state_dict(), model)
    assert report.layout == "MAE or timm ViT"
    assert torch.equal(model.backbone.blocks[1].mlp.fc2.weight, theirs.blocks[1].mlp.fc2.weight)
    torch.testing.assert_close(model.backbone.patch_embed.proj.weight.sum(2), theirs.patch_embed.proj.weight)
    assert torch.equal(model.backbone.pos_embed.spatial, theirs.pos_embed[:, 1:])


def test_a_decoder_too(load):
    image_model, clip_model = autoencoder(vit(2), "sincos"), autoencoder(vit(3), "learned")
    report = load(image_model, clip_model)
    assert not report.missing and not report.other_shape and not report.unused
    table = image_model.head.pos_embed
    assert torch.equal(clip_model.head.pos_embed, torch.cat([table, table[:, 1:]], dim=1))
    assert torch.equal(clip_model.head.projection.weight, image_model.head.projection.weight)


class TestTablesOfClips:
    def test_two_parts_become_one(self, load):
        source, model = classifier(vit(3)), classifier(vit(3, positions="learned"))
        report = load(source, model)
        assert torch.equal(model.backbone.pos_embed, position_table(source.backbone.pos_embed))
        assert report.notes == ["backbone.pos_embed summed from its parts over space and time"]
        clips = torch.randn(1, 3, 4, 32, 32)
        assert torch.equal(model(clips), source(clips))

    def test_one_does_not_become_two(self, load):
        with pytest.raises(UserError, match="MVIT.SEP_POS_EMBED False") as caught:
            load(classifier(vit(3, positions="learned")), classifier(vit(3)))
        assert "\n" not in str(caught.value)

    def test_more_frames_and_a_larger_image(self, load):
        source, model = classifier(vit(3)), classifier(vit(3, side=64, frames=8))
        report = load(source, model)
        theirs, ours = source.backbone.pos_embed, model.backbone.pos_embed
        first, second = theirs.temporal[0]
        expected = torch.stack([first, 0.75 * first + 0.25 * second, 0.25 * first + 0.75 * second, second])
        torch.testing.assert_close(ours.temporal[0], expected)
        assert torch.equal(ours.spatial, resample_positions(theirs.spatial, (4, 4), (8, 8), 0))
        assert torch.equal(ours.cls, theirs.cls)
        assert "resampled from 2 to 4 time steps" in report.notes[0] and "4 x 4 to 8 x 8" in report.notes[0]

    def test_the_same_form_is_copied(self, load):
        source, model = classifier(vit(3)), classifier(vit(3))
        assert not load(source, model).notes
        assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), model.state_dict().values()))


@pytest.mark.parametrize("folder", cases("pyslowfast/vit_mae_3d"), ids=lambda p: p.name)
@pytest.mark.parametrize("mean_pooling", [True, False])
def test_fine_tuning_takes_pyslowfasts_norm_by_name(folder, mean_pooling):
    """Its classifier calls the norm as its autoencoder does, before and behind the mean alike."""
    case, _ = load_case(folder)
    config = case["config"]
    width, frames, side = config["embed_dim"], config["num_frames"], config["image_size"]
    stride = tuple(config["patch_stride"])
    backbone = VisionTransformer(
        (frames, side, side), stride, stride, (0, 0, 0), width, config["depth"], config["num_heads"],
        cls_token=config["cls_token"], positions="separable" if config["separate_pos_embed"] else "learned",
    )  # fmt: skip
    model = Classifier(backbone, ClassificationHead(width, 4, backbone.num_prefix_tokens, mean_pooling))
    report = init_from(model, str(folder / "weights.pyth"), min_match=1.0)
    state = torch.load(folder / "weights.pyth", weights_only=True)["model_state"]
    assert report.layout == "PySlowFast MAE"
    assert report.missing == ["head.projection.weight", "head.projection.bias"]
    assert torch.equal(model.head.norm.weight, state["norm.weight"])
    assert {"decoder_embed.weight", "mask_token", "pred_head.projections.0.bias"} <= set(report.unused)
