"""Lists of videos with labels: PySlowFast's `train.csv` (`path label` in each line), or a folder for each class."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mfm_core.data.listing import UNLABELLED, PathTable, class_names, draw_share, require_known
from mfm_core.data.seeding import derive_seed
from mfm_core.errors import UserError
from mfm_core.paths import AbsentFile, is_remote, local_path
from mfm_video.data.read_folder import IMAGES

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp", ".ogv")
"""What counts as a video file in a class folder, in any case; a list may name any file."""
NO_LABEL = 0
"""The label of a video that has none, as in PySlowFast."""
MOST_CLASSES = 100_000
"""Where no model bounds labels: each class below the largest has a name, and k-NN counts votes for it."""
NUMBER = re.compile("-?[0-9]+")
LOOKED_FOR = 100
"""About so many paths of a list, evenly spread, are looked for to find out where relative ones start."""
CLASSES = "classes.txt"
"""Names of classes, beside lists."""


class ListForm(NamedTuple):
    """How the lines of a list are to be read; see `list_videos`."""

    num_classes: int = 0
    separator: str = " "
    prefix: str = ""
    needs_labels: bool = False


class VideoList:
    """The videos of one split: `paths[i]` has the class `classes[labels[i]]`.

    Args:
        paths: of files, or of folders whose images are the frames.
        labels: (n,) whole numbers from 0 on.
        classes: names of the classes.
        origin: the list or folder they come from.
        lines: (n,) the line of the list that each comes from, counted from 1.
        problems: what is wrong with the line of a video, by its place: such a video is not to be used.
    """

    def __init__(
        self,
        paths: PathTable,
        labels: np.ndarray,
        classes: Sequence[str],
        origin: str,
        lines: np.ndarray | None = None,
        problems: dict[int, str] | None = None,
    ) -> None:
        self.paths, self.labels, self.classes, self.origin = paths, labels, tuple(classes), origin
        self.lines, self.problems = lines, problems or {}
        self.remark = "has no labels" if self.classes == UNLABELLED else ""

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return f"VideoList({self.origin!r}: {len(self)} videos, {len(self.classes)} classes)"

    def where(self, index: int) -> str:
        """ " (train.csv line 3)", where the video comes from a list."""
        return "" if self.lines is None else f" ({os.path.basename(self.origin)} line {self.lines[index]})"

    def subset(self, fraction: float, seed: int) -> VideoList:
        """A seeded share of each class, at least one video of each; a smaller one is a subset of a larger one.

        Raises:
            UserError: for a fraction outside (0, 1].
        """
        if not 0 < fraction <= 1:
            raise UserError(f"the fraction of labels must be in (0, 1], not {fraction}")
        kept = []
        for label in np.unique(self.labels):
            own = np.flatnonzero(self.labels == label)
            kept.append(own[draw_share(len(own), fraction, derive_seed(seed, "fraction", self.classes[label]))])
        return self._at(np.sort(np.concatenate(kept)))

    def _at(self, chosen: np.ndarray) -> VideoList:
        part = copy.copy(self)
        part.paths = PathTable(self.paths.root, [self.paths.relative(int(i)) for i in chosen])
        part.labels = self.labels[chosen]
        part.lines = None if self.lines is None else self.lines[chosen]
        part.problems = {new: self.problems[old] for new, old in enumerate(chosen.tolist()) if old in self.problems}
        return part


def list_videos(
    root: str | Path,
    split: str,
    num_classes: int = 0,
    separator: str = " ",
    prefix: str = "",
    classes: Sequence[str] | None = None,
    needs_labels: bool = False,
) -> VideoList:
    """The videos of `root/<split>.csv` or, without that file, of the class folders in `root/<split>/`.

    Args:
        root: `DATA.PATH_TO_DATA_DIR`; an address may hold lists, of videos that lie here.
        split: train, val or test.
        num_classes: labels of a list must be below it (`MODEL.NUM_CLASSES`); 0 where no model's classes bound them.
        separator: between path and label (`DATA.PATH_LABEL_SEPARATOR`).
        prefix: stands before each path of a list (`DATA.PATH_PREFIX`). Without one, relative paths start in the
            working folder, as in PySlowFast, or in `root`: wherever the first one is that is at either place.
        classes: those of the training split, whose numbers class folders get.
        needs_labels: else, and without `num_classes`, a list without any labels is fine: of one class, `UNLABELLED`.

    Raises:
        UserError: where there is neither list nor folder, or nothing usable in it.
    """
    form = ListForm(num_classes, separator, prefix, needs_labels)
    if is_remote(str(root)):
        return _remote_list(str(root).rstrip("/"), split, form)
    root = Path(root)
    if not root.is_dir():
        raise UserError(
            f"the data folder {root} does not exist; set DATA.PATH_TO_DATA_DIR to a folder with {split}.csv"
        )
    file = root / f"{split}.csv"
    if file.is_file():
        return read_list(file, form)
    if (root / split).is_dir():
        return walk_folders(root / split, classes)
    raise UserError(f"{root} has neither {split}.csv (`path label` in each line) nor {split}/<class>/ with videos")


def _remote_list(root: str, split: str, form: ListForm) -> VideoList:
    address, key = f"{root}/{split}.csv", "DATA.PATH_TO_DATA_DIR"
    file = Path(local_path(address, key))
    try:
        names = Path(local_path(f"{root}/{CLASSES}", key))
    except AbsentFile:
        names = None
    videos = read_list(file, form, names or file.parent / CLASSES, folder="")
    videos.origin = address
    return videos


def read_list(file: Path, form: ListForm, names: Path | None = None, folder: str | None = None) -> VideoList:
    """Reads a list; the label is what follows the last separator of a line. Empty lines do not count.

    A line without a label, or with one outside [0, num_classes), is a problem of its video alone, unless all lines
    are so.

    The file `names`, by default `classes.txt` beside it, names the classes, one in each line. folder: where relative
    paths start if not in the working folder; by default the list's.

    Raises:
        UserError: where the file cannot be read as text, is empty, or no line of it can be used.
    """
    try:
        text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    rows = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not rows:
        raise UserError(f"{file} is empty; it needs a line `path{form.separator}label` for each video")
    split = [line.rsplit(form.separator, 1) for _, line in rows]
    unlabelled = not (form.needs_labels or form.num_classes) and all(len(parts) == 1 for parts in split)
    paths, labels, problems = [], np.full(len(rows), NO_LABEL, np.int64), {}
    for i, ((_, line), parts) in enumerate(zip(rows, split)):
        label, problem = (NO_LABEL, "") if unlabelled else _label_of(parts, form)
        labels[i] = label
        if problem:
            problems[i] = problem
        keep_whole = unlabelled or (problem and len(parts) > 1 and not NUMBER.fullmatch(parts[1].strip()))
        paths.append(line if keep_whole else parts[0].strip())
        if is_remote(paths[-1]):
            problems[i] = "videos are read from the disks of this machine, not from addresses; mount or download them"
    if len(problems) == len(rows):
        raise UserError(f"{file} line {rows[0][0]}: {problems[0]}; no line of the file can be used")
    usable = [path for i, path in enumerate(paths) if i not in problems]
    table = PathTable(form.prefix or _start_of(usable, str(file.parent) if folder is None else folder), paths)
    count = form.num_classes or int(labels.max()) + 1
    classes = UNLABELLED if unlabelled else _names_of(names or file.parent / CLASSES, count)
    return VideoList(table, labels, classes, str(file), np.array([n for n, _ in rows], np.int32), problems)


def _names_of(file: Path, count: int) -> list[str]:
    """The names of classes 0 to count - 1: the lines of `file`, or their numbers where there is no such file.

    Raises:
        UserError: where it cannot be read, or has fewer lines.
    """
    if not file.is_file():
        return [f"class {label}" for label in range(count)]
    try:
        names = file.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    names = [name.strip() for name in names if name.strip()]
    if len(names) < count:
        raise UserError(f"{file} names {len(names)} classes where labels need {count}; add the others, or remove it")
    return names[:count]


def _label_of(parts: list[str], form: ListForm) -> tuple[int, str]:
    """The label of a line and, where it has none that can be used, why."""
    text = parts[1].strip() if len(parts) == 2 else ""
    if not NUMBER.fullmatch(text):
        found = f"'{text}' is no number" if text else f"it has no '{form.separator}'"
        return NO_LABEL, f"the line has no label ({found}); expected `path{form.separator}label`"
    label = int(text[:18])  # more digits are beyond any bound, too
    if not 0 <= label < (form.num_classes or MOST_CLASSES):
        bound = (
            f"MODEL.NUM_CLASSES is {form.num_classes}" if form.num_classes else f"labels go up to {MOST_CLASSES - 1}"
        )
        return NO_LABEL, f"the label {text[:30]} is not possible: {bound if label >= 0 else 'labels start at 0'}"
    return label, ""


def _start_of(paths: Sequence[str], folder: str) -> str:
    """The working folder, "", or `folder`; see `list_videos`. Any of the paths may be absent, the first one, too."""
    for path in paths[:: max(1, len(paths) // LOOKED_FOR)]:
        if os.path.exists(path):
            return ""
        if os.path.exists(os.path.join(folder, path)):
            return folder
    return "" if all(map(os.path.isabs, paths)) else folder


def walk_folders(folder: Path, classes: Sequence[str] | None = None) -> VideoList:
    """Video files at any depth below `folder/<class>/`; a folder that holds images and no video is one, too.

    Raises:
        UserError: where there is no class folder, one without videos, or one that `classes` lacks.
    """
    found = class_names(folder)
    known = tuple(classes) if classes else tuple(found)
    require_known(found, known, folder)
    names: list[str] = []
    labels: list[np.ndarray] = []
    for name in found:
        try:
            videos = sorted(_walk(os.path.join(folder, name), name))
        except OSError as error:
            raise UserError(f"the folder {error.filename} cannot be read: {error.strerror}") from error
        if not videos:
            kinds = ", ".join(ending[1:] for ending in VIDEOS)
            raise UserError(
                f"the class folder {folder / name} holds no video; add videos ({kinds}, or folders of images) or "
                "remove it"
            )
        names += videos
        labels.append(np.full(len(videos), known.index(name), np.int64))
    return VideoList(PathTable(folder, names), np.concatenate(labels), known, str(folder))


def _walk(folder: str, prefix: str, above: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yields what is a video below a class folder; a link back to a folder above it is not followed."""
    with os.scandir(folder) as scan:
        entries = [entry for entry in scan if not entry.name.startswith(".")]
    above = above | {os.path.realpath(folder)}
    for entry in entries:
        path = f"{prefix}/{entry.name}"
        if entry.is_dir():
            if os.path.realpath(entry.path) in above:
                continue
            if is_frame_folder(entry.path):
                yield path
            else:
                yield from _walk(entry.path, path, above)
        elif entry.name.lower().endswith(VIDEOS):
            yield path


def is_frame_folder(folder: str) -> bool:
    """Whether images lie in it, and neither a video nor a folder."""
    images = False
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir() or entry.name.lower().endswith(VIDEOS):
                return False
            images = images or entry.name.lower().endswith(IMAGES)
    return images
