"""Checkpoint files: written whole or not at all, read without running code."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from iopath.common.file_io import g_pathmgr
from safetensors import SafetensorError
from safetensors.torch import load_file

from mfm_core.errors import UserError


def save_atomic(state: Any, path: Path) -> None:
    """Writes `state` beside `path`, forces it to disk and renames it into place.

    A kill at any moment leaves the old file or the new one. Raises UserError where the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"Cannot write the checkpoint {path}: {error}. Free the disk or change OUTPUT_DIR.") from None


def load_file_state(path: str, key: str = "TRAIN.CHECKPOINT_FILE_PATH") -> Any:
    """What a .pth, .pyth, .pt or .safetensors file holds, on the CPU; never runs code from it.

    `key` is the configuration key that named the file. Raises UserError for a missing or corrupt file.
    """
    local = g_pathmgr.get_local_path(path) if "://" in path else path
    if not Path(local).is_file():
        raise UserError(f"{key}: there is no checkpoint {path}.")
    try:
        if local.endswith(".safetensors"):
            return load_file(local)
        return torch.load(local, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "weights_only" in str(error).lower():
            raise UserError(
                f"{key}: {path} is not a readable checkpoint, or holds objects other than tensors and plain values, "
                "which are not loaded because they can run code."
            ) from None
        raise UserError(f"{key}: the checkpoint {path} is corrupt ({error}).") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile, SafetensorError) as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(f"{key}: the checkpoint {path} is corrupt or truncated ({line}).") from None
