"""Pre-training: masked prediction, watched on files that never change."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from mfm_core.data.loader import Loader
from mfm_core.engine.precision import autocast_factory
from mfm_core.interfaces import Batch
from mfm_core.methods.parts import masks_from_cfg
from mfm_core.objective import Pretraining
from mfm_core.parallel.world import World
from mfm_core.tasks.datasets import Listing
from mfm_core.tasks.modality import Modality
from mfm_core.tasks.monitor import Monitor
from mfm_core.tasks.periods import is_due
from mfm_core.tasks.shown import Drawn


class PretrainTask:
    """Masked prediction, with everything that its log line and report show."""

    def __init__(self, cfg: CfgNode, world: World, precision: str, modality: Modality) -> None:
        self.cfg, self.world, self.modality = cfg, world, modality
        self.autocast = autocast_factory(precision, world.device)
        self.model: Pretraining = modality.build_model(cfg)
        grid = self.model.backbone.grid
        self.summary_input = modality.example_input(cfg, grid)
        masks = masks_from_cfg(cfg, grid)
        self.train_set = modality.train_set(cfg, masks)
        self.files = len(self.train_set)
        self.monitor = Monitor.from_cfg(cfg, self.train_set, masks, world, self.autocast, modality)
        self.warnings = list(self._what_is_lacking())

    def _what_is_lacking(self) -> Iterator[str]:
        if not self.monitor.held_out:
            what = f"features and pictures are of training {self.modality.noun}"
            yield f"{self.cfg.DATA.PATH_TO_DATA_DIR} has no val: no validation loss or k-NN, and {what}."
        queries = self.monitor.query_loader
        for listing in [self.train_set.listing, *([queries.dataset.listing] if queries is not None else [])]:
            if not listing.classes[0] or len(listing.classes) < 2 and listing is self.train_set.listing:
                yield f"{listing.origin} {listing.remark or 'is of one class'}, so there is no accuracy of k-NN."
                return

    def prepare(self, batch: Batch) -> Batch:
        """Nothing is mixed in pre-training."""
        return batch

    def weight(self, batch: Batch) -> Tensor:
        """How many terms the method's loss averages over: hidden tokens, hidden frequencies or inputs."""
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
        if is_due(epoch, self.cfg.MONITOR.PERIOD, last):
            values |= self.monitor.health(model)
        if self._compares(epoch, last):
            values |= self.monitor.knn(model)
        return values

    def _compares(self, epoch: int, last: bool) -> bool:
        """Whether k-NN is due and possible."""
        return self.monitor.query_loader is not None and is_due(epoch, self.cfg.KNN.PERIOD, last)

    def listings(self) -> dict[str, Listing]:
        """Those of training, and of what the monitor looks at."""
        return {"training": self.train_set.listing, **self.monitor.listings()}

    def eval_loaders(self) -> list[Loader]:
        """The monitor's."""
        return self.monitor.loaders

    def pictures(self, model: nn.Module, epoch: int, last: bool) -> list[Drawn]:
        """Reconstruction of a few fixed files and, where k-NN is due, too, the neighbours that it found."""
        due = is_due(epoch, self.cfg.MONITOR.PICTURE_PERIOD, last) and self.cfg.MONITOR.NUM_PICTURES > 0
        if not due or not self.world.is_main:
            return []
        drawn = self._reconstructions(model)
        when = f"after {epoch} epochs" if self.cfg.TRAIN.ENABLE else "the weights tested"  # which do not tell their age
        pictures = [(name, picture, f"{when}; {remarks}") for name, picture, remarks in drawn]
        if self._compares(epoch, last):
            nearest = f"nearest training {self.modality.noun} by cosine; framed where of the query's class"
            caption = f"{when}: {nearest}"
            pictures.append(("neighbours", self.monitor.neighbours(partial(self.modality.stills, self.cfg)), caption))
        return pictures

    def _reconstructions(self, model: nn.Module) -> list[Drawn]:
        """Of a few fixed files; none where none can be read."""
        examples = self.monitor.examples(self.cfg.MONITOR.NUM_PICTURES)
        if examples is None:
            return []
        inputs, mask = examples
        with torch.inference_mode():
            return self.modality.reconstruct(self.cfg, model, inputs, model(inputs, mask), ())

    def file_name(self, index: int) -> str:
        """The path of training file `index`."""
        return self.train_set.listing.paths[index]
