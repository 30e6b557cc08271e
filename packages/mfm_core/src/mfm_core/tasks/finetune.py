"""Fine-tuning a classifier (or training it from scratch)."""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from mfm_core.config.plan import views_of
from mfm_core.data.loader import Loader
from mfm_core.data.mixing import Mixer
from mfm_core.engine.evaluate import evaluate_classifier
from mfm_core.engine.log import UNFINISHED
from mfm_core.errors import UserError
from mfm_core.interfaces import Batch
from mfm_core.losses.classification import CLASS_LOSSES, smooth_labels
from mfm_core.parallel.stop import Interrupted
from mfm_core.parallel.world import World
from mfm_core.tasks.classification import ClassificationTask
from mfm_core.tasks.datasets import DataSet
from mfm_core.tasks.modality import Modality
from mfm_core.tasks.periods import is_due
from mfm_core.tasks.shown import Drawn


class FinetuneTask(ClassificationTask):
    """Classification with the loss that MODEL.LOSS_FUNC names, of hard, smoothed or mixed labels."""

    finishes = True

    def __init__(self, cfg: CfgNode, world: World, precision: str, modality: Modality) -> None:
        super().__init__(cfg, world, precision, modality)
        self.criterion = CLASS_LOSSES.get(cfg.MODEL.LOSS_FUNC)
        self.mixer = mixer_from_cfg(cfg, world)
        self.smoothing = smoothing_of(cfg)
        self._finished: list[Drawn] = []
        self._failure: Exception | None = None

    def prepare(self, batch: Batch) -> Batch:
        """Mixes inputs and labels and smooths labels, where MIXUP says so; labels are then (B, classes)."""
        if self.mixer is None and self.smoothing == 0:
            return batch
        inputs, target = batch.inputs, F.one_hot(batch.labels, self.cfg.MODEL.NUM_CLASSES).float()
        if self.mixer is not None:
            inputs, target = self.mixer(inputs, target)
        target = smooth_labels(target, self.smoothing, self.cfg.MIXUP.LABEL_SMOOTH_OVER)
        return replace(batch, inputs=inputs, labels=target)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean over the inputs."""
        return self.criterion(model(batch.inputs), batch.labels)

    def evaluate(self, model: nn.Module, epoch: int, last: bool) -> dict[str, float]:
        """top1, top5 and val_loss on the validation files, where TRAIN.EVAL_PERIOD says so.

        After the last epoch, and when testing, what the modality measures at the end follows (images: accuracy at each
        of TEST.RESIZE_SIZES).
        """
        if epoch == 0 or not is_due(epoch, self.cfg.TRAIN.EVAL_PERIOD, last):
            return {}
        values = self._accuracy(model, self.val_loader) if self.val_loader is not None else {}
        return values | self._finish(model, values) if last else values

    def _finish(self, model: nn.Module, known: dict[str, float]) -> dict[str, float]:
        """What the modality measures at the end. Behind a training run an error waits for `pictures` to raise it, when
        what is `known` of its last epoch has been logged."""
        try:
            found, self._finished = self.modality.finish(self, model, known)
        except Interrupted:
            raise
        except Exception as error:
            if not (self.cfg.TRAIN.ENABLE and known):
                raise
            self._failure = error
            return {UNFINISHED: True}  # no number, and so no curve
        return found

    def accuracy(self, model: nn.Module, dataset: DataSet) -> dict[str, float]:
        """What `evaluate_classifier` gives for a data set."""
        with self.one_pass(dataset) as loader:
            return self._accuracy(model, loader)

    def _accuracy(self, model: nn.Module, loader: Loader) -> dict[str, float]:
        return evaluate_classifier(model, loader, self.world, self.autocast, self.criterion)

    def pictures(self, model: nn.Module, epoch: int, last: bool) -> list[Drawn]:
        """At the end, what the modality shows of its test and of a few validation files; raises what failed there."""
        if self._failure is not None:
            raise self._failure
        if not last or not self.world.is_main:
            return []
        explained = self.modality.explain(self, model) if self.cfg.MONITOR.NUM_PICTURES else []
        drawn = [*explained, *self._finished]
        when = f"after {epoch} epochs: " if self.cfg.TRAIN.ENABLE else ""  # weights to test do not tell their age
        return [(name, picture, when + caption) for name, picture, caption in drawn]


def mixer_from_cfg(cfg: CfgNode, world: World) -> Mixer | None:
    """Mixup and CutMix per batch; None where both are off.

    Raises UserError where one input of each micro-batch would have no partner. DATA_LOADER.DROP_LAST False cuts batches
    of odd sizes anyway.
    """
    if not cfg.TRAIN.ENABLE or not cfg.MIXUP.ENABLE or cfg.MIXUP.ALPHA <= 0 and cfg.MIXUP.CUTMIX_ALPHA <= 0:
        return None
    inputs = cfg.TRAIN.BATCH_SIZE * world.num_shards * views_of(cfg) // (world.size * cfg.TRAIN.ACCUM_STEPS)
    if inputs % 2 and cfg.MIXUP.PARTNER == "reverse" and cfg.DATA_LOADER.DROP_LAST:
        raise UserError(
            f"MIXUP.ENABLE pairs the inputs of a micro-batch, and {inputs} is odd; change TRAIN.BATCH_SIZE, or set "
            "MIXUP.PARTNER next or random."
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
