"""Histograms of oriented gradients drawn as a person reads them: in each cell, strokes along the edges it holds.

The drawing is that of Dalal and Triggs 2005 and scikit-image's `hog(visualize=True)`, with smooth strokes.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

_BACKGROUND = np.array([17.0, 19.0, 24.0])
_STROKE = np.array([255.0, 250.0, 238.0])
_DIMMED = 0.28
"""Brightness left to the cells that are not the subject."""
_CONTRAST = 1.35
"""Exponent on the values: lets the main direction of a cell stand out from the evenly spread rest."""


def hog_glyphs(
    hog: Tensor | np.ndarray, cell_px: int = 16, shown: Tensor | np.ndarray | None = None, full: float = 0.8
) -> np.ndarray:
    """`hog` (C, bins, cy, cx) as an image (cy * cell_px, cx * cell_px, 3) uint8: light strokes on a dark ground.

    Bin b of `bins` covers gradient angles theta in [b, b + 1) * pi / bins with (gx, gy) = (sin theta, cos theta), x to
    the right and y down; the stroke lies along the edge, across the gradient, for the middle of the bin. Colour
    channels are averaged; negative values (of a prediction) count as zero. A stroke is brightest from the value `full`
    on, which suits cells of L2 norm 1; the same `full` makes two pictures comparable.
    shown: (cy, cx) bool; the cells where it is False are dimmed.
    """
    if hog.ndim != 4:
        raise ValueError(f"HOG to draw must be (channels, bins, cells y, cells x), not {tuple(hog.shape)}")
    values = np.nan_to_num(_array(hog).astype(np.float32).mean(axis=0), nan=0.0, posinf=0.0, neginf=0.0)
    values = np.clip(values / full, 0.0, 1.0) ** _CONTRAST
    bins, cells_y, cells_x = values.shape
    if shown is not None:
        values = values * np.where(_array(shown).astype(bool), 1.0, _DIMMED)
    strokes = np.stack([_stroke((b + 0.5) * math.pi / bins, cell_px) for b in range(bins)])
    light = np.zeros((cells_y, cell_px, cells_x, cell_px), np.float32)
    for value, stroke in zip(values, strokes):  # the brightest stroke wins: a sum would make every middle white
        np.maximum(light, value[:, None, :, None] * stroke[None, :, None, :], out=light)
    light = light.reshape(cells_y * cell_px, cells_x * cell_px, 1)
    return np.rint(_BACKGROUND + light * (_STROKE - _BACKGROUND)).astype(np.uint8)


def _stroke(theta: float, size: int) -> np.ndarray:
    """Coverage (size, size) in 0..1 of a stroke through the cell's middle, across the gradient angle `theta`."""
    y, x = np.mgrid[0:size, 0:size] - (size - 1) / 2.0
    across = np.abs(x * math.sin(theta) + y * math.cos(theta))
    along = np.abs(x * math.cos(theta) - y * math.sin(theta))
    half_width = max(0.5, size / 16.0)
    return np.clip(half_width + 0.5 - across, 0, 1) * np.clip(0.46 * size - along, 0, 1)


def _array(value: Tensor | np.ndarray) -> np.ndarray:
    return value.detach().float().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
