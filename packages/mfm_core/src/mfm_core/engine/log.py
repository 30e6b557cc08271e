"""What a run leaves in its folder while it goes: progress lines, JSON lines, TensorBoard, pictures, the report."""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mfm_core.errors import UserError
from mfm_core.interfaces import BadFile
from mfm_core.mirror import Mirror
from mfm_core.monitor.settings import setting_tables, split_name
from mfm_core.monitor.writers import JsonLines, TensorBoard, progress_line
from mfm_core.paths import ESCAPED, require_local, write_any_name
from mfm_core.report.atomic import write_bytes
from mfm_core.report.exhibits import Animation, Table, save_gif
from mfm_core.report.html import write_report
from mfm_core.report.panels import save_png

logger = logging.getLogger(__name__)
BOARD = "TensorBoard"
UNFINISHED = "unfinished"
"""In an epoch's line: what was to be measured last has failed. The next start measures it all, and writes it anew."""
MAX_WAITING = 10_000
"""Lines that wait for room on the disk, at most."""


class _Patient(logging.Handler):
    """Says once that it cannot write, where logging would print a traceback for every message."""

    told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Called inside the `except` of a message that failed."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.told:
            self.told = True
            with suppress(OSError):
                sys.stderr.write(f"warning: {self} cannot be written ({error.strerror}); training goes on\n")


class _Terminal(_Patient, logging.StreamHandler):
    def __str__(self) -> str:
        return "standard output"


class _LogFile(_Patient, logging.FileHandler):
    def __str__(self) -> str:
        return self.baseFilename


def setup_logging(folder: Path | None) -> None:
    """Messages go to standard output and, in `folder`, to log.txt; `None` keeps all but errors quiet."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    write_any_name()
    handler = _Terminal(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    root.addHandler(handler)
    if folder is None:
        root.setLevel(logging.ERROR)
        return
    root.setLevel(logging.INFO)
    try:
        file = _LogFile(folder / "log.txt", encoding="utf-8", errors=ESCAPED)
    except OSError as error:
        why = f"{folder / 'log.txt'} cannot be written ({error.strerror})"
        raise UserError(f"{why}; choose another OUTPUT_DIR.") from None
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root.addHandler(file)


def prepare_folder(path: str) -> Path:
    """Makes `OUTPUT_DIR` and proves that it can be written; raises UserError otherwise."""
    folder = Path(require_local(path, "OUTPUT_DIR", "what a run writes"))
    probe = folder / f".writable.{socket.gethostname()}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(f"OUTPUT_DIR {path} cannot be written ({error.strerror}); choose another folder.") from None
    return folder


class RunLog:
    """The log of the main process; `folder` None (all other processes) makes every call do nothing.

    Once the run has begun, a disk that takes nothing more is said once and stops nothing: lines wait until there is
    room, pictures and reports are left out.
    """

    def __init__(
        self, folder: Path | None, first_step: int = 0, rewind: bool = False, mirror: Mirror | None = None
    ) -> None:
        """first_step: how many steps are done, -1 where nothing is continued. rewind: what was logged of later
        ones is undone and will come again.

        mirror: keeps a copy of the folder elsewhere.
        """
        self.folder, self.mirror = folder, mirror
        self.start_time = time.time()
        self._bad: set[str] = set()
        self._ended = False
        self._refused: set[str] = set()
        self._waiting: deque[dict[str, Any]] = deque(maxlen=MAX_WAITING)
        self.last_epoch = -1
        """The epoch of the last epoch line that an earlier start has left, or -1."""
        if folder is not None:
            if rewind:
                rewind_log(folder / "log.jsonl", first_step)
            self.last_epoch = _last_epoch(folder / "log.jsonl")
            self._lines = JsonLines(folder / "log.jsonl")
            self._board = TensorBoard(folder / "tensorboard", purge_step=first_step + 1)

    def run(self, name: str, config: dict, environment: dict, plan: dict) -> None:
        """The first line: what is run, with what, where. Raises UserError where it cannot be written."""
        if self.folder is not None:
            record = {"name": name, "time": _now(), "config": config, "environment": environment, "plan": plan}
            self._lines.write({"kind": "run", **record})

    def step(self, step: int, counters: Mapping[str, Any], values: Mapping[str, float]) -> None:
        """A logging step: `counters` and `values` make the progress line, `values` the JSON line and TensorBoard."""
        if self.folder is not None:
            shown = {k: values[k] for k in ("loss", "lr", "images_per_s", "memory_gb", "eta_s")}
            logger.info(progress_line(**counters, **shown))
            self._write("step", step=step, **values)
            if BOARD not in self._refused:  # the next epoch tries again
                self._tried(BOARD, partial(self._board.scalars, step, values, prefix="train"))

    def epoch(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """The end of an epoch, with what was evaluated."""
        if self.folder is not None:
            numbers = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if not split_name(name))
            logger.info("epoch %d done  %s", epoch, numbers)
            for table in setting_tables(values):
                for line in table.lines():
                    logger.info("  %s", line)
            self._write("epoch", epoch=epoch, step=step, **values)
            if BOARD not in self._refused or self._tried(BOARD, self._board.reopen):
                self._tried(BOARD, partial(self._board.scalars, step, values, prefix="epoch"))

    def bad_files(self, files: list[BadFile], epoch: int) -> None:
        """Names each unreadable file once."""
        for file in files:
            if file.path not in self._bad:
                self._bad.add(file.path)
                self.warn(f"skipped {file.path}: {file.reason}", quiet=True)
                self._write("bad_file", path=file.path, reason=file.reason, epoch=epoch)

    def picture(self, name: str, thing: Image.Image | Animation | Table, caption: str, epoch: int, step: int) -> None:
        """Shows in the report a picture (PNG), an animation (GIF) or a table; pictures in TensorBoard, too."""
        if self.folder is None:
            return
        if isinstance(thing, Table):
            self._write("table", name=name, **vars(thing), caption=caption, epoch=epoch)
            return
        moving = isinstance(thing, Animation)
        file = f"pictures/{name}_{epoch:05d}.{'gif' if moving else 'png'}"
        if self._tried("pictures", partial(save_gif if moving else save_png, thing, self.folder / file)):
            self._write("picture", file=file, caption=caption, epoch=epoch)
        still = thing.still if moving else thing
        if BOARD not in self._refused:
            self._tried(BOARD, partial(self._board.image, step, name, np.asarray(still.convert("RGB"))))

    def warn(self, message: str, quiet: bool = False) -> None:
        """A warning, in the report too unless `quiet`."""
        if self.folder is not None:
            logger.warning("warning: %s", message)
            if not quiet:
                self._write("warning", message=message)

    def end(self, status: str, message: str | None = None) -> None:
        """The last line (`finished`, `stopped` or `failed`), and the report; only once."""
        if self.folder is not None and not self._ended:
            self._ended = True
            self._write("end", time=_now(), seconds=time.time() - self.start_time, status=status, message=message)
            self.report()
            if self._waiting:
                logger.warning("warning: the last %d lines of log.jsonl are lost.", len(self._waiting))
            self._lines.close()
            self._tried(BOARD, self._board.close)
            self.copy(wait=True)

    def report(self) -> None:
        """Writes report.html anew."""
        if self.folder is not None:
            self._tried("report.html", partial(write_report, [self.folder], self.folder / "report.html"))
            self.copy()

    def copy(self, wait: bool = False) -> None:
        """Copies what is new to where OUTPUT_DIR is, if that is elsewhere; meanwhile the run goes on, or shall wait."""
        if self.folder is not None and self.mirror is not None:
            self._tried("OUTPUT_DIR", self.mirror.push if wait else self.mirror.start_push)

    @property
    def is_copied(self) -> bool:
        """False where the last copy failed."""
        return "OUTPUT_DIR" not in self._refused

    def _write(self, kind: str, **values: Any) -> None:
        """A line for log.jsonl, after those that still wait for room on the disk."""
        if self.folder is not None:
            self._waiting.append({"kind": kind, **values})
            self._tried("log.jsonl", self._write_waiting)

    def _write_waiting(self) -> None:
        while self._waiting:
            self._lines.write(self._waiting[0])
            self._waiting.popleft()

    def _tried(self, what: str, write: Callable[[], None]) -> bool:
        """Whether `write` could; where not, that is said, once until it can again."""
        try:
            write()
        except (OSError, UserError) as error:
            if what not in self._refused:
                self._refused.add(what)
                logger.warning("warning: %s. Training goes on without; it is tried again.", str(error).rstrip("."))
            return False
        if what in self._refused:
            self._refused.remove(what)
            logger.warning("%s can be written again.", what)
        return True


def rewind_log(path: Path, step: int) -> None:
    """Moves the lines of steps and epochs after `step`, and of an `UNFINISHED` one, from the log to log_undone.jsonl:
    each is there once. A step below 0 moves all lines: they are of a run that is not continued.

    Raises UserError where the folder cannot be written.
    """
    if not path.is_file():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    undone = [step < 0 or _step_of(line) > step for line in lines]
    if any(undone):
        beside = path.with_name("log_undone.jsonl")
        before = beside.read_bytes() if beside.is_file() else b""
        write_bytes(beside, before + b"".join(line for line, out in zip(lines, undone) if out))
        write_bytes(path.resolve(), b"".join(line for line, out in zip(lines, undone) if not out))


def _step_of(line: bytes) -> float:
    """The step of a step's or an epoch's line, infinite where that is `UNFINISHED`; -1 for any other."""
    try:
        record = json.loads(line)
        if record["kind"] == "epoch" and UNFINISHED in record:
            return math.inf
        return float(record["step"]) if record["kind"] in ("step", "epoch") else -1
    except (ValueError, KeyError, TypeError):
        return -1


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _last_epoch(path: Path) -> int:
    """The epoch of the last epoch line, -1 where there is none; lines that are damaged say nothing."""
    last = -1
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        with suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            last = int(record["epoch"]) if record["kind"] == "epoch" else last
    return last
