"""Which images a picture run shows: a file, the files of a folder at any depth, or validation images."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mfm_core.errors import UserError
from mfm_core.interfaces import SampleKey
from mfm_image.data.dataset import ImageDataset
from mfm_image.data.decode import UnreadableImage, decode_image
from mfm_image.data.transforms import EvalTransform

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shown:
    """images: (N, 3, H, W) as models take them. names: what to call each. classes: its class, "" where unknown."""

    images: Tensor
    names: list[str]
    classes: list[str]


def from_path(path: str, transform: EvalTransform, count: int) -> Shown:
    """At most `count` images of the file or folder `path`, evenly chosen among its files by name.

    What cannot be read is skipped with one line in the log. Raises `UserError` where nothing is left.
    """
    files = _files(Path(path))
    images, names = [], []
    for part in _parts(files, count):
        for file in part:
            try:
                pixels = decode_image(str(file))
            except UnreadableImage as error:
                logger.warning("skipped %s", error)
                continue
            crop = transform.plan(*pixels.shape[1:], random.Random(0))
            images.append(transform.apply(pixels, crop))
            names.append(file.name if len(files) == 1 else str(file.relative_to(path)))
            break
    if not images:
        raise UserError(f"PICTURE.INPUT: none of the {len(files)} file(s) of {path} is an image that can be read.")
    return Shown(torch.stack(images), names, [""] * len(names))


def from_dataset(dataset: ImageDataset, count: int) -> Shown:
    """At most `count` images, evenly chosen over the classes; those that cannot be read are skipped as above."""
    images, names, classes = [], [], []
    for part in _parts(range(len(dataset)), count):
        for index in part:
            sample = dataset[SampleKey(0, index)]
            if not sample.views:
                logger.warning("skipped %s: %s", sample.bad[0].path, sample.bad[0].reason)
                continue
            images.append(sample.views[0])
            names.append(dataset.listing.paths.relative(index))
            classes.append(dataset.listing.classes[sample.label])
            break
    if not images:
        raise UserError("None of the validation images can be read; check them with `run_net.py doctor`.")
    return Shown(torch.stack(images), names, classes)


def _parts(things: Sequence, count: int) -> Iterator[Sequence]:
    """`count` contiguous parts as equal as possible, in order; as many as there are things where that is less."""
    count = min(count, len(things))
    for i in range(count):
        yield things[i * len(things) // count : (i + 1) * len(things) // count]


def _files(path: Path) -> list[Path]:
    """The file, or all files below the folder but hidden ones, sorted. Raises `UserError` where there are none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"PICTURE.INPUT: there is no file or folder {path}.")
    found = []
    for folder, subfolders, names in os.walk(path):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [file for name in names if not name.startswith(".") and (file := Path(folder, name)).is_file()]
    if not found:
        raise UserError(f"PICTURE.INPUT: the folder {path} holds no files.")
    return sorted(found)
