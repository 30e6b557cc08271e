"""Shearing and translating planes of 8-bit pixels along an axis: the pixels of PIL's bicubic transform, sooner.

PIL interpolates every pixel from 4 x 4 neighbours in double precision and cuts the result to an integer. Where rows or
columns only slide along themselves, the other axis drops out exactly, and a line needs one set of weights: here the
sums are taken in single precision, for all pixels at once. A result too near to an integer to be cut with certainty is
computed again in double precision, and if rounding could matter even there, the functions return None: PIL has to
compute the image. So no pixel depends on the order in which something was summed, here or there.

All four functions take (3, h, w) uint8 and return a new array of its shape, or None. Pixels whose centre comes from
beyond an edge get the fill colour; interpolation across an edge repeats its pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MARGIN = 2.0**-12
"""Twice what the error of a sum in single precision can reach: 4 products of at most 255, weights that sum to 1.5."""
TIE = 1e-9
"""In pixels: no offset may lie nearer to where neighbours change or an edge is passed. Rounding matters only to values
that lie nearer to an integer."""

CUBIC = np.array([[0, -1, 2, -1], [1, 0, -2, 1], [0, 1, 1, -1], [0, 0, -1, 1]], np.float64)
"""The weight of each of 4 neighbours as a polynomial of the fraction of a place, lowest power first: Keys' cubic with
slope -1 at its first zero, which PIL's transform takes."""
TAPS = len(CUBIC)


def shear_x(planes: np.ndarray, factor: float, fill: Sequence[int]) -> np.ndarray | None:
    """Each row comes from `factor` pixels further right than the one above it."""
    return _slid(planes, factor * (np.arange(planes.shape[1]) + 0.5), 2, fill)


def shear_y(planes: np.ndarray, factor: float, fill: Sequence[int]) -> np.ndarray | None:
    """Each column comes from `factor` pixels further down than the one left of it."""
    return _slid(planes, factor * (np.arange(planes.shape[2]) + 0.5), 1, fill)


def translate_x(planes: np.ndarray, pixels: float, fill: Sequence[int]) -> np.ndarray | None:
    """Everything comes from `pixels` further right."""
    return _slid(planes, np.array([pixels]), 2, fill)


def translate_y(planes: np.ndarray, pixels: float, fill: Sequence[int]) -> np.ndarray | None:
    """Everything comes from `pixels` further down."""
    return _slid(planes, np.array([pixels]), 1, fill)


def _slid(planes: np.ndarray, offsets: np.ndarray, axis: int, fill: Sequence[int]) -> np.ndarray | None:
    """The lines along `axis` (1 or 2), each from its offset in pixels, or all from one."""
    if (np.abs(2 * offsets - np.rint(2 * offsets)) < 2 * TIE).any():
        return None
    inside = _inside(planes.shape, offsets, axis)
    result = Slide(offsets, axis).apply(planes, inside)
    if result is not None:
        result *= inside
        result += ~inside * np.array(fill, np.uint8)[:, None, None]
    return result


def _inside(shape: tuple[int, ...], offsets: np.ndarray, axis: int) -> np.ndarray:
    """(h, w) bool: whether a pixel's centre comes from the image."""
    length, places = shape[axis], np.arange(shape[axis], dtype=np.int16)
    first, end = (np.ceil(edge - 0.5 - offsets).clip(0, length).astype(np.int16) for edge in (0, length))
    if axis == 2:
        inside = (places >= first[:, None]) & (places < end[:, None])
    else:
        inside = (places[:, None] >= first) & (places[:, None] < end)
    return np.ascontiguousarray(np.broadcast_to(inside, shape[1:]))


class Slide:
    """How lines along an axis move: where each comes from, and the weights of the neighbours there.

    Args:
        offsets: (lines,), or (1,) for all of them, float64, pixels; none within TIE of half an integer.
        axis: 1 or 2 of the planes.
    """

    def __init__(self, offsets: np.ndarray, axis: int) -> None:
        whole = np.floor(offsets)
        fraction = offsets - whole
        self.axis, self.first = axis, whole.astype(np.int64) - 1
        self.powers = np.cumprod([np.ones_like(fraction), fraction, fraction, fraction], axis=0)
        self.factors = CUBIC @ self.powers  # (TAPS, lines)

    def apply(self, planes: np.ndarray, wanted: np.ndarray) -> np.ndarray | None:
        """(3, h, w) uint8 as PIL interpolates them where `wanted`, (h, w) bool; None if one of these is in doubt."""
        source = self._neighbours(planes)
        sums = self._sums(torch.from_numpy(source).float(), planes.shape[self.axis])
        result = sums.sub_(MARGIN).numpy().astype(np.uint8)
        doubtful = (result != sums.add_(2 * MARGIN).numpy().astype(np.uint8)) & wanted
        return result if self._settle(result, np.flatnonzero(doubtful), source) else None

    def _neighbours(self, planes: np.ndarray) -> np.ndarray:
        """uint8, longer along the axis by 3: what lies at x + i there is tap i of the pixel at x."""
        count = planes.shape[self.axis] + TAPS - 1
        before = max(0, -int(self.first.min()))
        after = max(0, int(self.first.max()) + TAPS - 1)
        padded = _padded(planes, self.axis, before, after)
        starts = self.first + before
        if len(starts) == 1:
            start = int(starts[0])
            window = padded[:, :, start : start + count] if self.axis == 2 else padded[:, start : start + count]
            return np.ascontiguousarray(window)
        width, lines = padded.shape[2], np.arange(len(starts))
        if self.axis == 2:
            index = (lines * width + starts)[:, None] + np.arange(count)
        else:
            index = (np.arange(count) * width)[:, None] + (starts * width + lines)
        return padded.reshape(len(planes), -1).take(index, axis=1)

    def _sums(self, source: Tensor, length: int) -> Tensor:
        """(3, h, w) float32: the weighted neighbours. No margin puts what is cut to 0 or 255 in doubt."""
        shape = (-1, 1) if self.axis == 2 else (1, -1)
        factors = [torch.from_numpy(row.astype(np.float32)).view(shape) for row in self.factors]
        sums = source.narrow(self.axis, 0, length) * factors[0]
        for tap in range(1, TAPS):
            sums.addcmul_(source.narrow(self.axis, tap, length), factors[tap])
        return sums.clamp_(0.5, 255.5)

    def _settle(self, result: np.ndarray, places: np.ndarray, source: np.ndarray) -> bool:
        """Computes the results at these (flat) places in double precision; False if one is still in doubt."""
        _, height, width = result.shape
        if self.axis == 2:
            line = places // width
            first, step = places + (TAPS - 1) * line, 1
            line %= height
        else:
            line, step = places % width, width
            first = places + (TAPS - 1) * width * (places // (height * width))
        if len(self.first) == 1:
            line = [0]
        taps = source.reshape(-1).take(first[:, None] + step * np.arange(TAPS)).astype(np.float64)
        values = (taps * self.factors[:, line].T).sum(axis=1)
        flat = (taps == taps[:, :1]).all(axis=1)  # of equal pixels PIL's interpolation is exact
        values[flat] = taps[flat, 0]
        result.reshape(-1)[places] = values.clip(0, 255)
        distance = np.abs(values - np.rint(values))
        distance[flat] = 1
        if (distance > TIE).all():
            return True
        # what rounding does to a place (a few units in its last digit), and to sums
        slopes = ((CUBIC * np.arange(TAPS))[:, 1:] @ self.powers[:-1])[:, line].T
        error = 1e-15 * (height + width) * np.abs((taps * slopes).sum(axis=1)) + 2e-12
        return bool(((distance > error) | (values < 0.5) | (values > 255.5)).all())


def _padded(planes: np.ndarray, axis: int, before: int, after: int) -> np.ndarray:
    """The planes with their first and last lines across the axis repeated (as numpy's pad does, four times faster)."""
    shape, length = list(planes.shape), planes.shape[axis]
    shape[axis] += before + after
    padded = np.empty(shape, planes.dtype)
    target, lines = padded.swapaxes(1, axis), planes.swapaxes(1, axis)
    target[:, before : before + length] = lines
    target[:, :before] = lines[:, :1]
    target[:, before + length :] = lines[:, -1:]
    return padded
