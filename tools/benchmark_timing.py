"""What the benchmarks share: rows of the table, timing in turns, test pictures, the rate of matrix products."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """One line of the table: what was done, on how many threads (0: a GPU), seconds of both sides, and a remark."""

    name: str
    case: str
    threads: int
    plain: float
    ours: float
    remark: str = ""


def median_times(sides: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Seconds of each side: medians of `repeats` runs, the sides in turns, after two runs to warm up."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 2):
        for name, run in sides.items():
            seconds = _time_once(run, device)
            if turn >= 2:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def _time_once(run: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    run()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1000


@contextmanager
def threads_of(count: int) -> Iterator[None]:
    """torch computes on `count` CPU threads inside, and on as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pictures(count: int, size: int, device: torch.device) -> Tensor:
    """(count, 3, size, size) float32: smooth colour fields with grain, in 8 bits, normalised as ImageNet is."""
    generator = torch.Generator().manual_seed(0)
    fields = torch.rand(count, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(fields, size=(size, size), mode="bicubic")
    grain = torch.randn(count, 3, size, size, generator=generator) / 50
    levels = ((smooth + grain).clamp_(0, 1) * 255).round_() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ((levels - mean) / std).to(device)


def product(side: int, dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    """Multiplies two (side, side) matrices of `dtype` when called: 2 * side^3 floating-point operations."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)
