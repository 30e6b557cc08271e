"""The health of a pre-training run: loss under fixed masks, spread and rank of the features, k-NN accuracy."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
import torch
from fvcore.common.config import CfgNode
from PIL import Image
from torch import Tensor

from mfm_core.data.loader import Loader, eval_loader
from mfm_core.interfaces import MaskGenerator
from mfm_core.monitor.features import feature_health
from mfm_core.objective import Pretraining
from mfm_core.parallel.world import World
from mfm_core.probe.features import collect_indexed
from mfm_core.probe.knn import shared_knn_accuracy
from mfm_core.report.neighbours import find_neighbours, nearest, neighbours_sheet, still_of
from mfm_core.tasks.datasets import DataSet, Listing
from mfm_core.tasks.modality import Modality
from mfm_core.tasks.shown import readable


class Monitor:
    """Evaluates frozen features and masked prediction on files that never change, of validation where there are any.

    fixed: those files. held_out: whether training does not see them; else there is no validation loss. neighbours,
    queries: of k-NN; its accuracy takes two classes, and labels of both.
    """

    def __init__(
        self,
        fixed: DataSet,
        neighbours: DataSet | None,
        queries: DataSet | None,
        loader: Callable[[DataSet], Loader],
        k: list[int],
        temperature: float,
        world: World,
        autocast: Callable[[], AbstractContextManager],
        pictures: int = 0,
        neighbours_shown: int = 1,
        held_out: bool = True,
    ) -> None:
        self.held_out = held_out
        self.fixed, self.world, self.autocast = fixed, world, autocast
        self.fixed_loader = loader(fixed)
        self.neighbour_loader = loader(neighbours) if neighbours else None
        self.query_loader = loader(queries) if queries else None
        self.loaders = [x for x in (self.fixed_loader, self.neighbour_loader, self.query_loader) if x is not None]
        self.k, self.temperature = k, temperature
        self.num_classes = _classes_of(neighbours.listing, queries.listing) if neighbours and queries else 0
        self.num_pictures, self.neighbours_shown = pictures, neighbours_shown
        self._nearest: tuple[Tensor, Tensor, Tensor] | None = None
        """Of the latest k-NN: (N,) queries to show, (N, k) their neighbours, as indices, and the similarities."""

    @classmethod
    def from_cfg(
        cls,
        cfg: CfgNode,
        train_set: DataSet,
        masks: MaskGenerator,
        world: World,
        autocast: Callable[[], AbstractContextManager],
        modality: Modality,
    ) -> Monitor:
        """Without validation files, which pre-training does not need, it looks at training files."""
        classes, held_out = train_set.listing.classes, modality.has_val(cfg)
        knn, eval_set = cfg.KNN.PERIOD > 0 and held_out, modality.eval_set
        return cls(
            fixed=eval_set(cfg, "val" if held_out else "train", classes, cfg.MONITOR.NUM_IMAGES, masks),
            neighbours=eval_set(cfg, "train", classes, cfg.KNN.NUM_TRAIN) if knn else None,
            queries=eval_set(cfg, "val", classes) if knn else None,
            loader=partial(eval_loader, cfg, world=world),
            k=list(cfg.KNN.K),
            temperature=cfg.KNN.TEMPERATURE,
            world=world,
            autocast=autocast,
            pictures=cfg.MONITOR.NUM_PICTURES,
            neighbours_shown=cfg.PICTURE.NUM_NEIGHBOURS,
            held_out=held_out,
        )

    def listings(self) -> dict[str, Listing]:
        """Of the validation files, where it looks at such: all of them, or the fixed ones."""
        loader = self.query_loader if self.query_loader is not None else self.fixed_loader
        return {"validation": loader.dataset.listing} if self.held_out else {}

    @torch.inference_mode()
    def health(self, model: Pretraining) -> dict[str, float]:
        """val_loss under the fixed masks; feature_std and feature_rank of the unmasked inputs' features."""
        features, _, _ = self._features(model, self.fixed_loader)
        values = feature_health(features)
        return {"val_loss": self._loss(model), **values} if self.held_out else values

    def _loss(self, model: Pretraining) -> float:
        sums = torch.zeros(2, dtype=torch.float64, device=self.world.device)
        for batch in self.fixed_loader:
            if len(batch):
                batch = batch.to(self.world.device)
                with self.autocast():
                    loss = model(batch.inputs, batch.mask).loss
                weight = model.weight(batch.mask).double()
                sums += torch.stack([loss.double() * weight, weight])
        total, weight = self.world.all_sum(sums).tolist()
        return total / max(1.0, weight)

    def knn(self, model: Pretraining) -> dict[str, float]:
        """k-NN accuracy in percent: `knn` for the first k, `knn_K` for the others; nothing where all is one class."""
        *bank, index = self._features(model, self.neighbour_loader)
        queries, labels, query_index = self._features(model, self.query_loader)
        if self.num_pictures:
            few = torch.arange(0, len(queries), max(1, len(queries) // self.num_pictures))[: self.num_pictures]
            similarity, rows = nearest(queries[few], bank[0], min(self.neighbours_shown, len(index)))
            self._nearest = query_index[few], index[rows], similarity
        if self.num_classes < 2:
            return {}
        found = shared_knn_accuracy(
            tuple(bank), (queries, labels), self.num_classes, self.k, self.temperature, self.world
        )
        return {"knn" if i == 0 else f"knn_{k}": found[k][0] for i, k in enumerate(self.k)}

    def examples(self, count: int) -> tuple[Tensor, Tensor] | None:
        """At most `count` readable inputs, evenly chosen: (N, C, *size) and their masks, on the device; None if none.

        Files that cannot be read are listed with those of the loader.
        """
        samples = readable(self.fixed, count, lambda file: self.fixed_loader.bad.update({file.path: file}))
        if not samples:
            return None
        images = torch.stack([sample.views[0] for sample in samples])
        masks = torch.stack([sample.masks[0] for sample in samples])
        return images.to(self.world.device), masks.to(self.world.device)

    def neighbours(self, stills: Callable[[Tensor], list[np.ndarray]]) -> Image.Image:
        """The sheet of what the latest k-NN found for a few queries."""
        queries, rows, similarity = self._nearest
        bank, shown = self.neighbour_loader.dataset, self.query_loader.dataset
        images = [still_of(shown, int(i), stills) for i in queries]
        names = [shown.listing.classes[int(shown.listing.labels[int(i)])] for i in queries]
        return neighbours_sheet(images, names, find_neighbours(bank, rows, similarity, stills))

    def _features(self, model: Pretraining, loader: Loader) -> tuple[Tensor, Tensor, Tensor]:
        return collect_indexed(model.features, loader, self.world.device, self.autocast())


def _classes_of(neighbours: Listing, queries: Listing) -> int:
    """Among how many classes k-NN decides: each of two lists may lack the other's last; 0 where it cannot be right."""
    known, asked = neighbours.classes, queries.classes
    return max(len(known), len(asked)) if len(known) > 1 and asked[0] else 0
