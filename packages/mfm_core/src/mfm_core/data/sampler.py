"""Which sample each rank sees at each step: functions of (seed, epoch, step), so resuming needs no worker state."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mfm_core.data.seeding import derive_seed
from mfm_core.errors import UserError
from mfm_core.interfaces import SampleKey


class TrainSampler:
    """Yields the batches (lists of `SampleKey`) of one rank for one epoch; a `batch_sampler` for torch's DataLoader.

    The data set is permuted by (seed, epoch) and cut into global batches of `batch_size * world_size`; a last,
    incomplete one is dropped. Rank r takes the r-th contiguous slice of each, so that the global batch of a step is
    the same for any number of ranks. The epoch does not advance by itself: call `set_position` before each.

    With `repetitions`, each sample comes that many times in one global batch (a few at its end go on in the next),
    differently augmented, and an epoch of the same length sees the fewer of them (repeated augmentation: Hoffer et
    al. 2020, Berman et al. 2019; DeiT's sampler, whose epochs have as many steps where 256 divides the batch). The
    repetitions lie a third (for 3) of the batch apart: on different ranks where there are enough, as DeiT has them,
    and not side by side where Mixup pairs neighbours.

    Args:
        length: samples in the data set.
        batch_size: samples per rank and step.
        rank, world_size: this process among all.
        seed: of the run.
        start_epoch, start_step: the first position, both counted from 0.
        repetitions: how often a sample comes in its batch (`AUG.REPEATED_SAMPLER`).

    Raises:
        UserError: where one global batch is larger than the data set.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        start_epoch: int = 0,
        start_step: int = 0,
        repetitions: int = 1,
    ) -> None:
        self.length, self.batch_size, self.rank, self.world_size, self.seed = length, batch_size, rank, world_size, seed
        self.repetitions = repetitions
        self.global_batch_size = batch_size * world_size
        if self.global_batch_size > length:
            raise UserError(
                f"TRAIN.BATCH_SIZE {self.global_batch_size} is larger than the {length} training files; "
                f"set it to {length} or less, or add some"
            )
        self.set_position(start_epoch, start_step)

    def __len__(self) -> int:
        """Steps in a whole epoch, wherever iteration starts."""
        return self.length // self.global_batch_size

    def set_position(self, epoch: int, step: int = 0) -> None:
        """The next iteration yields epoch `epoch` from step `step` on (0: its beginning); no data is read to get there.

        Raises:
            ValueError: for a step outside [0, len(self)].
        """
        if not 0 <= step <= len(self):
            raise ValueError(f"step {step} is not in an epoch of {len(self)} steps")
        self.epoch, self.step = epoch, step

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, first = self.epoch, self.step
        order = self.order(epoch)
        for step in range(first, len(self)):
            places = self.global_batch(step)[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]
            files = order[places // self.repetitions].tolist()
            turns = (places % self.repetitions).tolist()
            yield [SampleKey(epoch, index, repetition=turn) for index, turn in zip(files, turns)]

    def global_batch(self, step: int) -> Tensor:
        """(global batch size,) int64: the places in the epoch that a step takes, of which each file has several."""
        places = torch.arange(step * self.global_batch_size, (step + 1) * self.global_batch_size)
        return torch.cat([places[turn :: self.repetitions] for turn in range(self.repetitions)])

    def order(self, epoch: int) -> Tensor:
        """(length,) int64: the data set's indices in the order in which they come; the first ones, with repetitions."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        return torch.randperm(self.length, generator=generator)


class EvalSampler:
    """Yields every sample exactly once over all ranks, in the data set's order; keys carry epoch 0.

    The global batch of a step is cut as in `TrainSampler`. The last one may be incomplete: then the later ranks
    get a smaller batch or none, so ranks must not synchronise at every step.
    """

    def __init__(self, length: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.length, self.batch_size, self.rank, self.world_size = length, batch_size, rank, world_size

    def __len__(self) -> int:
        """Batches of this rank."""
        return len(range(self.rank * self.batch_size, self.length, self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for start in range(self.rank * self.batch_size, self.length, self.batch_size * self.world_size):
            stop = min(start + self.batch_size, self.length)
            yield [SampleKey(0, index) for index in range(start, stop)]
