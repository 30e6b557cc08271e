"""Reads a folder of images as a video: the images, in the order of the numbers in their names, are its frames."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from types import TracebackType

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mfm_core.data.rgb import to_rgb
from mfm_video.data.read_av import reduced_size
from mfm_video.data.unreadable import UnreadableVideo, readable

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
"""What counts as a frame, in any case."""


class FolderVideo:
    """A folder of images; see `decode.Video`. All of them have the size of the first one asked for.

    Args:
        path: of the folder.
        fps: frames per second, which the folder does not say.

    Raises:
        UnreadableVideo: where it holds no image.
    """

    def __init__(self, path: str, fps: float) -> None:
        self.path, self.fps = path, fps
        with readable(path, "the folder cannot be read"):
            names = [name for name in os.listdir(path) if name.lower().endswith(IMAGES) and not name.startswith(".")]
        if not names:
            raise UnreadableVideo(path, "there is no image in this folder")
        self.names = sorted(names, key=natural_order)
        self.frames = len(names)

    def read(self, indices: Sequence[int], short_side: int = 0) -> Tensor:
        """See `decode.Video`."""
        wanted = sorted(set(indices))
        frames: list[np.ndarray] = []
        for index in wanted:
            frame = self._read_one(self.names[index], short_side)
            if frames and frame.shape != frames[0].shape:
                raise UnreadableVideo(self.path, f"{self.names[index]} has another size than {self.names[wanted[0]]}")
            frames.append(frame)
        place = {index: i for i, index in enumerate(wanted)}
        pixels = torch.from_numpy(np.stack([frames[place[index]] for index in indices]))
        return pixels.permute(0, 3, 1, 2)

    def _read_one(self, name: str, short_side: int) -> np.ndarray:
        with readable(self.path, f"{name} cannot be read"), Image.open(os.path.join(self.path, name)) as image:
            height, width = reduced_size(image.height, image.width, short_side)
            image.draft("RGB", (width, height))
            rgb = to_rgb(image)
            if rgb.size != (width, height):
                rgb = rgb.resize((width, height), Image.Resampling.BILINEAR)
            return np.asarray(rgb)

    def close(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> FolderVideo:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """A sorting key that puts img_2 before img_10."""
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in re.split(r"(\d+)", name)]
