"""A run whose OUTPUT_DIR is an address: it works in a folder of this machine, and keeps a copy of that at the address.

What is new or changed is copied through iopath's handler of such addresses after every checkpoint, with every report
(training goes on meanwhile) and at the end. Last comes a list of all files; what the list no longer has is removed only
then, and nothing is by the first copy of a start. Whoever starts the run again, on any machine, fetches what is listed:
killed at any moment, a run loses what came after the last list. Lists are written in turns, under two names: one that
is torn leaves the one before it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from iopath.common.file_io import PathManager, get_cache_dir

from mfm_core.errors import UserError
from mfm_core.paths import WEB, manager_of

LISTS = ("files_even.json", "files_odd.json")
"""At the address, the newer one counts: its number, its writer's mark, and the size of every file."""
OWN = ".files.json"
"""In the folder: the mark of the list that was written last and of one that may have been, and what every file was when
it was copied."""
BEFORE = ".before"
"""Ends the name of a folder that was not what is at the address."""
CHECKPOINTS = "checkpoints"
Stamp = list[int]
"""Size in bytes and time of change in nanoseconds."""


class Mirror:
    """The folder of this machine that stands for an address, and their exchange. One process of a machine calls.

    Raises UserError where no handler knows such addresses, or it only reads.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._manager: PathManager = manager_of(address, "OUTPUT_DIR")
        if self._manager is WEB:
            raise UserError(
                f"OUTPUT_DIR is {address}; a web server cannot be written to, take another kind of address."
            )
        digest = hashlib.blake2b(self.address.encode(), digest_size=8).hexdigest()
        name = PurePosixPath(self.address).name or "run"
        self.folder = Path(get_cache_dir()) / "runs" / digest / name
        self._copied: dict[str, Stamp] = {}
        self._number, self._mark = 0, ""
        """Of the newest list."""
        self._has_listed = False
        self._thread = ThreadPoolExecutor(1, "mirror")
        self._under_way: Future[None] | None = None

    def fetch(self) -> None:
        """Makes the folder what is at the address; it stays as it is where it was the last to be copied there.

        A checkpoint that is not as large as the list says was torn by the end of a copy, and is left out. What was in
        the folder is moved beside it. Raises UserError where the address cannot be read.
        """
        try:
            listed, own = self._read_list(), self._read_own()
            self._number, self._mark = listed["number"], listed["mark"]
            if self._mark and self._mark in own["marks"]:
                self._copied = own["files"]
                return
            self._move_aside()
            for name, size in listed["files"].items():
                self._fetch(checked(name), size)
        except UserError:
            raise
        except Exception as error:  # each handler has errors of its own
            raise UserError(f"OUTPUT_DIR: {self.address} cannot be read ({_line(error)}).") from None
        self._copied = self._present()

    def start_push(self) -> None:
        """Begins to `push` beside what goes on, unless that is still under way; then the next call takes its turn.

        Raises UserError where the one before failed.
        """
        under_way = self._under_way
        if under_way is None or under_way.done():
            self._under_way = self._thread.submit(self._push)
            if under_way is not None:
                under_way.result()

    def push(self) -> None:
        """Copies what is new or changed, after what is under way. Raises UserError where the address takes nothing."""
        self._under_way = None
        self._thread.submit(self._push).result()

    def _push(self) -> None:
        try:
            present = self._present()
            for name, stamp in sorted(present.items(), key=lambda item: not item[0].startswith(CHECKPOINTS)):
                if self._copied.get(name) == stamp:
                    continue
                try:
                    source = (self.folder / name).open("rb")
                except FileNotFoundError:  # an old checkpoint, removed since we looked
                    del present[name]
                    continue
                with source:
                    self._write(name, source)
                self._copied[name] = stamp
            self._write_list({name: size for name, (size, _) in present.items()})
        except Exception as error:
            why = f"OUTPUT_DIR: {self.address} cannot be written ({_line(error)})"
            raise UserError(f"{why}; what the run has lies in {self.folder}.") from None
        for name in self._copied.keys() - present.keys():
            if self._has_listed:  # a start removes nothing: what it misses, it has not seen go
                with suppress(Exception):  # one file too many harms nobody
                    self._manager.rm(f"{self.address}/{name}")
            del self._copied[name]
        self._has_listed = True

    def _present(self) -> dict[str, Stamp]:
        """The files by their names from the folder on; what begins with a dot is still being written."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder)
            with suppress(FileNotFoundError):  # a save in the background removes old checkpoints
                status = path.stat()
                if stat.S_ISREG(status.st_mode) and not any(part.startswith(".") for part in name.parts):
                    found[name.as_posix()] = [status.st_size, status.st_mtime_ns]
        return found

    def _read_list(self) -> dict[str, Any]:
        """The newest list that is whole; an empty one where there is none."""
        newest = {"number": 0, "mark": "", "files": {}}
        for name in LISTS:
            if self._manager.exists(f"{self.address}/{name}"):
                with self._manager.open(f"{self.address}/{name}", "rb") as file, suppress(ValueError):
                    newest = max(newest, json.loads(file.read()), key=lambda listed: listed["number"])
        return newest

    def _read_own(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            return json.loads((self.folder / OWN).read_text())
        return {"marks": [], "files": {}}

    def _write_list(self, sizes: dict[str, int]) -> None:
        number, mark, text = self._number + 1, uuid.uuid4().hex, self.folder / f".{LISTS[0]}"
        text.write_text(json.dumps({"number": number, "mark": mark, "files": sizes}))
        self._write_own(self._mark, mark)
        with text.open("rb") as source:
            self._write(LISTS[number % 2], source)
        self._write_own(mark)
        self._number, self._mark = number, mark

    def _write_own(self, *marks: str) -> None:
        text = self.folder / f"{OWN}.tmp"
        text.write_text(json.dumps({"marks": marks, "files": self._copied}))
        text.replace(self.folder / OWN)

    def _move_aside(self) -> None:
        """What only lies here is not lost."""
        if self.folder.is_dir() and any(self.folder.iterdir()):
            before = self.folder.with_name(self.folder.name + BEFORE)
            shutil.rmtree(before, ignore_errors=True)
            self.folder.replace(before)
        self.folder.mkdir(parents=True, exist_ok=True)

    def _fetch(self, name: str, size: int) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._manager.open(f"{self.address}/{name}", "rb") as source, path.open("wb") as file:
            shutil.copyfileobj(source, file)
        if name.startswith(CHECKPOINTS) and path.stat().st_size != size:
            path.unlink()

    def _write(self, name: str, source: BinaryIO) -> None:
        target = f"{self.address}/{name}"
        with suppress(Exception):  # handlers that have no folders need none
            self._manager.mkdirs(target.rsplit("/", 1)[0])
        with self._manager.open(target, "wb") as file:
            shutil.copyfileobj(source, file)


def checked(name: str) -> str:
    """The name of a listed file, which must lie inside the folder; raises UserError for one that would not."""
    parts = PurePosixPath(name).parts
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts or "\\" in name:
        raise UserError(f"OUTPUT_DIR: the list there has '{name}', which lies outside of it.")
    return name


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
