"""Lists an image folder in ImageNet's layout: `root/<split>/<class>/**/*.JPEG`, with any class-folder names.

Pre-training, which needs no labels, also takes `root/<split>/**/*.JPEG`, and a `root` of images alone.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mfm_core.data.listing import UNLABELLED, PathTable, class_names, draw_share, require_known, subfolders
from mfm_core.data.seeding import derive_seed
from mfm_core.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""What counts as an image file, in any case."""


class ImageFolder:
    """The images of one split: `paths[i]` has the class `classes[labels[i]]`. Sorted by class, then by path.

    Args:
        root: the data folder (`DATA.PATH_TO_DATA_DIR`).
        split: its sub-folder, "train" or "val".
        classes: the classes of the training split, where this one must use their indices; it may lack some of them.
        fraction: share of the labels to keep in each class, drawn by `seed`, at least one image per class. A smaller
            fraction is a subset of a larger one.
        seed: of the draw.
        needs_labels: whether there must be class folders; see `find_classes`.

    Raises:
        UserError: where the folder or split is missing, has no class folders, a class folder holds no image, or
            there is a class that `classes` lacks.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        classes: Sequence[str] | None = None,
        fraction: float = 1.0,
        seed: int = 0,
        needs_labels: bool = True,
    ) -> None:
        if not 0 < fraction <= 1:
            raise UserError(f"the fraction of labels must be in (0, 1], not {fraction}")
        self.folder, found, self.remark = find_classes(root, split, needs_labels, classes)
        self.origin = str(self.folder)
        self.classes = tuple(found if classes is None or tuple(found) == UNLABELLED else classes)
        require_known(found, self.classes, self.folder)
        index = {name: i for i, name in enumerate(self.classes)}
        names: list[str] = []
        labels: list[np.ndarray] = []
        for name in found:
            images = class_images(self.folder, name)
            if not images:
                raise UserError(_no_images(self.folder, name))
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
            kept.append(own[draw_share(len(own), fraction, derive_seed(seed, "fraction", self.classes[label]))])
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


class Split(NamedTuple):
    """The folder of a split, its class folders, sorted, and what to know of them: "" or what `folder` "has" or "is"."""

    folder: Path
    classes: list[str]
    remark: str


def find_classes(
    root: str | Path, split: str, needs_labels: bool = True, classes: Sequence[str] | None = None
) -> Split:
    """Finds a split, and its classes.

    Where no labels are needed, all images below a folder that is not divided into class folders are of one class,
    `UNLABELLED`; so are those of val/ where those of train/ are (`classes`), or where it has other classes; and without
    train/ and val/ all below `root` are training images.

    Raises:
        UserError: where the folder or split is missing, or has no class folders.
    """
    root = Path(root)
    bare = root.is_dir() and not (root / "train").exists() and not (root / "val").exists()
    if not needs_labels and split == "train" and bare:
        return Split(root, list(UNLABELLED), _UNDIVIDED)
    folder = split_folder(root, split)
    found = class_names(folder) if needs_labels else subfolders(folder)
    loose = _loose(folder) if found else ""
    if needs_labels:
        return Split(folder, found, f"{loose}, which are left out" if loose else "")
    remark = _why_unlabelled(found, loose, classes)
    return Split(folder, list(UNLABELLED) if remark else found, remark)


_UNDIVIDED = "has no class folders: all below it is taken"


def _why_unlabelled(found: Sequence[str], loose: str, classes: Sequence[str] | None) -> str:
    """Why the class folders that were found are not classes, or "" where they are."""
    if not found:
        return _UNDIVIDED
    if loose:
        return f"{loose}: all below it is taken"
    unknown = sorted(set(found) - set(found if classes is None else classes))
    return f"has the class {unknown[0]}, which the training split lacks" if unknown else ""


def _loose(folder: Path) -> str:
    """How many images lie in the folder itself, in words; "" where there is none."""
    with os.scandir(folder) as entries:
        count = sum(is_image(entry.name) and not entry.is_dir() for entry in entries)
    return f"has {count} image{'s' * (count > 1)} outside of class folders" if count else ""


def is_image(name: str) -> bool:
    """Whether a file is taken for an image, by its name."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def class_images(folder: Path, name: str) -> list[str]:
    """The image files of class `name` at any depth, sorted, as `name/...` with `/`; of "", all below the folder."""
    return [path for path in class_files(folder, name) if is_image(path)]


def class_files(folder: Path, name: str) -> list[str]:
    """The same of all files that are not hidden, whatever they are."""
    try:
        return sorted(_walk(os.path.join(folder, name), f"{name}/" if name else "", frozenset()))
    except OSError as error:
        raise UserError(f"the folder {error.filename} cannot be read: {error.strerror}") from error


def _walk(folder: str, prefix: str, above: frozenset[str]) -> Iterator[str]:
    """Yields files below `folder`, after `prefix`; a link back to a folder above it is not followed."""
    subfolders = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            # is_dir() reads the directory entry; only a symbolic link costs a system call
            if entry.is_dir():
                subfolders.append(entry.name)
            else:
                yield f"{prefix}{entry.name}"
    if subfolders:
        above = above | {os.path.realpath(folder)}
    for name in subfolders:
        path = os.path.join(folder, name)
        if not (os.path.islink(path) and os.path.realpath(path) in above):
            yield from _walk(path, f"{prefix}{name}/", above)


def _no_images(folder: Path, name: str) -> str:
    kinds = ", ".join(ending[1:] for ending in EXTENSIONS)
    if not name:
        return f"there is no image below {folder}, in train/<class>/ or elsewhere; add images ({kinds})"
    return f"the class folder {folder / name} holds no image; add images ({kinds}) or remove it"
