"""k-nearest-neighbour accuracy of a frozen encoder (Wu et al. 2018), for a list of k at once."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from mfm_core.data.loader import Loader, eval_loader
from mfm_core.engine.precision import autocast_factory
from mfm_core.errors import UserError
from mfm_core.monitor.settings import setting_name
from mfm_core.objective import FrozenEncoder
from mfm_core.parallel.world import World
from mfm_core.probe.features import collect
from mfm_core.probe.knn import shared_knn_accuracy
from mfm_core.probe.store import SavedFeatures, load_features, save_features, weights_digest
from mfm_core.tasks.datasets import Listing, remarks
from mfm_core.tasks.modality import Modality
from mfm_core.tasks.shown import Drawn

logger = logging.getLogger(__name__)


class KnnTask:
    """Classifies the validation files by their neighbours among the training files; both seen as in evaluation.

    The features go to features_train.safetensors and features_val.safetensors beside the log, and come from there where
    the weights, the model, the files and everything else that makes them are the same.
    """

    def __init__(self, cfg: CfgNode, world: World, precision: str, modality: Modality) -> None:
        self.cfg, self.world, self.precision, self.modality = cfg, world, precision, modality
        self.autocast = autocast_factory(precision, world.device)
        self.classes = modality.classes(cfg)
        neighbours = modality.eval_set(cfg, "train", self.classes, cfg.KNN.NUM_TRAIN)
        self.files, self.k = len(neighbours), list(dict.fromkeys(cfg.KNN.K))
        if max(self.k) > self.files:
            raise UserError(
                f"KNN.K asks for {max(self.k)} neighbours, but there are {self.files} training {modality.noun}; lower "
                "KNN.K" + (" or raise KNN.NUM_TRAIN." if cfg.KNN.NUM_TRAIN else ".")
            )
        queries = modality.eval_set(cfg, "val", self.classes)
        self.num_classes = max(len(listing.classes) for listing in (neighbours.listing, queries.listing))
        self.loaders = {"train": eval_loader(cfg, neighbours, world), "val": eval_loader(cfg, queries, world)}
        self.model: FrozenEncoder = modality.build_model(cfg)
        self.summary_input = modality.example_input(cfg, self.model.backbone.grid)
        self.warnings = remarks(neighbours, queries)

    def listings(self) -> dict[str, Listing]:
        """Both sets'."""
        return {"training": self.loaders["train"].dataset.listing, "validation": self.loaders["val"].dataset.listing}

    def eval_loaders(self) -> list[Loader]:
        """Both sets'."""
        return list(self.loaders.values())

    def pictures(self, model: nn.Module, epoch: int, last: bool) -> list[Drawn]:
        """None: TASK visualise draws neighbours."""
        return []

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, epoch: int, last: bool) -> dict[str, float]:
        """`knn`, top-1 for the first k, and `knn/k_…` and `knn_top5/k_…`, top-1 and top-5 for each."""
        weights = weights_digest(model.state_dict())
        bank, queries = (self.features(model, split, weights) for split in ("train", "val"))
        temperature = self.cfg.KNN.TEMPERATURE
        found = shared_knn_accuracy(bank, queries, self.num_classes, self.k, temperature, self.world)
        top1, top5 = (
            {setting_name(name, "k", k): found[k][i] for k in self.k} for i, name in enumerate(("knn", "knn_top5"))
        )
        sizes = {"neighbours": len(bank[0]), "images": len(queries[0])}
        return {"knn": found[self.k[0]][0], **sizes, **top1, **top5}

    def features(self, model: nn.Module, split: str, weights: str) -> tuple[Tensor, Tensor]:
        """Features (N, D) and labels (N,) of a split, on the CPU of every process; from the file where it has them."""
        path, loader = Path(self.cfg.OUTPUT_DIR) / f"features_{split}.safetensors", self.loaders[split]
        identity = self.identity(loader.dataset.listing, weights) if self.world.is_main else {}
        identity = self.world.from_main(identity)
        saved = load_features(path, identity) if self.cfg.KNN.REUSE_FEATURES else None
        if all(self.world.gather(saved is not None)):
            logger.info("features of %s: %d read from %s", split, len(saved.features), path)
            loader.bad.update((file.path, file) for file in saved.bad)
            return saved.features, saved.labels
        found = collect(model, loader, self.world.device, self.autocast())
        bad = {file.path: file for files in self.world.gather(list(loader.bad.values())) for file in files}
        if self.world.is_main:
            save_features(path, SavedFeatures(*found, list(bad.values())), identity)
            logger.info("features of %s: %d saved in %s", split, len(found[0]), path)
        return found

    def identity(self, listing: Listing, weights: str) -> dict[str, Any]:
        """Everything that the features of `listing` depend on; of what its files contain, size and time of change."""
        cfg = self.cfg
        root = Path(listing.paths.root).resolve()  # of a list's videos it is not the list's folder: DATA.PATH_PREFIX
        names = "\0".join(os.path.join(root, listing.paths.relative(i)) for i in range(len(listing.paths)))
        return {
            "weights": weights,
            "folder": str(Path(listing.origin).resolve()),
            "files": len(listing.paths),
            "names": _digest(names.encode("utf-8", "surrogateescape")),
            "changed": _digest(np.array([_state_of(path) for path in listing.paths], np.int64).tobytes()),
            "labels": _digest(np.asarray(listing.labels, dtype=np.int64).tobytes()),
            "classes": list(self.classes),
            "seen": self.modality.seen_as(cfg),
            "normalisation": [list(cfg.DATA.MEAN), list(cfg.DATA.STD)],
            "read-out": cfg.KNN.FEATURES,
            "model": {"MODEL.ARCH": cfg.MODEL.ARCH, "MVIT": dict(cfg.MVIT), "RESNET": dict(cfg.RESNET)},
            "precision": self.precision,
        }


def _state_of(path: str) -> tuple[int, int]:
    """Size in bytes and time of change in ns, by which a file that was mended or replaced is another one."""
    try:
        found = os.stat(path)
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
