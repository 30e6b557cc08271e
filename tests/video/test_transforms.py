"""Transforms of clips: the same for all frames, on the right pixels, with the policies and boxes of the libraries."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from mfm_core.data.augment import build_auto_augment, from_pil, to_pil
from mfm_core.data.seeding import seeded
from mfm_core.errors import UserError
from mfm_video.data.transforms import ClipCrop, TrainClipTransform, ViewTransform, same_for_all

MEAN, STD = (0.45, 0.4, 0.5), (0.225, 0.25, 0.2)
RELATIVE = {"scale": (0.5, 1.0), "ratio": (0.75, 1.3333)}


def clip_of(frames=4, height=60, width=80, seed=0):
    """(T, 3, h, w) uint8, stored channels-last: smooth pictures, another one in each frame."""
    rng = np.random.default_rng(seed)
    cells = torch.from_numpy(rng.integers(0, 256, (frames, 3, 6, 8)).astype(np.float32))
    smooth = interpolate(cells, size=(height, width), mode="bilinear").round().to(torch.uint8)
    return smooth.contiguous(memory_format=torch.channels_last)


def still(frames=4, **kwargs):
    return clip_of(1, **kwargs).expand(frames, -1, -1, -1).contiguous(memory_format=torch.channels_last)


def by_hand(frames, box, size, flip, frame=None):
    """(3, T, size, size): floating-point resizing of the box, then normalisation."""
    if frame is not None:
        frames = interpolate(frames.float(), size=frame, mode="bilinear", antialias=True).round()
    top, left, height, width = box
    cut = frames[:, :, top : top + height, left : left + width].float()
    cut = interpolate(cut, size=(size, size), mode="bilinear", antialias=True)
    cut = cut.flip(-1) if flip else cut
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (MEAN, STD))
    return ((cut / 255 - mean) / std).transpose(0, 1)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("frame", [None, (90, 120)])
def test_crop_resize_flip_and_normalisation(flip, frame):
    frames = clip_of()
    box = (5, 11, 40, 32)
    clip = TrainClipTransform(32, MEAN, STD, **RELATIVE).apply(frames, ClipCrop(*box, frame=frame, flip=flip))
    assert clip.shape == (3, 4, 32, 32) and clip.dtype == torch.float32 and clip.is_contiguous()
    assert (clip - by_hand(frames, box, 32, flip, frame)).abs().max() <= 1.6 / 255 / min(STD)


def test_a_relative_crop_has_its_share_of_the_area():
    transform = TrainClipTransform(32, MEAN, STD, **RELATIVE)
    crops = [transform.plan(60, 80, random.Random(seed)) for seed in range(300)]
    shares = [crop.height * crop.width / 4800 for crop in crops]
    assert 0.49 < min(shares) < 0.55 and 0.9 < max(shares) <= 1.0
    assert min(c.width / c.height for c in crops) > 0.7 and max(c.width / c.height for c in crops) < 1.4
    assert 0.4 < sum(crop.flip for crop in crops) / 300 < 0.6
    assert all(crop.frame is None for crop in crops)


def test_without_relative_scales_the_short_side_is_drawn_and_a_window_placed():
    transform = TrainClipTransform(32, MEAN, STD, jitter=(40, 50), flip=0.0)
    crops = [transform.plan(60, 80, random.Random(seed)) for seed in range(300)]
    assert {min(crop.frame) for crop in crops} == set(range(40, 51))
    assert all(crop.frame[1] == int(crop.frame[0] * 80 / 60) for crop in crops)
    assert {(crop.height, crop.width, crop.flip) for crop in crops} == {(32, 32, False)}
    assert {crop.top for crop in crops if crop.frame[0] == 40} <= set(range(9))
    assert max(crop.left + 32 - crop.frame[1] for crop in crops) == 0


def test_the_window_must_fit():
    with pytest.raises(UserError, match="TRAIN_JITTER_SCALES"):
        TrainClipTransform(64, MEAN, STD, jitter=(40, 80))
    TrainClipTransform(64, MEAN, STD, jitter=(40, 80), scale=(0.5, 1))


BOTH = {"auto_augment": "rand-m7-n4-mstd0.5-inc1", "color_jitter": 0.4, "jitter_on_top": True}


@pytest.mark.parametrize("kind", [{"auto_augment": "rand-m7-n4-mstd0.5-inc1"}, {"color_jitter": 0.4}, BOTH])
def test_all_frames_are_changed_alike(kind):
    """A clip that stands still still does."""
    transform = TrainClipTransform(32, MEAN, STD, flip=0.0, **RELATIVE, **kind)
    plain = TrainClipTransform(32, MEAN, STD, flip=0.0, **RELATIVE)
    frames, crop, changed = still(), ClipCrop(0, 0, 60, 80), 0
    for seed in range(12):
        with seeded(seed):
            clip = transform.apply(frames, crop)
        assert torch.equal(clip, clip[:, :1].expand_as(clip))
        changed += not torch.equal(clip, plain.apply(frames, crop))
    assert changed > 8


def test_colour_jitter_replaces_no_policy_where_it_comes_on_top():
    assert TrainClipTransform(32, MEAN, STD, **RELATIVE, **BOTH).recolor is not None
    assert TrainClipTransform(32, MEAN, STD, **RELATIVE, **{**BOTH, "jitter_on_top": False}).recolor is None
    assert TrainClipTransform(32, MEAN, STD, **RELATIVE, color_jitter=0.4).recolor is not None


def test_the_policy_is_timms_on_whole_frames_before_the_crop():
    """As PySlowFast: how far frames are moved depends on their short side, and gaps are middle grey."""
    transform = TrainClipTransform(32, MEAN, STD, flip=0.0, auto_augment="rand-m7-n4-mstd0.5-inc1", **RELATIVE)
    plain = TrainClipTransform(32, MEAN, STD, flip=0.0, **RELATIVE)
    frames, crop = clip_of(), ClipCrop(10, 10, 40, 40)
    policy = build_auto_augment("rand-m7-n4-mstd0.5-inc1", 60, None, "bicubic")
    for seed in range(8):
        with seeded(seed):
            clip = transform.apply(frames, crop)
        with seeded(seed):
            seed_of_all = int(torch.randint(2**62, ()))
        expected = []
        for frame in frames:
            with seeded(seed_of_all):
                expected.append(from_pil(policy(to_pil(frame))))
        assert torch.equal(clip, plain.apply(torch.stack(expected), crop))


def test_a_frame_keeps_its_place_under_a_policy():
    frames = clip_of(6)
    assert torch.equal(same_for_all(lambda image: image, frames), frames)


def test_gaps_of_the_policy_are_middle_grey():
    policy = build_auto_augment("rand-m10-n1-mstd0-inc1", 60, None, "bicubic")
    assert {op.hparams["fillcolor"] if "fillcolor" in op.hparams else op.kwargs["fillcolor"] for op in policy.ops} == {
        (128, 128, 128)
    }
    assert {op.hparams["translate_const"] for op in policy.ops} == {27}


@pytest.mark.parametrize("mode", ["pixel", "rand", "const"])
def test_the_same_box_is_erased_in_all_frames(mode):
    transform = TrainClipTransform(32, MEAN, STD, flip=0.0, erase_prob=1.0, erase_mode=mode, **RELATIVE)
    plain = TrainClipTransform(32, MEAN, STD, flip=0.0, **RELATIVE)
    frames, crop = clip_of(), ClipCrop(0, 0, 60, 80)
    with seeded(3):
        clip = transform.apply(frames, crop)
    erased = clip != plain.apply(frames, crop)
    rows, columns = (erased[0, 0].any(1 - axis).nonzero().flatten() for axis in range(2))
    assert 0.01 < erased[0, 0].float().mean() < 0.4
    box = erased[:, :, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert box.all() and box.sum() == erased.sum()
    inside = clip[:, :, rows.min(), columns.min()]
    if mode == "const":
        assert (inside == 0).all()
    else:
        assert len(inside.unique()) == 12  # drawn anew in each frame and channel


def test_erasing_keeps_to_its_probability():
    transform = TrainClipTransform(32, MEAN, STD, flip=0.0, erase_prob=0.25, **RELATIVE)
    plain = TrainClipTransform(32, MEAN, STD, flip=0.0, **RELATIVE)
    frames, crop = clip_of(), ClipCrop(0, 0, 60, 80)
    reference, hits = plain.apply(frames, crop), 0
    for seed in range(200):
        with seeded(seed):
            hits += not torch.equal(transform.apply(frames, crop), reference)
    assert 30 <= hits <= 70


@pytest.mark.parametrize("size", [(60, 80), (80, 60)])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_views_show_beginning_middle_and_end_of_the_longer_side(size, position):
    view = ViewTransform(32, MEAN, STD, 32, position)
    frames = clip_of(height=size[0], width=size[1])
    clip = view.apply(frames, view.plan(*size))
    along = (0, 5, 10)[position]
    box = (0, along, 32, 32) if size[1] > size[0] else (along, 0, 32, 32)
    frame = (32, 42) if size[1] > size[0] else (42, 32)
    assert (clip - by_hand(frames, box, 32, False, frame)).abs().max() <= 1.6 / 255 / min(STD)
