"""What the tasks that classify have in common: labelled training images, validation images, a count of images."""

from __future__ import annotations

import torch
from fvcore.common.config import CfgNode
from PIL import Image
from torch import Tensor, nn

from mfm_core.data.loader import Loader
from mfm_core.engine.precision import autocast_factory
from mfm_core.errors import UserError
from mfm_core.interfaces import Batch
from mfm_core.parallel.world import World
from mfm_image.data.build import eval_dataset, eval_loader, train_dataset
from mfm_image.models import build_model, example_input


class ClassificationTask:
    """A model with a loss over images, on the image folders of the configuration; what it minimises is a subclass's."""

    def __init__(self, cfg: CfgNode, world: World, precision: str) -> None:
        self.cfg, self.world = cfg, world
        self.autocast = autocast_factory(precision, world.device)
        self.train_set = train_dataset(cfg, fraction=cfg.DATA.LABEL_FRACTION)
        self.files = len(self.train_set)
        classes = self.train_set.folder.classes
        check_classes(cfg, len(classes))
        self.model = build_model(cfg)
        self.summary_input = example_input(cfg, self.model.backbone.grid)
        self.val_loader = eval_loader(cfg, eval_dataset(cfg, "val", classes), world)
        self.warnings: list[str] = []

    def eval_loaders(self) -> list[Loader]:
        """The validation images'."""
        return [self.val_loader]

    def prepare(self, batch: Batch) -> Batch:
        """Nothing is mixed."""
        return batch

    def weight(self, batch: Batch) -> Tensor:
        """The number of images."""
        return torch.full((), float(len(batch)), device=batch.inputs.device)

    def metrics(self) -> dict[str, Tensor]:
        """None beside the loss."""
        return {}

    def pictures(self, model: nn.Module, epoch: int, last: bool) -> list[tuple[str, Image.Image, str]]:
        """None: a classifier predicts numbers."""
        return []

    def file_name(self, index: int) -> str:
        """The path of training file `index`."""
        return self.train_set.folder.paths[index]


def check_classes(cfg: CfgNode, classes: int) -> None:
    """Raises UserError where MODEL.NUM_CLASSES is not the number of class folders."""
    if classes != cfg.MODEL.NUM_CLASSES:
        raise UserError(
            f"MODEL.NUM_CLASSES is {cfg.MODEL.NUM_CLASSES}, but {cfg.DATA.PATH_TO_DATA_DIR}/train has {classes} "
            f"classes; set MODEL.NUM_CLASSES {classes}."
        )
