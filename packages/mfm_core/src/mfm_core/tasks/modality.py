"""What a package brings to the tasks that images and video share: its data, its models and its pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from mfm_core.data.loader import Loader
from mfm_core.interfaces import BadFile, Grid, PretrainOutput
from mfm_core.objective import Classifier, EncoderModel, Pretraining
from mfm_core.parallel.world import World
from mfm_core.tasks.datasets import DataSet, EvalSet, Listing, TrainSet
from mfm_core.tasks.shown import Drawn, Studio


class DataReport(Protocol):
    """What the doctor found."""

    healthy: bool

    def lines(self) -> list[str]:
        """To be printed."""


class ClassifierTask(Protocol):
    """Fine-tuning, as far as a modality's own measurements and pictures need it."""

    cfg: CfgNode
    world: World
    autocast: Callable[[], AbstractContextManager]
    val_loader: Loader | None
    test_listing: Listing | None

    def one_pass(self, dataset: DataSet) -> AbstractContextManager[Loader]:
        """A loader of this process's share of a data set, for one pass; its unreadable files will be listed."""

    def accuracy(self, model: nn.Module, dataset: DataSet) -> dict[str, float]:
        """What `evaluate_classifier` gives for a data set."""


@dataclass(frozen=True)
class Modality:
    """Images or video, as the shared tasks see them.

    noun: what the files are called in messages, "images" say. published: the data set whose number of files a dry run
    assumes, and that number.

    classes: the class names of the training split. has_val: whether there are validation files. count_files: of the
    training split, under a share of the labels. check_transforms: raises UserError where augmentation keys are wrong.
    check_data: what the doctor finds. read: one file as evaluation sees it, or what is wrong with it. is_one: whether
    a folder is read like a file. seen_as: what decides how evaluation sees a file.

    stills: of a batch of inputs, an (H, W, 3) uint8 array each. reconstruct: pictures of what pre-training predicts for
    a few inputs, under these names. explain: pictures of a classifier's view of a few validation files. draw: what TASK
    visualise draws beside reconstructions and neighbours, by PICTURE.KIND.

    finish: what else is measured after the last epoch, and when testing, given the accuracy that is already known; the
    numbers and their pictures. test_listing: the files of their own that it needs, read before anything is trained, or
    None. tests_itself: whether it is the test, which then needs no validation files.
    """

    noun: str
    build_model: Callable[[CfgNode], EncoderModel]
    example_input: Callable[[CfgNode, Grid], tuple[Tensor, ...]]
    train_set: TrainSet
    eval_set: EvalSet
    classes: Callable[[CfgNode], tuple[str, ...]]
    has_val: Callable[[CfgNode], bool]
    stills: Callable[[CfgNode, Tensor], list[np.ndarray]]
    reconstruct: Callable[[CfgNode, Pretraining, Tensor, PretrainOutput, Sequence[str]], list[Drawn]]
    draw: Mapping[str, Callable[[Studio], list[Drawn]]]
    explain: Callable[[ClassifierTask, Classifier], list[Drawn]]
    finish: Callable[[ClassifierTask, Classifier, dict[str, float]], tuple[dict[str, float], list[Drawn]]]
    test_listing: Callable[[CfgNode], Listing | None]
    tests_itself: bool
    seen_as: Callable[[CfgNode], dict[str, Any]]
    read: Callable[[CfgNode, str], Tensor | BadFile]
    is_one: Callable[[str], bool]
    published: tuple[str, int]
    count_files: Callable[[CfgNode, float], int]
    check_transforms: Callable[[CfgNode], None]
    check_data: Callable[[CfgNode], DataReport]
