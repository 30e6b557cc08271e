"""Sheets that show what a model predicts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from mfm_core.interfaces import PretrainOutput
from mfm_core.objective import MaskedPrediction
from mfm_core.report.glyphs import hog_glyphs
from mfm_core.report.panels import denormalise, masked_image, sheet

TITLES = ("image", "masked input", "HOG target", "predicted HOG")


def hog_sheet(
    model: MaskedPrediction, images: Tensor, output: PretrainOutput, mean: Sequence[float], std: Sequence[float]
) -> Image.Image:
    """One row for each of `images` (N, 3, H, W): image, masked input, HOG target, HOG prediction.

    In the prediction the hidden patches are bright; the visible ones, which the loss does not count, are dimmed.
    """
    grid, patch = model.backbone.grid, model.backbone.patch_stride
    target, prediction = (model.target.ungroup(x, grid) for x in (output.target, output.prediction))
    rows = []
    for i, tensor in enumerate(images):
        image = denormalise(tensor, mean, std)
        mask = output.mask[i].reshape(grid).cpu().numpy()
        cells = np.kron(mask, np.ones(np.array(target.shape[-2:]) // np.array(grid), dtype=bool))
        side = max(6, 448 // target.shape[-1])
        rows.append(
            [
                image,
                masked_image(image, mask, patch),
                hog_glyphs(target[i].float(), side),
                hog_glyphs(prediction[i].float(), side, shown=cells),
            ]
        )
    return sheet(rows, TITLES)
