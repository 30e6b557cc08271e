"""The health of a pre-training run: loss under fixed masks, spread and rank of the features, k-NN accuracy."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from mfm_core.data.loader import Loader
from mfm_core.errors import UserError
from mfm_core.interfaces import MaskGenerator, SampleKey
from mfm_core.monitor.features import feature_health
from mfm_core.objective import Pretraining
from mfm_core.parallel.world import World
from mfm_core.probe.features import collect
from mfm_core.probe.knn import shared_knn_accuracy
from mfm_image.data.build import eval_dataset, eval_loader
from mfm_image.data.dataset import ImageDataset


class Monitor:
    """Evaluates frozen features and masked prediction on validation images that never change."""

    def __init__(
        self,
        fixed: ImageDataset,
        neighbours: ImageDataset | None,
        queries: ImageDataset | None,
        loader: Callable[[ImageDataset], Loader],
        k: list[int],
        temperature: float,
        world: World,
        autocast: Callable[[], AbstractContextManager],
    ) -> None:
        self.fixed, self.world, self.autocast = fixed, world, autocast
        self.fixed_loader = loader(fixed)
        self.neighbour_loader = loader(neighbours) if neighbours else None
        self.query_loader = loader(queries) if queries else None
        self.loaders = [x for x in (self.fixed_loader, self.neighbour_loader, self.query_loader) if x is not None]
        self.k, self.temperature = k, temperature
        self.num_classes = len(fixed.folder.classes)

    @classmethod
    def from_cfg(
        cls,
        cfg: CfgNode,
        train_set: ImageDataset,
        masks: MaskGenerator,
        world: World,
        autocast: Callable[[], AbstractContextManager],
    ) -> Monitor | None:
        """None where the data folder has no val/: pre-training needs none."""
        if not (Path(cfg.DATA.PATH_TO_DATA_DIR) / "val").is_dir():
            return None
        classes = train_set.folder.classes
        knn = cfg.KNN.PERIOD > 0

        return cls(
            fixed=eval_dataset(cfg, "val", classes, cfg.MONITOR.NUM_IMAGES, masks),
            neighbours=eval_dataset(cfg, "train", classes, cfg.KNN.NUM_TRAIN) if knn else None,
            queries=eval_dataset(cfg, "val", classes) if knn else None,
            loader=partial(eval_loader, cfg, world=world),
            k=list(cfg.KNN.K),
            temperature=cfg.KNN.TEMPERATURE,
            world=world,
            autocast=autocast,
        )

    @torch.inference_mode()
    def health(self, model: Pretraining) -> dict[str, float]:
        """val_loss under the fixed masks; feature_std and feature_rank of the unmasked images' features."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.world.device)
        for batch in self.fixed_loader:
            if len(batch):
                batch = batch.to(self.world.device)
                with self.autocast():
                    loss = model(batch.inputs, batch.mask).loss
                weight = model.weight(batch.mask).double()
                sums += torch.stack([loss.double() * weight, weight])
        total, weight = self.world.all_sum(sums).tolist()
        features, _ = self._features(model, self.fixed_loader)
        return {"val_loss": total / max(1.0, weight), **feature_health(features)}

    def knn(self, model: Pretraining) -> dict[str, float]:
        """k-NN accuracy in percent: `knn` for the first k, `knn_K` for the others."""
        bank = self._features(model, self.neighbour_loader)
        queries = self._features(model, self.query_loader)
        found = shared_knn_accuracy(bank, queries, self.num_classes, self.k, self.temperature, self.world)
        return {"knn" if i == 0 else f"knn_{k}": found[k][0] for i, k in enumerate(self.k)}

    def examples(self, count: int) -> tuple[Tensor, Tensor]:
        """The first readable images of evenly spaced positions: (N, 3, H, W) and their masks, on the device."""
        step = max(1, len(self.fixed) // count)
        samples = [self.fixed[SampleKey(0, i)] for i in range(0, len(self.fixed), step)]
        samples = [sample for sample in samples if sample.views][:count]
        if not samples:
            raise UserError("None of the validation images can be read; check them with `run_net.py doctor`.")
        images = torch.stack([sample.views[0] for sample in samples])
        masks = torch.stack([sample.masks[0] for sample in samples])
        return images.to(self.world.device), masks.to(self.world.device)

    def _features(self, model: Pretraining, loader: Loader) -> tuple[Tensor, Tensor]:
        return collect(model.features, loader, self.world.device, self.autocast())
