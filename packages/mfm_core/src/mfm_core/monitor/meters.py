"""What the loop measures as it goes: speed, time left, peak memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class Throughput:
    """Images per second and time left, exponentially smoothed over steps; time spent in `paused` does not count.

    The first `skip` steps are left out: compilation and the start of the loader are not the speed of the run.
    On a GPU the single step is queued rather than done when it is counted; over the smoothing span this evens out.
    """

    def __init__(self, span: int = 50, skip: int = 1, clock: Callable[[], float] = time.perf_counter) -> None:
        """`span`: about how many steps are averaged over. `clock`: seconds, increasing."""
        self._decay, self._skip, self._clock = 1.0 - 1.0 / span, skip, clock
        self._mark = clock()
        self._steps = 0
        self._seconds = self._images = self._weight = 0.0
        self._pauses, self._pause_seconds = 0, 0.0

    def step(self, images: int) -> None:
        """One optimizer step over `images` images (of all ranks) has been taken."""
        now = self._clock()
        elapsed, self._mark = now - self._mark, now
        self._steps += 1
        if self._steps <= self._skip:
            return
        self._seconds = self._decay * self._seconds + elapsed
        self._images = self._decay * self._images + images
        self._weight = self._decay * self._weight + 1.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time in here (evaluation, checkpoints, pictures) is not training time; it is remembered for `eta_s`."""
        start = self._clock()
        try:
            yield
        finally:
            spent = self._clock() - start
            self._mark += spent
            self._pauses += 1
            self._pause_seconds += spent

    @property
    def images_per_s(self) -> float:
        """NaN until a step has been measured."""
        return self._images / self._seconds if self._seconds > 0 else float("nan")

    def eta_s(self, steps_left: int, pauses_left: int = 0) -> float:
        """Seconds left for `steps_left` steps and `pauses_left` pauses as long as those so far; NaN when not known."""
        if self._weight == 0:
            return float("nan")
        pauses = pauses_left * self._pause_seconds / self._pauses if self._pauses else 0.0
        return steps_left * self._seconds / self._weight + pauses


def peak_memory_gb(device: torch.device | str) -> float:
    """The most memory used so far, in 1024^3 bytes: allocated on a CUDA device, or this process's resident on CPU."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1024**3
    try:
        import resource  # POSIX only
    except ImportError:
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1024**3
