"""Fine-tuning a classifier on an image folder (or training it from scratch)."""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from fvcore.common.config import CfgNode
from PIL import Image
from torch import Tensor, nn

from mfm_core.config.plan import arch_of
from mfm_core.data.loader import Loader
from mfm_core.data.mixing import Mixer
from mfm_core.engine.evaluate import evaluate_classifier
from mfm_core.errors import UserError
from mfm_core.interfaces import Batch
from mfm_core.losses.classification import CLASS_LOSSES, smooth_labels
from mfm_core.monitor.settings import setting_name
from mfm_core.parallel.world import World
from mfm_core.report.pixels import Pixels
from mfm_image.data.build import eval_loader, resized
from mfm_image.pictures.attention import attention_sheet, heat_caption
from mfm_image.pictures.inputs import from_dataset
from mfm_image.tasks.classification import ClassificationTask
from mfm_image.tasks.periods import is_due


class FinetuneTask(ClassificationTask):
    """Classification with the loss that MODEL.LOSS_FUNC names, of hard, smoothed or mixed labels."""

    def __init__(self, cfg: CfgNode, world: World, precision: str) -> None:
        super().__init__(cfg, world, precision)
        self.criterion = CLASS_LOSSES.get(cfg.MODEL.LOSS_FUNC)
        self.mixer = mixer_from_cfg(cfg, world)
        self.smoothing = smoothing_of(cfg)

    def prepare(self, batch: Batch) -> Batch:
        """Mixes images and labels and smooths labels, where MIXUP says so; labels are then (B, classes)."""
        if self.mixer is None and self.smoothing == 0:
            return batch
        inputs, target = batch.inputs, F.one_hot(batch.labels, self.cfg.MODEL.NUM_CLASSES).float()
        if self.mixer is not None:
            inputs, target = self.mixer(inputs, target)
        target = smooth_labels(target, self.smoothing, self.cfg.MIXUP.LABEL_SMOOTH_OVER)
        return replace(batch, inputs=inputs, labels=target)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean over the images."""
        return self.criterion(model(batch.inputs), batch.labels)

    def evaluate(self, model: nn.Module, epoch: int, last: bool) -> dict[str, float]:
        """top1, top5 and val_loss on the validation images, where TRAIN.EVAL_PERIOD says so.

        Where TEST.RESIZE_SIZES has several sizes, the first is the one that counts; after the last epoch, and when
        testing, top1/resize_SIZE and top5/resize_SIZE of each follow.
        """
        if epoch == 0 or not is_due(epoch, self.cfg.TRAIN.EVAL_PERIOD, last):
            return {}
        values = self._accuracy(model, self.val_loader)
        sizes = self.cfg.TEST.RESIZE_SIZES
        if last and len(sizes) > 1:
            values |= self._at_sizes(model, sizes, values)
        return values

    def _at_sizes(self, model: nn.Module, sizes: list[int], first: dict[str, float]) -> dict[str, float]:
        """Accuracy with the short side resized to each of `sizes`; that of the first is known."""
        found = {}
        for size in sizes:
            at = first
            if size != sizes[0]:
                dataset = resized(self.cfg, self.val_loader.dataset, size)
                at = self._accuracy(model, eval_loader(self.cfg, dataset, self.world))
            found |= {setting_name(top, "resize", size): at[top] for top in ("top1", "top5")}
        return found

    def _accuracy(self, model: nn.Module, loader: Loader) -> dict[str, float]:
        return evaluate_classifier(model, loader, self.world, self.autocast, self.criterion)

    def pictures(self, model: nn.Module, epoch: int, last: bool) -> list[tuple[str, Image.Image, str]]:
        """At the end, where a ViT looks in a few validation images."""
        count, keys = self.cfg.MONITOR.NUM_PICTURES, self.cfg.PICTURE
        if not last or not count or not self.world.is_main or arch_of(self.cfg) != "vit":
            return []
        shown = from_dataset(self.val_loader.dataset, count)
        how = (keys.HEAD_FUSION, keys.DISCARD_RATIO, keys.LAYER)
        pixels = Pixels(self.cfg.DATA.MEAN, self.cfg.DATA.STD)
        sheet = attention_sheet(model, shown.images.to(self.world.device), pixels, *how, shown.classes)
        return [("attention", sheet, f"attention rollout after {epoch} epochs: {heat_caption(*how)}")]


def mixer_from_cfg(cfg: CfgNode, world: World) -> Mixer | None:
    """Mixup and CutMix per batch; None where both are off. Raises UserError for batches that have no pairs."""
    if not cfg.TRAIN.ENABLE or not cfg.MIXUP.ENABLE or cfg.MIXUP.ALPHA <= 0 and cfg.MIXUP.CUTMIX_ALPHA <= 0:
        return None
    images = cfg.TRAIN.BATCH_SIZE * world.num_shards * cfg.AUG.NUM_SAMPLE // (world.size * cfg.TRAIN.ACCUM_STEPS)
    if images % 2 and cfg.MIXUP.PARTNER == "reverse":
        raise UserError(
            f"MIXUP.ENABLE pairs the images of a micro-batch, and {images} is odd; change TRAIN.BATCH_SIZE."
        )
    return Mixer(
        mixup_alpha=cfg.MIXUP.ALPHA,
        cutmix_alpha=cfg.MIXUP.CUTMIX_ALPHA,
        prob=cfg.MIXUP.PROB,
        switch_prob=cfg.MIXUP.SWITCH_PROB,
        partner=cfg.MIXUP.PARTNER,
    )


def smoothing_of(cfg: CfgNode) -> float:
    """How much the training labels are smoothed."""
    return cfg.MIXUP.LABEL_SMOOTH_VALUE if cfg.MIXUP.ENABLE or cfg.MIXUP.LABEL_SMOOTH_ALWAYS else 0.0
