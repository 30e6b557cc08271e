"""Which sample each rank sees at each step: functions of (seed, epoch, step), so resuming needs no worker state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mfm_core.data.seeding import derive_seed
from mfm_core.errors import UserError
from mfm_core.interfaces import SampleKey


@dataclass(frozen=True)
class EpochCut:
    """How the places of an epoch are cut into global batches; `cut[step]` are those of one step.

    length: samples. batch_size: over all ranks. drop_last: all batches have this size, and what is left over of the
    epoch is dropped; else all samples come, in one batch more where they must, and no two batches differ in size by
    more than one sample (a small last batch would weigh each of its samples more).
    """

    length: int
    batch_size: int
    drop_last: bool = True

    def __len__(self) -> int:
        """Steps of an epoch."""
        return self.length // self.batch_size if self.drop_last else -(-self.length // self.batch_size)

    def __getitem__(self, step: int) -> range:
        if not 0 <= step < len(self):
            raise IndexError(step)
        if self.drop_last:
            return range(step * self.batch_size, (step + 1) * self.batch_size)
        return range(step * self.length // len(self), (step + 1) * self.length // len(self))

    @property
    def places(self) -> int:
        """Of all batches together."""
        return len(self) * self.batch_size if self.drop_last else self.length

    @property
    def smallest(self) -> int:
        """The size of the smallest batch."""
        return self.places // max(1, len(self))

    @property
    def uneven(self) -> bool:
        """Whether some batches have one sample more than the smallest."""
        return self.smallest * len(self) < self.places


class TrainSampler:
    """Yields the batches (lists of `SampleKey`) of one rank for one epoch; a `batch_sampler` for torch's DataLoader.

    The data set is permuted by (seed, epoch) and cut into global batches. Rank r takes the r-th contiguous slice of
    each, so that the global batch of a step is the same for any number of ranks. The epoch does not advance by itself:
    call `set_position` before each.

    With `repetitions`, each sample comes that many times in one global batch (a few at its end go on in the next),
    differently augmented, and an epoch of the same length sees the fewer of them (repeated augmentation: Hoffer et
    al. 2020, Berman et al. 2019; DeiT's sampler, whose epochs have as many steps where 256 divides the batch). The
    repetitions lie a third (for 3) of the batch apart: on different ranks where there are enough, as DeiT has them,
    and not side by side where Mixup pairs neighbours.

    Args:
        cut: of the data set into global batches, each of one sample or more for every rank.
        rank, world_size: this process among all.
        seed: of the run.
        start_epoch, start_step: the first position, both counted from 0.
        repetitions: how often a sample comes in its batch (`AUG.REPEATED_SAMPLER`).

    Raises:
        UserError: where there is no batch, because one is larger than the data set.
    """

    def __init__(
        self,
        cut: EpochCut,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        start_epoch: int = 0,
        start_step: int = 0,
        repetitions: int = 1,
    ) -> None:
        self.cut, self.rank, self.world_size, self.seed, self.repetitions = cut, rank, world_size, seed, repetitions
        if not len(cut):
            raise UserError(
                f"TRAIN.BATCH_SIZE {cut.batch_size} is larger than the {cut.length} training files; "
                f"set it to {cut.length} or less, or add some"
            )
        self.set_position(start_epoch, start_step)

    def __len__(self) -> int:
        """Steps in a whole epoch, wherever iteration starts."""
        return len(self.cut)

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
            places = self.global_batch(step).tensor_split(self.world_size)[self.rank]
            files = order[places // self.repetitions].tolist()
            turns = (places % self.repetitions).tolist()
            yield [SampleKey(epoch, index, repetition=turn) for index, turn in zip(files, turns)]

    def global_batch(self, step: int) -> Tensor:
        """(batch size,) int64: the places in the epoch that a step takes, of which each file has several."""
        places = torch.tensor(self.cut[step])
        return torch.cat([places[turn :: self.repetitions] for turn in range(self.repetitions)])

    def order(self, epoch: int) -> Tensor:
        """(length,) int64: the data set's indices in the order in which they come; the first ones, with repetitions."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        return torch.randperm(self.cut.length, generator=generator)


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
