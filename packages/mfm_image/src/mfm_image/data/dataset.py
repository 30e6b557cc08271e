"""Image files as samples: everything random about one follows from the run's seed and its key, nothing is carried."""

from __future__ import annotations

import random

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mfm_core.data.seeding import derive_seed, seeded
from mfm_core.errors import UserError
from mfm_core.interfaces import BadFile, MaskGenerator, Sample, SampleKey
from mfm_image.data.decode import ImageReader, UnreadableImage
from mfm_image.data.folder import ImageFolder
from mfm_image.data.transforms import Transform

MAX_REPLACEMENTS = 20


class ImageDataset(Dataset):
    """Samples of an `ImageFolder`: `dataset[SampleKey(epoch, index)]`.

    Crop, mirroring, augmentation, erasing and mask of a view are functions of (seed, epoch, index, replacement,
    repetition, view), so that the number of loader workers never matters. The file is decoded once for all views.

    A file that cannot be read is recorded in `Sample.bad`. In training another one, drawn by the key, takes its
    place, and `Sample.index` is the one used. In evaluation the sample has no views, and is left out of its batch.

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
        self.listing, self.transform, self.seed = folder, transform, seed
        self.first_view = first_view or transform
        self.num_samples, self.mask_generator, self.train = num_samples, mask_generator, train

    def __len__(self) -> int:
        return len(self.listing)

    def __getitem__(self, key: SampleKey) -> Sample:
        """Raises `UserError` where `MAX_REPLACEMENTS` files after each other cannot be read."""
        if not self.train:
            return self._evaluation_sample(key)
        bad: list[BadFile] = []
        for replacement in range(key.replacement, key.replacement + MAX_REPLACEMENTS + 1):
            request = key._replace(replacement=replacement)
            index = self.file_of(request)
            try:
                views, masks = self._views(index, self._stream(request))
            except UnreadableImage as error:
                bad.append(BadFile(error.path, error.reason))
                continue
            return Sample(index, views, int(self.listing.labels[index]), masks, bad)
        raise UserError(
            f"the folder {self.listing.origin} is full of unreadable files: {len(bad)} of {len(bad)} tried, "
            f"last {bad[-1].path} ({bad[-1].reason}); check it with `python tools/run_net.py doctor`"
        )

    def file_of(self, key: SampleKey) -> int:
        """Which file serves the request: `key.index`, or one drawn from the whole folder for a replacement."""
        if key.replacement == 0:
            return key.index
        return derive_seed(self.seed, "replacement", *key.stream) % len(self)

    def _evaluation_sample(self, key: SampleKey) -> Sample:
        label = int(self.listing.labels[key.index])
        try:
            views, masks = self._views(key.index, self._stream(SampleKey(epoch=0, index=key.index)))
        except UnreadableImage as error:
            return Sample(key.index, [], label, bad=[BadFile(error.path, error.reason)])
        return Sample(key.index, views, label, masks)

    def _stream(self, key: SampleKey) -> list[tuple[int | str, ...]]:
        """The names of the random streams of the views."""
        return [(self.seed, "sample", *key.stream, view) for view in range(self.num_samples)]

    def _views(self, index: int, streams: list[tuple[int | str, ...]]) -> tuple[list[Tensor], list[Tensor]]:
        """Decodes file `index` and makes one view, and one mask if any are made, per stream."""
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
