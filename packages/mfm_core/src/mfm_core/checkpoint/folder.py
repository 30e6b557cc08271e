"""Checkpoints that are folders: the tensors in files of numbers, each process's own, and all else in one small file.

A folder gets its name when everything in it is written and forced to disk; what is torn has another name. Its small
file has the other files' checksums.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mfm_core.parallel.parts import Parts, checksum, outlines, read_parts

FACTS = "facts.pyth"
"""The small file: what a whole checkpoint holds, but for tensors of the model and the optimizer's state."""
SCALAR = "()"
"""Ends the names of tensors without a shape, which are written as one number."""
REPLACED = ".replaced"
"""Ends the name of a checkpoint while another takes its place."""
MODEL, AVERAGE, OPTIMIZER = "model.", "average.", "optimizer."


def torn_name(path: Path) -> Path:
    """What a checkpoint is called until it is complete, and from the moment it is being removed."""
    return path.with_name(f".{path.name}.tmp")


def remove_folder(path: Path) -> None:
    """Removes a checkpoint: by its name first, so that nobody takes what is left of it for whole."""
    if not path.is_dir():
        return
    torn = path if path.name.startswith(".") else torn_name(path)
    if torn != path:
        if torn.is_dir():
            shutil.rmtree(torn)
        os.replace(path, torn)
    shutil.rmtree(torn)


def is_folder(path: str | Path) -> bool:
    """Whether `path` is such a checkpoint."""
    return (Path(path) / FACTS).is_file()


def damaged(folder: Path, files: dict[str, int]) -> list[str]:
    """The names of those of the files that are not there, or are not what was written."""
    return [name for name, total in files.items() if not (folder / name).is_file() or checksum(folder / name) != total]


def whole_content(folder: Path, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """What a checkpoint in one file would hold. `read`: the small file's. Raises ValueError for what is damaged."""
    content = read(folder)
    groups, wrong = content.pop("optimizer_groups"), damaged(folder, content.pop("files"))
    if wrong:
        raise ValueError(f"{wrong[0]} in it is missing or not what was written")
    parts = {name: torch.empty_like(outline, device="cpu") for name, outline in outlines(folder).items()}
    read_parts(parts, folder)
    found = {name.removesuffix(SCALAR): t.view(()) if name.endswith(SCALAR) else t for name, t in parts.items()}
    average = named(found, AVERAGE)
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in named(found, OPTIMIZER).items():
        number, slot = name.split(".", 1)
        state.setdefault(int(number), {})[slot] = tensor
    return {
        **content,
        "model_state": named(found, MODEL),
        "ema_state": average or None,
        "optimizer_state": {"state": dict(sorted(state.items())), "param_groups": groups},
    }


def named(parts: Parts, beginning: str) -> Parts:
    """Those whose names begin so, without it, in the order of names of the model that wrote them, as far as known."""
    return {name.removeprefix(beginning): tensor for name, tensor in parts.items() if name.startswith(beginning)}
