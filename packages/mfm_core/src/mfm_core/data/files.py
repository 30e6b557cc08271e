"""Files as samples: everything random about one follows from the run's seed and its key, nothing is carried."""

from __future__ import annotations

import errno
from abc import abstractmethod
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from mfm_core.data.seeding import derive_seed
from mfm_core.errors import UserError
from mfm_core.interfaces import BadFile, Sample, SampleKey

MAX_REPLACEMENTS = 20
SYSTEM_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Not the file's fault: readers raise these as they are."""


class UnreadableFile(Exception):
    """A file that cannot be used: `path`, and the `reason` in one line."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, " ".join(reason.split())

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class FileDataset(Dataset):
    """Samples of the files of a listing: `dataset[SampleKey(epoch, index)]`; what a file becomes is a subclass's.

    A file that cannot be read is recorded in `Sample.bad`. In training another one, drawn by the key, takes its
    place, and `Sample.index` is the one used. In evaluation the sample has no views, and is left out of its batch.

    listing: `paths`, `labels` and `origin` of the files. seed: of the run. train: False gives the same sample in every
    epoch.
    """

    def __init__(self, listing: Any, seed: int, train: bool) -> None:
        self.listing, self.seed, self.train = listing, seed, train

    @abstractmethod
    def _views(self, index: int, key: SampleKey) -> tuple[list[Tensor], list[Tensor]]:
        """The views of file `index` and, if any are made, a mask for each; raises `UnreadableFile`."""

    def __len__(self) -> int:
        return len(self.listing)

    def __getitem__(self, key: SampleKey) -> Sample:
        """Raises `UserError` where `MAX_REPLACEMENTS` files after each other cannot be read."""
        if not self.train:
            return self._evaluation_sample(key.index)
        bad: list[BadFile] = []
        for replacement in range(key.replacement, key.replacement + MAX_REPLACEMENTS + 1):
            request = key._replace(replacement=replacement)
            index = self.file_of(request)
            try:
                views, masks = self._views(index, request)
            except UnreadableFile as error:
                bad.append(BadFile(error.path, error.reason))
                continue
            return Sample(index, views, int(self.listing.labels[index]), masks, bad)
        raise UserError(
            f"{self.listing.origin} is full of unreadable files: {len(bad)} of {len(bad)} tried, "
            f"last {bad[-1].path} ({bad[-1].reason}); check it with `python tools/run_net.py doctor`"
        )

    def file_of(self, key: SampleKey) -> int:
        """Which file serves the request: `key.index`, or one drawn from the whole listing for a replacement."""
        if key.replacement == 0:
            return key.index
        return derive_seed(self.seed, "replacement", *key.stream) % len(self)

    def _evaluation_sample(self, index: int) -> Sample:
        label = int(self.listing.labels[index])
        try:
            views, masks = self._views(index, SampleKey(epoch=0, index=index))
        except UnreadableFile as error:
            return Sample(index, [], label, bad=[BadFile(error.path, error.reason)])
        return Sample(index, views, label, masks)
