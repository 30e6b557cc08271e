"""Histograms of oriented gradients as regression targets.

The descriptor is Dalal & Triggs, "Histograms of Oriented Gradients for Human Detection" (CVPR 2005); its use as the
target of masked patches is Wei et al., "Masked Feature Prediction for Self-Supervised Visual Pre-Training" (CVPR
2022). The numbers are those of PySlowFast's HOG layer (and of mmpretrain's, which is the same): hard assignment to
unsigned orientation bins, each colour channel and cell normalised on its own.

Orientation is `atan2(horizontal, vertical)`, so a pixel without horizontal gradient lies exactly between the last
bin and the first. On normalised 8-bit photos the rounding of the Sobel sum therefore decides the bin of many pixels,
and in flat areas its residue is all there is to normalise. The sums here run in the order of a 3x3 filter read row by
row, as convolution libraries do: that keeps even those cells equal to the released implementation's.
"""

from __future__ import annotations

import logging
import math
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier

import torch
from torch import Tensor

from mfm_core.errors import UserError
from mfm_core.interfaces import Grid

logger = logging.getLogger(__name__)

EPS = 1e-12
"""Lower bound of the norm of a cell: an exactly flat cell gives zeros."""

CHUNK = 640_000
"""Pixels a thread works on at once on a CPU: the buffers (20 bytes per pixel) then fit a last-level cache."""

SERIAL = 100_000
"""Up to this many pixels a second thread is not worth waking."""


def hog(images: Tensor, bins: int = 9, cell: int = 8, gaussian_window: int = 0) -> Tensor:
    """Histograms of oriented gradients, one per colour channel and cell, each of length one.

    images: (N, C, H, W), any float type, any strides; computed in float32, without gradient, autocast off.
    cell: side of a cell in pixels. gaussian_window: side in pixels of a Gaussian (sigma half of it, sum one) that is
    tiled over the image and weighs the magnitudes; 0 for none.
    Returns (N, C, bins, H / cell, W / cell) float32. Raises `UserError` where the sizes do not divide.
    """
    if images.ndim != 4:
        raise UserError(f"HOG takes images (N, C, H, W), got the shape {tuple(images.shape)}.")
    cells_y, cells_x = check_sizes(images.shape[-2:], bins, cell, gaussian_window)
    n, c = images.shape[:2]
    if images.device.type == "meta" or images.numel() == 0:
        return images.new_empty((n, c, bins, cells_y, cells_x), dtype=torch.float32)
    fused = fused_kernel() if images.is_cuda else None
    if fused is not None:
        tokens = fused(images.unsqueeze(2), bins, cell, gaussian_window, per_token=(cells_y, cells_x))
        return tokens.view(n, c, bins, cells_y, cells_x)
    return _hog_planes(images.reshape(n * c, *images.shape[-2:]), bins, cell, gaussian_window).view(
        n, c, bins, cells_y, cells_x
    )


def check_sizes(size: tuple[int, int], bins: int, cell: int, gaussian_window: int) -> Grid:
    """Cells per side, (rows, columns), of an image of `size` (height, width); `UserError` where it does not divide."""
    height, width = size
    if bins < 2 or cell < 1 or gaussian_window < 0:
        raise UserError(
            f"HOG needs bins >= 2, cell >= 1 and gaussian_window >= 0, got {bins}, {cell} and {gaussian_window}."
        )
    if height < 2 or width < 2:
        raise UserError(f"HOG needs images of at least 2x2 pixels, got {height}x{width}.")
    for name, side in (("cell", cell), ("gaussian_window", gaussian_window)):
        if side and (height % side or width % side):
            raise UserError(f"HOG: an image of {height}x{width} pixels is not a multiple of its {name} ({side}).")
    return height // cell, width // cell


@cache
def fused_kernel() -> Callable[..., Tensor] | None:
    """The Triton kernel for GPU tensors, or None where it does not run: the CPU formulation then serves both.

    Triton compiles a launcher at first use, which takes a C compiler and Python's headers.
    """
    try:
        from mfm_core.targets.hog_triton import hog_tokens

        hog_tokens(torch.zeros(1, 1, 1, 8, 8, device="cuda"), 9, 8, 0, (1, 1))
    except Exception as error:  # of a compiler, a driver, an import: whatever it is, there is another way
        logger.warning("HOG: the fused kernel does not run here (%s); plain operations serve.", error)
        return None
    return hog_tokens


def gaussian_weights(side: int, device: torch.device) -> Tensor:
    """(side, side) float32 Gaussian of sigma side // 2 (at least one pixel), summing to one."""
    offsets = torch.arange(side, dtype=torch.float32, device=device)
    line = torch.exp(-0.5 * ((offsets - offsets.mean()) / max(side // 2, 1)) ** 2)
    weights = torch.outer(line, line)
    return weights / weights.sum()


def _hog_planes(planes: Tensor, bins: int, cell: int, gaussian_window: int) -> Tensor:
    """(P, H, W) single-channel images to (P, bins, H / cell * W / cell) normalised histograms, chunk by chunk.

    On a CPU the chunks run in parallel, each on one thread. Leaving that to the operations would let the threads meet
    some thirty times per chunk, which takes many times as long when other processes want the processors too.
    """
    count, height, width = planes.shape
    slots = _cell_index(height, width, cell, bins, planes.device)
    weights = None
    if gaussian_window:
        tiles = height // gaussian_window, width // gaussian_window
        weights = gaussian_weights(gaussian_window, planes.device).repeat(tiles)
    out = torch.empty(count, bins, height // cell * (width // cell), device=planes.device)
    chunk, threads = count, 1
    if planes.device.type == "cpu":
        pixels = (height + 2) * (width + 2)
        if type(planes) is Tensor and count * pixels > SERIAL:
            threads = min(torch.get_num_threads(), count)
        chunk = max(1, min(CHUNK // pixels, math.ceil(count / threads)))

    inference = torch.is_inference_mode_enabled()  # each thread has a mode of its own

    def work(start: int) -> None:
        part = slice(start, start + chunk)
        with torch.inference_mode(inference):
            _hog_chunk(planes[part], bins, slots, weights, out=out[part])

    run = map if threads == 1 else _workers(threads, os.getpid()).map
    deque(run(work, range(0, count, chunk)), maxlen=0)
    return out


@cache
def _workers(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads whose own operations run serially (`process`: a forked process has to start its own)."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "hog", initializer=torch.set_num_threads, initargs=(1,))
    started = Barrier(threads)
    deque(pool.map(lambda _: started.wait(), range(threads)), maxlen=0)
    # The number holds for the thread that sets it and for threads to come: give those back what they had.
    torch.set_num_threads(before)
    return pool


@torch.no_grad()
def _hog_chunk(planes: Tensor, bins: int, slots: Tensor, weights: Tensor | None, out: Tensor) -> None:
    """Fills `out` (P, bins, cells) with the histograms of `planes` (P, H, W).

    There is no bin volume at full resolution: bin and cell together are one index into the pooled histogram, to which
    one `scatter_add_` adds the magnitudes. With cells of 3 pixels and more no buffer exceeds about twice the input.
    """
    count, height, width = planes.shape
    image, gx, gy = (torch.empty(count, slots.numel(), device=planes.device) for _ in range(3))
    index = torch.empty(image.shape, dtype=torch.int64, device=planes.device)
    with torch.autocast(planes.device.type, enabled=False):
        _pad(planes, out=image)
        _sobel(image, width + 2, gx, gy)
        magnitude = _magnitude(gx, gy, weights, (height, width), out=image)
        _slot(gx, gy, bins, out.shape[2], slots, out=index)
        histogram = torch.zeros(count, 2 * bins + 1, out.shape[2], device=planes.device)
        histogram.flatten(1).scatter_add_(1, index, magnitude)
        _fold_and_normalise(histogram, bins, out=out)


def _cell_index(height: int, width: int, cell: int, bins: int, device: torch.device) -> Tensor:
    """For each pixel of a padded plane, flat, the slot of orientation 0 in the (2 * bins + 1, cells) histogram.

    Orientations run from -bins to bins. Positions without a pixel (the last two rows and columns) have no magnitude
    and may point anywhere.
    """
    rows = (torch.arange(height + 2, device=device) // cell).clamp_(max=height // cell - 1)
    columns = (torch.arange(width + 2, device=device) // cell).clamp_(max=width // cell - 1)
    cells = height // cell * (width // cell)
    return (bins * cells + rows[:, None] * (width // cell) + columns).flatten().to(torch.int32)


def _pad(planes: Tensor, out: Tensor) -> None:
    """Fills `out` (P, (H + 2) * (W + 2)) float32 with `planes` (P, H, W), reflected by one pixel at each border."""
    height, width = planes.shape[-2:]
    out = out.view(-1, height + 2, width + 2)
    out[:, 1:-1, 1:-1] = planes
    out[:, 0], out[:, -1] = out[:, 2], out[:, -3]
    out[:, :, 0], out[:, :, -1] = out[:, :, 2], out[:, :, -3]


def _sobel(image: Tensor, row: int, gx: Tensor, gy: Tensor) -> None:
    """Fills `gx` and `gy` with the Sobel gradients of `image`; all (P, (H + 2) * row), with row = W + 2.

    The padded planes are taken as one line of numbers, so that a neighbour is a shift and each step one pass over
    contiguous memory. The gradient of pixel (y, x) of a plane then stands at y * row + x; what is between pixels is
    rubbish. The terms are added in the filter's order (see the head of this file).
    """
    line = image.view(-1)
    length = line.numel() - 2 * row - 2

    def at(y: int, x: int) -> Tensor:
        return line[y * row + x : y * row + x + length]

    out = gx.view(-1)[:length]
    torch.sub(at(0, 0), at(0, 2), out=out)
    out.add_(at(1, 0), alpha=2).sub_(at(1, 2), alpha=2).add_(at(2, 0)).sub_(at(2, 2))
    gx.view(-1)[length:] = 0
    out = gy.view(-1)[:length]
    torch.add(at(0, 0), at(0, 1), alpha=2, out=out)
    out.add_(at(0, 2)).sub_(at(2, 0)).sub_(at(2, 1), alpha=2).sub_(at(2, 2))
    gy.view(-1)[length:] = 0


def _magnitude(gx: Tensor, gy: Tensor, weights: Tensor | None, size: tuple[int, int], out: Tensor) -> Tensor:
    """Fills `out` with the (weighted) length of the gradient, and with zeros where there is no pixel."""
    height, width = size
    torch.mul(gx, gx, out=out).addcmul_(gy, gy).sqrt_()
    image = out.view(-1, height + 2, width + 2)
    image[:, height:] = 0
    image[:, :, width:] = 0
    if weights is not None:
        image[:, :height, :width] *= weights
    return out


def _slot(gx: Tensor, gy: Tensor, bins: int, cells: int, slots: Tensor, out: Tensor) -> None:
    """Fills `out` with the slot of each pixel in its plane's (2 * bins + 1, cells) histogram; overwrites gx and gy.

    The orientation floor(angle / pi * bins) is left signed, -bins .. bins: folding the small histogram afterwards
    costs less than a modulo here. A NaN (of an image with one) is clamped into the range; its magnitude is NaN too.
    """
    torch.atan2(gx, gy, out=gx).div_(math.pi).mul_(bins).floor_()
    orientation = gy.view(torch.int32).copy_(gx).clamp_(-bins, bins)
    torch.add(slots, orientation, alpha=cells, out=orientation)
    out.copy_(orientation)


def _fold_and_normalise(histogram: Tensor, bins: int, out: Tensor) -> None:
    """(P, 2 * bins + 1, cells) by signed orientation to `out` (P, bins, cells), modulo bins, of length one."""
    torch.add(histogram[:, :bins], histogram[:, bins : 2 * bins], out=out)
    out[:, 0] += histogram[:, 2 * bins]
    # Squares and sum: vector_norm over a middle dimension takes sixty times as long on a CPU.
    norm = (out * out).sum(1, keepdim=True).sqrt_()
    out.div_(norm.clamp_min_(EPS))


def group(histograms: Tensor, per_token: tuple[int, int]) -> Tensor:
    """(B, T, C, bins, cells_y, cells_x) to tokens (B, T * h * w, C * bins * per_y * per_x).

    per_token: cells (per_y, per_x) in a token. Element order: colour, bin, row of the cell, column of the cell.
    """
    per_y, per_x = per_token
    b, t, c, bins, cells_y, cells_x = histograms.shape
    x = histograms.reshape(b, t, c, bins, cells_y // per_y, per_y, cells_x // per_x, per_x)
    return x.permute(0, 1, 4, 6, 2, 3, 5, 7).reshape(b, -1, c * bins * per_y * per_x)


def ungroup(target: Tensor, grid: Grid, patch: tuple[int, int], cell: int = 8, bins: int = 9) -> Tensor:
    """The inverse of the grouping, for pictures: tokens back to histograms in their places.

    target: (B, L, dim) targets or predictions over `grid`, (h, w) or (t, h, w), with dim as in `HOGTarget`.
    Returns (B, C, bins, cells_y, cells_x); for clips (B, t, C, bins, cells_y, cells_x).
    """
    per_y, per_x = patch[0] // cell, patch[1] // cell
    b, tokens, dim = target.shape
    if tokens != math.prod(grid) or dim % (bins * per_y * per_x):
        raise UserError(
            f"HOG tokens {tuple(target.shape)} do not fit the grid {tuple(grid)} with patch {tuple(patch)}, "
            f"cell {cell} and {bins} bins."
        )
    h, w = grid[-2:]
    x = target.reshape(b, -1, h, w, dim // (bins * per_y * per_x), bins, per_y, per_x)
    x = x.permute(0, 1, 4, 5, 2, 6, 3, 7).reshape(b, -1, x.shape[4], bins, h * per_y, w * per_x)
    return x.squeeze(1) if len(grid) == 2 else x


class HOGTarget:
    """The HOG of each patch as a regression target: what MaskFeat predicts.

    patch: (height, width) of a token in pixels, a multiple of `cell`. temporal_stride: frames per token in time; of
    a clip only every temporal_stride-th frame, from the first, has a target. channels: colour channels.
    """

    def __init__(
        self,
        patch: tuple[int, int],
        bins: int = 9,
        cell: int = 8,
        gaussian_window: int = 0,
        temporal_stride: int = 1,
        channels: int = 3,
    ) -> None:
        if cell < 1 or patch[0] < cell or patch[1] < cell or patch[0] % cell or patch[1] % cell:
            raise UserError(f"HOG: the patch {patch[0]}x{patch[1]} must be a multiple of the cell ({cell}).")
        if temporal_stride < 1:
            raise UserError(f"HOG: temporal_stride must be at least 1, got {temporal_stride}.")
        self.patch = (patch[0], patch[1])
        self.bins = bins
        self.cell = cell
        self.gaussian_window = gaussian_window
        self.temporal_stride = temporal_stride
        self.channels = channels

    @property
    def per_token(self) -> tuple[int, int]:
        """Cells in a token, (rows, columns)."""
        return self.patch[0] // self.cell, self.patch[1] // self.cell

    @property
    def dim(self) -> int:
        """Numbers per token, ordered (colour, bin, row of the cell, column of the cell)."""
        return self.channels * self.bins * math.prod(self.per_token)

    @torch.compiler.disable(reason="it is fused by hand already, and its bins hang on the order of its sums")
    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) or clips (B, C, T, H, W) to (B, L, dim) float32, tokens row-major, time first."""
        if images.ndim not in (4, 5) or images.shape[1] != self.channels:
            raise UserError(
                f"HOG takes images (B, {self.channels}, H, W) or clips (B, {self.channels}, T, H, W), "
                f"got the shape {tuple(images.shape)}."
            )
        (height, width), patch = images.shape[-2:], self.patch
        if height % patch[0] or width % patch[1]:
            raise UserError(
                f"HOG: an image of {height}x{width} pixels is not a multiple of its patch ({patch[0]}x{patch[1]})."
            )
        clips = images.unsqueeze(2) if images.ndim == 4 else images[:, :, :: self.temporal_stride]
        fused = fused_kernel() if images.is_cuda and images.numel() else None
        if fused is not None:
            check_sizes((height, width), self.bins, self.cell, self.gaussian_window)
            return fused(clips, self.bins, self.cell, self.gaussian_window, self.per_token)
        frames = clips.transpose(1, 2).flatten(0, 1)
        histograms = hog(frames, self.bins, self.cell, self.gaussian_window)
        return group(histograms.view(images.shape[0], -1, *histograms.shape[1:]), self.per_token)

    def ungroup(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Targets or predictions (B, L, dim) over `grid` as histograms in their places, see `ungroup`."""
        return ungroup(tokens, grid, self.patch, self.cell, self.bins)
