"""What is wrong with a video, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mfm_core.data.files import SYSTEM_ERRORS, UnreadableFile


class UnreadableVideo(UnreadableFile):
    """A file or folder that is no readable video."""


@contextmanager
def readable(path: str, what: str) -> Iterator[None]:
    """Turns what a decoder raises for a damaged file (nearly anything) into `UnreadableVideo`: "`what`: reason"."""
    try:
        yield
    except (UnreadableVideo, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in SYSTEM_ERRORS:
            raise
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreadableVideo(path, f"{what}: {reason}") from error
