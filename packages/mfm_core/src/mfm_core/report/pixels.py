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
        """(B, 3, H, W), or (B, 1, H, W) of grey, to B arrays (H, W, 3) uint8."""
        mean, std = self.mean, self.std
        if images.shape[1] == 1:  # luma of normalised channels: neutral where it is shown, too
            mean, std = ([sum(values) / len(values)] for values in (mean, std))
        return [denormalise(image, mean, std) for image in images]
