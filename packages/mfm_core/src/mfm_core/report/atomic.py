"""Files that are either the old or the new one, never half of it: written beside their place, then moved there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from mfm_core.errors import UserError


def write_bytes(path: Path, data: bytes) -> None:
    """Puts `data` at `path`, making its folder. Raises `UserError` where that cannot be done."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose a folder that can") from error


def _umask() -> int:
    """The permissions new files are to go without; mkstemp alone would leave the file to its owner."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
