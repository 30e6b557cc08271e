"""What the doctors of image folders and of video lists share: inspecting files in processes, finding equal ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import numpy as np
import torch

from mfm_core.errors import UserError


@contextmanager
def mapper(inspect: Callable, workers: int) -> Iterator[Callable[[Iterable], Iterator]]:
    """A `map` of `inspect` over paths: in this process, or in `workers` others that are running already."""
    if not workers:
        yield lambda paths: map(inspect, paths)
        return
    with ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(abs, range(workers * 4)))
        yield lambda paths: _in_blocks(pool, inspect, paths, 64 * workers)


def _in_blocks(pool: ProcessPoolExecutor, inspect: Callable, paths: Iterable, size: int) -> Iterator[tuple]:
    """`pool.map` a block at a time: given everything, it would make a million futures before the first result."""
    block: list = []
    try:
        for path in paths:
            block.append(path)
            if len(block) == size:
                yield from pool.map(inspect, block, chunksize=16)
                block = []
        yield from pool.map(inspect, block, chunksize=16)
    except BrokenProcessPool as error:
        raise UserError("a checking process died, most often for lack of memory; use fewer workers") from error


def equal_groups(digest: np.ndarray) -> list[np.ndarray]:
    """Rising places of files of the same (n,) `digest`, two or more in each group; groups by their first file."""
    order = np.argsort(digest, kind="stable")
    digest = digest[order]
    groups = np.split(order, np.flatnonzero(digest[1:] != digest[:-1]) + 1)
    return sorted((group for group in groups if len(group) > 1), key=lambda group: group[0])


def spread(values: np.ndarray) -> tuple[int, int, int]:
    """Minimum, median and maximum."""
    return int(values.min()), int(np.median(values)), int(values.max())


def listing(title: str, total: int, items: list[str]) -> list[str]:
    """Lines that name the first few of `total` findings; none where there are none."""
    more = [f"  ... and {total - len(items)} more"] if total > len(items) else []
    return [f"{title}: {total}", *(f"  {item}" for item in items), *more] if total else []
