"""Lists of files with classes: compact tables of paths, class folders, and seeded shares of each class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mfm_core.errors import UserError

UNLABELLED = ("",)
"""The classes of files that have no labels."""


class PathTable(Sequence[str]):
    """Paths below one folder, in two arrays: a list of a million strings would be copied into every loader worker
    as reference counts change, page by page."""

    def __init__(self, root: Path | str, relative: Sequence[str]) -> None:
        self.root = str(root)
        encoded = [os.fsencode(name) for name in relative]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        return os.path.join(self.root, self.relative(index))

    def content(self) -> bytes:
        """Equal for tables of the same paths from their roots on, wherever these are."""
        return self._bytes.tobytes() + self._ends.tobytes()

    def relative(self, index: int) -> str:
        """The path from the root on, with `/`."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"path {index} of {len(self)}")
        index %= len(self)
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._bytes[start : self._ends[index]].tobytes())


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in `folder`, sorted, without hidden ones. Raises `UserError` where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be read: {error.strerror}") from error


def class_names(folder: Path) -> list[str]:
    """The class folders in `folder`: its `subfolders`. Raises `UserError` where there are none."""
    names = subfolders(folder)
    if not names:
        raise UserError(f"{folder} has no class folders; put the files into {folder}/<class>/")
    return names


def require_known(found: Sequence[str], known: Sequence[str], folder: Path) -> None:
    unknown = sorted(set(found) - set(known))
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UserError(
            f"{folder} has the class {unknown[0]}{more}, which the training split lacks; "
            f"remove it there or add it to train/"
        )


def draw_share(count: int, fraction: float, seed: int) -> np.ndarray:
    """A seeded choice of `max(1, round(fraction * count))` of `count` positions, rising."""
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[: max(1, round(fraction * count))])
