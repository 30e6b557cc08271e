"""Opens a video whatever it is stored as: a file that PyAV or decord reads, or a folder of images.

Which frames a clip needs is known once a video is open (`frames`, `fps`); only those are converted to RGB, and only
those and what they depend on are decoded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol

from torch import Tensor

from mfm_video.data.read_av import AvVideo
from mfm_video.data.read_decord import DecordVideo
from mfm_video.data.read_folder import FolderVideo
from mfm_video.data.unreadable import UnreadableVideo, readable

READERS = {"pyav": AvVideo, "decord": DecordVideo, "torchvision": AvVideo}
"""DATA.DECODING_BACKEND -> what reads files. PyAV finds every frame by its time stamp and leaves out the pictures that
nothing depends on: exact where decord is not (see `read_decord.py`), and faster. torchvision reads no video by now."""


class Video(Protocol):
    """An opened video; a context manager that closes it.

    frames: how many there are. fps: per second, on average.
    """

    frames: int
    fps: float

    def read(self, indices: Sequence[int], short_side: int = 0) -> Tensor:
        """The frames at `indices` (in any order, repetitions allowed), (len(indices), 3, h, w) uint8 RGB, stored
        channels-last, upright.

        Args:
            indices: each in [0, frames).
            short_side: pixels that the shorter side of a larger video is reduced to; 0 leaves all as they are.

        Raises:
            UnreadableVideo: where a frame cannot be decoded.
        """

    def close(self) -> None:
        """Frees the decoder."""

    def __enter__(self) -> Video: ...

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None: ...


def open_video(path: str, backend: str = "pyav", folder_fps: float = 30.0) -> Video:
    """Opens the file or folder at `path`.

    Args:
        path: of a video file, or of a folder whose images are the frames.
        backend: one of `READERS`.
        folder_fps: frames per second of a folder of images, which does not say.

    Raises:
        UnreadableVideo: where there is nothing, no video, or less of it than its header says.
    """
    if os.path.isdir(path):
        return FolderVideo(path, folder_fps)
    with readable(path, "it cannot be read"):
        if not os.path.isfile(path):  # neither a pipe nor an address: opening one may wait for ever
            raise UnreadableVideo(path, "there is no such file")
        if not os.path.getsize(path):
            raise UnreadableVideo(path, "the file is empty")
    return READERS[backend](path)
