"""Image folders of a few files, made in a temporary folder."""

import numpy as np
import pytest
from PIL import Image


def picture(seed, width=90, height=60):
    """A smooth colour picture: noise of 12 cells, enlarged, so that reduced-scale decoding can be compared."""
    cells = np.random.default_rng(seed).uniform(0, 255, size=(8, 12, 3)).astype(np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory):
    """3 classes with 8 training and 2 validation JPEG files each, of different sizes."""
    root = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 8), ("val", 2)):
        for number, name in enumerate(("apple", "bear", "cat")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                seed = 1000 * number + i + (500 if split == "val" else 0)
                picture(seed, 80 + 5 * i, 60 + 3 * number).save(folder / f"{i}.JPEG", quality=95)
    return root
