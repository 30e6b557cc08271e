"""Short clips whose class is their motion and nothing else: drawn offline, the same for the same seed.

Every frame of every class shows the same kind of pattern: three layers of long random shapes, an octave apart in size,
each periodic over the plane, at random places and sizes. All shapes of a clip lie much the same way, at a random angle:
so what is hidden of a frame can be told from the rest. A motion moves the layers together. Translation and
rotation leave the distribution of a frame as it is; so does an endless zoom, in which a layer fades out while it is
largest and comes back small (Shepard 1964 does this to tones). A frame, wherever in the clip it stands, therefore
tells nothing of the class. Opposite motions are each other's clips played backwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Motion:
    """Multiples of a clip's speed: along x (right) and y (down), of turning (clockwise) and of growing."""

    x: float = 0.0
    y: float = 0.0
    turn: float = 0.0
    grow: float = 0.0


MOTIONS = {
    "left": Motion(x=-1.0),
    "right": Motion(x=1.0),
    "up": Motion(y=-1.0),
    "down": Motion(y=1.0),
    "clockwise": Motion(turn=1.0),
    "counterclockwise": Motion(turn=-1.0),
    "zoom_in": Motion(grow=1.0),
    "zoom_out": Motion(grow=-1.0),
}
"""Class -> its motion, in the order of the labels."""
SPLITS = ("train", "val", "test")
FPS = 12
SPEED = (1.0, 2.0)
"""Range of the mean path of a pixel, in 64ths of the frame's width per frame; the same for all motions."""
_MEAN_RADIUS = 0.3826
"""Mean distance of a square's points from its middle, in sides: what turning and growing move a pixel by."""
_LAYERS = 3
_TILE = 128
"""Side of a layer's period, in pixels of a frame of 64 where the layer is drawn at its own size."""
_SMALLEST = 0.35
"""A layer's scale runs from this to 2^_LAYERS times it."""
_SHAPES = 60
_LEAN = 0.12
"""Standard deviation of the angles between a clip's shapes, in radians."""
_CONTRAST, _TINT = 46.0, 25.0
_QUALITY = {"crf": "20", "preset": "fast", "g": "12", "threads": "1", "x264-params": "mbtree=0:cpu-independent=1"}
"""x264's. It writes the same bytes each time with one thread, and only without its macroblock tree."""


def draw_clip(motion: Motion, rng: np.random.Generator, size: int = 64, frames: int = 48) -> np.ndarray:
    """(frames, size, size, 3) uint8. What is drawn from `rng` does not depend on the motion."""
    tiles = torch.stack([_tile(rng) for _ in range(_LAYERS)])
    offset = torch.from_numpy(rng.uniform(0, 1, (_LAYERS, 2)))
    angle = rng.uniform(0, 2 * np.pi)
    phase, speed = rng.uniform(0, 1), rng.uniform(*SPEED) / 64
    middle = torch.from_numpy(rng.uniform(-0.1, 0.1, 2))
    tint = torch.from_numpy(rng.uniform(-_TINT, _TINT, 3)).float()
    path = speed * (torch.arange(frames, dtype=torch.float64) - (frames - 1) / 2)
    turned = angle + (motion.turn * path / _MEAN_RADIUS)[:, None].expand(-1, _LAYERS)
    octaves = phase * _LAYERS + motion.grow * path / _MEAN_RADIUS / math.log(2)
    height = (torch.arange(_LAYERS) + octaves[:, None]) / _LAYERS % 1.0
    weight = torch.sin(np.pi * height) ** 2
    moved = middle + torch.stack([motion.x * path, motion.y * path], dim=1)
    places = _places(size, moved, turned, _SMALLEST * 2 ** (_LAYERS * height)) + offset[:, None, None]
    shown = _sample(tiles, places)
    weight = (weight / (weight**2).sum(dim=1, keepdim=True).sqrt()).float()
    pixels = 128 + tint + _CONTRAST * torch.einsum("tl,tlhwc->thwc", weight, shown)
    return pixels.clamp(0, 255).round().byte().numpy()


def _places(size: int, moved: Tensor, turned: Tensor, scale: Tensor) -> Tensor:
    """Where in its tile each pixel looks: (frames, layers, size, size, 2) in periods.

    moved: (frames, 2) of the pattern's middle, in widths of the frame. turned, scale: (frames, layers).
    """
    line = (torch.arange(size, dtype=torch.float64) + 0.5) / size - 0.5
    y, x = torch.meshgrid(line, line, indexing="ij")
    x, y = x - moved[:, 0, None, None], y - moved[:, 1, None, None]
    x, y, turned = x[:, None], y[:, None], turned[..., None, None]
    along, across = x * turned.cos() + y * turned.sin(), y * turned.cos() - x * turned.sin()
    return torch.stack([along, across], dim=-1) * (64 / _TILE) / scale[..., None, None, None]


def _sample(tiles: Tensor, places: Tensor) -> Tensor:
    """Tiles (layers, 3, n, n) at `places` (frames, layers, h, w, 2), periodic: (frames, layers, h, w, 3) float32."""
    frames, layers, h, w, _ = places.shape
    padded = F.pad(tiles, (0, 1, 0, 1), mode="circular")
    places = places.float()
    grid = (2 * (places - places.floor()) - 1).transpose(0, 1).reshape(layers, frames * h, w, 2)
    found = F.grid_sample(padded, grid, align_corners=True)
    return found.reshape(layers, 3, frames, h, w).permute(2, 0, 3, 4, 1)


def _tile(rng: np.random.Generator) -> Tensor:
    """Shapes over one another on the torus, (3, n, n) float32 of mean 0 and deviation 1."""
    double = 2 * _TILE
    colours = rng.integers(0, 256, (_SHAPES + 1, 3)).tolist()
    image = Image.new("RGB", (double, double), tuple(colours[0]))
    draw = ImageDraw.Draw(image)
    for corners, colour in zip(_shapes(rng, double), colours[1:]):
        low, high = corners.min(axis=0), corners.max(axis=0)
        shifts = [[d for d in (-double, 0, double) if a + d < double and b + d > 0] for a, b in zip(low, high)]
        for shift in product(*shifts):
            draw.polygon((corners + shift).ravel().tolist(), fill=tuple(colour))
    pixels = np.asarray(image, dtype=np.float32).reshape(_TILE, 2, _TILE, 2, 3).mean(axis=(1, 3))
    pixels = (pixels - pixels.mean(axis=(0, 1))) / pixels.std()
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _shapes(rng: np.random.Generator, side: int) -> Iterator[np.ndarray]:
    """Corners (n, 2) of long triangles, bars and ellipses, anywhere in a square of `side` half pixels of a tile."""
    corners = rng.choice([3, 4, 4, 24], _SHAPES)
    middles, radii = rng.uniform(0, side, (_SHAPES, 2)), rng.uniform(18, 58, _SHAPES)
    flat, turned = rng.uniform(0.12, 0.35, _SHAPES), rng.uniform(0, 2 * np.pi, _SHAPES)
    leaning = rng.normal(0, _LEAN, _SHAPES)
    for n, middle, radius, flatness, turn, lean in zip(corners, middles, radii, flat, turned, leaning):
        angles = turn + 2 * np.pi * np.arange(n) / n
        x, y = radius * np.cos(angles), radius * np.sin(angles) * flatness
        yield middle + np.stack([x * np.cos(lean) - y * np.sin(lean), x * np.sin(lean) + y * np.cos(lean)], axis=1)


def write_clip(path: Path, frames: np.ndarray, fps: int = FPS) -> None:
    """Frames (T, H, W, 3) uint8, with even sides, as H.264 in mp4."""
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as file:
        stream = file.add_stream("libx264", rate=Fraction(fps), options=_QUALITY)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())


@dataclass(frozen=True)
class DemoClip:
    """One clip of the demo data, which depends on the seed and these three alone."""

    split: str
    motion: str
    number: int

    @property
    def path(self) -> str:
        """From the data's folder."""
        return f"{self.split}/{self.motion}/{self.number:03d}.mp4"


def demo_clips(counts: dict[str, int]) -> list[DemoClip]:
    """All clips, `counts[split]` of each motion."""
    return [DemoClip(split, name, i) for split in SPLITS for name in MOTIONS for i in range(counts[split])]


def write_demo_clip(clip: DemoClip, root: Path, seed: int, size: int = 64, frames: int = 48) -> None:
    """Draws `clip` and writes it below `root`, in an existing folder."""
    rng = np.random.default_rng([seed, SPLITS.index(clip.split), list(MOTIONS).index(clip.motion), clip.number])
    write_clip(root / clip.path, draw_clip(MOTIONS[clip.motion], rng, size, frames))


def write_lists(root: Path, clips: Sequence[DemoClip]) -> None:
    """train.csv, val.csv and test.csv, "path label" with paths from `root`, and classes.txt, names by label."""
    names = list(MOTIONS)
    for split in SPLITS:
        lines = [f"{clip.path} {names.index(clip.motion)}\n" for clip in clips if clip.split == split]
        (root / f"{split}.csv").write_text("".join(lines))
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in names))
