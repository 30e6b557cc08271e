"""Reads single frames of a video file with decord, where decord gives the frames that it is asked for.

decord 0.6 counts packets instead of looking at time stamps. Measured: it returns other frames than asked, without an
error, for HEVC, MPEG-TS, AVI with B-frames, H.264 in open groups of pictures, damaged files and mp4 files whose edit
list hides frames, and rows of four channels for some reduced sizes. It takes memory for as many frames as a header
claims, and a damaged header aborts the process. So PyAV looks at the file first, and reads what decord would not.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import torch
from torch import Tensor

from mfm_core.errors import UserError
from mfm_video.data.read_av import AvVideo, as_file, reduced_size

CODECS = ("h264", "vp8", "vp9")
CONTAINERS = ("mov", "mp4", "matroska", "webm")
MOST_CLAIMED = 10
"""How many times the frames that are there a header may claim: sound goes on behind the pictures in some files."""


class DecordVideo:
    """A video file; see `decode.Video`.

    Raises:
        UnreadableVideo: as `AvVideo`.
        UserError: where decord is not installed.
    """

    def __init__(self, path: str) -> None:
        self._decord = import_decord()
        self.path, self._checked = path, AvVideo(path)
        self.frames, self.fps = self._checked.frames, self._checked.fps
        self._exact = (
            self._checked.plain
            and self._checked.codec in CODECS
            and self._checked.container.startswith(CONTAINERS)
            and self._checked.claimed <= MOST_CLAIMED * self.frames
            and not self._checked.rotation()
        )

    def read(self, indices: Sequence[int], short_side: int = 0) -> Tensor:
        """See `decode.Video`."""
        frames = self._read_by_decord(indices, short_side) if self._exact else None
        return self._checked.read(indices, short_side) if frames is None else frames

    def _read_by_decord(self, indices: Sequence[int], short_side: int) -> Tensor | None:
        """None where decord fails, or finds another number or another shape of frames than PyAV."""
        native = self._checked.height, self._checked.width
        height, width = reduced_size(*native, short_side)
        size = {} if (height, width) == native else {"height": height, "width": width}
        try:
            reader = self._decord.VideoReader(as_file(self.path), num_threads=1, **size)
            if len(reader) != self.frames:
                return None
            pixels = reader.get_batch(list(indices)).asnumpy()
        except (self._decord.DECORDError, RuntimeError, IndexError):
            return None
        if pixels.shape[1:] != (height, width, 3):
            return None
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def close(self) -> None:
        """Frees the decoder."""
        self._checked.close()

    def __enter__(self) -> DecordVideo:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def import_decord():  # noqa: ANN201
    """The module, silenced; raises `UserError` where it is not installed."""
    try:
        import decord
    except ImportError as error:
        raise UserError(
            "DATA.DECODING_BACKEND decord: decord is not installed (it has wheels for Linux on x86-64); take pyav."
        ) from error
    decord.logging.set_level(decord.logging.QUIET)
    return decord
