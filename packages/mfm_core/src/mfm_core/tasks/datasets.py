"""What the tasks ask of a modality's data: listings of files, and samples of them by key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from fvcore.common.config import CfgNode

from mfm_core.interfaces import MaskGenerator, Sample, SampleKey


class Paths(Protocol):
    """The paths of a listing, below one folder."""

    root: str
    """That folder; empty where they start in the working folder."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> str: ...

    def relative(self, index: int) -> str:
        """The path from that folder on."""


class Listing(Protocol):
    """The files of one split, in a fixed order: `paths[i]` has the class `classes[labels[i]]`."""

    paths: Paths
    labels: np.ndarray
    classes: Sequence[str]
    origin: str
    """The folder or the list that it was read from."""
    remark: str
    """What to know of how its files were found, as what `origin` "has" or "is"; "" for nothing."""


class DataSet(Protocol):
    """Samples of a listing's files, by key."""

    listing: Listing

    def __len__(self) -> int: ...

    def __getitem__(self, key: SampleKey) -> Sample: ...


def remarks(*sets: DataSet) -> list[str]:
    """What to know of how their files were found, in sentences."""
    return [f"{it.listing.origin} {it.listing.remark}." for it in sets if it.listing.remark]


class TrainSet(Protocol):
    """Builds the augmented training samples: (configuration, mask generator, share of the labels)."""

    def __call__(self, cfg: CfgNode, masks: MaskGenerator | None = None, fraction: float = 1.0) -> DataSet: ...


class EvalSet(Protocol):
    """Builds samples of a split that never change: (configuration, split, classes, how many or 0, mask generator)."""

    def __call__(
        self, cfg: CfgNode, split: str, classes: Sequence[str], count: int = 0, masks: MaskGenerator | None = None
    ) -> DataSet: ...
