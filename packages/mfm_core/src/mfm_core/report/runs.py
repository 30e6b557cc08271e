"""What a run left in its folder, read back: `log.jsonl` and its pictures, whole, partial, resumed or torn."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mfm_core.errors import UserError
from mfm_core.report.exhibits import Table

Record = dict[str, Any]
Points = list[tuple[float, float]]


@dataclass
class BadFileCount:
    """A file that could not be read, the last reason given, and how many times it was met."""

    path: str
    reason: str
    times: int = 0


@dataclass
class Picture:
    """A PNG or GIF of the run, its epoch where known, and what its columns are."""

    path: Path
    epoch: float | None = None
    caption: str = ""

    @property
    def kind(self) -> str:
        """What it shows: the file's name without the epoch behind it."""
        return re.sub(r"_\d+$", "", self.path.stem)

    @property
    def title(self) -> str:
        """Its kind, for people."""
        return title_of(self.kind)


@dataclass
class LoggedTable:
    """A table that a task left, its epoch where known, and what to know of it."""

    table: Table
    epoch: float | None = None
    caption: str = ""


@dataclass
class Run:
    """One run as its log tells it; every part may be missing."""

    folder: Path
    name: str
    time: str = ""
    config: Record = field(default_factory=dict)
    environment: Record = field(default_factory=dict)
    plan: Record = field(default_factory=dict)
    steps: list[Record] = field(default_factory=list)
    epochs: list[Record] = field(default_factory=list)
    bad_files: list[BadFileCount] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: dict[str, LoggedTable] = field(default_factory=dict)
    """The latest of each name."""
    warnings: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    status: str = ""
    """finished, stopped, failed, or empty while there is no end."""
    message: str = ""
    seconds: float | None = None
    """Of all starts together."""
    unreadable_lines: int = 0

    @property
    def task(self) -> str:
        return str(self.plan.get("task") or "")

    def series(self, kind: str, key: str) -> Points:
        """(epoch, value) of the finite values of `key` in the "step" or "epoch" records."""
        records = self.steps if kind == "step" else self.epochs
        pairs = ((self._epoch(record), number(record.get(key))) for record in records)
        return [(x, y) for x, y in pairs if x is not None and y is not None]

    def keys(self, kind: str) -> list[str]:
        """The names of all numbers in the "step" or "epoch" records, in the order they first came."""
        records = self.steps if kind == "step" else self.epochs
        return list(dict.fromkeys(k for record in records for k, v in record.items() if number(v) is not None))

    def last(self, key: str) -> float | None:
        """The newest value of `key` among the epochs, else among the steps."""
        points = self.series("epoch", key) or self.series("step", key)
        return points[-1][1] if points else None

    def best(self, key: str) -> tuple[float, float] | None:
        """(epoch, value) of the largest value of `key` among the epochs, the earliest of equals."""
        return max(self.series("epoch", key), key=lambda point: point[1], default=None)

    def _epoch(self, record: Record) -> float | None:
        """Where a record stands in epochs; for steps that do not say, from the plan's steps per epoch."""
        epoch, per_epoch = number(record.get("epoch")), number(self.plan.get("steps_per_epoch"))
        if epoch is None and per_epoch:
            step = number(record.get("step"))
            return None if step is None else step / per_epoch
        return epoch


def title_of(name: str) -> str:
    """What a picture or a table of this name is called for people."""
    return name.replace("_", " ").capitalize()


def number(value: Any) -> float | None:
    """`value` as a finite float; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number beyond floats
        return None


def read_run(folder: Path) -> Run:
    """Reads a run folder. Raises `UserError` where it has no readable `log.jsonl`."""
    folder = Path(folder)
    log = folder / "log.jsonl"
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{log}: cannot be read ({error.strerror}); give the OUTPUT_DIR of a run") from error
    records, unreadable = _parse(text.split("\n"))
    run = Run(folder=folder, name=folder.resolve().name, unreadable_lines=unreadable)
    logged: dict[str, Record] = {}
    bad: dict[str, BadFileCount] = {}
    for record in records:
        kind = record.get("kind")
        if kind in ("step", "epoch"):
            _place(run, kind, record)
        elif kind == "run":
            _start(run, record)
        elif kind == "end":
            run.status, run.message = str(record.get("status") or ""), str(record.get("message") or "")
        elif kind == "warning":
            run.warnings[str(record.get("message"))] += 1
        elif kind == "bad_file":
            entry = bad.setdefault(str(record.get("path")), BadFileCount(str(record.get("path")), ""))
            entry.reason, entry.times = str(record.get("reason") or ""), entry.times + 1
        elif kind == "picture":
            logged[str(record.get("file"))] = record
        elif kind == "table":
            run.tables[str(record.get("name"))] = _table(record)
    run.bad_files = list(bad.values())
    run.seconds = _seconds(records)
    run.pictures = _pictures(folder, logged)
    return run


def _parse(lines: Iterable[str]) -> tuple[list[Record], int]:
    """The objects among the lines, and how many lines were not one."""
    records, unreadable = [], 0
    for line in lines:
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            unreadable += 1
    return records, unreadable


def _start(run: Run, record: Record) -> None:
    """A "run" line: the latest start says what the run is, and the run is going on again."""
    run.starts += 1
    run.status = run.message = ""
    run.name, run.time = str(record.get("name") or run.name), str(record.get("time") or "")
    for part in ("config", "environment", "plan"):
        value = record.get(part)
        setattr(run, part, value if isinstance(value, dict) else {})


def _place(run: Run, kind: str, record: Record) -> None:
    """Adds a step or epoch. It replaces earlier ones from its place on: the run went back to a checkpoint."""
    place = number(record.get("step"))
    if kind == "step":
        if place is None:
            return
        _rewind(run.steps, "step", place)
        _rewind(run.epochs, "step", place + 1)
        run.steps.append(record)
        return
    epoch = number(record.get("epoch"))
    if epoch is not None:
        _rewind(run.epochs, "epoch", epoch)
        run.epochs.append(record)


def _rewind(records: list[Record], key: str, place: float) -> None:
    """Drops the records at the end that stand at `place` or later."""
    while records and (number(records[-1].get(key)) or 0.0) >= place:
        records.pop()


def _seconds(records: list[Record]) -> float | None:
    """Seconds of all starts: what each end says, or the epochs of a start that was killed without one."""
    total, epochs, known = 0.0, 0.0, False
    for record in records:
        seconds = number(record.get("seconds"))
        if record.get("kind") == "run":
            total, epochs = total + epochs, 0.0
        elif record.get("kind") == "epoch" and seconds is not None:
            epochs, known = epochs + seconds, True
        elif record.get("kind") == "end" and seconds is not None:
            total, epochs, known = total + seconds, 0.0, True
    return total + epochs if known else None


def _pictures(folder: Path, logged: dict[str, Record]) -> list[Picture]:
    """The pictures of the run that are there, newest first: those the log names, then others in `pictures/`."""
    home = folder.resolve()
    found: dict[Path, Picture] = {}
    for name, record in logged.items():
        path = (home / name.replace("\0", "")).resolve()
        if path.is_relative_to(home) and media_type(path):
            found[path] = Picture(path, number(record.get("epoch")), str(record.get("caption") or ""))
    for path in sorted(p for suffix in ("png", "gif") for p in home.glob(f"pictures/*.{suffix}")):
        if path not in found and media_type(path):
            found[path] = Picture(path)
    return sorted(found.values(), key=lambda p: (p.epoch is not None, p.epoch or 0.0, p.path.name), reverse=True)


def media_type(path: Path) -> str:
    """What a browser calls the picture in a file, image/png or image/gif; "" where there is none that it knows."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError:
        return ""
    if start[:6] in (b"GIF87a", b"GIF89a"):
        return "image/gif"
    return "image/png" if start == b"\x89PNG\r\n\x1a\n" else ""


def _table(record: Record) -> LoggedTable:
    """A table's record; whatever it holds is taken as text."""
    rows = [row for row in record.get("rows") or [] if isinstance(row, list)]
    head, figures = record.get("head") or [], record.get("figures") or []
    text = [[str(cell) for cell in row] for row in rows]
    columns = tuple(column for column in figures if isinstance(column, int))
    table = Table([str(title) for title in head], text, columns)
    return LoggedTable(table, number(record.get("epoch")), str(record.get("caption") or ""))
