"""Checks a data folder before hours are spent on it: every file is read, decoded and hashed, in several processes."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mfm_core.data.checkup import equal_groups, listing, mapper, spread
from mfm_core.data.listing import UNLABELLED, PathTable
from mfm_core.errors import UserError
from mfm_core.interfaces import BadFile
from mfm_image.data.decode import ImageReader, UnreadableImage
from mfm_image.data.folder import class_files, find_classes, is_image

SPEED_SAMPLE = 256
"""Images that are timed in one process."""
UNREAD = (".gif", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".tga", ".psd", ".svg", ".dng", ".cr2", ".nef", ".arw")
"""Endings of images that no run reads."""


class SplitCount(NamedTuple):
    """How many images a split holds: in all, and in its smallest and largest class; what to know of its classes."""

    split: str
    images: int
    classes: int
    smallest: tuple[str, int]
    largest: tuple[str, int]
    remark: str


@dataclass
class DoctorReport:
    """What was found; lists hold the first few of what `..._total` counts.

    widths, heights: (min, median, max) in pixels of the readable images. modes: PIL's names with their counts.
    others: the files beside them that are not taken for images, by their endings.
    duplicates: groups of files with the same content; conflicts_total: how many of these groups lie in more than one
    class; leaks: (train file, val file) pairs of those.
    speed: images per second, read and decoded in full size, in one process; pool_speed: with `workers` processes.
    """

    root: str
    splits: list[SplitCount] = field(default_factory=list)
    checked: int = 0
    others: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    unreadable: list[BadFile] = field(default_factory=list)
    unreadable_total: int = 0
    duplicates: list[list[str]] = field(default_factory=list)
    duplicates_total: int = 0
    conflicts_total: int = 0
    leaks: list[tuple[str, str]] = field(default_factory=list)
    leaks_total: int = 0
    widths: tuple[int, int, int] = (0, 0, 0)
    heights: tuple[int, int, int] = (0, 0, 0)
    modes: dict[str, int] = field(default_factory=dict)
    speed: float = 0.0
    workers: int = 0
    pool_speed: float = 0.0

    @property
    def healthy(self) -> bool:
        """Nothing to put right: duplicates within one split are reported, but do no harm."""
        return not (self.problems or self.unreadable_total or self.leaks_total)

    def lines(self) -> list[str]:
        """The report as text, one finding per line."""
        text = [f"data folder {self.root}"]
        for s in self.splits:
            (rarest, fewest), (commonest, most) = s.smallest, s.largest
            classes = f"in {s.classes} classes, from {fewest} ({rarest}) to {most} ({commonest}) per class"
            text.append(f"{s.split}: {s.images} images {classes if rarest else 'without classes'}")
            text += [f"{s.split} {s.remark}"] if s.remark else []
        text.append(f"checked {self.checked} of {sum(s.images for s in self.splits)} files")
        text += [f"other files, which are not read: {_counts(self.others)}"] if self.others else []
        text.append("width  min {} median {} max {}".format(*self.widths))
        text.append("height min {} median {} max {}".format(*self.heights))
        text.append(f"modes  {_counts(self.modes)}")
        text.append(f"decoding {self.speed:.0f} images/s in one process" + self._pool_speed())
        text += [f"PROBLEM {problem}" for problem in self.problems]
        text += listing("unreadable", self.unreadable_total, [f"{b.path}: {b.reason}" for b in self.unreadable])
        conflicts = f" ({self.conflicts_total} with different labels)" if self.conflicts_total else ""
        text += listing(
            "groups of equal files" + conflicts, self.duplicates_total, [" = ".join(g) for g in self.duplicates]
        )
        leaks = [f"{val} is also {train}" for train, val in self.leaks]
        text += listing("LEAKS: validation files that are also in train", self.leaks_total, leaks)
        text.append("healthy" if self.healthy else "not healthy: see above")
        return text

    def _pool_speed(self) -> str:
        return f", {self.pool_speed:.0f} with {self.workers} processes" if self.workers else ""


def _counts(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in numbers.items())


def check_folder(
    root: str | Path, workers: int = 0, limit: int | None = None, listed: int = 20, needs_labels: bool = True
) -> DoctorReport:
    """Examines `root/train` and, where there is one, `root/val`; see `folder.find_classes` for others.

    Args:
        root: the data folder.
        workers: processes that read beside this one; 0 reads here.
        limit: check at most this many files, spread evenly; None checks all.
        listed: how many files of each finding are named.
        needs_labels: whether there must be class folders, and a val/.

    Raises:
        UserError: where there is nothing to check: no folder, no train split, no classes, no images.
    """
    report = DoctorReport(str(root), workers=workers)
    table, first_val = _survey(report, Path(root), needs_labels)
    if not len(table):
        raise UserError(f"there is no image in {root}; put images into {root}/train/<class>/")
    chosen = np.arange(len(table))
    if limit is not None and limit < len(table):
        chosen = np.unique(np.linspace(0, len(table) - 1, limit).astype(np.int64))
    report.checked = len(chosen)
    _time_one_process(report, table, chosen[:SPEED_SAMPLE])
    findings = _examine(report, table, chosen, workers, listed)
    _find_duplicates(report, table, chosen, findings, first_val, listed)
    return report


def _survey(report: DoctorReport, root: Path, needs_labels: bool) -> tuple[PathTable, int]:
    """Counts per split; the files of all (train first, relative to the root), and where those of val begin."""
    names: list[str] = []
    first_val, train_classes = 0, None
    for split in ("train", "val"):
        if split == "val":
            first_val = len(names)
            if not (root / split).is_dir():
                report.problems += [f"{root} has no val/: nothing to evaluate on"] if needs_labels else []
                break
        folder, found, remark = find_classes(root, split, needs_labels, train_classes)
        images = {}
        for name in found:
            files = class_files(folder, name)
            images[name] = [path for path in files if is_image(path)]
            report.others.update(_ending(path) for path in files if not is_image(path))
        above = "" if folder == root else f"{split}/"
        names += [above + path for paths in images.values() for path in paths]
        sizes = {name: len(paths) for name, paths in images.items()}
        smallest, largest = min(sizes, key=sizes.get), max(sizes, key=sizes.get)
        ends = ((smallest, sizes[smallest]), (largest, sizes[largest]))
        report.splits.append(SplitCount(split, sum(sizes.values()), len(sizes), *ends, "" if needs_labels else remark))
        report.problems += [f"{folder} {remark}"] if needs_labels and remark else []
        report.problems += [f"the class folder {folder / name} holds no image" for name, n in sizes.items() if not n]
        if needs_labels and train_classes is not None:
            unknown = [name for name in found if name not in train_classes]
            report.problems += [f"val has the class {name}, which train lacks" for name in unknown]
        train_classes = tuple(found)
    report.problems += _unread(report.others)
    return PathTable(root, names), first_val


def _ending(path: str) -> str:
    """In lower case, with its dot."""
    return os.path.splitext(path)[1].lower() or "none"


def _unread(others: Mapping[str, int]) -> list[str]:
    """What is wrong where files are images of formats that are not read."""
    images = {ending: count for ending, count in others.items() if ending in UNREAD}
    total = sum(images.values())
    return [f"{total} images are not read ({_counts(images)}); convert them, to JPEG or PNG"] if images else []


class _Findings(NamedTuple):
    """Per checked file: width and height (0 where unreadable), and a 64-bit hash of the content."""

    width: np.ndarray
    height: np.ndarray
    digest: np.ndarray


def _inspect(path: str) -> tuple[int, int, str, int, str]:
    """Width, height, mode, hash and, where the file cannot be read, the reason."""
    try:
        with ImageReader(path) as image:
            image.decode()
            digest = int.from_bytes(hashlib.blake2b(image.data, digest_size=8).digest(), "little")
            return image.width, image.height, image.mode, digest, ""
    except UnreadableImage as error:
        return 0, 0, "", 0, error.reason


def _time_one_process(report: DoctorReport, table: PathTable, indices: np.ndarray) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.perf_counter()
    for i in indices:
        _inspect(table[int(i)])
    report.speed = len(indices) / (time.perf_counter() - start)
    torch.set_num_threads(threads)


def _examine(report: DoctorReport, table: PathTable, chosen: np.ndarray, workers: int, listed: int) -> _Findings:
    """Inspects the chosen files and fills in what concerns single ones."""
    n = len(chosen)
    findings = _Findings(np.zeros(n, np.int32), np.zeros(n, np.int32), np.zeros(n, np.uint64))
    modes: Counter[str] = Counter()
    with mapper(_inspect, workers) as inspect_all:
        start = time.perf_counter()
        for row, result in enumerate(inspect_all(table[int(i)] for i in chosen)):
            width, height, mode, digest, reason = result
            if reason:
                report.unreadable_total += 1
                if len(report.unreadable) < listed:
                    report.unreadable.append(BadFile(table.relative(int(chosen[row])), reason))
                continue
            modes[mode] += 1
            findings.width[row], findings.height[row], findings.digest[row] = width, height, digest
        report.pool_speed = n / (time.perf_counter() - start) if workers else 0.0
    report.modes = dict(modes.most_common())
    if modes:
        readable = findings.width > 0
        report.widths, report.heights = (spread(x[readable]) for x in (findings.width, findings.height))
    return findings


def _find_duplicates(
    report: DoctorReport, table: PathTable, chosen: np.ndarray, findings: _Findings, first_val: int, listed: int
) -> None:
    """Groups readable files of equal content; a group with files of both splits is a leak per validation file."""
    rows = np.flatnonzero(findings.width > 0)
    groups = [chosen[rows[group]] for group in equal_groups(findings.digest[rows])]
    report.duplicates_total = len(groups)
    report.duplicates = [[table.relative(int(i)) for i in group] for group in groups[:listed]]
    labelled = all(split.smallest[0] not in UNLABELLED for split in report.splits)
    for group in groups:
        if labelled:
            report.conflicts_total += len({table.relative(int(i)).split("/")[1] for i in group}) > 1
        if group[0] >= first_val:
            continue
        leaked = group[group >= first_val]
        report.leaks_total += len(leaked)
        pairs = [(table.relative(int(group[0])), table.relative(int(i))) for i in leaked]
        report.leaks += pairs[: max(0, listed - len(report.leaks))]
