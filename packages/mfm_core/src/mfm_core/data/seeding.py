"""Seeds that are derived, not carried: every random stream has a name, so nothing has to be saved to resume."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*name: int | str) -> int:
    """A 63-bit seed for the random stream called `name`, e.g. `derive_seed(seed, "order", epoch)`.

    Streams whose names differ in any part are independent (BLAKE2b of the name), and the number is the same on
    every machine and with every number of workers or ranks.
    """
    digest = hashlib.blake2b("/".join(map(str, name)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the global generators of Python, numpy and torch (CPU) inside the block, and restores all three after it.

    Augmentations of timm and torchvision draw from these; with no loader workers they do so in the training process,
    whose own random state must not notice. CUDA generators are not touched (`torch.manual_seed` would).
    """
    python_state, torch_state = random.getstate(), torch.default_generator.get_state()
    numpy_generator = np.random.get_bit_generator()  # swapped, not copied: that takes 70 us
    try:
        random.seed(seed)
        np.random.set_bit_generator(np.random.PCG64(seed))  # an MT19937 takes 88 us to make, this 8
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(python_state)
        np.random.set_bit_generator(numpy_generator)
        torch.default_generator.set_state(torch_state)
