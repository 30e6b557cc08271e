"""Operations of augmentation policies on planes of 8-bit pixels, (3, h, w): the pixels that timm gets from PIL's images.

PIL keeps four bytes per pixel and computes most operations one value at a time. Here values that depend on one value
only are computed or looked up for whole planes, and where PIL's own code decides how something is rounded (`blend`),
it is that code that runs, on planes or on a ramp of all 256 values.

Every function returns a new array or its argument, which it leaves as it is.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

RAMP = Image.frombytes("L", (256, 1), bytes(range(256)))


def to_pil(planes: np.ndarray) -> Image.Image:
    """(3, h, w) uint8 to an image of PIL (RGB)."""
    return Image.merge("RGB", [Image.fromarray(plane) for plane in planes])


def from_pil(image: Image.Image) -> np.ndarray:
    """An image of PIL (RGB) to (3, h, w) uint8."""
    return np.stack([np.asarray(band) for band in image.split()])


# --- each value by itself ------------------------------------------------------------------------------------------


def look_up(planes: np.ndarray, table: bytes) -> np.ndarray:
    """Each value replaced by what the table of 256 bytes has in its place."""
    # translating bytes is faster than indexing an array, and a bytearray can be written to
    return np.frombuffer(bytearray(planes.tobytes()).translate(table), np.uint8).reshape(planes.shape)


def invert(planes: np.ndarray, **kwargs: object) -> np.ndarray:
    """255 minus each value."""
    return ~planes


def posterize(planes: np.ndarray, bits: int, **kwargs: object) -> np.ndarray:
    """Keeps the upper `bits` bits of each value, at least one."""
    return planes if bits >= 8 else planes & np.uint8(256 - (1 << (8 - max(1, bits))))


def solarize(planes: np.ndarray, threshold: int, **kwargs: object) -> np.ndarray:
    """Inverts the values from the threshold, 0 to 256, on."""
    return planes ^ _all_bits(planes >= threshold)


def solarize_add(planes: np.ndarray, add: int, **kwargs: object) -> np.ndarray:
    """Adds `add`, 0 to 128, to the values of the lower half."""
    return planes + (np.uint8(add) & _all_bits(planes < 128))  # at most 127 + 128: never beyond 255


def _all_bits(where: np.ndarray) -> np.ndarray:
    """uint8: 255 where true; with bits this is ten times faster than numpy's `where`."""
    return np.negative(where.view(np.uint8))


def auto_contrast(planes: np.ndarray, **kwargs: object) -> np.ndarray:
    """Stretches each plane to the range 0 to 255."""
    return np.stack([_stretched(plane) for plane in planes])


def _stretched(plane: np.ndarray) -> np.ndarray:
    low, high = int(plane.min()), int(plane.max())
    if high <= low:
        return plane
    scale = 255.0 / (high - low)
    values = np.arange(256) * scale + -low * scale
    return look_up(plane, values.astype(np.int64).clip(0, 255).astype(np.uint8).tobytes())


def equalize(planes: np.ndarray, **kwargs: object) -> np.ndarray:
    """Gives each plane a flat histogram."""
    return np.stack([_equalized(plane) for plane in planes])


def _equalized(plane: np.ndarray) -> np.ndarray:
    counts = np.array(Image.fromarray(plane).histogram())
    used = counts[counts > 0]
    step = int(used.sum() - used[-1]) // 255
    if not step:
        return plane
    below = np.cumsum(counts) - counts
    return look_up(plane, ((step // 2 + below) // step).clip(0, 255).astype(np.uint8).tobytes())


def brightness(planes: np.ndarray, factor: float, **kwargs: object) -> np.ndarray:
    """Moves each value away from black by the factor."""
    return _moved_from(planes, 0, factor)


def contrast(planes: np.ndarray, factor: float, **kwargs: object) -> np.ndarray:
    """Moves each value away from the mean grey of the image by the factor."""
    luma = grey(planes)
    return _moved_from(planes, int(luma.sum() / luma.size + 0.5), factor)


def _moved_from(planes: np.ndarray, value: int, factor: float) -> np.ndarray:
    return look_up(planes, Image.blend(Image.new("L", (256, 1), value), RAMP, factor).tobytes())


# --- values beside others ------------------------------------------------------------------------------------------


def color(planes: np.ndarray, factor: float, **kwargs: object) -> np.ndarray:
    """Moves each pixel away from its grey by the factor."""
    luma = grey(planes)
    return blend(np.stack([luma] * 3), planes, factor)


def desaturate(planes: np.ndarray, factor: float, **kwargs: object) -> np.ndarray:
    """Moves each pixel towards its grey: 1 is there."""
    return color(planes, min(1.0, max(0.0, 1.0 - factor)))


def sharpness(planes: np.ndarray, factor: float, **kwargs: object) -> np.ndarray:
    """Moves each pixel away from what PIL's SMOOTH filter makes of it by the factor."""
    return blend(smooth(planes), planes, factor)


def grey(planes: np.ndarray) -> np.ndarray:
    """(h, w) uint8: the luma (ITU-R 601-2), in PIL's fixed point."""
    red, green, blue = planes.astype(np.uint32)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).astype(np.uint8)


def smooth(planes: np.ndarray) -> np.ndarray:
    """Each pixel's mean with its eight neighbours, itself five times; pixels at an edge stay.

    PIL sums floats, but no thirteenth lies nearer than 1 / 26 to where rounding turns, so integers give the same.
    """
    values = planes.astype(np.uint16)
    rows = values[:, :-2] + values[:, 1:-1] + values[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * values[:, 1:-1, 1:-1]
    result = planes.copy()
    result[:, 1:-1, 1:-1] = (2 * total + 13) // 26
    return result


def blend(start: np.ndarray, end: np.ndarray, factor: float) -> np.ndarray:
    """`start + factor * (end - start)` for planes of one shape, cut to 0 to 255, as PIL rounds it."""
    return np.array(Image.blend(_sheet(start), _sheet(end), factor)).reshape(end.shape)


def _sheet(planes: np.ndarray) -> Image.Image:
    """The planes below each other, as one grey image."""
    return Image.fromarray(planes.reshape(-1, planes.shape[-1]))
