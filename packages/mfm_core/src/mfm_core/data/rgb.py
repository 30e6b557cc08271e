"""Stored pixels of any kind to 8-bit RGB, as both image files and frames of a video need them."""

from __future__ import annotations

import numpy as np
from PIL import Image


def to_rgb(image: Image.Image) -> Image.Image:
    """The opened image in mode RGB. Alpha is dropped, palettes are looked up, grey is repeated, 16 bits are scaled.

    PIL's own conversion cuts 16 bits off at 255: nearly all of such an image turns white. Raises ValueError for pixels
    without a fixed range (32-bit, float), beside what PIL raises for damaged files.
    """
    if image.mode.startswith("I"):  # I;16, I;16B, ...: grey with 16 bits; "I": the same, or 32 bits
        grey = np.asarray(image, dtype=np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("32-bit pixels have no fixed range; convert the file to 8 or 16 bits")
        return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range; convert the file to 8 bits")
    return image if image.mode == "RGB" else image.convert("RGB")
