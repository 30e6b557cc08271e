"""Colours keep distance and order, spectra have zero in the middle, captions stand under their panels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mfm_core.report.document import write_gallery
from mfm_core.report.heat import colours, heat, overlay, stretched
from mfm_core.report.panels import save_png, sheet
from mfm_core.report.runs import Picture
from mfm_core.report.spectrum import join_frequencies, log_amplitude, spectrum_panel


def to_lab(rgb):
    """CIELAB (D65) of sRGB bytes (n, 3): another measure of perceived difference than the one the map is made with."""
    x = rgb / 255
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / (matrix.sum(axis=1))
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), xyz * 841 / 108 + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def test_heat_colours_rise_evenly_in_lightness():
    lab = to_lab(colours(16).astype(float))
    rise = np.diff(lab[:, 0])
    assert rise.min() > 2.5 and rise.max() < 3 * rise.min()
    steps = np.linalg.norm(np.diff(lab, axis=0), axis=1)
    assert steps.max() < 3 * steps.min()
    assert lab[0, 0] < 8 and lab[-1, 0] > 90


def test_heat_clips_and_takes_nan_for_nothing():
    shown = heat(np.array([[0.0, 1.0, -3.0, 4.0, np.nan, 0.5]]))[0]
    table = colours()
    assert (shown[[0, 2, 4]] == table[0]).all() and (shown[[1, 3]] == table[-1]).all()
    assert (shown[5] == table[128]).all()
    assert stretched(np.array([2.0, 3.0, 4.0])).tolist() == [0.0, 0.5, 1.0] and not stretched(np.full(3, 7.0)).any()


def test_overlay_is_strongest_where_the_value_is():
    values = np.zeros((4, 4))
    values[1, 2] = 1.0
    grey = np.full((32, 32, 3), 90, np.uint8)
    changed = np.abs(overlay(grey, values).astype(int) - overlay(grey, np.zeros((4, 4)))).sum(axis=2)
    y, x = np.unravel_index(changed.argmax(), changed.shape)
    assert 8 <= y < 16 and 16 <= x < 24 and changed[:, :8].max() < 0.1 * changed.max()


def test_spectrum_of_a_wave():
    """A wave of 5 periods across and 3 down has two peaks, on both sides of the middle."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(40.0), indexing="ij")
    wave = torch.cos(2 * torch.pi * (5 * x / 40 + 3 * y / 32))
    amplitude = log_amplitude(wave.expand(1, 3, 32, 40))[0]
    strongest = {(int(i) // 40, int(i) % 40) for i in amplitude.flatten().topk(2).indices}
    assert strongest == {(16 + 3, 20 + 5), (16 - 3, 20 - 5)}
    panel = spectrum_panel(amplitude, amplitude)
    assert (panel[19, 25] == colours()[-1]).all() and (panel[0, 0] == colours()[0]).all()


def test_the_mean_of_an_image_does_not_set_the_colours():
    noise = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    one, other = (log_amplitude(noise + shift)[0] for shift in (1.0, 100.0))
    away = np.ones((16, 16), dtype=bool)
    away[8, 8] = False
    assert np.array_equal(spectrum_panel(one, one)[away], spectrum_panel(other, other)[away])


@pytest.mark.parametrize("size", [(16, 16), (15, 18)])
def test_join_frequencies(size):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 3, *size, generator=generator) for _ in range(2))
    only_mean = torch.zeros(2, *size, dtype=torch.bool)
    only_mean[:, size[0] // 2, size[1] // 2] = True
    joined = join_frequencies(a, b, only_mean)
    torch.testing.assert_close(joined, b - b.mean((2, 3), True) + a.mean((2, 3), True), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(join_frequencies(a, b, ~only_mean), a + b - joined, rtol=1e-4, atol=1e-5)


def test_captions_stand_under_their_panels_and_run_on_below_empty_ones():
    panel = np.zeros((192, 192, 3), np.uint8)

    def inked(*captions):
        """Which of the three columns have ink under the panels."""
        page = np.asarray(sheet([[panel] * 3], ["a", "b", "c"], [list(captions)]))[-24:, :, 3]
        return [bool(page[:, 4 + 202 * i : 4 + 202 * i + 192].any()) for i in range(3)]

    assert inked("one", "", "three") == [True, False, True] and inked("", "two", "") == [False, True, False]
    assert inked("long " * 12, "", "x") == [True, True, True] and inked("long " * 12, "two", "") == [True, True, False]


def test_gallery_is_one_safe_file(tmp_path):
    save_png(np.zeros((4, 4, 3), np.uint8), tmp_path / "attention.png")
    nasty = "<script>alert(1)</script>"
    picture = Picture(tmp_path / "attention.png", caption=nasty)
    write_gallery(tmp_path / "page.html", nasty, nasty + "\udcff", [nasty], [picture])
    text = (tmp_path / "page.html").read_text()
    assert "<script" not in text and text.count("&lt;script&gt;") == 6 and "default-src 'none'" in text
    assert "<h2>Attention</h2>" in text and text.count("data:image/png;base64,") == 1
