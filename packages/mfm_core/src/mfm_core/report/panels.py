"""Pictures side by side: images back from their normalisation, masked patches greyed, sheets of labelled columns."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from mfm_core.report.atomic import write_bytes
from mfm_core.report.lettering import lettered, shortened

_CLEAR, _INK = (0, 0, 0, 0), (126, 131, 141, 255)
"""Text stands on whatever the picture is shown on: no ground of its own, and a grey that reads on light and dark."""
_GREY = (136, 138, 142)
_MARGIN, _GUTTER = 4, 10
_SMALLEST_PANEL = 192
_PAGE = 1070
"""Width, in pixels, that a page shows a sheet in: text of wider ones is larger, to be as large there."""


def denormalise(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """`image` (C, H, W), normalised by `mean` and `std` of each channel, back to (H, W, 3) uint8; C is 3 or 1."""
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"an image to show must be (3, H, W) or (1, H, W), not {tuple(image.shape)}")
    pixels = image.detach().float().cpu() * image.new_tensor(std, device="cpu").float()[:, None, None]
    pixels = pixels + image.new_tensor(mean, device="cpu").float()[:, None, None]
    pixels = (pixels.nan_to_num(0.0).clamp(0, 1) * 255).round().byte()
    return pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()


def masked_image(image: np.ndarray, mask: Tensor | np.ndarray, patch: int | tuple[int, int]) -> np.ndarray:
    """A copy of `image` (H, W, 3) uint8 with the patches where `mask` (h, w) is True greyed; `patch` in pixels."""
    high, wide = (patch, patch) if isinstance(patch, int) else patch
    hidden = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    hidden = hidden.astype(bool).repeat(high, axis=0).repeat(wide, axis=1)
    if hidden.shape != image.shape[:2]:
        raise ValueError(f"a mask over {hidden.shape} pixels does not fit an image of {image.shape[:2]}")
    return np.where(hidden[..., None], np.array(_GREY, np.uint8), image)


def sheet(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    captions: Sequence[str | Sequence[str]] | None = None,
) -> Image.Image:
    """Rows of images (H, W, 3) uint8 under column `titles`, with gutters, and a line of `captions` under each row:
    one text, or one for each panel; it may run on below the panels behind it that have none.

    Every panel has the width of the largest image, at least 192 pixels: smaller images are enlarged by whole pixels
    where their size divides it (64 becomes 256 beside 256), smoothly where it does not. Rows may be short.
    The sheet is RGBA without a ground, to stand on a light or a dark page.
    """
    if not rows or not titles or any(len(row) > len(titles) for row in rows):
        raise ValueError(f"a sheet needs rows, each with at most as many images as titles ({len(titles)})")
    side = _panel_side(rows)
    shown = [[_enlarge(image, side) for image in row] for row in rows]
    heights = [max((panel.height for panel in row), default=0) for row in shown]
    width = 2 * _MARGIN + len(titles) * side + (len(titles) - 1) * _GUTTER
    text = max(15, round(14 * width / _PAGE))
    above, below = 2 * text, round(1.5 * text) if captions else 0
    height = above + sum(h + below + _GUTTER for h in heights) - _GUTTER + _MARGIN
    page = Image.new("RGBA", (width, height), _CLEAR)
    draw = ImageDraw.Draw(page)
    left = [_MARGIN + i * (side + _GUTTER) for i in range(len(titles))]
    top = above
    for x, title in zip(left, titles):
        _write(draw, title, (x, top - text // 2), side, text)
    for n, (row, tall) in enumerate(zip(shown, heights)):
        for x, panel in zip(left, row):
            page.paste(panel, (x, top))
        if captions and n < len(captions):
            texts = [captions[n]] if isinstance(captions[n], str) else captions[n]
            starts = [x for x, caption in zip(left, texts) if caption]
            for x, end in zip(starts, [*starts[1:], width - _MARGIN + _GUTTER]):
                caption = texts[left.index(x)]
                _write(draw, caption, (x, top + tall + text + 2), end - _GUTTER - x, round(0.87 * text))
        top += tall + below + _GUTTER
    return page


def save_png(image: Image.Image | np.ndarray, path: str | PathLike[str]) -> None:
    """Writes a picture atomically; `image` is PIL's or (H, W, 3) uint8. Raises `UserError` where that fails."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image))
    memory = io.BytesIO()
    picture.save(memory, format="PNG", optimize=True)
    write_bytes(Path(path), memory.getvalue())


def _panel_side(rows: Sequence[Sequence[np.ndarray]]) -> int:
    """A common width: the widest image's, enlarged by whole pixels to 192 or more."""
    widest = max((image.shape[1] for row in rows for image in row), default=_SMALLEST_PANEL)
    return widest * max(1, math.ceil(_SMALLEST_PANEL / widest))


def _enlarge(image: np.ndarray, side: int) -> Image.Image:
    """`image` at width `side`, its proportions kept."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    size = (side, max(1, round(picture.height * side / picture.width)))
    if size == picture.size:
        return picture
    return picture.resize(size, Image.Resampling.NEAREST if side % picture.width == 0 else Image.Resampling.BICUBIC)


def _write(draw: ImageDraw.ImageDraw, text: str, at: tuple[int, int], room: int, size: int) -> None:
    """One line of `text` on the baseline at `at`, shortened with an ellipsis to `room` pixels."""
    text, font = lettered(text, size)
    draw.text(at, shortened(text, font, room), font=font, fill=_INK, anchor="ls")
