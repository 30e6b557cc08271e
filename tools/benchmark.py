"""Measures the parts that are meant to be fast beside their plain formulations, and prints one table with ratios.

    python tools/benchmark.py                                everything
    python tools/benchmark.py --only hog --threads 1 2
    python tools/benchmark.py --only hog --device cuda

Both sides of a row run in turns in the same process, on the same data; the times are medians. A new row is a function
from the arguments to `Row`s, listed in BENCHMARKS.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from benchmark_plain import plain_hog
from torch import Tensor

from mfm_core.targets.hog import hog


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


def pictures(count: int, size: int, device: torch.device) -> Tensor:
    """(count, 3, size, size) float32: smooth colour fields with grain, in 8 bits, normalised as ImageNet is."""
    generator = torch.Generator().manual_seed(0)
    fields = torch.rand(count, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(fields, size=(size, size), mode="bicubic")
    grain = torch.randn(count, 3, size, size, generator=generator) / 50
    levels = ((smooth + grain).clamp_(0, 1) * 255).round_() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ((levels - mean) / std).to(device)


def benchmark_hog(args: argparse.Namespace) -> Iterator[Row]:
    """HOG of a batch of 224 x 224 images: 8 on a CPU, 256 (more than a GPU's caches hold) on a GPU."""
    device = torch.device(args.device)
    images = pictures(8 if device.type == "cpu" else 256, 224, device)
    same = torch.isclose(hog(images), plain_hog(images), rtol=1e-4, atol=1e-5).float().mean().item()
    sides = {"plain": lambda: plain_hog(images), "ours": lambda: hog(images)}
    case = "x".join(map(str, images.shape))
    if device.type == "cuda":
        copy = torch.empty_like(images)
        times = median_times({**sides, "copy": lambda: copy.copy_(images)}, args.repeats, device)
        moved = images.nbytes + hog(images).nbytes
        bandwidth = 2 * images.nbytes / times["copy"]
        remark = (
            f"{same:.1%} of numbers equal; {moved / times['ours'] / 1e9:.0f} GB/s, a copy {bandwidth / 1e9:.0f} GB/s: "
            f"{times['ours'] * bandwidth / moved:.2f} times the time of reading and writing"
        )
        yield Row("hog", case, 0, times["plain"], times["ours"], remark)
        return
    for threads in args.threads:
        torch.set_num_threads(threads)
        times = median_times(sides, args.repeats, device)
        yield Row("hog", case, threads, times["plain"], times["ours"], f"{same:.1%} of numbers equal")


BENCHMARKS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {"hog": benchmark_hog}


def machine(device: torch.device) -> str:
    """The processor or GPU by name, and the versions that matter."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        cpuinfo = Path("/proc/cpuinfo")
        models = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
        processor = models[0].split(":")[1].strip() if models else platform.processor() or platform.machine()
        name = f"{processor}, {os.cpu_count()} CPUs (load {os.getloadavg()[0]:.1f} at the start)"
    return f"{name}; torch {torch.__version__}, Python {platform.python_version()}, {platform.system()}"


def print_table(rows: list[Row]) -> None:
    """The rows as a table in Markdown, as the README holds it."""
    print("| benchmark | case | threads | plain | ours | ratio | remark |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.name} | {row.case} | {row.threads or 'GPU'} | {row.plain * 1e3:.2f} ms | {row.ours * 1e3:.2f} ms "
            f"| {row.plain / row.ours:.1f} | {row.remark} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(BENCHMARKS), default=sorted(BENCHMARKS), metavar="NAME",
                        help=f"the benchmarks to run: {', '.join(sorted(BENCHMARKS))} (default: all)")  # fmt: skip
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, torch.get_num_threads()}),
                        help="thread counts to measure on a CPU (default: 1 and all)")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=15, help="timed runs per side (default: %(default)s)")
    args = parser.parse_args()
    print(machine(torch.device(args.device)), end="\n\n")
    print_table([row for name in args.only for row in BENCHMARKS[name](args)])


if __name__ == "__main__":
    main()
