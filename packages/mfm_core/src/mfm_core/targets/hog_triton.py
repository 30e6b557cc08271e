"""The HOG target as one Triton kernel: reads each image once, writes normalised histograms in token order.

Same numbers as `mfm_core.targets.hog`, which explains them and names the papers. The kernel is meant to run at the
speed of memory, so it spends few instructions per pixel. A thread owns a cell, whose pixels stay in registers while
the Sobel filter moves down it: under two loads per pixel instead of eight, and no sum over threads at the end.
`atan2` is replaced by comparisons: with the gradient folded into the half plane gx >= 0, angle >= k * pi / bins means
gy <= gx * cot(k * pi / bins). For each k the magnitudes beyond that bound are summed, and the histogram is the
difference of neighbouring sums (exactly zero where no pixel lies between: both then have the same terms in the same
order).

The bins are those of float32 `atan2` for all integer gradients of 8-bit images, except, with a number of bins that is
a multiple of four, on the exact diagonals, where the rounding of `atan2` decides.

Importing this file needs Triton; `hog.py` does so only when it meets a GPU tensor.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from mfm_core.targets.hog import gaussian_weights

BLOCK = 128
"""Cells of a program: one per thread at 4 warps."""


@triton.jit
def _load_row(line, offset_left, offset_right, stride_x, live, STRIP: tl.constexpr):
    """One row of STRIP pixels of each cell and the pixel on either side: a tuple of STRIP + 2 (BLOCK,) tensors."""
    pixels = (tl.load(line + offset_left, mask=live, other=0.0).to(tl.float32),)
    for i in tl.static_range(STRIP):
        pixels = pixels + (tl.load(line + i * stride_x, mask=live, other=0.0).to(tl.float32),)
    return pixels + (tl.load(line + offset_right, mask=live, other=0.0).to(tl.float32),)


@triton.jit
def _add_pixel(beyond, gx, gy, weight, COT: tl.constexpr, BINS: tl.constexpr):
    """Adds one pixel's magnitude to `beyond`, whose element k sums what lies at angle k * pi / BINS or further."""
    magnitude = tl.sqrt(gx * gx + gy * gy) * weight
    # As float32 atan2 does, take an angle within 3.2e-8 of pi for pi, which is 0 again: beyond no bound.
    counted = tl.where((gx >= 0) & (gx <= -3.2e-8 * gy), 0.0, magnitude)
    up = tl.where(gx < 0, -gy, gy)
    down = -up
    upright = tl.where(gx < 0, 1.03e-7, 1.59e-8)
    gx = tl.abs(gx)
    sums = (beyond[0] + magnitude,)
    for k in tl.static_range(1, BINS):
        # cot(pi - angle) = -cot(angle): the bounds of the second quarter turn are those of the first, mirrored.
        # With an even number of bins one bound is pi / 2 itself: there, too, what atan2 rounds to it counts as it.
        if 2 * k < BINS:
            over = up <= gx * COT[k]
        elif 2 * k > BINS:
            over = down >= gx * COT[BINS - k]
        else:
            over = up <= gx * upright
        sums = sums + (tl.where(over, beyond[k] + counted, beyond[k]),)
    return sums


@triton.jit
def _add_row(
    beyond, above, here, below, weights, y, first_x,
    COT: tl.constexpr, BINS: tl.constexpr, STRIP: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Adds the STRIP pixels of row `here`, from the three rows of STRIP + 2 around them. The order of terms matters."""
    for i in tl.static_range(STRIP):
        gx = above[i] - above[i + 2] + 2 * here[i] - 2 * here[i + 2] + below[i] - below[i + 2]
        gy = above[i] + 2 * above[i + 1] + above[i + 2] - below[i] - 2 * below[i + 1] - below[i + 2]
        weight = 1.0
        if WINDOW:
            weight = tl.load(weights + y % WINDOW * WINDOW + (first_x + i) % WINDOW)
        beyond = _add_pixel(beyond, gx, gy, weight, COT, BINS)
    return beyond


@triton.jit
def _normalised(beyond, zero, BINS: tl.constexpr):
    """The histogram of length one, from the sums beyond each bound: a tuple of BINS (BLOCK,) tensors."""
    squares = zero
    for k in tl.static_range(BINS):
        value = beyond[k] - beyond[k + 1] if k + 1 < BINS else beyond[k]
        squares += value * value
    norm = tl.sqrt(squares)
    scale = 1.0 / tl.where(norm < 1e-12, 1e-12, norm)
    histogram = ()
    for k in tl.static_range(BINS):
        value = beyond[k] - beyond[k + 1] if k + 1 < BINS else beyond[k]
        histogram = histogram + (value * scale,)
    return histogram


@triton.jit
def _hog_kernel(
    images, out, weights,
    total, channels, frames, height, width, cells_y, cells_x, per_y, per_x,
    stride_n, stride_c, stride_t, stride_y, stride_x,
    COT: tl.constexpr, BINS: tl.constexpr, CELL: tl.constexpr, STRIP: tl.constexpr, WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One thread per cell, in the order (n, t, c, row, column); it walks down its cell in strips STRIP pixels wide."""
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = cell < total
    cell_x = cell % cells_x
    cell_y = cell // cells_x % cells_y
    plane = cell // (cells_x * cells_y)
    c = plane % channels
    t = plane // channels % frames
    n = (plane // (channels * frames)).to(tl.int64)
    base = images + n * stride_n + t.to(tl.int64) * stride_t + c.to(tl.int64) * stride_c

    zero = tl.zeros([BLOCK], dtype=tl.float32)
    beyond = (zero,) * BINS
    first_y = cell_y * CELL
    for strip in range(CELL // STRIP):
        first_x = cell_x * CELL + strip * STRIP
        # The image is reflected at its borders.
        left = tl.where(first_x == 0, 1, -1) * stride_x
        right = tl.where(first_x + STRIP == width, STRIP - 2, STRIP) * stride_x
        start = base + first_x * stride_x
        above = _load_row(start + tl.abs(first_y - 1) * stride_y, left, right, stride_x, live, STRIP)
        here = _load_row(start + first_y * stride_y, left, right, stride_x, live, STRIP)
        for row in range(CELL):
            y = first_y + row
            y_below = tl.where(y == height - 1, height - 2, y + 1)
            below = _load_row(start + y_below * stride_y, left, right, stride_x, live, STRIP)
            beyond = _add_row(beyond, above, here, below, weights, y, first_x, COT, BINS, STRIP, WINDOW)
            above = here
            here = below

    histogram = _normalised(beyond, zero, BINS)
    tokens_x = cells_x // per_x
    token = (t * (cells_y // per_y) + cell_y // per_y) * tokens_x + cell_x // per_x
    per_bin = per_y * per_x
    place = (n * frames * (cells_y // per_y) * tokens_x + token) * channels + c
    target = out + place * BINS * per_bin + cell_y % per_y * per_x + cell_x % per_x
    for k in tl.static_range(BINS):
        tl.store(target + k * per_bin, histogram[k], mask=live)


@cache
def _cotangents(bins: int) -> tuple[float, ...]:
    """cot(k * pi / bins) for the bounds k below pi / 2; element 0 is not used."""
    return (0.0, *(1 / math.tan(k * math.pi / bins) for k in range(1, (bins + 1) // 2)))


@cache
def _weights(side: int, device: torch.device) -> Tensor:
    """The Gaussian window on `device`; one number that is not read where there is no window."""
    return gaussian_weights(side, device) if side else torch.ones(1, device=device)


@torch.no_grad()
def hog_tokens(images: Tensor, bins: int, cell: int, gaussian_window: int, per_token: tuple[int, int]) -> Tensor:
    """(B, C, T, H, W), any strides, to (B, T * h * w, C * bins * per_y * per_x) float32 in token order.

    per_token: cells (per_y, per_x) in a token; h and w follow. The caller has checked that all sizes divide.
    Element order: colour, bin, row of the cell, column of the cell.
    """
    b, c, t, height, width = images.shape
    per_y, per_x = per_token
    cells_y, cells_x = height // cell, width // cell
    tokens = t * (cells_y // per_y) * (cells_x // per_x)
    out = images.new_empty((b, tokens, c * bins * per_y * per_x), dtype=torch.float32)
    total = b * c * t * cells_y * cells_x
    strip = max(side for side in range(1, 9) if cell % side == 0)
    with torch.cuda.device_of(images):
        _hog_kernel[(triton.cdiv(total, BLOCK),)](
            images, out, _weights(gaussian_window, images.device),
            total, c, t, height, width, cells_y, cells_x, per_y, per_x, *images.stride(),
            COT=_cotangents(bins), BINS=bins, CELL=cell, STRIP=strip, WINDOW=gaussian_window, BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip
    return out
