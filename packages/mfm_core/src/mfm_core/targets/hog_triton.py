"""The HOG target as one Triton kernel: reads each image once, writes normalised histograms in token order.

Same numbers as `mfm_core.targets.hog`, which explains them and names the papers. The kernel is meant to run at the
speed of memory, so it spends few instructions per pixel: rows of pixels stay in registers while the Sobel filter
moves down a cell (about four loads per pixel instead of eight), and `atan2` is replaced by comparisons. With the
gradient folded into the half plane gx >= 0, angle >= k * pi / bins means gy <= gx * cot(k * pi / bins); for each
k the magnitudes beyond that bound are summed, and the histogram is the difference of neighbouring sums (exactly zero
where no pixel lies between: both sums then have the same terms in the same order).

Importing this file needs Triton; `hog.py` does so only when it meets a GPU tensor.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

LANES = 512
"""Pixels of one row of cells that a program holds: 4 per thread at 4 warps."""


@triton.jit
def _hog_kernel(
    images, out, weights, cot,
    total, channels, frames, height, width, cells_y, cells_x, per_y, per_x,
    stride_n, stride_c, stride_t, stride_y, stride_x,
    BINS: tl.constexpr, CELL: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK cells in the order (n, t, c, row, column), their COLUMNS >= CELL pixels side by side."""
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    cell_x = cell % cells_x
    cell_y = cell // cells_x % cells_y
    plane = cell // (cells_x * cells_y)
    c = plane % channels
    t = plane // channels % frames
    n = (plane // (channels * frames)).to(tl.int64)

    column = tl.arange(0, COLUMNS)[None, :]
    live = (cell < total)[:, None] & (column < CELL)
    x = cell_x[:, None] * CELL + column
    left = tl.where(x == 0, 1, x - 1) * stride_x
    right = tl.where(x == width - 1, width - 2, x + 1) * stride_x
    middle = x * stride_x
    first_y = (cell_y * CELL)[:, None]
    base = images + (n * stride_n + t.to(tl.int64) * stride_t + c.to(tl.int64) * stride_c)[:, None]

    # Rows above, at and below the pixel; the image is reflected at its border.
    line = base + tl.where(first_y == 0, 1, first_y - 1) * stride_y
    l0 = tl.load(line + left, mask=live, other=0.0).to(tl.float32)
    m0 = tl.load(line + middle, mask=live, other=0.0).to(tl.float32)
    r0 = tl.load(line + right, mask=live, other=0.0).to(tl.float32)
    line = base + first_y * stride_y
    l1 = tl.load(line + left, mask=live, other=0.0).to(tl.float32)
    m1 = tl.load(line + middle, mask=live, other=0.0).to(tl.float32)
    r1 = tl.load(line + right, mask=live, other=0.0).to(tl.float32)
    zero = tl.zeros([BLOCK, COLUMNS], dtype=tl.float32)
    beyond = (zero,) * BINS
    for row in tl.static_range(CELL):
        y = first_y + row
        line = base + tl.where(y == height - 1, height - 2, y + 1) * stride_y
        l2 = tl.load(line + left, mask=live, other=0.0).to(tl.float32)
        m2 = tl.load(line + middle, mask=live, other=0.0).to(tl.float32)
        r2 = tl.load(line + right, mask=live, other=0.0).to(tl.float32)
        gx = l0 - r0 + 2 * l1 - 2 * r1 + l2 - r2
        gy = l0 + 2 * m0 + r0 - l2 - 2 * m2 - r2
        magnitude = tl.sqrt(gx * gx + gy * gy)
        if WINDOW:
            magnitude *= tl.load(weights + y % WINDOW * WINDOW + x % WINDOW)
        # As float32 atan2 does, an angle within 3.2e-8 of pi counts as pi, which is 0 again.
        fold = (gx < 0) | ((gy < 0) & (gx <= -3.2e-8 * gy))
        gx = tl.where(fold, -gx, gx)
        gy = tl.where(fold, -gy, gy)
        sums = (beyond[0] + magnitude,)
        for k in tl.static_range(1, BINS):
            sums = sums + (tl.where(gy <= gx * tl.load(cot + k), beyond[k] + magnitude, beyond[k]),)
        beyond = sums
        l0, m0, r0 = l1, m1, r1
        l1, m1, r1 = l2, m2, r2

    # Cells: the columns of each summed up, then bins as differences.
    histogram = ()
    upper = tl.sum(beyond[0], axis=1)
    squares = tl.zeros([BLOCK], dtype=tl.float32)
    for k in tl.static_range(BINS):
        lower = upper
        upper = tl.sum(beyond[k + 1], axis=1) if k + 1 < BINS else tl.zeros([BLOCK], dtype=tl.float32)
        value = lower - upper
        squares += value * value
        histogram = histogram + (value,)
    norm = tl.sqrt(squares)
    scale = 1.0 / tl.where(norm < 1e-12, 1e-12, norm)

    tokens_x = cells_x // per_x
    token = (t * (cells_y // per_y) + cell_y // per_y) * tokens_x + cell_x // per_x
    per_bin = per_y * per_x
    token += (n * frames * (cells_y // per_y) * tokens_x).to(tl.int64)
    target = out + token * channels * BINS * per_bin + c * BINS * per_bin + cell_y % per_y * per_x + cell_x % per_x
    for k in tl.static_range(BINS):
        tl.store(target + k * per_bin, histogram[k] * scale, mask=cell < total)


@cache
def _cotangents(bins: int, device: torch.device) -> Tensor:
    """(bins,) float32: cot(k * pi / bins), the slope beyond which an orientation is in bin k or a later one."""
    slopes = [0.0] + [0.0 if 2 * k == bins else 1 / math.tan(k * math.pi / bins) for k in range(1, bins)]
    return torch.tensor(slopes, dtype=torch.float32, device=device)


@cache
def _weights(side: int, device: torch.device) -> Tensor:
    """The Gaussian window on `device`; one number that is not read where there is no window."""
    from mfm_core.targets.hog import gaussian_weights

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
    columns = triton.next_power_of_2(cell)
    block = max(1, LANES // columns)
    total = b * c * t * cells_y * cells_x
    with torch.cuda.device_of(images):
        _hog_kernel[(triton.cdiv(total, block),)](
            images, out, _weights(gaussian_window, images.device), _cotangents(bins, images.device),
            total, c, t, height, width, cells_y, cells_x, per_y, per_x, *images.stride(),
            BINS=bins, CELL=cell, COLUMNS=columns, BLOCK=block, WINDOW=gaussian_window, num_warps=4,
        )  # fmt: skip
    return out
