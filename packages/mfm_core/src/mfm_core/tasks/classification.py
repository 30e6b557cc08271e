"""What the tasks that classify have in common: labelled training files, validation files, a count of inputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from mfm_core.data.loader import Loader, eval_loader
from mfm_core.engine.precision import autocast_factory
from mfm_core.errors import UserError
from mfm_core.interfaces import BadFile, Batch
from mfm_core.parallel.world import World
from mfm_core.tasks.datasets import DataSet, Listing, remarks
from mfm_core.tasks.modality import Modality
from mfm_core.tasks.shown import Drawn


@dataclass(frozen=True)
class PastLoader:
    """What is left of a loader that is through. bad: the unreadable files that it met, by path."""

    bad: dict[str, BadFile]


class ClassificationTask:
    """A model with a loss over labelled files; what it minimises is a subclass's.

    Where nothing is trained and the modality has a test of its own, neither training nor validation files are read.
    """

    finishes = False
    """Whether the modality's own measurements follow at the end (`Modality.finish`)."""

    def __init__(self, cfg: CfgNode, world: World, precision: str, modality: Modality) -> None:
        self.cfg, self.world, self.modality = cfg, world, modality
        self.autocast = autocast_factory(precision, world.device)
        only_finishes = self.finishes and modality.tests_itself and not cfg.TRAIN.ENABLE
        self.train_set = None if only_finishes else modality.train_set(cfg, fraction=cfg.DATA.LABEL_FRACTION)
        self.test_listing = modality.test_listing(cfg) if self.finishes else None
        self.files = len(self.train_set) if self.train_set else 0
        self.model = modality.build_model(cfg)
        self.summary_input = modality.example_input(cfg, self.model.backbone.grid)
        self._loaders: list[Loader | PastLoader] = []
        self.val_loader: Loader | None = None
        self.warnings: list[str] = []
        if self.train_set is not None:
            classes = self.train_set.listing.classes
            check_classes(cfg, len(classes))
            self.val_loader = self.loader(modality.eval_set(cfg, "val", classes))
            self.warnings += remarks(self.train_set, self.val_loader.dataset)

    def listings(self) -> dict[str, Listing]:
        """Those of training, validation and the modality's own test, as far as there are any."""
        sets = {
            "training": self.train_set,
            "validation": self.val_loader.dataset if self.val_loader is not None else None,
        }
        found = {name: dataset.listing for name, dataset in sets.items() if dataset is not None}
        return {**found, "test": self.test_listing} if self.test_listing is not None else found

    def eval_loaders(self) -> list[Loader | PastLoader]:
        """The validation files', and what else was looked at."""
        return self._loaders

    @contextmanager
    def one_pass(self, dataset: DataSet) -> Iterator[Loader]:
        """As `loader`, for what is looked at once: its workers end with it, as soon as the caller holds it no more."""
        loader = eval_loader(self.cfg, dataset, self.world)
        self._loaders.append(PastLoader(loader.bad))
        yield loader

    def loader(self, dataset: DataSet) -> Loader:
        """This process's share of a data set; its unreadable files will be listed."""
        self._loaders.append(eval_loader(self.cfg, dataset, self.world))
        return self._loaders[-1]

    def prepare(self, batch: Batch) -> Batch:
        """Nothing is mixed."""
        return batch

    def weight(self, batch: Batch) -> Tensor:
        """The number of inputs."""
        return torch.full((), float(len(batch)), device=batch.inputs.device)

    def metrics(self) -> dict[str, Tensor]:
        """None beside the loss."""
        return {}

    def pictures(self, model: nn.Module, epoch: int, last: bool) -> list[Drawn]:
        """None: a classifier predicts numbers."""
        return []

    def file_name(self, index: int) -> str:
        """The path of training file `index`."""
        return self.train_set.listing.paths[index]


def check_classes(cfg: CfgNode, classes: int) -> None:
    """Raises UserError where MODEL.NUM_CLASSES is not the number of class folders."""
    if classes != cfg.MODEL.NUM_CLASSES:
        raise UserError(
            f"MODEL.NUM_CLASSES is {cfg.MODEL.NUM_CLASSES}, but {cfg.DATA.PATH_TO_DATA_DIR}/train has {classes} "
            f"classes; set MODEL.NUM_CLASSES {classes}."
        )
