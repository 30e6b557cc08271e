"""A part of torchrun's store for one start of the processes alone.

torchrun keeps one store over its restarts. What the processes of an earlier start have written there stays: gloo and
NCCL would take the addresses of dead processes for those of living ones, and wait for them until the time is out. The
number of restarts does not tell the starts apart, for machines count their own.
"""

from __future__ import annotations

import os
import time
import uuid
from datetime import timedelta

from torch.distributed import DistStoreError, PrefixStore, Store, TCPStore

PAUSE_S = 0.05


def store_of_this_start(rank: int, size: int, timeout_s: float) -> Store | None:
    """What `init_process_group` is to take; None where no store outlives a start.

    Raises DistStoreError where the others do not come in time.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, size, is_master=False, timeout=timedelta(seconds=timeout_s))
    return PrefixStore(agree(store, rank, size, timeout_s), store)


def agree(store: Store, rank: int, size: int, timeout_s: float) -> str:
    """A name that rank 0 has made up for this start, and that no rank can have from an earlier one.

    Each other rank shows a number of its own and waits for the answer to this very number. Rank 0 answers whatever it
    finds, for a number may be an earlier start's, until all have confirmed this start's name.
    """
    if rank:
        own = uuid.uuid4().hex
        store.set(f"mfm/from/{rank}", own)
        name = store.get(f"mfm/to/{own}").decode()
        store.set(f"{name}/{rank}", "")
        return name
    name, deadline = f"mfm/{uuid.uuid4().hex}", time.monotonic() + timeout_s
    while missing := [r for r in range(1, size) if not store.check([f"{name}/{r}"])]:
        for r in missing:
            if store.check([f"mfm/from/{r}"]):
                store.set(f"mfm/to/{store.get(f'mfm/from/{r}').decode()}", name)
        if time.monotonic() > deadline:
            raise DistStoreError(f"processes {missing} did not come")
        time.sleep(PAUSE_S)
    return name
