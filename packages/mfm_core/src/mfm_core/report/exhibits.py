"""What a task shows in its report beside pictures: short animations, written as GIF, and tables."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mfm_core.report.atomic import write_bytes

_COLOURS = 255
"""Of a GIF's 256 colours one is kept for what is transparent."""
_PALETTE_PIXELS = 250_000
"""So many pixels, spread over all frames, choose the colours."""


@dataclass(frozen=True)
class Animation:
    """Pictures of one size that follow each other after `seconds` each, over and over."""

    frames: Sequence[Image.Image]
    seconds: float = 0.25

    @property
    def still(self) -> Image.Image:
        """The picture in the middle, for what shows no animations."""
        return self.frames[len(self.frames) // 2]

    def gif(self) -> bytes:
        """The file, with one table of colours for all frames, so that what stands still does not flicker.

        What is less than half opaque becomes transparent.
        """
        pixels = np.stack([np.asarray(frame.convert("RGBA")) for frame in self.frames])
        opaque, colours = pixels[..., 3] >= 128, np.ascontiguousarray(pixels[..., :3])
        known = colours[opaque] if opaque.any() else colours.reshape(-1, 3)
        known = known[:: max(1, len(known) // _PALETTE_PIXELS)]
        palette = Image.fromarray(known[None]).quantize(_COLOURS)
        frames = []
        for frame, shown in zip(colours, opaque):
            indices = Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
            indices.paste(_COLOURS, mask=Image.fromarray(~shown))
            frames.append(indices)
        memory = io.BytesIO()
        how = {"duration": round(1000 * self.seconds), "loop": 0, "disposal": 2, "transparency": _COLOURS}
        frames[0].save(memory, format="GIF", save_all=True, append_images=frames[1:], optimize=False, **how)
        return memory.getvalue()


@dataclass(frozen=True)
class Table:
    """Rows of text under the titles in `head`; the columns in `figures` hold numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    figures: Sequence[int] = ()


def save_gif(animation: Animation, path: Path) -> None:
    """Writes an animation atomically. Raises `UserError` where that fails."""
    write_bytes(path, animation.gif())
