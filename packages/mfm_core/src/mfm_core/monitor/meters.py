"""What the loop measures as it goes: means that stay on the device, speed and time left, peak memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


class Mean:
    """A weighted mean whose sums stay on the device of its values; only `read` waits for the device."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._total: Tensor | float = 0.0
        self._weight: Tensor | float = 0.0

    def update(self, value: Tensor | float, weight: Tensor | float = 1.0) -> None:
        """Adds a scalar that is itself a mean over `weight` terms (images, masked tokens)."""
        self._total = self._total + _double(value) * _double(weight)
        self._weight = self._weight + _double(weight)

    def read(self) -> float:
        """The mean so far on this process; NaN where nothing was added."""
        total, weight = float(self._total), float(self._weight)
        return total / weight if weight else float("nan")

    def sums(self) -> tuple[Tensor | float, Tensor | float]:
        """(weighted total, weight), not yet read from the device."""
        return self._total, self._weight


class Means:
    """Named means: `update` with the scalars of a step, `read` them all with one wait for the device."""

    def __init__(self) -> None:
        self._means: dict[str, Mean] = {}

    def update(self, values: Mapping[str, Tensor | float], weight: Tensor | float = 1.0) -> None:
        """Adds one scalar per name, each a mean over `weight` terms."""
        for name, value in values.items():
            self._means.setdefault(name, Mean()).update(value, weight)

    def read(self, device: torch.device | str = "cpu", across_ranks: bool = False) -> dict[str, float]:
        """The means by name, in the order they first came.

        `across_ranks`: over all processes of the default group; then every rank must call with the same names, and
        `device` must suit the group's backend. The result is the same on every rank.
        """
        if not self._means:
            return {}
        parts = [part for mean in self._means.values() for part in mean.sums()]
        sums = torch.stack([torch.as_tensor(part, dtype=torch.float64).to(device) for part in parts])
        if across_ranks and dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        pairs = sums.view(-1, 2).tolist()
        return {name: total / weight if weight else float("nan") for name, (total, weight) in zip(self._means, pairs)}

    def reset(self) -> None:
        self._means.clear()


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


def _double(value: Tensor | float) -> Tensor | float:
    """Sums over a long epoch are kept in float64."""
    return value.detach().double() if isinstance(value, Tensor) else float(value)
