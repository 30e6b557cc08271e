"""Which files a picture run shows: a file, the files of a folder at any depth, or validation files."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from mfm_core.errors import UserError
from mfm_core.interfaces import BadFile, Sample, SampleKey
from mfm_core.objective import EncoderModel
from mfm_core.tasks.datasets import DataSet

logger = logging.getLogger(__name__)
Drawn = tuple[str, Any, str]
"""Name, what to show (a PIL image, or one of `report.exhibits`) and caption, as `Task.pictures` gives them."""


@dataclass(frozen=True)
class Shown:
    """inputs: (N, C, *size) as models take them. names: what to call each. classes: its class, "" where unknown."""

    inputs: Tensor
    names: list[str]
    classes: list[str]


@dataclass(frozen=True)
class Studio:
    """What every picture is drawn with. classes: of the data folder; empty where there is none."""

    cfg: CfgNode
    model: EncoderModel
    shown: Shown
    classes: tuple[str, ...]
    device: torch.device


def from_path(
    path: str, read: Callable[[str], Tensor | BadFile], count: int, is_one: Callable[[str], bool] = lambda folder: False
) -> Shown:
    """At most `count` of the file or the files below the folder `path`, evenly chosen by name.

    read: a file as models take it, or what is wrong with it; such a file is skipped with one line in the log.
    is_one: whether a folder is to be read like a file. Raises `UserError` where nothing is left.
    """
    files = _files(Path(path), is_one)
    inputs, names = [], []
    for part in _parts(files, count):
        for file in part:
            found = read(str(file))
            if isinstance(found, BadFile):
                logger.warning("skipped %s: %s", found.path, found.reason)
                continue
            inputs.append(found)
            names.append(file.name if len(files) == 1 else str(file.relative_to(path)))
            break
    if not inputs:
        raise UserError(f"PICTURE.INPUT: none of the {len(files)} file(s) of {path} can be read.")
    return Shown(torch.stack(inputs), names, [""] * len(names))


def from_dataset(dataset: DataSet, count: int) -> Shown:
    """At most `count` files, evenly chosen over the classes; those that cannot be read are skipped as above."""
    samples = readable(dataset, count, lambda file: logger.warning("skipped %s: %s", file.path, file.reason))
    if not samples:
        raise UserError("None of the validation files can be read; check them with `run_net.py doctor`.")
    names = [dataset.listing.paths.relative(sample.index) for sample in samples]
    classes = [dataset.listing.classes[sample.label] for sample in samples]
    return Shown(torch.stack([sample.views[0] for sample in samples]), names, classes)


def readable(dataset: DataSet, count: int, skip: Callable[[BadFile], None]) -> list[Sample]:
    """At most `count` samples, evenly chosen: of each part of the files the first that can be read.

    skip: called with each file that cannot.
    """
    found = []
    for part in _parts(range(len(dataset)), count):
        for index in part:
            sample = dataset[SampleKey(0, index)]
            if sample.views:
                found.append(sample)
                break
            skip(sample.bad[0])
    return found


def _parts(things: Sequence, count: int) -> Iterator[Sequence]:
    """`count` contiguous parts as equal as possible, in order; as many as there are things where that is less."""
    count = min(count, len(things))
    for i in range(count):
        yield things[i * len(things) // count : (i + 1) * len(things) // count]


def _files(path: Path, is_one: Callable[[str], bool]) -> list[Path]:
    """The file, or all files below the folder but hidden ones, sorted. Raises `UserError` where there are none."""
    if path.is_file() or path.is_dir() and is_one(str(path)):
        return [path]
    if not path.is_dir():
        raise UserError(f"PICTURE.INPUT: there is no file or folder {path}.")
    found = []
    for folder, subfolders, names in os.walk(path):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        whole = [name for name in subfolders if is_one(os.path.join(folder, name))]
        found += [Path(folder, name) for name in whole]
        subfolders[:] = [name for name in subfolders if name not in whole]
        found += [file for name in names if not name.startswith(".") and (file := Path(folder, name)).is_file()]
    if not found:
        raise UserError(f"PICTURE.INPUT: the folder {path} holds no files.")
    return sorted(found)
