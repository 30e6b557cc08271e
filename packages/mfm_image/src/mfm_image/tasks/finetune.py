"""Fine-tuning a classifier on an image folder (or training it from scratch)."""

from __future__ import annotations

from dataclasses import replace

import torch
from fvcore.common.config import CfgNode
from PIL import Image
from timm.data import Mixup
from torch import Tensor, nn

from mfm_core.data.loader import Loader
from mfm_core.engine.evaluate import evaluate_classifier
from mfm_core.engine.precision import autocast_factory
from mfm_core.errors import UserError
from mfm_core.interfaces import Batch
from mfm_core.losses.classification import soft_cross_entropy
from mfm_core.parallel.world import World
from mfm_image.data.build import eval_dataset, eval_loader, train_dataset
from mfm_image.models import build_model, example_input
from mfm_image.tasks.periods import is_due


class FinetuneTask:
    """Classification with the cross-entropy of hard or mixed labels."""

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
        self.mixup = mixup_from_cfg(cfg, world)
        self.warnings: list[str] = []

    def eval_loaders(self) -> list[Loader]:
        """The validation images'."""
        return [self.val_loader]

    def prepare(self, batch: Batch) -> Batch:
        """Mixes images and labels where MIXUP is on."""
        if self.mixup is None:
            return batch
        inputs, labels = self.mixup(batch.inputs, batch.labels)
        return replace(batch, inputs=inputs, labels=labels)

    def weight(self, batch: Batch) -> Tensor:
        """The number of images."""
        return torch.full((), float(len(batch)), device=batch.inputs.device)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean over the images."""
        return soft_cross_entropy(model(batch.inputs), batch.labels)

    def metrics(self) -> dict[str, Tensor]:
        """None beside the loss."""
        return {}

    def evaluate(self, model: nn.Module, epoch: int, last: bool) -> dict[str, float]:
        """top1, top5 and val_loss on the validation images, where TRAIN.EVAL_PERIOD says so."""
        if epoch == 0 or not is_due(epoch, self.cfg.TRAIN.EVAL_PERIOD, last):
            return {}
        return evaluate_classifier(model, self.val_loader, self.world, self.autocast)

    def pictures(self, model: nn.Module, epoch: int, last: bool) -> list[tuple[str, Image.Image, str]]:
        """None: a classifier predicts numbers."""
        return []

    def file_name(self, index: int) -> str:
        """The path of training file `index`."""
        return self.train_set.folder.paths[index]


def mixup_from_cfg(cfg: CfgNode, world: World) -> Mixup | None:
    """timm's Mixup and CutMix per batch; None where both are off. Raises UserError for batches that have no pairs."""
    if not cfg.TRAIN.ENABLE or not cfg.MIXUP.ENABLE or cfg.MIXUP.ALPHA <= 0 and cfg.MIXUP.CUTMIX_ALPHA <= 0:
        return None
    images = cfg.TRAIN.BATCH_SIZE * world.num_shards * cfg.AUG.NUM_SAMPLE // (world.size * cfg.TRAIN.ACCUM_STEPS)
    if images % 2:
        raise UserError(
            f"MIXUP.ENABLE pairs the images of a micro-batch, and {images} is odd; change TRAIN.BATCH_SIZE."
        )
    return Mixup(
        mixup_alpha=cfg.MIXUP.ALPHA,
        cutmix_alpha=cfg.MIXUP.CUTMIX_ALPHA,
        prob=cfg.MIXUP.PROB,
        switch_prob=cfg.MIXUP.SWITCH_PROB,
        label_smoothing=cfg.MIXUP.LABEL_SMOOTH_VALUE,
        num_classes=cfg.MODEL.NUM_CLASSES,
    )


def check_classes(cfg: CfgNode, classes: int) -> None:
    """Raises UserError where MODEL.NUM_CLASSES is not the number of class folders."""
    if classes != cfg.MODEL.NUM_CLASSES:
        raise UserError(
            f"MODEL.NUM_CLASSES is {cfg.MODEL.NUM_CLASSES}, but {cfg.DATA.PATH_TO_DATA_DIR}/train has {classes} "
            f"classes; set MODEL.NUM_CLASSES {classes}."
        )
