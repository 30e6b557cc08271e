"""Images per second and core: our image data set beside torchvision's ImageFolder with the same transforms
(RandAugment and random erasing, in the row that has them, are timm's on both sides, there on images of PIL).

Both read the same JPEG files (made here, seeded; 500x375 and larger), in this process, on one thread, in turns; the
median round of each counts (the best would be the one whose policy drew the cheapest operations).
`python tools/benchmark_loader.py`
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torchvision.transforms as T
from PIL import Image, ImageDraw
from torchvision.datasets import ImageFolder as TorchvisionFolder

from mfm_core.data.augment import build_auto_augment, build_erasing
from mfm_core.interfaces import SampleKey
from mfm_image.data.dataset import ImageDataset
from mfm_image.data.folder import ImageFolder
from mfm_image.data.transforms import EvalTransform, TrainTransform

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 224
BICUBIC = T.InterpolationMode.BICUBIC


def photo(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A picture with the statistics that matter to a JPEG decoder: noise at many scales, and edges."""
    pixels = np.full((height, width, 3), 128, np.float32)
    for cells, strength in ((5, 45), (20, 25), (60, 15), (150, 11), (400, 9)):
        shape = (max(2, cells * 3 // 4), cells)
        grey = rng.normal(size=(*shape, 1)) + 0.3 * rng.normal(size=(*shape, 3))
        for channel in range(3):
            layer = Image.fromarray((strength * grey[..., channel]).astype(np.float32))
            pixels[..., channel] += np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(8):
        x, y, radius = rng.integers(0, width), rng.integers(0, height), rng.integers(10, 80)
        color = tuple(int(v) for v in rng.integers(0, 255, 3))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=color, width=3)
    return image


def make_photos(root: Path, count: int, width: int, height: int) -> None:
    """`count` JPEG files of quality 90 below `root/train`, in two classes."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = root / "train" / f"class{i % 2}" / f"{i:04d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(rng, width, height).save(path, quality=90)


def recipes() -> dict[str, tuple[Callable, Callable]]:
    """Per row: our transform, and the same one of torchvision (or timm)."""
    to_input = [T.ToTensor(), T.Normalize(MEAN, STD)]
    flip = T.RandomHorizontalFlip()
    ours = {
        "pre-training": TrainTransform(SIZE, MEAN, STD, scale=(0.5, 1.0)),
        "fine-tuning, no policy": TrainTransform(SIZE, MEAN, STD, scale=(0.08, 1.0)),
        "fine-tuning": TrainTransform(
            SIZE, MEAN, STD, scale=(0.08, 1.0), auto_augment="rand-m9-mstd0.5-inc1", erase_prob=0.25
        ),
        "evaluation": EvalTransform(SIZE, MEAN, STD),
    }
    theirs = {
        "pre-training": T.Compose([T.RandomResizedCrop(SIZE, (0.5, 1.0), interpolation=BICUBIC), flip, *to_input]),
        "fine-tuning, no policy": T.Compose(
            [T.RandomResizedCrop(SIZE, (0.08, 1.0), interpolation=BICUBIC), flip, *to_input]
        ),
        "fine-tuning": T.Compose(
            [
                T.RandomResizedCrop(SIZE, (0.08, 1.0), interpolation=BICUBIC),
                flip,
                build_auto_augment("rand-m9-mstd0.5-inc1", SIZE, MEAN, "bicubic"),
                *to_input,
                build_erasing(0.25, "pixel", 1),
            ]
        ),
        "evaluation": T.Compose([T.Resize(256, interpolation=BICUBIC), T.CenterCrop(SIZE), *to_input]),
    }
    return {name: (ours[name], theirs[name]) for name in ours}


def seconds_per_image(load: Callable[[int], object], count: int) -> float:
    """Of this process, on average over one pass through the data set; time that others take does not count."""
    start = time.process_time()
    for i in range(count):
        load(i)
    return (time.process_time() - start) / count


def compare(root: Path, ours: Callable, theirs: Callable, rounds: int) -> tuple[float, float]:
    """Images per second of both, the median of `rounds` that take turns."""
    folder = ImageFolder(root, "train")
    dataset, reference = ImageDataset(folder, ours), TorchvisionFolder(str(root / "train"), theirs)
    times = [
        (
            seconds_per_image(lambda i, e=epoch: dataset[SampleKey(e, i)], len(folder)),
            seconds_per_image(lambda i: reference[i], len(folder)),
        )
        for epoch in range(rounds)
    ]
    return 1 / median(t[0] for t in times), 1 / median(t[1] for t in times)


def rows(count: int = 100, rounds: int = 7, sizes: tuple = ((500, 375), (2000, 1500))) -> list[dict]:
    """One row per recipe and image size: name, ours, theirs (images per second of one core) and the ratio."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = []
    try:
        for width, height in sizes:
            small = width * height < 1_000_000
            with tempfile.TemporaryDirectory() as folder:
                make_photos(Path(folder), count if small else count // 5, width, height)
                for name, (ours, theirs) in recipes().items():
                    speed, reference = compare(Path(folder), ours, theirs, rounds if small else 3)
                    result.append(
                        {
                            "name": f"loader, {name}, {width}x{height}",
                            "unit": "images/s",
                            "ours": speed,
                            "theirs": reference,
                            "ratio": speed / reference,
                        }
                    )
    finally:
        torch.set_num_threads(threads)
    return result


def main() -> None:
    """Prints the table."""
    print(f"{'':44}{'ours':>10}{'torchvision':>13}{'ratio':>8}   images per second of one core")
    for row in rows():
        print(f"{row['name']:44}{row['ours']:10.0f}{row['theirs']:13.0f}{row['ratio']:8.2f}")


if __name__ == "__main__":
    main()
