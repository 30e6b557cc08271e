"""Checks lists of videos before hours are spent on them: every file is opened, one clip decoded, the content hashed."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np

from mfm_core.data.checkup import equal_groups, listing, mapper, spread
from mfm_core.interfaces import BadFile
from mfm_video.data.dataset import Opener
from mfm_video.data.lists import VideoList
from mfm_video.data.sampling import ClipSpec, clip_indices, even_start
from mfm_video.data.unreadable import UnreadableVideo

BLOCK = 1 << 20
"""Bytes that are hashed at a time."""


class Inspection(NamedTuple):
    """What one video is: `frames` at `fps` of `height` x `width` pixels, a hash of its content, and the seconds that
    opening it and decoding the clip in its middle took. Or the `reason` why it cannot be used."""

    frames: int = 0
    fps: float = 0.0
    height: int = 0
    width: int = 0
    digest: int = 0
    seconds: float = 0.0
    reason: str = ""
    missing: bool = False


@dataclass
class DoctorReport:
    """What was found; lists hold the first few of what `..._total` counts.

    splits: lines that count videos and classes. frames, rates, heights: (min, median, max) over the readable videos.
    short: videos with fewer frames than a clip covers, whose last frame will be repeated. duplicates: groups of
    different files with the same content. repeated: paths that a split lists more than once. leaks: videos of val or
    test that are also in train. seconds: for one clip, (mean, slowest), opening the file included.
    """

    origin: str
    splits: list[str] = field(default_factory=list)
    checked: int = 0
    total: int = 0
    problems: list[str] = field(default_factory=list)
    missing: list[BadFile] = field(default_factory=list)
    missing_total: int = 0
    unreadable: list[BadFile] = field(default_factory=list)
    unreadable_total: int = 0
    short: list[str] = field(default_factory=list)
    short_total: int = 0
    duplicates: list[list[str]] = field(default_factory=list)
    duplicates_total: int = 0
    repeated: list[str] = field(default_factory=list)
    repeated_total: int = 0
    leaks: list[tuple[str, str]] = field(default_factory=list)
    leaks_total: int = 0
    frames: tuple[int, int, int] = (0, 0, 0)
    rates: tuple[float, float, float] = (0.0, 0.0, 0.0)
    heights: tuple[int, int, int] = (0, 0, 0)
    seconds: tuple[float, float] = (0.0, 0.0)

    @property
    def healthy(self) -> bool:
        """Nothing to put right: short videos and duplicates within one split are reported, but do no harm."""
        return not (self.problems or self.missing_total or self.unreadable_total or self.leaks_total)

    def lines(self) -> list[str]:
        """The report as text, one finding per line."""
        text = [f"data {self.origin}", *self.splits, f"checked {self.checked} of {self.total} videos"]
        if self.checked > self.missing_total + self.unreadable_total:
            text.append("frames      min {} median {} max {}".format(*self.frames))
            text.append("frames/s    min {:.4g} median {:.4g} max {:.4g}".format(*self.rates))
            text.append("height      min {} median {} max {}".format(*self.heights))
            mean, slowest = (round(1000 * seconds) for seconds in self.seconds)
            text.append(f"decoding    {mean} ms for a clip on average, {slowest} ms for the slowest, on one core")
        text += [f"PROBLEM {problem}" for problem in self.problems]
        text += listing("missing", self.missing_total, [bad.path for bad in self.missing])
        text += listing("unreadable", self.unreadable_total, [f"{b.path}: {b.reason}" for b in self.unreadable])
        text += listing("shorter than a clip (the last frame is repeated)", self.short_total, self.short)
        text += listing("groups of equal files", self.duplicates_total, [" = ".join(g) for g in self.duplicates])
        text += listing("listed more than once in a split", self.repeated_total, self.repeated)
        leaks = [other if other == train else f"{other} is {train}" for train, other in self.leaks]
        text += listing("LEAKS: videos of val or test that are also in train", self.leaks_total, leaks)
        text.append("healthy" if self.healthy else "not healthy: see above")
        return text


def check_videos(
    splits: Mapping[str, VideoList],
    spec: ClipSpec,
    opener: Opener,
    workers: int = 0,
    limit: int | None = None,
    listed: int = 20,
) -> DoctorReport:
    """Examines the videos of all splits, each file once.

    Args:
        splits: by name, at least one.
        spec: what a clip is.
        opener: opens a path.
        workers: processes that read beside this one; 0 reads here.
        limit: check at most this many videos, spread evenly; None checks all.
        listed: how many videos of each finding are named.

    Raises:
        UserError: where a checking process dies.
    """
    report = DoctorReport(os.path.dirname(next(iter(splits.values())).origin))
    for name, videos in splits.items():
        _count(report, name, videos, listed)
    paths = list(dict.fromkeys(path for videos in splits.values() for path in videos.paths))
    chosen = paths if limit is None else _evenly(paths, limit)
    report.checked, report.total = len(chosen), len(paths)
    found: dict[str, Inspection] = {}
    with mapper(partial(inspect, spec, opener), workers) as inspect_all:
        for path, inspection in zip(chosen, inspect_all(chosen)):
            found[path] = inspection
            _note_bad(report, path, inspection, listed)
    readable = {path: inspection for path, inspection in found.items() if not inspection.reason}
    if readable:
        _summarise(report, readable, spec, listed)
        _compare(report, splits, readable, listed)
    return report


def inspect(spec: ClipSpec, opener: Opener, path: str) -> Inspection:
    """Opens a video, decodes the clip in its middle, and hashes the file, or all files of a folder."""
    start = time.perf_counter()
    try:
        with opener(path) as video:
            length = spec.length(video.fps)
            begin = even_start(video.frames, length, 0, 1, use_offset=True)
            clip = video.read(clip_indices(spec, begin, video.frames, video.fps))
            size = clip.shape[2:]
        seconds = time.perf_counter() - start
        return Inspection(video.frames, video.fps, *size, digest=_digest(path), seconds=seconds)
    except UnreadableVideo as error:
        return Inspection(reason=error.reason, missing=not os.path.exists(path))
    except OSError as error:
        return Inspection(reason=error.strerror or str(error))


def _digest(path: str) -> int:
    names = [path] if os.path.isfile(path) else sorted(os.path.join(path, name) for name in os.listdir(path))
    content = hashlib.blake2b(digest_size=8)
    for name in filter(os.path.isfile, names):
        with open(name, "rb") as file:
            while block := file.read(BLOCK):
                content.update(block)
    return int.from_bytes(content.digest(), "little")


def _count(report: DoctorReport, name: str, videos: VideoList, listed: int) -> None:
    """What a list says by itself."""
    counts = Counter(videos.labels.tolist())
    smallest, largest = min(counts.values()), max(counts.values())
    report.splits.append(
        f"{name}: {len(videos)} videos in {len(counts)} classes, from {smallest} to {largest} per class"
    )
    report.problems += [
        f"{videos.paths[index]}: {problem}{videos.where(index)}"
        for index, problem in list(videos.problems.items())[:listed]
    ]
    again = [path for path, count in Counter(videos.paths).items() if count > 1]
    report.repeated_total += len(again)
    report.repeated += [f"{path} ({name})" for path in again[: max(0, listed - len(report.repeated))]]


def _evenly(paths: list[str], limit: int) -> list[str]:
    if limit >= len(paths):
        return paths
    return [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, limit).astype(int))]


def _note_bad(report: DoctorReport, path: str, inspection: Inspection, listed: int) -> None:
    if inspection.missing:
        report.missing_total += 1
        if len(report.missing) < listed:
            report.missing.append(BadFile(path, inspection.reason))
    elif inspection.reason:
        report.unreadable_total += 1
        if len(report.unreadable) < listed:
            report.unreadable.append(BadFile(path, inspection.reason))


def _summarise(report: DoctorReport, readable: dict[str, Inspection], spec: ClipSpec, listed: int) -> None:
    frames, rates, heights = (np.array([x[i] for x in readable.values()]) for i in range(3))
    seconds = np.array([x.seconds for x in readable.values()])
    report.frames, report.heights = spread(frames), spread(heights)
    report.rates = float(rates.min()), float(np.median(rates)), float(rates.max())
    report.seconds = float(seconds.mean()), float(seconds.max())
    short = [f"{path}: {x.frames} frames" for path, x in readable.items() if x.frames < spec.length(x.fps)]
    report.short_total, report.short = len(short), short[:listed]


def _compare(
    report: DoctorReport, splits: Mapping[str, VideoList], readable: dict[str, Inspection], listed: int
) -> None:
    """Groups of equal files, and what of val and test is also in train."""
    paths = list(readable)
    groups = equal_groups(np.array([readable[path].digest for path in paths], np.uint64))
    report.duplicates_total = len(groups)
    report.duplicates = [[paths[i] for i in group] for group in groups[:listed]]
    trained_on = splits["train"].paths if "train" in splits else ()
    train = {readable[path].digest: path for path in trained_on if path in readable}
    leaks = list(_leaks(splits, readable, train))
    report.leaks_total, report.leaks = len(leaks), leaks[:listed]


def _leaks(
    splits: Mapping[str, VideoList], readable: dict[str, Inspection], train: dict[int, str]
) -> Iterator[tuple[str, str]]:
    others = dict.fromkeys(path for name, videos in splits.items() if name != "train" for path in videos.paths)
    for path in others:
        if path in readable and readable[path].digest in train:
            yield train[readable[path].digest], path
