"""What a pre-trained model makes of an image that it sees in part: input, target, prediction, both put together.

The drawing is chosen by the type of the target (`draw`), and what there is to put together by what the method hides.
A frame of a clip is such an image, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import singledispatch

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mfm_core.interfaces import PretrainOutput, Target
from mfm_core.report.glyphs import hog_glyphs
from mfm_core.report.panels import masked_image
from mfm_core.report.pixels import Pixels
from mfm_core.report.spectrum import join_frequencies, log_amplitude, spectrum_panel
from mfm_core.targets.hog import HOGTarget
from mfm_core.targets.pixel import PixelTarget

Columns = dict[str, list[np.ndarray]]
"""Title -> a panel (H, W, 3) uint8 for each image."""
REMARKS = {
    "HOG target": "strokes lie along the edges that a cell holds",
    "predicted HOG": "bright where the loss counts",
    "prediction + visible": "prediction + visible: what the encoder saw in place of its prediction",
    "prediction + kept": "prediction + kept: removed frequencies from the prediction, the others from the target",
    "target spectrum": "spectra: log amplitude, frequency zero in the middle, in each row's own colour scale",
}
"""Title -> what a reader of the sheet should know of that column."""


@dataclass(frozen=True)
class Scene:
    """One prediction to draw: images (B, 3, H, W) as the model takes them, and its output for them.

    hidden: (B, h, w) bool over the token grid, None where the image is corrupted as a whole. frequencies: (B, H, W)
    bool, True = removed, zero in the middle, None where that is not what is done. seen: the corrupted images, None
    where tokens are hidden. glyph_side: the least pixels of a panel of HOG glyphs.
    """

    images: Tensor
    output: PretrainOutput
    grid: tuple[int, ...]
    patch: tuple[int, ...]
    pixels: Pixels
    hidden: Tensor | None
    frequencies: Tensor | None
    seen: Tensor | None
    glyph_side: int = 448

    def input(self) -> Columns:
        """What entered the encoder."""
        if self.seen is not None:
            title = "degraded input" if self.frequencies is None else "filtered input"
            return {title: self.pixels(self.seen)}
        shown = zip(self.pixels(self.images), self.hidden)
        return {"masked input": [masked_image(image, mask, self.patch) for image, mask in shown]}


def remarks_on(target: Target, columns: Iterable[str]) -> str:
    """What a reader of these columns should know."""
    remarks = [REMARKS[title] for title in columns if title in REMARKS]
    if isinstance(target, PixelTarget) and target.normalise != "none":
        remarks.append("the mean and the contrast of each patch are not predicted, and taken from the image")
    return "; ".join(remarks)


@singledispatch
def draw(target: Target, scene: Scene) -> Columns:
    """The columns for a target that is an image in another order: `target.to_images(tokens, images)` undoes that."""
    return draw_images(
        scene, *(target.to_images(x, scene.images) for x in (scene.output.target, scene.output.prediction))
    )


def draw_images(scene: Scene, wanted: Tensor, prediction: Tensor) -> Columns:
    """The columns for a target and a prediction that are images (B, 3 or 1, H, W), normalised.

    Where they are grey ones, which is not what is shown first, the target has a column of its own.
    """
    wanted, prediction = wanted.to(scene.images.dtype), prediction.to(scene.images.dtype)
    grey = wanted.shape != scene.images.shape
    columns = {"image" if grey else "image = target": scene.pixels(scene.images), **scene.input()}
    columns |= {"grey target": scene.pixels(wanted)} if grey else {}
    columns["prediction"] = scene.pixels(prediction)
    if scene.hidden is not None:
        whole = torch.where(_over_pixels(scene.hidden, scene.patch)[:, None], prediction, scene.images)
        return {**columns, "prediction + visible": scene.pixels(whole)}
    if scene.frequencies is not None:
        whole = join_frequencies(prediction, wanted, scene.frequencies)
        columns["prediction + kept"] = scene.pixels(whole)
    return {**columns, **_spectra(scene, wanted, prediction)}


@draw.register
def _(target: HOGTarget, scene: Scene) -> Columns:
    """Glyphs; in the prediction the visible patches, which the loss does not count, are dimmed."""
    wanted, predicted = (target.ungroup(x, scene.grid).float() for x in (scene.output.target, scene.output.prediction))
    side = max(6, scene.glyph_side // wanted.shape[-1])
    columns = {
        "image": scene.pixels(scene.images),
        **scene.input(),
        "HOG target": [hog_glyphs(hog, side) for hog in wanted],
    }
    if scene.hidden is None:
        return {**columns, "predicted HOG": [hog_glyphs(hog, side) for hog in predicted]}
    per_token = tuple(cells // tokens for cells, tokens in zip(wanted.shape[-2:], scene.grid))
    cells = _over_pixels(scene.hidden, per_token).cpu().numpy()
    columns["predicted HOG"] = [hog_glyphs(hog, side, shown=hidden) for hog, hidden in zip(predicted, cells)]
    bright = (hog_glyphs(hog, side) for hog in predicted)
    columns["prediction + visible"] = [_paste(*parts, side) for parts in zip(columns["image"], bright, cells)]
    return columns


def _paste(image: np.ndarray, glyphs: np.ndarray, hidden: np.ndarray, side: int) -> np.ndarray:
    """`glyphs` with the enlarged `image` where `hidden`, (cells y, cells x), is False."""
    high, wide = glyphs.shape[:2]
    enlarged = Image.fromarray(image).resize((wide, high), Image.Resampling.NEAREST)
    covered = hidden.repeat(side, axis=0).repeat(side, axis=1)
    return np.where(covered[..., None], glyphs, np.asarray(enlarged))


def _spectra(scene: Scene, wanted: Tensor, prediction: Tensor) -> Columns:
    """Log amplitudes of target, input and prediction, each row in the colours of its target."""
    titles = ("target spectrum", "input spectrum", "predicted spectrum")
    amplitudes = [log_amplitude(x) for x in (wanted, scene.seen, prediction)]
    return {title: [spectrum_panel(*pair) for pair in zip(a, amplitudes[0])] for title, a in zip(titles, amplitudes)}


def _over_pixels(hidden: Tensor, patch: Sequence[int]) -> Tensor:
    """(B, h, w) over tokens to (B, H, W) over what is `patch` of each."""
    return hidden.repeat_interleave(patch[-2], dim=1).repeat_interleave(patch[-1], dim=2)
