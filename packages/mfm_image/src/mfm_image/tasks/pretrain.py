"""Pre-training on an image folder."""

from __future__ import annotations

import torch
from fvcore.common.config import CfgNode
from PIL import Image
from torch import Tensor, nn

from mfm_core.data.loader import Loader
from mfm_core.engine.precision import autocast_factory
from mfm_core.interfaces import Batch
from mfm_core.objective import Pretraining
from mfm_core.parallel.world import World
from mfm_core.report.pixels import Pixels
from mfm_image.data.build import data_root, train_dataset
from mfm_image.methods.parts import masks_from_cfg
from mfm_image.models import build_model, example_input
from mfm_image.pictures.reconstruction import reconstruction_sheet
from mfm_image.tasks.monitor import Monitor
from mfm_image.tasks.periods import is_due


class PretrainTask:
    """Masked prediction on images, with everything that its log line and report show."""

    def __init__(self, cfg: CfgNode, world: World, precision: str) -> None:
        self.cfg, self.world = cfg, world
        self.autocast = autocast_factory(precision, world.device)
        self.model: Pretraining = build_model(cfg)
        grid = self.model.backbone.grid
        self.summary_input = example_input(cfg, grid)
        masks = masks_from_cfg(cfg, grid)
        self.train_set = train_dataset(cfg, masks)
        self.files = len(self.train_set)
        self.pixels = Pixels(cfg.DATA.MEAN, cfg.DATA.STD)
        self.monitor = Monitor.from_cfg(cfg, self.train_set, masks, world, self.autocast)
        self.warnings = [] if self.monitor else [f"{data_root(cfg)} has no val/: no validation loss, k-NN or pictures."]

    def prepare(self, batch: Batch) -> Batch:
        """Nothing is mixed in pre-training."""
        return batch

    def weight(self, batch: Batch) -> Tensor:
        """How many terms the method's loss averages over: hidden tokens, hidden frequencies or images."""
        return self.model.weight(batch.mask)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean over those terms."""
        return model(batch.inputs, batch.mask).loss

    def metrics(self) -> dict[str, Tensor]:
        """The method's own, for each log line."""
        return self.model.metrics()

    def evaluate(self, model: nn.Module, epoch: int, last: bool) -> dict[str, float]:
        """What of val_loss, feature_std, feature_rank and knn is due after this epoch."""
        values: dict[str, float] = {}
        if self.monitor is not None and is_due(epoch, self.cfg.MONITOR.PERIOD, last):
            values |= self.monitor.health(model)
        if self.monitor is not None and is_due(epoch, self.cfg.KNN.PERIOD, last):
            values |= self.monitor.knn(model)
        return values

    def eval_loaders(self) -> list[Loader]:
        """The monitor's."""
        return self.monitor.loaders if self.monitor is not None else []

    def pictures(self, model: nn.Module, epoch: int, last: bool) -> list[tuple[str, Image.Image, str]]:
        """Reconstruction of a few fixed images and, where k-NN is due, too, the neighbours that it found."""
        due = is_due(epoch, self.cfg.MONITOR.PICTURE_PERIOD, last) and self.cfg.MONITOR.NUM_PICTURES > 0
        if not due or self.monitor is None or not self.world.is_main:
            return []
        images, mask = self.monitor.examples(self.cfg.MONITOR.NUM_PICTURES)
        with torch.inference_mode():
            output = model(images, mask)
            sheet, remarks = reconstruction_sheet(model, images, output, self.pixels)
        pictures = [("reconstruction", sheet, f"after {epoch} epochs; {remarks}")]
        if is_due(epoch, self.cfg.KNN.PERIOD, last):
            caption = f"after {epoch} epochs: nearest training images by cosine; framed where of the query's class"
            pictures.append(("neighbours", self.monitor.neighbours(self.pixels), caption))
        return pictures

    def file_name(self, index: int) -> str:
        """The path of training file `index`."""
        return self.train_set.folder.paths[index]
