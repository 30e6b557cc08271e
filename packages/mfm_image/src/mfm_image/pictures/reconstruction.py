"""What a pre-trained model makes of images that it sees in part, as a sheet with a row for each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from mfm_core.interfaces import PretrainOutput
from mfm_core.objective import CorruptedPrediction, Pretraining
from mfm_core.report.panels import sheet
from mfm_core.report.pixels import Pixels
from mfm_core.report.scene import Scene, draw, remarks_on


def reconstruction_sheet(
    model: Pretraining,
    images: Tensor,
    output: PretrainOutput,
    pixels: Pixels,
    captions: Sequence[str] | None = None,
) -> tuple[Image.Image, str]:
    """One row for each of `images` (B, 3, H, W), of which `output` is the prediction, and what to know of it."""
    scene = scene_of(model, images, output, pixels)
    columns = draw(model.target, scene)
    return sheet(list(zip(*columns.values())), list(columns), captions), remarks_on(model.target, columns)


def scene_of(model: Pretraining, images: Tensor, output: PretrainOutput, pixels: Pixels) -> Scene:
    """What there is to draw of a method's output."""
    hidden = frequencies = seen = None
    if isinstance(model, CorruptedPrediction):
        seen = model.corruption(images, output.mask)
        if output.mask.dtype == torch.bool and output.mask.shape[-2:] == images.shape[-2:]:
            frequencies = output.mask.reshape(len(images), *images.shape[-2:])
    else:
        hidden = output.mask.reshape(len(images), *model.backbone.grid)
    backbone = model.backbone
    return Scene(images, output, backbone.grid, backbone.patch_stride, pixels, hidden, frequencies, seen)
