"""Checkpoint files: written whole or not at all, read without running code."""

from __future__ import annotations

import errno
import os
import pickle
import re
import warnings
import zipfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialize

from mfm_core.checkpoint.folder import FACTS, is_folder, whole_content
from mfm_core.checkpoint.stand_ins import known_objects
from mfm_core.errors import UserError
from mfm_core.paths import local_path

_REFUSED = re.compile(r"GLOBAL (\S{1,80})")
"""How torch names the object that it refuses to make."""


def save_atomic(state: Any, path: Path, remedy: str = "free the disk or change OUTPUT_DIR") -> None:
    """Writes `state` beside `path`, forces it to disk and renames it into place; .safetensors takes tensors by name.

    A kill or a power cut at any moment leaves the old file or the new one; what it leaves beside them, the next save of
    this name overwrites. Once it returns, the file is there to stay. Raises UserError, with the remedy, where the
    folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            if path.suffix == ".safetensors":
                file.write(serialize({name: t.contiguous() for name, t in state.items()}, {"format": "pt"}))
            else:
                torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        force_folder(path.parent)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"Cannot write the checkpoint {path} ({_line(error)}); {remedy}.") from None


def load_file_state(path: str, key: str = "TRAIN.CHECKPOINT_FILE_PATH") -> Any:
    """What a .pth, .pyth, .pt or .safetensors file, or a folder of ours, holds, on the CPU; never runs code from it.

    Arguments and meters that released files carry are left out (`stand_ins`), other objects refuse the file.

    path: a file, or an address that `mfm_core.paths` can fetch. key: the configuration key that named it. Raises
    UserError for a missing or corrupt file, and for one of a folder's.
    """
    if is_folder(Path(path).parent):
        raise UserError(f"{key}: {path} is a part of the checkpoint {Path(path).parent}; name that folder.")
    return _load(path, key)


def load_facts(folder: Path, key: str) -> dict[str, Any]:
    """What the small file of a folder of ours holds. Raises UserError where that is corrupt."""
    content = _load(str(folder / FACTS), key)
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        raise UserError(f"{key}: the checkpoint {folder} is corrupt: {FACTS} is not what was written.")
    return content


def _load(path: str, key: str) -> Any:
    local = local_path(path, key)
    if not Path(local).is_file() and not is_folder(local):
        raise UserError(f"{key}: there is no checkpoint {path}.")
    try:
        if is_folder(local):
            return whole_content(Path(local), partial(load_facts, key=key))
        if local.endswith(".safetensors"):
            return load_file(local)
        _refuse_damage(local)
        with warnings.catch_warnings(), known_objects():
            warnings.simplefilter("ignore")  # torch wonders about unusual pickles; what matters is whether they load
            return torch.load(local, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = _REFUSED.search(str(error))
        which = f" ({refused[1]})" if refused else ""
        raise UserError(
            f"{key}: {path} is not a readable checkpoint, or holds objects other than tensors and plain values{which}, "
            "which are not loaded because they can run code."
        ) from None
    except (MemoryError, UserError):
        raise
    except Exception as error:  # damaged bytes make the unpickler raise nearly anything
        raise UserError(f"{key}: the checkpoint {path} is corrupt or truncated ({_line(error)}).") from None


def force_folder(folder: Path) -> None:
    """Forces the names in `folder` to disk: until then a power cut could take a new name back."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems have no such thing
            raise
    finally:
        os.close(handle)


def _refuse_damage(path: str) -> None:
    """Raises where a part of a torch archive is not what was written; torch itself loads tensors of wrong bytes."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the bytes of {damaged} are not those that were written")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
