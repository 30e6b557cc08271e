"""The learning rate as a function of the (fractional) epoch: cosine with linear warm-up, as the projects have it.

Loshchilov & Hutter 2017 (SGDR) for the cosine, Goyal et al. 2017 for the warm-up. The defaults are PySlowFast's; each
option is a point on which another project differs: MFM, MAE-priv, mmpretrain, CoinCheung/MFM.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class LRSchedule:
    """Call it with `epoch + iteration / iterations_per_epoch`.

    base, end, warmup_start: learning rates, already scaled. warmup_epochs, max_epoch: in epochs.
    policy: cosine | constant. cosine_after_warmup: the half-cosine runs from the end of warm-up, else from epoch 0;
    the warm-up then ends at the already decayed value, or, with warmup_to_base, at `base`.
    warmup_inclusive: the last step of the warm-up has the value that the warm-up leads to, not the step after it.
    per_epoch: the value changes between epochs only; a "step" is an epoch.
    end_absolute, warmup_start_absolute: these hold for every parameter group, else they shrink with its `lr_scale`.
    """

    base: float
    max_epoch: int
    end: float = 0.0
    warmup_start: float = 0.0
    warmup_epochs: float = 0.0
    policy: str = "cosine"
    cosine_after_warmup: bool = True
    warmup_to_base: bool = False
    warmup_inclusive: bool = False
    per_epoch: bool = False
    end_absolute: bool = False
    warmup_start_absolute: bool = False

    def __call__(self, epoch: float, step: float = 0.0) -> float:
        """The learning rate at `epoch`, 0 <= epoch <= max_epoch; `step` is an optimizer step's length in epochs."""
        if self.per_epoch:
            epoch, step = float(math.floor(epoch)), 1.0
        if epoch < self.warmup_epochs:
            return self._warmup(epoch, self.warmup_epochs - step if self.warmup_inclusive else self.warmup_epochs)
        return self._main(epoch)

    def scaled(self, lr_scale: float) -> LRSchedule:
        """The schedule of a parameter group whose learning rate is `lr_scale` times the others' (layer decay)."""
        return replace(
            self,
            base=self.base * lr_scale,
            end=self.end if self.end_absolute else self.end * lr_scale,
            warmup_start=self.warmup_start if self.warmup_start_absolute else self.warmup_start * lr_scale,
        )

    def _warmup(self, epoch: float, length: float) -> float:
        goal = self.base if self.warmup_to_base else self._main(self.warmup_epochs)
        if length <= 0:  # a warm-up of a single step
            return self.warmup_start
        return epoch * (goal - self.warmup_start) / length + self.warmup_start

    def _main(self, epoch: float) -> float:
        if self.policy == "constant":
            return self.base
        offset = self.warmup_epochs if self.cosine_after_warmup else 0.0
        progress = (epoch - offset) / (self.max_epoch - offset)
        return self.end + (self.base - self.end) * (math.cos(math.pi * progress) + 1.0) * 0.5
