"""Image files to RGB pixels, at reduced scale where that is enough; whatever is wrong with a file becomes one line.

PIL reads every format. A whole JPEG goes through torchvision's decoder: the same library and the same pixels, 20 %
faster, as it saves PIL's four-byte pixels and their repacking.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from mfm_core.data.files import SYSTEM_ERRORS, UnreadableFile
from mfm_core.data.rgb import to_rgb

FRAMES = (0xC0, 0xC1, 0xC2)
"""Markers of the frame header of a JPEG file: baseline, extended, progressive."""
SKIPPED = frozenset([0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)])
"""Markers of what may stand before it: tables, restart intervals, comments, application data."""


class UnreadableImage(UnreadableFile):
    """A file that is no readable image."""


class ImageReader:
    """An opened image file: its size is known from the header, its pixels are decoded on demand.

    The pixels lie as stored: an EXIF orientation is not applied, as in torchvision's ImageFolder.

    >>> with ImageReader(path) as image:
    ...     pixels = image.decode(largest_reduction(image.height, image.width, ...))

    Args:
        path: of the file. Inside the context, `data` is its content, and `width`, `height` and `mode` (PIL's name)
            are what its header says. `reduction` is the scale that `decode` really used.

    Raises:
        UnreadableImage: on entering the context, for files PIL cannot identify.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.reduction = 1

    def __enter__(self) -> ImageReader:
        with _readable(self.path):
            with open(self.path, "rb") as file:
                self.data = file.read()
            if not self.data:
                raise UnreadableImage(self.path, "the file is empty")
            size = jpeg_size(self.data)
            self._image = None if size else Image.open(io.BytesIO(self.data))
        self.height, self.width = size or self._image.size[::-1]
        self.mode = "RGB" if size else self._image.mode
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._image is not None:
            self._image.close()

    def decode(self, reduction: int = 1) -> Tensor:
        """The pixels, (3, h, w) uint8 RGB, stored channels-last. Once per opened file.

        Args:
            reduction: 1, 2, 4 or 8: what height and width may be divided by (rounded up). JPEG files are decoded at
                that scale (libjpeg does it inside the inverse DCT); other formats are returned in full size.

        Raises:
            UnreadableImage: for truncated or damaged files, and for pixels without a fixed range (32-bit, float).
        """
        if reduction == 1 and (self._image is None or (self._image.format == "JPEG" and self.mode == "RGB")):
            with suppress(RuntimeError):  # PIL decides whether the file is readable, and says why not
                return decode_jpeg(torch.frombuffer(bytearray(self.data), dtype=torch.uint8), ImageReadMode.RGB)
        with _readable(self.path):
            if self._image is None:
                self._image = Image.open(io.BytesIO(self.data))
            if reduction > 1:
                size = max(1, self.width // reduction), max(1, self.height // reduction)
                drafted = self._image.draft("RGB", size)
                self.reduction = round(self.width / drafted[1][2]) if drafted else 1
            return torch.from_numpy(np.array(to_rgb(self._image))).permute(2, 0, 1)


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of an ordinary JPEG file with three colours; None for whatever PIL should look at.

    Walks over the segments to the frame header (ITU-T T.81, B.1 and B.2.2), which spares most files PIL's own reading
    of all their metadata.
    """
    place = 2
    while data[:2] == b"\xff\xd8" and data[place : place + 1] == b"\xff" and place + 9 < len(data):
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker in FRAMES:
            precision, height, width, colors = struct.unpack_from(">BHHB", data, place + 4)
            ordinary = precision == 8 and colors == 3 and 0 < height * width <= (Image.MAX_IMAGE_PIXELS or 2**32)
            return (height, width) if ordinary else None
        if marker not in SKIPPED or length < 2:
            return None
        place += 2 + length
    return None


def decode_image(path: str) -> Tensor:
    """The whole image, (3, h, w) uint8 RGB; raises `UnreadableImage`."""
    with ImageReader(path) as image:
        return image.decode()


def largest_reduction(crop_height: int, crop_width: int, out_height: int, out_width: int) -> int:
    """The largest of 1, 2, 4, 8 by which the crop can be reduced and still be no smaller than the output."""
    for reduction in (8, 4, 2):
        if crop_height // reduction >= out_height and crop_width // reduction >= out_width:
            return reduction
    return 1


@contextmanager
def _readable(path: str) -> Iterator[None]:
    """Turns what PIL raises for a damaged file (nearly anything: OSError, SyntaxError, struct.error, ...) into
    `UnreadableImage`, and keeps its warnings about metadata out of the log."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except (UnreadableImage, MemoryError):
            raise
        except UnidentifiedImageError as error:
            raise UnreadableImage(path, "this is not an image, or of a format that PIL does not know") from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno in SYSTEM_ERRORS:
                raise
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
            raise UnreadableImage(path, reason) from error
