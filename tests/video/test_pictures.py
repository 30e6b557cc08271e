"""Pictures of clips hold the right frames and the right tokens at their places."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from mfm_core.interfaces import PretrainOutput
from mfm_core.report.glyphs import hog_glyphs
from mfm_core.report.pixels import Pixels
from mfm_core.targets.hog import HOGTarget
from mfm_core.targets.pixel import PixelTarget
from mfm_video.demo import MOTIONS, draw_clip
from mfm_video.pictures.reconstruction import ClipScene, draw_clips, reconstruction

FRAMES, SIZE, TUBE, PATCH = 8, 32, 2, 16
GRID = (FRAMES // TUBE, SIZE // PATCH, SIZE // PATCH)
PIXELS = Pixels([0.45, 0.46, 0.47], [0.225, 0.2, 0.25])


def clips(seed=0):
    """Two demo clips, (2, 3, T, H, W) normalised."""
    drawn = [draw_clip(MOTIONS[name], np.random.default_rng(seed), SIZE, FRAMES) for name in ("left", "zoom_in")]
    mean, std = (torch.tensor(x)[:, None, None, None] for x in (PIXELS.mean, PIXELS.std))
    return (torch.from_numpy(np.stack(drawn)).permute(0, 4, 1, 2, 3) / 255 - mean) / std


def scene(target, prediction=None):
    mask = torch.rand(2, *GRID, generator=torch.Generator().manual_seed(1)) < 0.5
    predicted = target(clips(seed=7)) if prediction is None else prediction
    output = PretrainOutput(torch.zeros(()), predicted, target(clips()), mask.flatten(1))
    return ClipScene(clips(), output, GRID, PIXELS), mask.numpy()


def over_pixels(mask):
    return np.kron(mask, np.ones((PATCH, PATCH), dtype=bool))


@pytest.mark.parametrize(
    ("target", "frames"),
    [
        (PixelTarget((TUBE, PATCH, PATCH), normalise="none"), range(FRAMES)),
        (PixelTarget((TUBE, PATCH, PATCH), normalise="none", first_frames=True), range(0, FRAMES, TUBE)),
    ],
    ids=["all frames", "first of each tube"],
)
def test_pixels_of_each_frame(target, frames):
    """Both frames of a tube share its mask; each shows its own pixels."""
    drawn_scene, mask = scene(target)
    drawn = draw_clips(target, drawn_scene)
    assert list(drawn) == list(frames)
    for t, columns in drawn.items():
        assert list(columns) == ["image = target", "masked input", "prediction", "prediction + visible"]
        wanted, other = (PIXELS(x[:, :, t]) for x in (clips(), clips(seed=7)))
        for i in range(2):
            hidden = over_pixels(mask[i, t // TUBE])
            image, masked, predicted, whole = (panels[i] for panels in columns.values())
            assert np.array_equal(image, wanted[i]) and np.abs(predicted.astype(int) - other[i]).max() <= 1
            assert np.array_equal(whole[hidden], predicted[hidden]) and np.array_equal(whole[~hidden], image[~hidden])
            assert np.array_equal(masked[~hidden], image[~hidden])
            assert not hidden.any() or len(np.unique(masked[hidden], axis=0)) == 1


def test_glyphs_are_those_of_the_tokens_frame():
    """Token time t holds frame 2 t, and the masked cubes are its own."""
    target = HOGTarget((PATCH, PATCH), temporal_stride=TUBE)
    drawn_scene, mask = scene(target)
    drawn = draw_clips(target, drawn_scene)
    assert list(drawn) == [0, 2, 4, 6]
    flat = HOGTarget((PATCH, PATCH))
    for t, columns in drawn.items():
        assert list(columns) == ["image", "masked input", "HOG target", "predicted HOG", "prediction + visible"]
        wanted, other = (flat.ungroup(flat(x[:, :, t]), GRID[1:]) for x in (clips(), clips(seed=7)))
        for i in range(2):
            image, masked, shown, predicted, _ = (panels[i] for panels in columns.values())
            cell = len(shown) // wanted.shape[-1]
            hidden = np.kron(mask[i, t // TUBE], np.ones((2 * cell, 2 * cell), dtype=bool))
            bright = hog_glyphs(other[i], cell)
            assert np.array_equal(image, PIXELS(clips()[:, :, t])[i])
            assert np.array_equal(shown, hog_glyphs(wanted[i], cell))
            assert np.array_equal(predicted[hidden], bright[hidden])
            assert hidden.all() or predicted[~hidden].max() < 0.6 * bright.max()
            grey = (masked != image).any(axis=2)
            assert not grey[~over_pixels(mask[i, t // TUBE])].any()
    assert len(shown) % SIZE == 0, "frames are enlarged by whole pixels beside the glyphs"


def first_row(page):
    """Where the panels of a sheet begin."""
    return int(np.flatnonzero((page[:, 4:196, 3] == 255).all(axis=1))[0])


def test_still_and_animation():
    """The sheet lists frames from left to right; the animation shows one after the other."""
    target = PixelTarget((TUBE, PATCH, PATCH), normalise="unbiased")
    drawn_scene, _ = scene(target)
    made = reconstruction(target, GRID, clips(), drawn_scene.output, PIXELS, ["one", "two"])
    assert "contrast" in made.remarks and "what the encoder saw" in made.remarks
    page = np.asarray(made.still.convert("RGBA"))
    left = [4 + i * (192 + 10) for i in range(FRAMES)]
    top = first_row(page)
    for t, x in enumerate(left):
        panel = page[top : top + 192, x : x + 192, :3]
        assert np.array_equal(panel[::6, ::6], PIXELS(clips()[:, :, t])[0]), t
    assert len(made.moving.frames) == FRAMES and made.moving.seconds == pytest.approx(0.3)
    gif = Image.open(io.BytesIO(made.moving.gif()))
    assert gif.n_frames == FRAMES
    for t in (0, 5):
        gif.seek(t)
        shown = np.asarray(gif.convert("RGBA"))
        top = first_row(shown)
        difference = shown[top : top + 192 : 6, 4:196:6, :3].astype(int) - PIXELS(clips()[:, :, t])[0]
        assert np.abs(difference).mean() < 6, t
