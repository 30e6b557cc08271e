"""Image files as samples: everything random about one follows from the run's seed and its key, nothing is carried."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from mfm_core.data.files import FileDataset
from mfm_core.data.seeding import derive_seed, seeded
from mfm_core.interfaces import MaskGenerator, SampleKey
from mfm_image.data.decode import ImageReader
from mfm_image.data.folder import ImageFolder
from mfm_image.data.transforms import Transform


class ImageDataset(FileDataset):
    """Samples of an `ImageFolder`: `dataset[SampleKey(epoch, index)]`.

    Crop, mirroring, augmentation, erasing and mask of a view are functions of (seed, epoch, index, replacement,
    repetition, view), so that the number of loader workers never matters. The file is decoded once for all views.

    What becomes of files that cannot be read, `FileDataset` says.

    Args:
        folder: the files and their labels.
        transform: what is done with the pixels.
        seed: of the run.
        num_samples: views per file (`AUG.NUM_SAMPLE`).
        mask_generator: draws what corrupts a view; None where nothing is to be hidden.
        train: False gives the same sample in every epoch.
        first_view: what is done with the pixels of the first view instead (`AUG.RE_SPLIT`); None for the same.
    """

    def __init__(
        self,
        folder: ImageFolder,
        transform: Transform,
        seed: int = 0,
        num_samples: int = 1,
        mask_generator: MaskGenerator | None = None,
        train: bool = True,
        first_view: Transform | None = None,
    ) -> None:
        super().__init__(folder, seed, train)
        self.transform, self.first_view = transform, first_view or transform
        self.num_samples, self.mask_generator = num_samples, mask_generator

    def _views(self, index: int, key: SampleKey) -> tuple[list[Tensor], list[Tensor]]:
        """Decodes file `index` and makes the views, and a mask for each if any are made."""
        streams = [(self.seed, "sample", *key.stream, view) for view in range(self.num_samples)]
        with ImageReader(self.listing.paths[index]) as image:
            crops = [
                self.transform.plan(image.height, image.width, random.Random(derive_seed(*name, "crop")))
                for name in streams
            ]
            pixels = image.decode(min(self.transform.reduction(crop) for crop in crops))
        views, masks = [], []
        for view, (name, crop) in enumerate(zip(streams, crops)):
            transform = self.transform if view else self.first_view
            with seeded(derive_seed(*name, "augment")):
                views.append(transform.apply(pixels, crop, image.reduction))
            if self.mask_generator is not None:
                generator = torch.Generator().manual_seed(derive_seed(*name, "mask"))
                masks.append(self.mask_generator(generator, views[-1]))
        return views, masks
