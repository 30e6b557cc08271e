"""Linear probing of a frozen encoder at several learning rates in one pass."""

from __future__ import annotations

import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from mfm_core.engine.evaluate import evaluate_heads
from mfm_core.heads.probe import FeatureNorm
from mfm_core.interfaces import Batch
from mfm_core.monitor.settings import setting_name
from mfm_core.parallel.world import World
from mfm_core.tasks.classification import ClassificationTask
from mfm_core.tasks.modality import Modality
from mfm_core.tasks.periods import is_due


class ProbeTask(ClassificationTask):
    """Cross-entropy of linear classifiers on frozen features; they share nothing but what they read."""

    def __init__(self, cfg: CfgNode, world: World, precision: str, modality: Modality) -> None:
        super().__init__(cfg, world, precision, modality)
        if isinstance(self.model.head.batch_norm, FeatureNorm):
            self.model.head.batch_norm.sum_over_processes = world.all_sum
        self.lrs = list(cfg.PROBE.LRS) or [cfg.SOLVER.BASE_LR]
        if cfg.TRAIN.ENABLE and not cfg.TRAIN.CHECKPOINT_FILE_PATH:
            self.warnings.append("TRAIN.CHECKPOINT_FILE_PATH is empty: the probe reads an encoder of random weights.")

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum over the classifiers of their means over the inputs, so that each learns as if it were alone."""
        logits = model(batch.inputs)
        labels = batch.labels.repeat(len(logits))
        return F.cross_entropy(logits.flatten(0, 1), labels, reduction="sum") / len(batch)

    def evaluate(self, model: nn.Module, epoch: int, last: bool) -> dict[str, float]:
        """top1, top5 and val_loss of the classifier with the best top1, `best_lr`, and those of each learning rate."""
        if epoch == 0 or not is_due(epoch, self.cfg.TRAIN.EVAL_PERIOD, last):
            return {}
        found = evaluate_heads(model, len(self.lrs), self.val_loader, self.world, self.autocast)
        best = max(range(len(found)), key=lambda i: found[i]["top1"])
        if len(found) == 1:
            return found[0]
        each = {
            setting_name(name, "lr", lr): values[name]
            for name in ("top1", "top5", "val_loss")
            for lr, values in zip(self.lrs, found)
        }
        return {**found[best], "best_lr": self.lrs[best], **each}
