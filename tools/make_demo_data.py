"""Draws the demo data: JPEG files in ImageNet's layout, offline, the same bytes for the same seed.

Ten classes by texture: stripes at 0, 30, 60 or 90 degrees to the vertical (leaning either way, so that mirroring
keeps the class) and checks, each fine or coarse. The object that carries the texture, its place, size and angle, every
colour and the background are drawn in the same way for all classes, so mean colour tells nothing; the pixels of an
object of one class are as many as of another. `python tools/make_demo_data.py --out data/demo`
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
from demo_folder import make
from PIL import Image

SHAPES = ("cross", "disc", "ring", "square", "triangle")
STRIPES = {"stripes00": 0, "stripes30": 30, "stripes60": 60, "stripes90": 90}
"""Degrees from the vertical."""
PERIODS = {"coarse": (0.16, 0.19), "fine": (0.08, 0.095)}
"""Range of the period, as a share of the image's width."""
CLASSES = tuple(f"{texture}_{period}" for texture in ("checks", *STRIPES) for period in PERIODS)
TILT = 10
"""Degrees by which a texture may be off."""
OVERSAMPLING = 2
VERSION = 3
"""Of the drawing; data of another version are made anew."""


def shape_mask(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Where the shape is, in coordinates in which each covers the area of a disc of radius 1."""
    if shape == "disc":
        return x**2 + y**2 < 1
    if shape == "square":
        return np.maximum(abs(x), abs(y)) < 0.886
    if shape == "triangle":
        sides = [x * np.sin(a) + y * np.cos(a) for a in (0, 2 * np.pi / 3, 4 * np.pi / 3)]
        return np.max(sides, axis=0) < 0.778
    if shape == "ring":
        return abs(np.hypot(x, y) - 0.928) < 0.2694
    return (np.minimum(abs(x), abs(y)) < 0.415) & (np.maximum(abs(x), abs(y)) < 1.153)


def texture_mask(name: str, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Where the second colour of the class's texture is: half of the area. x, y: share of the image's width."""
    texture, period = name.split("_")
    degrees = STRIPES.get(texture, 0) * rng.choice([1, -1]) + rng.uniform(-TILT, TILT)
    length, phase = rng.uniform(*PERIODS[period]), rng.uniform(0, 2 * np.pi, size=2)
    across, along = rotated(x, y, np.deg2rad(degrees))
    stripes = np.sin(2 * np.pi * across / length + phase[0]) > 0
    return stripes if texture in STRIPES else stripes ^ (np.sin(2 * np.pi * along / length + phase[1]) > 0)


def rotated(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in a frame turned by `angle`."""
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def smooth_noise(rng: np.random.Generator, cells: int, size: int) -> np.ndarray:
    """(size, size, 1) float32, roughly normal, with features of `size / cells` pixels."""
    field = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
    return np.asarray(field.resize((size, size), Image.Resampling.BICUBIC))[..., None]


def colors(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two RGB colours whose brightness differs enough to see a texture of them."""
    while True:
        first, second = rng.uniform(20, 235, size=(2, 3))
        if abs(first.mean() - second.mean()) > 50:
            return first, second


def draw(name: str, rng: np.random.Generator, size: int) -> Image.Image:
    """One picture of class `name`: a smooth background, a line that distracts, the textured object, sensor noise."""
    n = size * OVERSAMPLING
    y, x = np.mgrid[0:n, 0:n].astype(np.float32) / n
    ground, other = colors(rng)
    blend = np.clip(0.5 + 0.35 * smooth_noise(rng, 4, n), 0, 1)
    pixels = ground * blend + other * (1 - blend)
    across, _along = rotated(x - rng.uniform(0.1, 0.9), y - rng.uniform(0.1, 0.9), rng.uniform(0, np.pi))
    pixels[abs(across) < rng.uniform(0.01, 0.03)] = rng.uniform(20, 235, size=3)
    radius, center = rng.uniform(0.25, 0.38), rng.uniform(0.35, 0.65, size=2)
    u, v = x - center[0], y - center[1]
    shape = SHAPES[rng.integers(len(SHAPES))]
    inside = shape_mask(shape, *(c / radius for c in rotated(u, v, rng.uniform(0, 2 * np.pi))))
    second = texture_mask(name, u, v, rng)
    first_color, second_color = colors(rng)
    pixels[inside & ~second] = first_color
    pixels[inside & second] = second_color
    pixels = pixels.reshape(size, OVERSAMPLING, size, OVERSAMPLING, 3).mean(axis=(1, 3))
    pixels += rng.normal(scale=1.5, size=pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))


def write(root: Path, parameters: dict[str, int]) -> None:
    """All files below `root`; image i of a class depends on the seed and its own place alone."""
    for split_number, split in enumerate(("train", "val")):
        for class_number, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(parameters[split]):
                rng = np.random.default_rng([parameters["seed"], split_number, class_number, i])
                draw(name, rng, parameters["size"]).save(folder / f"{i:03d}.JPEG", quality=95)


def main() -> None:
    """Reads the options."""
    parser = argparse.ArgumentParser(description="Draws the demo data (JPEG files in ImageNet's layout).")
    parser.add_argument("--out", type=Path, default=Path("data/demo"))
    parser.add_argument("--train", type=int, default=200, help="training images per class")
    parser.add_argument("--val", type=int, default=40, help="validation images per class")
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    out, parameters = options.pop("out"), {**options, "version": VERSION}
    what = f"{len(CLASSES)} classes, {parameters['train']} + {parameters['val']} images each"
    print(make(out, parameters, partial(write, parameters=parameters), what))


if __name__ == "__main__":
    main()
