"""Letters on pictures: Pillow's own face, a larger one for what that lacks, and codes for what neither has."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from PIL import ImageFont

_PLAIN = frozenset([*map(chr, range(32, 127)), "…", "·"])
"""What Pillow's face has of what is written here; an accented letter is a box there."""
_WIDTH = 0.88
"""Pillow's face is so wide, beside the other one in the same size."""


def lettered(text: str, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """One line of `text` as it can be drawn, and the font for it, of about `size` pixels."""
    text = " ".join(text.split())
    if _PLAIN.issuperset(text):
        return text, ImageFont.load_default(size)
    path, known = _larger_face()
    drawn = (letter if ord(letter) in known else letter.encode("unicode_escape").decode() for letter in text)
    return "".join(drawn), ImageFont.truetype(path, round(_WIDTH * size))


def shortened(text: str, font: ImageFont.FreeTypeFont, room: int) -> str:
    """`text`, or as much of it as `room` pixels take with an ellipsis."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text.rstrip() + "…"


@cache
def _larger_face() -> tuple[str, frozenset[int]]:
    """DejaVu Sans, which comes with matplotlib: its file and its letters. Latin, Greek, Cyrillic and more."""
    import matplotlib  # slow to import: only where such a name is drawn
    from matplotlib.ft2font import FT2Font

    path = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    return path, frozenset(FT2Font(path).get_charmap())
