"""Pre-training on an image folder, and the signs of its health: fixed masks, features, k-NN, pictures."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from PIL import Image
from torch import Tensor, nn

from mfm_core.data.loader import Loader, build_loader
from mfm_core.data.sampler import EvalSampler
from mfm_core.engine.precision import autocast_factory
from mfm_core.errors import UserError
from mfm_core.interfaces import Batch, MaskGenerator, SampleKey
from mfm_core.monitor.features import feature_health
from mfm_core.objective import MaskedPrediction
from mfm_core.parallel.world import World
from mfm_core.probe.features import collect
from mfm_core.probe.knn import knn_accuracy
from mfm_image.data.build import eval_dataset, masks_from_cfg, train_dataset
from mfm_image.data.dataset import ImageDataset
from mfm_image.models import build_model, example_input
from mfm_image.pictures import hog_sheet


class PretrainTask:
    """Masked prediction on images, with everything that its log line and report show."""

    def __init__(self, cfg: CfgNode, world: World, precision: str) -> None:
        self.cfg, self.world = cfg, world
        self.autocast = autocast_factory(precision, world.device)
        self.model: MaskedPrediction = build_model(cfg)
        grid = self.model.backbone.grid
        self.summary_input = example_input(cfg, grid)
        masks = masks_from_cfg(cfg, grid)
        self.train_set = train_dataset(cfg, masks)
        self.files = len(self.train_set)
        self.monitor = Monitor.from_cfg(cfg, self.train_set, masks, world, self.autocast)

    def prepare(self, batch: Batch) -> Batch:
        """Nothing is mixed in pre-training."""
        return batch

    def weight(self, batch: Batch) -> Tensor:
        """The number of hidden tokens."""
        return batch.mask.sum().float()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean over the hidden tokens."""
        return model(batch.inputs, batch.mask).loss

    def evaluate(self, model: nn.Module, epoch: int, last: bool) -> dict[str, float]:
        """What of val_loss, feature_std, feature_rank and knn is due after this epoch."""
        values: dict[str, float] = {}
        if self.monitor is not None and is_due(epoch, self.cfg.MONITOR.PERIOD, last):
            values |= self.monitor.health(model)
        if self.monitor is not None and is_due(epoch, self.cfg.KNN.PERIOD, last):
            values |= self.monitor.knn(model)
        return values

    def pictures(self, model: nn.Module, epoch: int, last: bool) -> list[tuple[str, Image.Image, str]]:
        """Image, masked input, HOG target and prediction of a few fixed images."""
        due = is_due(epoch, self.cfg.MONITOR.PICTURE_PERIOD, last) and self.cfg.MONITOR.NUM_PICTURES > 0
        if not due or self.monitor is None or not self.world.is_main:
            return []
        images, mask = self.monitor.examples(self.cfg.MONITOR.NUM_PICTURES)
        with torch.inference_mode():
            output = model(images, mask)
        caption = (
            f"MaskFeat after {epoch} epochs: image, masked input, HOG target, predicted HOG (hidden patches bright)"
        )
        return [("reconstruction", hog_sheet(model, images, output, self.cfg.DATA.MEAN, self.cfg.DATA.STD), caption)]

    def file_name(self, index: int) -> str:
        """The path of training file `index`."""
        return self.train_set.folder.paths[index]


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

        def loader(dataset: ImageDataset) -> Loader:
            sampler = EvalSampler(len(dataset), cfg.TEST.BATCH_SIZE, world.rank, world.size)
            return build_loader(dataset, sampler, min(cfg.DATA_LOADER.NUM_WORKERS, 2), cfg.DATA_LOADER.PIN_MEMORY)

        return cls(
            fixed=eval_dataset(cfg, "val", classes, cfg.MONITOR.NUM_IMAGES, masks),
            neighbours=eval_dataset(cfg, "train", classes, cfg.KNN.NUM_TRAIN) if knn else None,
            queries=eval_dataset(cfg, "val", classes) if knn else None,
            loader=loader,
            k=list(cfg.KNN.K),
            temperature=cfg.KNN.TEMPERATURE,
            world=world,
            autocast=autocast,
        )

    @torch.inference_mode()
    def health(self, model: MaskedPrediction) -> dict[str, float]:
        """val_loss under the fixed masks; feature_std and feature_rank of the unmasked images' features."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.world.device)
        for batch in self.fixed_loader:
            if len(batch):
                batch = batch.to(self.world.device)
                with self.autocast():
                    loss = model(batch.inputs, batch.mask).loss
                hidden = batch.mask.sum()
                sums += torch.stack([loss.double() * hidden, hidden.double()])
        total, hidden = self.world.all_sum(sums).tolist()
        features, _ = self._features(model, self.fixed_loader)
        return {"val_loss": total / max(1.0, hidden), **feature_health(features)}

    def knn(self, model: MaskedPrediction) -> dict[str, float]:
        """k-NN accuracy in percent: `knn` for the first k, `knn_K` for the others."""
        train, train_labels = self._features(model, self.neighbour_loader)
        queries, labels = self._features(model, self.query_loader)
        found = knn_accuracy(train, train_labels, queries, labels, self.num_classes, self.k, self.temperature)
        first = self.k[0]
        return {"knn": found[first], **{f"knn_{k}": value for k, value in found.items() if k != first}}

    def examples(self, count: int) -> tuple[Tensor, Tensor]:
        """The first readable images of evenly spaced positions: (N, 3, H, W) and masks (N, h, w), on the device."""
        step = max(1, len(self.fixed) // count)
        samples = [self.fixed[SampleKey(0, i)] for i in range(0, len(self.fixed), step)]
        samples = [sample for sample in samples if sample.views][:count]
        if not samples:
            raise UserError("None of the validation images can be read; check them with `run_net.py doctor`.")
        images = torch.stack([sample.views[0] for sample in samples])
        masks = torch.stack([sample.masks[0] for sample in samples])
        return images.to(self.world.device), masks.to(self.world.device)

    def _features(self, model: MaskedPrediction, loader: Loader) -> tuple[Tensor, Tensor]:
        return collect(model.features, loader, self.world.device, self.autocast())


def is_due(epoch: int, period: int, last: bool) -> bool:
    """Whether something that happens every `period` epochs (0: never), and after the last, happens after `epoch`."""
    return period > 0 and (last or epoch % period == 0)
