"""What a package brings to the tasks that images and video share: its data, its models and its pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from mfm_core.data.loader import Loader
from mfm_core.interfaces import Grid, MaskGenerator, PretrainOutput, Sample, SampleKey
from mfm_core.objective import Classifier, EncoderModel, Pretraining
from mfm_core.parallel.world import World


class Paths(Protocol):
    """The paths of a listing, below one folder."""

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


class DataSet(Protocol):
    """Samples of a listing's files, by key."""

    listing: Listing

    def __len__(self) -> int: ...

    def __getitem__(self, key: SampleKey) -> Sample: ...


class TrainSet(Protocol):
    """Builds the augmented training samples: (configuration, mask generator, share of the labels)."""

    def __call__(self, cfg: CfgNode, masks: MaskGenerator | None = None, fraction: float = 1.0) -> DataSet: ...


class EvalSet(Protocol):
    """Builds samples of a split that never change: (configuration, split, classes, how many or 0, mask generator)."""

    def __call__(
        self, cfg: CfgNode, split: str, classes: Sequence[str], count: int = 0, masks: MaskGenerator | None = None
    ) -> DataSet: ...


class DataReport(Protocol):
    """What the doctor found."""

    healthy: bool

    def lines(self) -> list[str]:
        """To be printed."""


Drawn = tuple[str, Any, str]
"""Name, picture and caption, as `Task.pictures` gives them."""


class ClassifierTask(Protocol):
    """Fine-tuning, as far as a modality's own measurements and pictures need it."""

    cfg: CfgNode
    world: World
    autocast: Callable[[], AbstractContextManager]
    val_loader: Loader | None

    def accuracy(self, model: nn.Module, dataset: DataSet) -> dict[str, float]:
        """What `evaluate_classifier` gives for a data set."""


@dataclass(frozen=True)
class Modality:
    """Images or video, as the shared tasks see them.

    noun: what the files are called in messages, "images" say. published: the data set whose number of files a dry run
    assumes, and that number.

    classes: the class names of the training split. has_val: whether there are validation files. count_files: of the
    training split, under a share of the labels. check_transforms: raises UserError where augmentation keys are wrong.
    check_data: what the doctor finds. seen_as: what decides how evaluation sees a file.

    stills: of a batch of inputs, an (H, W, 3) uint8 array each. reconstruct: pictures of what pre-training predicts for
    a few inputs. explain: pictures of a classifier's view of a few validation files.

    finish: what else is measured after the last epoch, and when testing, given the accuracy that is already known; the
    numbers and their pictures. tests_itself: whether that is the test, which then needs no validation files.
    """

    noun: str
    build_model: Callable[[CfgNode], EncoderModel]
    example_input: Callable[[CfgNode, Grid], tuple[Tensor, ...]]
    train_set: TrainSet
    eval_set: EvalSet
    classes: Callable[[CfgNode], tuple[str, ...]]
    has_val: Callable[[CfgNode], bool]
    stills: Callable[[CfgNode, Tensor], list[np.ndarray]]
    reconstruct: Callable[[CfgNode, Pretraining, Tensor, PretrainOutput], list[Drawn]]
    explain: Callable[[ClassifierTask, Classifier], list[Drawn]]
    finish: Callable[[ClassifierTask, Classifier, dict[str, float]], tuple[dict[str, float], list[Drawn]]]
    tests_itself: bool
    seen_as: Callable[[CfgNode], dict[str, Any]]
    published: tuple[str, int]
    count_files: Callable[[CfgNode, float], int]
    check_transforms: Callable[[CfgNode], None]
    check_data: Callable[[CfgNode], DataReport]
