"""What is wrong with a video, in one line."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import av

from mfm_core.data.files import SYSTEM_ERRORS, UnreadableFile


class UnreadableVideo(UnreadableFile):
    """A file or folder that is no readable video."""


@contextmanager
def readable(path: str, what: str) -> Iterator[None]:
    """Turns what a decoder raises for a damaged file (nearly anything) into `UnreadableVideo`: "`what`: reason".

    That memory is short is the decoder's answer, too, to a header that promises pictures of gigabytes.
    """
    try:
        yield
    except UnreadableVideo:
        raise
    except Exception as error:
        if _is_the_systems(error):
            raise
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreadableVideo(path, f"{what}: {reason}") from error


def _is_the_systems(error: Exception) -> bool:
    """Whether no other file would fare better. Python's own MemoryError is; FFmpeg's says it of impossible sizes."""
    if isinstance(error, av.FFmpegError) and error.errno == errno.ENOMEM:
        return False
    return isinstance(error, MemoryError) or isinstance(error, OSError) and error.errno in SYSTEM_ERRORS
