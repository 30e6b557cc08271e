"""Measures the parts that are meant to be fast beside their plain formulations, and prints one table with ratios.

    python tools/benchmark.py                                everything
    python tools/benchmark.py --only hog --threads 1 2
    python tools/benchmark.py --only step --device cuda --batch 256

Both sides of a row run in turns in the same process, on the same data; the times are medians. A new row is a function
from the arguments to `Row`s, listed in BENCHMARKS.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from benchmark_attention import benchmark_attention
from benchmark_mae import benchmark_mae
from benchmark_methods import benchmark_methods
from benchmark_plain import plain_hog
from benchmark_step import benchmark_mfm, benchmark_step
from benchmark_timing import Row, median_times, pictures, threads_of

from mfm_core.errors import UserError
from mfm_core.targets.hog import hog


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
        with threads_of(threads):
            times = median_times(sides, args.repeats, device)
        yield Row("hog", case, threads, times["plain"], times["ours"], f"{same:.1%} of numbers equal")


def benchmark_loader(args: argparse.Namespace) -> Iterator[Row]:
    """Processor time per image of our data set beside torchvision's ImageFolder; see `benchmark_loader.py`."""
    from benchmark_loader import rows  # it needs the image package

    for row in rows(count=args.photos):
        name, *case = row["name"].split(", ")
        speeds = f"{row['ours']:.0f} images/s per core, torchvision {row['theirs']:.0f}"
        yield Row(name, ", ".join(case), 1, 1 / row["theirs"], 1 / row["ours"], speeds)


def benchmark_decode(args: argparse.Namespace) -> Iterator[Row]:
    """Clips of videos beside PyAV that decodes whole files, and beside PyAV that seeks; see `benchmark_decode.py`."""
    from benchmark_decode import benchmark_decode  # it needs the video package

    yield from benchmark_decode(args)


def benchmark_mvit(args: argparse.Namespace) -> Iterator[Row]:
    """MaskFeat's step on MViTv2-S beside the same model of torchvision's blocks; see `benchmark_video.py`."""
    from benchmark_video import benchmark_mvit  # it needs the video package

    yield from benchmark_mvit(args)


def benchmark_pooling(args: argparse.Namespace) -> Iterator[Row]:
    """The depthwise convolutions of MViTv2-S on a CPU beside torch's own; see `benchmark_video.py`."""
    from benchmark_video import benchmark_pooling  # it needs the video package

    yield from benchmark_pooling(args)


def benchmark_strategies(args: argparse.Namespace) -> Iterator[Row]:
    """The training step under each strategy in several processes; see `benchmark_strategies.py`."""
    from benchmark_strategies import benchmark_strategies  # it needs fairscale

    yield from benchmark_strategies(args)


BENCHMARKS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "hog": benchmark_hog,
    "attention": benchmark_attention,
    "step": benchmark_step,
    "mae": benchmark_mae,
    "mfm": benchmark_mfm,
    "methods": benchmark_methods,
    "loader": benchmark_loader,
    "decode": benchmark_decode,
    "mvit": benchmark_mvit,
    "pooling": benchmark_pooling,
    "strategies": benchmark_strategies,
}


def machine(device: torch.device) -> str:
    """The processor or GPU by name, and the versions that matter."""
    if device.type == "cuda":
        tf32 = "on" if torch.backends.cuda.matmul.allow_tf32 else "off"
        name = f"{torch.cuda.get_device_name(device)} (TF32 {tf32})"
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


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS), metavar="NAME",
        help=f"the benchmarks to run: {', '.join(BENCHMARKS)} (default: all)")  # fmt: skip
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, nargs="+", default=sorted({1, torch.get_num_threads()}),
        help="thread counts to measure on a CPU (default: 1 and all; the step takes the largest)")  # fmt: skip
    add("--repeats", type=int, default=15, help="timed runs per side (default: %(default)s)")
    add("--batch", type=int, help="images or clips in a training step (default: 8 or 1 on a CPU, 128 or 16 on a GPU)")
    add("--compile", action=argparse.BooleanOptionalAction, default=None,
        help="measure the training step under torch.compile too (default: on a GPU)")  # fmt: skip
    add("--peak-tflops", type=float,
        help="the device's dense 16-bit peak, to relate the step to (default: 989 on an H100 or H200)")  # fmt: skip
    add("--set", nargs="+", default=[], metavar="KEY VALUE", help="changes to the configuration of the step")
    add("--attention-shapes", type=int, nargs=4, action="append", metavar=("B", "HEADS", "TOKENS", "WIDTH"),
        help="in place of the standard ones; can be given several times")  # fmt: skip
    add("--photos", type=int, default=100, help="JPEG files that the loader reads (default: %(default)s)")
    add("--videos", help="a folder of videos to decode (default: one that is made)")
    add("--frames", type=int, default=300, help="of the video that is made (default: %(default)s)")
    return parser.parse_args()


def main() -> int:
    """Returns the exit code: 0, or 2 after one line that says what is wrong."""
    args = parse_arguments()
    print(machine(torch.device(args.device)), end="\n\n")
    try:
        print_table([row for name in args.only for row in BENCHMARKS[name](args)])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
