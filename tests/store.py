"""An object store of addresses store://name, which keeps its files in a folder; a package whose handler reaches it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from iopath.common.file_io import PathHandler, g_pathmgr

PREFIX = "store://"
FOLDER = "MFM_TEST_STORE"
"""Names the folder in the environment."""


class Store(PathHandler):
    """Writes whole files or none, as object stores do. full: refuses all that is written."""

    full = False

    def __init__(self) -> None:
        super().__init__()
        self.read: list[str] = []
        self.written: list[str] = []

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def place(self, path: str) -> Path:
        return Path(os.environ[FOLDER]) / path.removeprefix(PREFIX)

    def _exists(self, path: str, **kwargs: Any) -> bool:
        return self.place(path).is_file()

    def _rm(self, path: str, **kwargs: Any) -> None:
        self.place(path).unlink()

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any):
        place = self.place(path)
        if "w" not in mode:
            self.read.append(path)
            return place.open(mode)
        if self.full:
            raise ConnectionError("the store is closed")
        self.written.append(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        return place.open(mode)


def registered(folder: Path, monkeypatch) -> Store:
    """A store that keeps its files in `folder`, for this process."""
    monkeypatch.setenv(FOLDER, str(folder))
    store = Store()
    monkeypatch.setattr(g_pathmgr, "_path_handlers", {**g_pathmgr._path_handlers, PREFIX: store})
    return store


def install(package: Path) -> None:
    """Makes `package`, which is to be on PYTHONPATH, an installed package that brings the handler."""
    shutil.copy(__file__, package / "folder_store.py")
    facts = package / "folder_store-1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: folder-store\nVersion: 1\n")
    (facts / "entry_points.txt").write_text("[mfm_core.path_handlers]\nstore = folder_store:Store\n")
