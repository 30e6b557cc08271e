"""The learning rate as a function of the (fractional) epoch: cosine with linear warm-up, as PySlowFast has it.

Loshchilov & Hutter 2017 (SGDR) for the cosine, Goyal et al. 2017 for the warm-up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class LRSchedule:
    """Call it with `epoch + iteration / iterations_per_epoch`.

    base, end, warmup_start: learning rates, already scaled. warmup_epochs, max_epoch: in epochs.
    policy: cosine | constant. cosine_after_warmup: the half-cosine runs from the end of warm-up, else from epoch 0
    (the warm-up then ends at the already decayed value).
    """

    base: float
    max_epoch: int
    end: float = 0.0
    warmup_start: float = 0.0
    warmup_epochs: float = 0.0
    policy: str = "cosine"
    cosine_after_warmup: bool = True

    def __call__(self, epoch: float) -> float:
        """The learning rate at `epoch`, 0 <= epoch <= max_epoch."""
        if epoch < self.warmup_epochs:
            slope = (self._main(self.warmup_epochs) - self.warmup_start) / self.warmup_epochs
            return epoch * slope + self.warmup_start
        return self._main(epoch)

    def _main(self, epoch: float) -> float:
        if self.policy == "constant":
            return self.base
        offset = self.warmup_epochs if self.cosine_after_warmup else 0.0
        progress = (epoch - offset) / (self.max_epoch - offset)
        return self.end + (self.base - self.end) * (math.cos(math.pi * progress) + 1.0) * 0.5
