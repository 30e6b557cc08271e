"""From a model's input back to pixels that can be shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mfm_core.report.panels import denormalise


@dataclass(frozen=True)
class Pixels:
    """Undoes the normalisation by `mean` and `std` of each channel (DATA.MEAN, DATA.STD)."""

    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, images: Tensor) -> list[np.ndarray]:
        """(B, 3, H, W) to B arrays (H, W, 3) uint8."""
        return [denormalise(image, self.mean, self.std) for image in images]
