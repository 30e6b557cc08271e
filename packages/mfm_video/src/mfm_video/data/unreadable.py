"""What is wrong with a video, in one line."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

SYSTEM_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Not the file's fault: these are raised as they are."""


class UnreadableVideo(Exception):
    """A file or folder that is no readable video: `path`, and the `reason` in one line."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, " ".join(reason.split())

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


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
