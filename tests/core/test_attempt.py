"""The processes of one start find each other in a store that still holds what an earlier start wrote."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import DistStoreError, HashStore

from mfm_core.parallel.attempt import agree


def start(store, size, late=()):
    """The names that all ranks of one start agree on; those in `late` come last, as after a restart."""
    order = sorted(range(size), key=lambda rank: rank in late)
    with ThreadPoolExecutor(size) as threads:
        futures = {rank: threads.submit(agree, store, rank, size, 20.0) for rank in order}
        return [futures[rank].result() for rank in range(size)]


@pytest.mark.parametrize("late", [(), (0,), (1, 2)])
def test_starts_on_one_store(late):
    """Whoever comes first, all of a start have one name, and never an earlier start's."""
    store, names = HashStore(), []
    for size in (3, 3, 2, 4):
        found = start(store, size, late)
        assert len(set(found)) == 1, found
        names.append(found[0])
    assert len(set(names)) == len(names)


def test_those_of_an_earlier_start_do_not_count():
    """Rank 0 of a start whose others are all dead finds what they left behind, and gives up."""
    store = HashStore()
    start(store, 3)
    with pytest.raises(DistStoreError, match=r"processes \[1, 2\] did not come"):
        agree(store, 0, 3, 0.3)
