"""Lists an image folder in ImageNet's layout: `root/<split>/<class>/**/*.JPEG`, with any class-folder names."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mfm_core.data.seeding import derive_seed
from mfm_core.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""What counts as an image file, in any case."""


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

    def relative(self, index: int) -> str:
        """The path from the root on, with `/`."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"path {index} of {len(self)}")
        index %= len(self)
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._bytes[start : self._ends[index]].tobytes())


class ImageFolder:
    """The images of one split: `paths[i]` has the class `classes[labels[i]]`. Sorted by class, then by path.

    Args:
        root: the data folder (`DATA.PATH_TO_DATA_DIR`).
        split: its sub-folder, "train" or "val".
        classes: the classes of the training split, where this one must use their indices; it may lack some of them.
        fraction: share of the labels to keep in each class, drawn by `seed`, at least one image per class. A smaller
            fraction is a subset of a larger one.
        seed: of the draw.

    Raises:
        UserError: where the folder or split is missing, has no class folders, a class folder holds no image, or
            there is a class that `classes` lacks.
    """

    def __init__(
        self, root: str | Path, split: str, classes: Sequence[str] | None = None, fraction: float = 1.0, seed: int = 0
    ) -> None:
        if not 0 < fraction <= 1:
            raise UserError(f"the fraction of labels must be in (0, 1], not {fraction}")
        self.folder = split_folder(root, split)
        self.origin = str(self.folder)
        found = class_names(self.folder)
        self.classes = tuple(classes) if classes is not None else tuple(found)
        _require_known(found, self.classes, self.folder)
        index = {name: i for i, name in enumerate(self.classes)}
        names: list[str] = []
        labels: list[np.ndarray] = []
        for name in found:
            images = class_images(self.folder, name)
            if not images:
                raise UserError(_no_images(self.folder / name))
            names += images
            labels.append(np.full(len(images), index[name], dtype=np.int64))
        self.paths = PathTable(self.folder, names)
        self.labels = np.concatenate(labels)
        if fraction < 1:
            self._keep(fraction, seed)

    def subset(self, fraction: float, seed: int) -> ImageFolder:
        """What `fraction` and `seed` would have made of this folder; the disk is not read again."""
        part = copy.copy(self)
        part._keep(fraction, seed)
        return part

    def _keep(self, fraction: float, seed: int) -> None:
        """Leaves a share of each class, in the same order."""
        kept = []
        for label in np.unique(self.labels):
            own = np.flatnonzero(self.labels == label)
            kept.append(own[_draw(len(own), fraction, derive_seed(seed, "fraction", self.classes[label]))])
        chosen = np.concatenate(kept)
        self.paths = PathTable(self.folder, [self.paths.relative(i) for i in chosen])
        self.labels = self.labels[chosen]

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return f"ImageFolder({str(self.folder)!r}: {len(self)} images, {len(self.classes)} classes)"


def split_folder(root: str | Path, split: str) -> Path:
    """`root/split`; raises `UserError` where either is not a folder that can be read."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"the data folder {root} does not exist; set DATA.PATH_TO_DATA_DIR to a folder with {split}/")
    folder = root / split
    if not folder.is_dir():
        raise UserError(f"the data folder {root} has no {split}/; expected {folder}/<class>/*.JPEG")
    return folder


def class_names(folder: Path) -> list[str]:
    """The class folders in `folder`, sorted; hidden ones are left out. Raises `UserError` where there are none."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be read: {error.strerror}") from error
    if not names:
        raise UserError(f"{folder} has no class folders; put the images into {folder}/<class>/")
    return names


def class_images(folder: Path, name: str) -> list[str]:
    """The image files of class `name` at any depth, sorted, as `name/...` with `/`."""
    try:
        return sorted(_walk(os.path.join(folder, name), name, frozenset()))
    except OSError as error:
        raise UserError(f"the folder {error.filename} cannot be read: {error.strerror}") from error


def _walk(folder: str, prefix: str, above: frozenset[str]) -> Iterator[str]:
    """Yields image files below `folder`; a link back to a folder above it is not followed."""
    subfolders = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            is_image = entry.name.lower().endswith(EXTENSIONS)
            # is_dir() reads the directory entry; only a symbolic link costs a system call
            if entry.is_dir():
                subfolders.append(entry.name)
            elif is_image:
                yield f"{prefix}/{entry.name}"
    if subfolders:
        above = above | {os.path.realpath(folder)}
    for name in subfolders:
        path = os.path.join(folder, name)
        if not (os.path.islink(path) and os.path.realpath(path) in above):
            yield from _walk(path, f"{prefix}/{name}", above)


def _no_images(folder: Path) -> str:
    return f"the class folder {folder} holds no image; add images ({', '.join(e[1:] for e in EXTENSIONS)}) or remove it"


def _require_known(found: Sequence[str], known: Sequence[str], folder: Path) -> None:
    unknown = sorted(set(found) - set(known))
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UserError(
            f"{folder} has the class {unknown[0]}{more}, which the training split lacks; "
            f"remove it there or add it to train/"
        )


def _draw(count: int, fraction: float, seed: int) -> np.ndarray:
    """A seeded choice of `max(1, round(fraction * count))` of `count` positions, rising."""
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[: max(1, round(fraction * count))])
