"""Sheets hold the right pixels at the right places, whatever the method hides and the target is."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from mfm_core.errors import UserError
from mfm_core.interfaces import PretrainOutput, Sample
from mfm_core.objective import CorruptedPrediction, MaskedPrediction
from mfm_core.report.glyphs import hog_glyphs
from mfm_core.report.neighbours import GONE, Neighbour, find_neighbours, nearest, neighbours_sheet
from mfm_core.report.pixels import Pixels
from mfm_core.report.scene import draw
from mfm_core.report.spectrum import join_frequencies
from mfm_core.targets.hog import HOGTarget
from mfm_core.targets.pixel import PixelTarget
from mfm_core.targets.spectrum import SpectrumTarget
from mfm_image.pictures.reconstruction import reconstruction_sheet, scene_of

SIDE, PATCH, GRID = 32, 8, (4, 4)
PIXELS = Pixels([0.4, 0.5, 0.6], [0.2, 0.3, 0.25])


class Backbone(nn.Module):
    """The grid, and nothing that a drawing should need."""

    grid, patch_stride, num_prefix_tokens = GRID, (PATCH, PATCH), 0


class Patches:
    """A target whose tokens are the patches' pixels, times two: undone only by its own `to_images`."""

    dim = 3 * PATCH**2

    def __call__(self, images):
        cut = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
        return 2 * cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)

    def to_images(self, tokens, images):
        x = tokens.unflatten(2, (3, PATCH, PATCH)).unflatten(1, GRID) / 2
        return x.permute(0, 3, 1, 4, 2, 5).reshape(images.shape)


class LowPass(nn.Module):
    """Removes the frequencies where the mask, zero in the middle, is True."""

    def forward(self, images, mask):
        return join_frequencies(torch.zeros_like(images), images, mask)


def images(seed=0):
    """Within what 8 bits can show, so that no pixel is clipped."""
    values = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    mean, std = (torch.tensor(x)[:, None, None] for x in (PIXELS.mean, PIXELS.std))
    return (0.2 + 0.6 * values - mean) / std


def token_scene(target, prediction_of):
    model = MaskedPrediction(Backbone(), nn.Identity(), nn.Identity(), target, None, depths=[0])
    mask = torch.rand(2, 16, generator=torch.Generator().manual_seed(1)) < 0.4
    output = PretrainOutput(torch.zeros(()), prediction_of(target), target(images()), mask)
    return model, output, scene_of(model, images(), output, PIXELS)


def whole_scene(target, prediction_of, corruption, mask):
    model = CorruptedPrediction(Backbone(), corruption, nn.Identity(), target, None)
    output = PretrainOutput(torch.zeros(()), prediction_of(target), target(images()), mask)
    return model, output, scene_of(model, images(), output, PIXELS)


def frequencies():
    """(2, 32, 32): one image loses its high frequencies, one its low ones."""
    y, x = torch.meshgrid(torch.arange(SIDE) - SIDE // 2, torch.arange(SIDE) - SIDE // 2, indexing="ij")
    outside = y**2 + x**2 >= 36
    return torch.stack([outside, ~outside])


def over_pixels(mask):
    return np.kron(mask.reshape(GRID).numpy(), np.ones((PATCH, PATCH), dtype=bool))


def test_pixels_are_pasted_where_they_were_hidden():
    other = images(seed=7)
    _, output, scene = token_scene(Patches(), lambda target: target(other))
    columns = draw(Patches(), scene)
    assert list(columns) == ["image = target", "masked input", "prediction", "prediction + visible"]
    for i in range(2):
        hidden = over_pixels(output.mask[i])
        image, masked, predicted, whole = (panels[i] for panels in columns.values())
        assert 0 < hidden.mean() < 1
        assert np.array_equal(image, PIXELS(images())[i]) and np.array_equal(predicted, PIXELS(other)[i])
        assert np.array_equal(whole[hidden], predicted[hidden]) and np.array_equal(whole[~hidden], image[~hidden])
        assert np.array_equal(masked[~hidden], image[~hidden]) and len(np.unique(masked[hidden], axis=0)) == 1


@pytest.mark.parametrize(("cell", "patch_cells"), [(4, 2), (8, 1)])
def test_glyphs_are_pasted_where_they_were_hidden(cell, patch_cells):
    target = HOGTarget((PATCH, PATCH), cell=cell)
    _, output, scene = token_scene(target, lambda target: target(images(seed=7)))
    columns = draw(target, scene)
    assert list(columns) == ["image", "masked input", "HOG target", "predicted HOG", "prediction + visible"]
    for i in range(2):
        image, _, wanted, predicted, whole = (panels[i] for panels in columns.values())
        side = len(whole) // (GRID[0] * patch_cells)
        hog = target.ungroup(output.prediction, GRID)[i]
        bright = hog_glyphs(hog, side)
        hidden = np.kron(output.mask[i].reshape(GRID).numpy(), np.ones((side * patch_cells,) * 2, dtype=bool))
        enlarged = image.repeat(len(whole) // SIDE, axis=0).repeat(len(whole) // SIDE, axis=1)
        assert np.array_equal(whole[hidden], bright[hidden]) and np.array_equal(whole[~hidden], enlarged[~hidden])
        assert np.array_equal(predicted[hidden], bright[hidden]) and predicted[~hidden].max() < bright[~hidden].max()
        assert np.array_equal(wanted, hog_glyphs(target.ungroup(output.target, GRID)[i], side))


def test_removed_frequencies_come_from_the_prediction():
    """A perfect prediction gives the image back; a prediction of nothing leaves the filtered input."""
    hidden = frequencies()
    nothing, perfect = torch.zeros(2, 3, SIDE, SIDE), images()
    for prediction, expected in ((perfect, perfect), (nothing, LowPass()(images(), hidden))):
        _, _, scene = whole_scene(Patches(), lambda target, p=prediction: target(p), LowPass(), hidden)
        columns = draw(Patches(), scene)
        for shown, wanted in zip(columns["prediction + kept"], PIXELS(expected)):
            assert np.abs(shown.astype(int) - wanted).max() <= 1
    seen = zip(columns["filtered input"], PIXELS(LowPass()(images(), hidden)))
    assert all(np.array_equal(shown, wanted) for shown, wanted in seen)
    titles = ["image = target", "filtered input", "prediction", "prediction + kept"]
    assert list(columns) == [*titles, "target spectrum", "input spectrum", "predicted spectrum"]


def test_spectra_are_dark_where_frequencies_are_removed():
    hidden = frequencies()
    _, _, scene = whole_scene(Patches(), lambda target: target(images()), LowPass(), hidden)
    columns = draw(Patches(), scene)
    for i in range(2):
        image, seen, predicted = (columns[f"{x} spectrum"][i].astype(int) for x in ("target", "input", "predicted"))
        removed = hidden[i].numpy()
        dark = seen.min(axis=(0, 1))
        assert (seen[removed] == dark).all() and (seen[~removed] == image[~removed]).all()
        assert image[removed].sum() > 2 * seen[removed].sum() and np.array_equal(image, predicted)


def test_what_has_no_frequency_mask_is_not_pasted():
    def corrupt(x, noise):
        return x + noise

    noise = 0.1 * torch.randn(2, 3, SIDE, SIDE)
    _, _, scene = whole_scene(Patches(), lambda target: target(images()), corrupt, noise)
    columns = draw(Patches(), scene)
    assert list(columns)[:4] == ["image = target", "degraded input", "prediction", "target spectrum"]
    assert np.array_equal(columns["degraded input"][1], PIXELS(images() + noise)[1])
    hog = HOGTarget((PATCH, PATCH))
    _, _, scene = whole_scene(hog, lambda target: target(images()), LowPass(), frequencies())
    assert list(draw(hog, scene)) == ["image", "filtered input", "HOG target", "predicted HOG"]


@pytest.mark.parametrize("normalise", ["none", "unbiased", "biased"])
@pytest.mark.parametrize("order", ["hwc", "chw"])
def test_normalised_pixels_of_either_order(order, normalise):
    """A perfect prediction shows the image, whatever the target has taken from it."""
    target = PixelTarget((PATCH, PATCH), order, normalise)
    model, output, scene = token_scene(target, lambda target: target(images()))
    for shown, wanted in zip(draw(target, scene)["prediction"], PIXELS(images())):
        assert np.abs(shown.astype(int) - wanted).max() <= 1
    assert ("contrast" in reconstruction_sheet(model, images(), output, PIXELS)[1]) == (normalise != "none")


def test_a_grey_spectrum_has_a_grey_target():
    target, hidden = SpectrumTarget((PATCH, PATCH), grey=True), frequencies()
    _, _, scene = whole_scene(target, lambda target: target(images()), LowPass(), hidden)
    columns = draw(target, scene)
    assert list(columns)[:5] == ["image", "filtered input", "grey target", "prediction", "prediction + kept"]
    for i in range(2):
        image, _, grey, predicted, whole = (panels[i].astype(int) for panels in list(columns.values())[:5])
        assert (np.ptp(grey, axis=2) == 0).all() and np.ptp(image, axis=2).max() > 50 and np.ptp(grey) > 50
        assert np.array_equal(grey, predicted) and np.abs(whole - grey).max() <= 1
    colour = SpectrumTarget((PATCH, PATCH))
    _, _, scene = whole_scene(colour, lambda target: target(images()), LowPass(), hidden)
    assert list(draw(colour, scene))[0] == "image = target"


def test_the_sheet_says_what_to_know():
    model, output, _ = token_scene(Patches(), lambda target: target(images()))
    picture, remarks = reconstruction_sheet(model, images(), output, PIXELS, ["one", "two"])
    assert "what the encoder saw" in remarks and "HOG" not in remarks
    assert picture.width > 4 * 192 and picture.height > 2 * 192


def test_nearest_is_by_cosine_and_in_order():
    bank = torch.tensor([[1.0, 0.0], [0.0, 9.0], [3.0, 3.0], [-1.0, 0.0]])
    similarity, rows = nearest(torch.tensor([[5.0, 0.1], [0.0, 0.1]]), bank, 3)
    assert rows[0].tolist() == [0, 2, 1] and rows[1, :2].tolist() == [1, 2]
    expected = torch.nn.functional.cosine_similarity(torch.tensor([[5.0, 0.1]]), bank[rows[0]])
    torch.testing.assert_close(similarity[0], expected)
    with pytest.raises(UserError, match="NUM_NEIGHBOURS is 5"):
        nearest(bank, bank, 5)


def test_only_neighbours_of_the_querys_class_are_framed():
    grey = np.full((192, 192, 3), 128, np.uint8)
    row = [Neighbour(grey, "cat", 0.9), Neighbour(grey, "dog", 0.8)]
    page = np.asarray(neighbours_sheet([grey, grey], ["dog", ""], [row, row]).convert("RGB")).astype(int)
    left = [4 + i * 202 for i in range(3)]
    top = int(np.flatnonzero((page[:, left[0] + 90] == 128).all(axis=1))[0])
    framed = [bool((page[top + 1, x + 90] != 128).any()) for x in left]
    assert framed == [False, False, True]
    below = page[top + 192 + 30 :, left[2] + 1]
    assert not ((below[:, 1] > below[:, 0] + 60) & (below[:, 1] > 140)).any(), "an unknown class frames nothing"


def test_neighbours_that_have_vanished_are_grey():
    """Between the features and the sheet a file may go; the others keep their places."""

    class Files:
        listing = SimpleNamespace(classes=["cat", "dog"], labels=np.array([0, 1, 1]))

        def __getitem__(self, key):
            views = [] if key.index == 1 else [images()[0]]
            return Sample(key.index, views, int(self.listing.labels[key.index]))

    similarity = torch.tensor([[0.9, 0.8, 0.7]])
    (row,) = find_neighbours(Files(), torch.tensor([[2, 1, 0]]), similarity, PIXELS)
    assert [neighbour.name for neighbour in row] == ["dog", "dog, gone", "cat"]
    assert row[1].image is GONE and np.array_equal(row[0].image, PIXELS(images()[:1])[0])
    page = np.asarray(neighbours_sheet([GONE], ["dog"], [row]).convert("RGB")).astype(int)
    left = [4 + i * 202 for i in range(4)]
    assert [bool((page[100, x : x + 192] == GONE[0, 0]).all()) for x in left] == [True, False, True, False]
