"""All randomness of a run is a function of its seed and its position, never of what was computed before.

The loader seeds each sample (`data.seeding`) and each training step seeds the global generators from (seed, step,
rank): drop path, dropout and Mixup draw from those. A resumed run therefore needs no saved random state, and neither
evaluation nor the number of loader workers can change what training draws.
"""

from __future__ import annotations

import random

import numpy as np
import torch

from mfm_core.data.seeding import derive_seed


def seed_everything(*name: int | str) -> None:
    """Seeds Python's, NumPy's and torch's global generators (all devices) for the random stream called `name`."""
    seed = derive_seed(*name)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
