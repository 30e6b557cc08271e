"""Which classes are taken for which: counts, a table with the accuracy of each class, and the matrix as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mfm_core.report.exhibits import Table
from mfm_core.report.heat import heat
from mfm_core.report.lettering import lettered, shortened

_INK = (126, 131, 141, 255)
_MOST_NAMED = 40
"""With more classes rows and columns have no names."""
_MOST_WRITTEN = 16
"""With more classes cells have no numbers."""
_SIDE = 760
"""Pixels of the matrix, about."""
_GAP = 8


def confusion_counts(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """(classes, classes) int64: how many of class i (row) were taken for class j. labels, predicted: (N,).

    What has no label (-1) is left out.
    """
    known = labels >= 0
    pairs = labels[known] * classes + predicted[known]
    return torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def class_table(counts: Tensor, names: Sequence[str]) -> Table:
    """For each class its number, accuracy and what it is taken for most often, from `confusion_counts`."""
    rows = []
    for i, (name, row) in enumerate(zip(names, counts)):
        total, right = int(row.sum()), int(row[i])
        wrong = row.clone()
        wrong[i] = 0
        taken = int(wrong.argmax())
        mistake = f"{names[taken]} ({int(wrong[taken])})" if int(wrong.sum()) else "–"
        rows.append([name, str(total), f"{100 * right / total:.1f}" if total else "–", mistake])
    return Table(["class", "files", "top-1, %", "most often taken for"], rows, figures=(1, 2))


def confusion_picture(counts: Tensor, names: Sequence[str]) -> Image.Image:
    """The matrix as colours, RGBA without a ground: a row for each true class, shares of it in per cent.

    Names stand beside rows and under columns where there are at most 40 classes, shares in cells of at most 16; with
    more, colours go by the square root of the share, so that rare mistakes show.
    """
    classes = len(names)
    shares = counts.double() / counts.sum(dim=1, keepdim=True).clamp_min(1)
    written = classes <= _MOST_WRITTEN
    cell = min(84, max(1, round(_SIDE / classes)))
    side = cell * classes
    matrix = Image.fromarray(heat((shares if written else shares.sqrt()).numpy())).resize(
        (side, side), Image.Resampling.NEAREST
    )
    named = classes <= _MOST_NAMED
    text = min(20, max(11, cell // 2))
    font = ImageFont.load_default(text)
    labels = [_label(name, text, side // 3) for name in names] if named else []
    margin = max((label.width for label in labels), default=0) + _GAP
    title = round(1.8 * text)
    page = Image.new("RGBA", (margin + side, title + side + margin), (0, 0, 0, 0))
    page.paste(matrix, (margin, title))
    draw = ImageDraw.Draw(page)
    for i, label in enumerate(labels):
        middle = i * cell + cell // 2
        page.paste(label, (margin - _GAP // 2 - label.width, title + middle - label.height // 2))
        upright = label.rotate(90, expand=True)
        page.paste(upright, (margin + middle - upright.width // 2, title + side + _GAP // 2))
    if written:
        _write_shares(draw, shares.numpy(), (margin, title), cell)
    scale = "" if written else "; by the root of the share"
    draw.text((margin, title // 2), f"true class (rows), predicted class (columns){scale}", _INK, font, anchor="lm")
    return page


def _label(text: str, size: int, room: int) -> Image.Image:
    """One line of text as a picture, shortened with an ellipsis to `room` pixels."""
    text, font = lettered(text, size)
    text = shortened(text, font, room)
    label = Image.new("RGBA", (max(1, round(font.getlength(text))), round(1.4 * size)), (0, 0, 0, 0))
    ImageDraw.Draw(label).text((0, label.height // 2), text, _INK, font, anchor="lm")
    return label


def _write_shares(draw: ImageDraw.ImageDraw, shares: np.ndarray, corner: tuple[int, int], cell: int) -> None:
    """Per cent in each cell, dark on light colours and light on dark ones; nothing where there is nothing."""
    font = ImageFont.load_default(max(10, cell // 4))
    for (i, j), share in np.ndenumerate(shares):
        if share:
            at = (corner[0] + j * cell + cell // 2, corner[1] + i * cell + cell // 2)
            ink = (20, 20, 24, 255) if share > 0.5 else (244, 244, 240, 255)
            draw.text(at, f"{100 * share:.0f}", ink, font, anchor="mm")
