"""Small pictures to test with."""

import numpy as np
from PIL import Image


def picture(seed, width=90, height=60):
    """A smooth colour picture: noise of 12 cells, enlarged, so that reduced-scale decoding can be compared."""
    cells = np.random.default_rng(seed).uniform(0, 255, size=(8, 12, 3)).astype(np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)
