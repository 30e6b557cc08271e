"""From samples to batches: the collate function, and torch's DataLoader with errors a user can act on."""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import signal
from collections.abc import Iterable, Iterator, Sequence

import torch
from fvcore.common.config import CfgNode
from torch.utils.data import DataLoader, Dataset, default_collate

from mfm_core.data.sampler import EvalSampler
from mfm_core.errors import UserError
from mfm_core.interfaces import BadFile, Batch, Sample, SampleKey
from mfm_core.parallel import signals, stop
from mfm_core.parallel.world import World

EVAL_WORKERS = 4
"""At most; they stay alive beside those of training."""


def collate(samples: Sequence[Sample]) -> Batch:
    """Stacks the views of all samples: sample 0 view 0, sample 0 view 1, sample 1 view 0, ...

    Labels and indices repeat per view. Samples without views (unreadable files in evaluation) are left out, their
    bad files are kept. Where all are left out, `inputs` has the shape (0,) and `len(batch)` is 0.
    """
    views = [view for sample in samples for view in sample.views]
    masks = [mask for sample in samples for mask in sample.masks]
    labels = [sample.label for sample in samples for _ in sample.views]
    index = [sample.index for sample in samples for _ in sample.views]
    return Batch(
        inputs=default_collate(views) if views else torch.empty(0),  # in a worker it stacks into shared memory
        labels=torch.tensor(labels, dtype=torch.int64),
        mask=torch.stack(masks) if masks else None,
        index=torch.tensor(index, dtype=torch.int64),
        bad=[file for sample in samples for file in sample.bad],
    )


class Loader:
    """Iterates batches; each `iter()` is one pass over `batch_sampler` from wherever that stands.

    Built by `build_loader`. Between two passes, workers keep running and hold no state: a key says everything.
    """

    def __init__(self, loader: DataLoader, dataset: Dataset, num_workers: int) -> None:
        self._loader = loader
        self.dataset = dataset
        self.batch_sampler = loader.batch_sampler
        self.num_workers = num_workers
        self.bad: dict[str, BadFile] = {}
        """Unreadable files met so far, by path."""

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __bool__(self) -> bool:
        """True, however small this process's share is: where one skipped what is all processes' work, others wait."""
        return True

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self._loader)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                death = death_of_worker(error, self.num_workers)
                if death is None:
                    raise
                raise death from error
            if isinstance(batch, UserError):
                try:
                    raise batch
                finally:
                    del batch  # it and its traceback would hold each other, and the workers wait for the collector
            self.bad.update((file.path, file) for file in batch.bad)
            yield batch


class EvalLoader(Loader):
    """A process's share of what all look at together. Told to stop, all leave at the end of their shares, or before."""

    def __init__(self, loader: Loader, world: World) -> None:
        super().__init__(loader._loader, loader.dataset, loader.num_workers)
        self.world = world

    def __iter__(self) -> Iterator[Batch]:
        """Raises `stop.Interrupted` in all processes where one has been told to stop."""
        for batch in super().__iter__():
            if signals.asked():
                break
            yield batch
        if stop.agreed(self.world):
            raise stop.Interrupted


def build_loader(
    dataset: Dataset, batch_sampler: Iterable[list[SampleKey]], num_workers: int, pin_memory: bool = False
) -> Loader:
    """Batches of `dataset` in the order of `batch_sampler` (`TrainSampler` or `EvalSampler`).

    Args:
        dataset: `dataset[SampleKey] -> Sample`.
        batch_sampler: yields the keys of each batch.
        num_workers: processes that load ahead (`DATA_LOADER.NUM_WORKERS`); 0 loads in this process. The DataLoader
            limits each to one thread.
        pin_memory: copy batches to page-locked memory (`DATA_LOADER.PIN_MEMORY`); only where CUDA is available.

    Raises:
        UserError: while iterating, where the data set raises one or a worker dies.
    """
    loader = DataLoader(
        _ErrorAsValue(dataset),
        batch_sampler=batch_sampler,
        num_workers=num_workers,
        collate_fn=_collate_or_error,
        pin_memory=pin_memory and torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        prefetch_factor=4 if num_workers > 0 else None,
        worker_init_fn=_leave_signals_to_trainer,
        generator=torch.Generator(),  # else each pass would draw a seed from the training process's own stream
    )
    return Loader(loader, dataset, num_workers)


def _leave_signals_to_trainer(worker: int) -> None:
    """A signal to the process group asks the training process to save and leave; it still needs its workers then."""
    for number in signals.SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _kill_workers() -> None:
    """Python ends its daemons by SIGTERM and waits for them, which after the above would be for ever."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler takes a killed worker for an accident
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


multiprocessing.util.Finalize(None, _kill_workers, exitpriority=100)


class _ErrorAsValue(Dataset):
    """Returns a `UserError` in place of the sample: raised in a worker, it would arrive wrapped in a traceback."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, key: SampleKey) -> Sample | UserError:
        try:
            return self.dataset[key]
        except UserError as error:
            return error


def _collate_or_error(samples: Sequence[Sample | UserError]) -> Batch | UserError:
    errors = (sample for sample in samples if isinstance(sample, UserError))
    return next(errors, None) or collate(samples)


def death_of_worker(error: Exception, num_workers: int) -> UserError | None:
    """What to say where `error` comes of a loader process that died; None for any other.

    Mostly torch's handler of SIGCHLD raises it, in whatever the main thread is doing: a step, an evaluation, a save.
    """
    what = " ".join(str(error).split())
    known = "exited unexpectedly" in what or "killed by signal" in what
    if not isinstance(error, RuntimeError) or "DataLoader worker" not in what or not known:
        return None
    return UserError(
        f"a data loading process died ({what}); most often memory or shared memory (/dev/shm) ran out: "
        f"lower DATA_LOADER.NUM_WORKERS (now {num_workers}) or TRAIN.BATCH_SIZE"
    )


def eval_loader(cfg: CfgNode, dataset: Dataset, world: World) -> EvalLoader:
    """This process's share of `dataset`, each file once over all; TEST.BATCH_SIZE of them per machine at a time."""
    batch_size = max(1, cfg.TEST.BATCH_SIZE * world.num_shards // world.size)
    sampler = EvalSampler(len(dataset), batch_size, world.rank, world.size)
    pin_memory = cfg.DATA_LOADER.PIN_MEMORY and world.device.type == "cuda"
    return EvalLoader(build_loader(dataset, sampler, min(cfg.DATA_LOADER.NUM_WORKERS, EVAL_WORKERS), pin_memory), world)
