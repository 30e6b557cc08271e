"""Maps of numbers as colours: from dark violet over red to light yellow, in steps that look equally large.

The colours are a path through Oklab (Ottosson 2020), where distance is perceived difference, walked at even speed.
Lightness rises all along it, so that the order of values survives grey print and colour blindness.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

_GREY = np.array([0.299, 0.587, 0.114])
_FAINT, _STRONG = 0.3, 0.75
"""Share of colour over an image where values are 0, and where they are 1: what matters less stays visible."""


@cache
def colours(count: int = 256) -> np.ndarray:
    """(count, 3) uint8, from the colour of 0 to that of 1."""
    fine = _path(np.linspace(0.0, 1.0, 16 * count))
    steps = np.linalg.norm(np.diff(fine, axis=0), axis=1)
    walked = np.concatenate([[0.0], steps.cumsum()])
    even = np.linspace(0.0, walked[-1], count)
    lab = np.stack([np.interp(even, walked, channel) for channel in fine.T], axis=1)
    linear = _linear_rgb(lab).clip(0.0, 1.0)
    rgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(255 * rgb).astype(np.uint8)


def heat(values: np.ndarray) -> np.ndarray:
    """`values` (h, w), of which 0 to 1 are shown and the rest clipped, as colours (h, w, 3) uint8; NaN counts as 0."""
    table = colours()
    return table[np.rint(np.nan_to_num(values, nan=0.0).clip(0.0, 1.0) * (len(table) - 1)).astype(int)]


def stretched(values: np.ndarray) -> np.ndarray:
    """`values` with their smallest at 0 and their largest at 1; all 0 where they are equal."""
    values = np.asarray(values, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def overlay(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`image` (H, W, 3) uint8 in grey under the colours of `values` (h, w) in 0..1, enlarged smoothly."""
    high, wide = image.shape[:2]
    smooth = Image.fromarray(values.astype(np.float32)).resize((wide, high), Image.Resampling.BICUBIC)
    share = _FAINT + (_STRONG - _FAINT) * np.asarray(smooth).clip(0.0, 1.0)[..., None]
    grey = (image @ _GREY)[..., None]
    return np.rint((1 - share) * grey + share * heat(np.asarray(smooth))).astype(np.uint8)


def _path(t: np.ndarray) -> np.ndarray:
    """Points of the path, (n, 3) Oklab, for t in 0..1: lightness up, hue from violet to yellow, strongest midway."""
    lightness, hue = 0.18 + 0.77 * t, np.radians(285.0 + 180.0 * t)
    chroma = 0.09 + 0.09 * np.sin(np.pi * t)
    return np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)


def _linear_rgb(lab: np.ndarray) -> np.ndarray:
    """Oklab (n, 3) to linear sRGB (n, 3), with Ottosson's matrices."""
    cones = lab @ np.array(
        [[1.0, 1.0, 1.0], [0.3963377774, -0.1055613458, -0.0894841775], [0.2158037573, -0.0638541728, -1.2914855480]]
    )
    return cones**3 @ np.array(
        [
            [4.0767416621, -1.2684380046, -0.0041960863],
            [-3.3077115913, 2.6097574011, -0.7034186147],
            [0.2309699292, -0.3413193965, 1.7076147010],
        ]
    )
