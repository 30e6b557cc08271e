"""What a masked autoencoder of clips promises: masks as they are given, no hidden pixel seen, one frame predicted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from clip_models import clip_config
from torch import nn

from mfm_core.config import validate
from mfm_core.errors import UserError
from mfm_core.methods.parts import masks_from_cfg
from mfm_core.nn.pos_embed import SeparablePositions, sincos_1d, sincos_2d, sincos_3d
from mfm_core.optim.build import build_optimizer, follow
from mfm_core.targets.pixel import PixelTarget
from mfm_video.models import build_model

CURVES = json.loads((Path(__file__).parent / "loss_curves.json").read_text())
"""Losses of 20 steps on a fixed batch, recorded when the method passed the golden case."""
CUBES = {"AUG__MASK_TYPE": "cube", "MASK__MAE_RND_MASK": False, "AUG__MASK_WINDOW_SIZE": [2, 2, 2]}
MASKS = {
    "random": {},
    "tube": {"AUG__MASK_TUBE": True},
    "frames": {"AUG__MASK_FRAMES": True, "AUG__MASK_RATIO": 0.5},
    "cube": CUBES,
    "tubes of blocks": {**CUBES, "AUG__MASK_TUBE": True, "AUG__MASK_WINDOW_SIZE": [4, 4]},
}


def model_and_batch(cfg, clips=4, seed=0):
    """The model, moving pictures, and the masks that the loader would draw."""
    torch.manual_seed(seed)
    model = build_model(cfg)
    frames, side = cfg.DATA.NUM_FRAMES, cfg.DATA.TRAIN_CROP_SIZE
    inputs = nn.functional.interpolate(torch.randn(clips, 3, 2, 8, 8), size=(frames, side, side), mode="trilinear")
    masker, generator = masks_from_cfg(cfg, model.backbone.grid), torch.Generator().manual_seed(seed)
    return model, inputs, torch.stack([masker(generator, clip) for clip in inputs])


def over_pixels(mask, patch):
    """(B, t, h, w) over tokens to (B, 1, T, H, W) over pixels."""
    for axis, size in enumerate(patch, start=1):
        mask = mask.repeat_interleave(size, dim=axis)
    return mask[:, None]


@pytest.mark.parametrize("kind", MASKS)
def test_hidden_pixels_are_never_seen(kind):
    cfg = clip_config(**MASKS[kind])
    validate(cfg)
    model, clips, mask = model_and_batch(cfg)
    hidden = over_pixels(mask, model.backbone.patch_stride)
    first = model(clips, mask)
    assert torch.equal(first.mask, mask.flatten(1))
    assert ((~first.mask).sum(dim=1) == model.num_visible).all()
    other = model(torch.where(hidden, torch.randn_like(clips), clips), mask)
    assert torch.equal(first.prediction, other.prediction)
    assert not torch.equal(first.target, other.target)
    seen = model(torch.where(hidden, clips, torch.randn_like(clips)), mask)
    assert not torch.allclose(first.prediction, seen.prediction, atol=1e-3)


@pytest.mark.parametrize("kind", ["cube", "tube", "random"])
def test_maskfeat_on_the_same_model(kind):
    """A mask token in place of hidden patches, and the HOG of each token's first frame."""
    changes = {"MASK__MAE_ON": False, "MASK__MAE_RND_MASK": False, "MASK__PRED_HOG": True, "HOG__CELL": 4}
    cfg = clip_config(**changes, MASK__HEAD_TYPE="separate", MASK__PRETRAIN_DEPTH=[2], MASK__DECODER_DEPTH=0)
    cfg.AUG.MASK_TYPE, cfg.AUG.MASK_TUBE = {"random": "random"}.get(kind, ""), kind == "tube"
    cfg.AUG.MASK_WINDOW_SIZE, cfg.AUG.MASK_RATIO = [2, 4, 4], 0.4
    validate(cfg)
    model, clips, mask = model_and_batch(cfg)
    assert model.target.dim == 3 * 2 * 2 * 9 and 0 < mask.float().mean() < 0.45
    hidden = over_pixels(mask, model.backbone.patch_stride)
    first = model(clips, mask)
    other = model(torch.where(hidden, torch.randn_like(clips), clips), mask)
    assert torch.equal(first.prediction, other.prediction) and not torch.equal(first.target, other.target)


@pytest.mark.parametrize(("kind", "same_in_time", "same_in_space"), [("tube", True, False), ("frames", False, True)])
def test_structure_of_random_masks(kind, same_in_time, same_in_space):
    cfg = clip_config(**{**MASKS[kind], "DATA__NUM_FRAMES": 8})
    masker = masks_from_cfg(cfg, (4, 4, 4))
    masks = torch.stack([masker(torch.Generator().manual_seed(i)) for i in range(200)])
    assert bool((masks == masks[:, :1]).all()) == same_in_time
    assert bool((masks == masks[:, :, :1, :1]).all()) == same_in_space
    share = masks.float().mean(dim=0)
    assert (share - cfg.AUG.MASK_RATIO).abs().max() < 0.15  # no place is preferred
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) > (100 if kind == "tube" else 5)


def test_a_ratio_that_hides_all_frames():
    cfg = clip_config(AUG__MASK_FRAMES=True, AUG__MASK_RATIO=0.9)
    with pytest.raises(UserError, match="AUG.MASK_RATIO 0.9 hides 2 of 2"):
        build_model(cfg)


def test_the_decoder_gets_all_tokens():
    model, clips, mask = model_and_batch(clip_config())
    shapes = []
    model.backbone.blocks[0].register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape)))
    model.head.blocks[0].register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape)))
    model(clips, mask)
    assert shapes == [(4, 1 + 8, 48), (4, 1 + 32, 32)]


@pytest.mark.parametrize("all_frames", [False, True])
def test_which_frames_are_predicted(all_frames):
    """The first of each patch, or all, frame by frame, each row by row, colours last."""
    cfg = clip_config(MASK__TIME_STRIDE_LOSS=not all_frames, MASK__NORM_PRED_PIXEL=False)
    model, clips, mask = model_and_batch(cfg)
    target = model(clips, mask).target
    token = (1 * 4 + 2) * 4 + 3  # time 1, row 2, column 3
    patch = clips[0, :, 2 : 4 if all_frames else 3, 16:24, 24:32]
    assert torch.equal(target[0, token], patch.permute(1, 2, 3, 0).flatten())


@pytest.mark.parametrize("normalise", ["none", "unbiased"])
@pytest.mark.parametrize("first", [True, False])
def test_targets_become_clips_again(first, normalise):
    target = PixelTarget((2, 8, 8), normalise=normalise, first_frames=first)
    clips = torch.randn(2, 3, 4, 16, 24)
    back = target.to_images(target(clips), clips)
    torch.testing.assert_close(back, clips[:, :, ::2] if first else clips, atol=1e-5, rtol=0)


class TestPositions:
    def test_a_token_has_its_place_and_its_time(self):
        positions = SeparablePositions((2, 3, 4), 8, cls_token=True)
        for table in positions.parameters():
            nn.init.normal_(table)
        table = positions()
        assert table.shape == (1, 1 + 24, 8)
        assert torch.equal(table[0, 0], positions.cls[0, 0])
        for t, place in ((0, 0), (1, 7), (1, 11)):
            expected = positions.temporal[0, t] + positions.spatial[0, place]
            assert torch.equal(table[0, 1 + 12 * t + place], expected)

    def test_sincos(self):
        """A quarter of the channels for the time, then those of an image."""
        table = sincos_3d((3, 2, 4), 32, cls_token=True)
        assert table.shape == (1, 25, 32) and not table[0, 0].any()
        time, image = sincos_1d(8, torch.arange(3)).float(), sincos_2d((2, 4), 24, cls_token=False)[0]
        for t, place in ((0, 3), (2, 5)):
            assert torch.equal(table[0, 1 + 8 * t + place], torch.cat([time[t], image[place]]))

    @pytest.mark.parametrize(
        ("changes", "kinds"),
        [
            ({}, ("separable", "learned")),
            ({"MVIT__SEP_POS_EMBED": False}, ("learned", "learned")),
            ({"MASK__DECODER_SEP_POS_EMBED": True}, ("separable", "separable")),
            ({"MVIT__SEP_POS_EMBED": False, "MVIT__USE_FIXED_SINCOS_POS": True}, ("sincos", "sincos")),
            ({"MVIT__USE_ABS_POS": False}, ("none", "learned")),
        ],
        ids=str,
    )
    def test_kinds(self, changes, kinds):
        model, clips, mask = model_and_batch(clip_config(**changes))
        assert (model.backbone.positions, model.head.positions) == kinds
        model(clips, mask).loss.backward()
        learned = {n: p for n, p in model.named_parameters() if "pos_embed" in n and p.requires_grad}
        assert all(p.grad.abs().sum() > 0 and p.std() > 0.01 for p in learned.values())
        assert bool(learned) == (kinds != ("sincos", "sincos"))

    @pytest.mark.parametrize("key", ["MVIT.EMBED_DIM", "MASK.DECODER_EMBED_DIM"])
    def test_widths_that_cannot_be_shared_out(self, key):
        cfg = clip_config(MVIT__SEP_POS_EMBED=False, MVIT__USE_FIXED_SINCOS_POS=True, MVIT__NUM_HEADS=1)
        section, name = key.split(".")
        cfg[section][name] = 40
        with pytest.raises(UserError, match=f"{key} 40 must be a multiple of 16"):
            build_model(cfg)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"DATA__NUM_FRAMES": 5}, "DATA.NUM_FRAMES 5 is not a whole number of patches"),
        ({"DATA__TRAIN_CROP_SIZE": 36}, "DATA.TRAIN_CROP_SIZE 36 is not a whole number of patches"),
        ({"MVIT__PATCH_KERNEL": [8, 8]}, r"MVIT.PATCH_KERNEL \[8, 8\] needs three numbers on clips"),
        ({"MVIT__PATCH_KERNEL": [4, 8, 8], "DATA__NUM_FRAMES": 6}, "patches that do not overlap"),
    ],
    ids=str,
)
def test_clips_that_patches_do_not_fit(changes, part):
    with pytest.raises(UserError, match=part) as caught:
        build_model(clip_config(**changes))
    assert "\n" not in str(caught.value)


def test_it_starts_as_pyslowfast_does():
    """Not as MAE on images, whose linear layers are Xavier's: 0.02 everywhere, biases too but for the decoder's."""
    model = build_model(clip_config())
    block, decoder = model.backbone.blocks[0], model.head
    assert float(block.mlp.fc1.bias[0].detach()) == float(block.norm1.bias[0].detach()) == pytest.approx(0.02)
    for part in (block, decoder.blocks[0], decoder.projection):
        matrices = [p.detach() for p in part.parameters() if p.ndim == 2]
        assert float(torch.cat([m.flatten() for m in matrices]).std()) == pytest.approx(0.02, rel=0.03)
    assert not any(p.any() for n, p in decoder.named_parameters() if n.endswith("bias") and not n.startswith("embed"))
    bound = decoder.embed.in_features**-0.5
    for values in (decoder.embed.weight, decoder.embed.bias):
        assert 0.8 * bound < float(values.detach().abs().max()) <= bound
    assert float(decoder.mask_token.detach().std()) == pytest.approx(0.02, rel=0.5)


def test_twenty_steps_follow_the_recorded_curve():
    losses = twenty_steps()
    assert losses[-1] < 0.7  # 1 is what the mean of each patch gives
    assert losses == pytest.approx(CURVES["mae"], rel=2e-3)


def twenty_steps():
    cfg = clip_config()
    cfg.SOLVER.OPTIMIZING_METHOD, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.BETAS = "adamw", 0.05, (0.9, 0.95)
    model, clips, mask = model_and_batch(cfg)
    optimizer = build_optimizer(model, cfg)
    follow(optimizer, lambda scale: scale * 5e-3)
    losses = []
    for _ in range(20):
        loss = model(clips, mask).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
