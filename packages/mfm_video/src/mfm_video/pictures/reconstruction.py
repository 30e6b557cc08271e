"""What a pre-trained model makes of clips that it sees in part: frames side by side, and an animation.

Each frame is drawn as an image is (`mfm_core.report.scene`). Shown are the frames that the model predicts: MaskFeat the
first one of each token in time, MAE the first or all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch

from PIL import Image
from torch import Tensor

from mfm_core.interfaces import Grid, PretrainOutput, Target
from mfm_core.report.exhibits import Animation
from mfm_core.report.panels import sheet
from mfm_core.report.pixels import Pixels
from mfm_core.report.scene import Columns, Scene, draw, draw_images, remarks_on
from mfm_core.targets.hog import HOGTarget

_PANEL = 192
"""Pixels of a panel, at least; frames are enlarged to it by whole numbers."""
_MOST_CLIPS = 2
"""Clips of the still sheet."""
_MOST_FRAMES = 8
"""Frames of the still sheet, evenly spread over those that are predicted."""
_CLIP_SECONDS = 2.4
"""An animation shows a clip in this time, however many frames it has."""
_NAMES = {"image": "clip", "image = target": "clip = target"}


@dataclass(frozen=True)
class ClipScene:
    """One prediction to draw: clips (B, 3, T, H, W) as the model takes them, and its output over `grid`, (t, h, w)."""

    clips: Tensor
    output: PretrainOutput
    grid: Grid
    pixels: Pixels

    def frame(self, index: int) -> Scene:
        """What there is to draw of frame `index` of the clips: it, and the tokens that it belongs to."""
        t, h, w = self.grid
        frames, height, width = self.clips.shape[2:]
        time = index // (frames // t)
        part = slice(time * h * w, (time + 1) * h * w)
        output = PretrainOutput(
            self.output.loss, self.output.prediction[:, part], self.output.target[:, part], self.output.mask[:, part]
        )
        hidden = output.mask.reshape(-1, h, w)
        patch = (height // h, width // w)
        panel = width * math.ceil(_PANEL / width)
        return Scene(self.clips[:, :, index], output, (h, w), patch, self.pixels, hidden, None, None, panel)


@dataclass(frozen=True)
class Reconstruction:
    """still: rows for input, masked input, target and prediction of the first clips, a column for each of a few frames.
    moving: a row for each clip, the others as columns. remarks: what a reader should know."""

    still: Image.Image
    moving: Animation
    remarks: str


def reconstruction(
    target: Target,
    grid: Grid,
    clips: Tensor,
    output: PretrainOutput,
    pixels: Pixels,
    captions: Sequence[str] | None = None,
) -> Reconstruction:
    """Pictures of the prediction `output` of `target` for `clips` (B, 3, T, H, W), over the tokens' `grid` (t, h, w).

    captions: what to call each clip.
    """
    drawn = draw_clips(target, ClipScene(clips, output, tuple(grid), pixels))
    captions = list(captions or [""] * len(clips))
    titles = list(next(iter(drawn.values())))
    pages = [
        sheet(list(zip(*columns.values())), [_NAMES.get(title, title) for title in titles], captions)
        for columns in drawn.values()
    ]
    moving = Animation(pages, _CLIP_SECONDS / len(pages))
    return Reconstruction(_still(drawn, captions), moving, remarks_on(target, titles))


@singledispatch
def draw_clips(target: Target, scene: ClipScene) -> dict[int, Columns]:
    """Frame -> its columns, for a target that is a clip in another order.

    `target.to_images(tokens, clips)` undoes that, and gives all frames, or every second or fourth one, from the first.
    """
    wanted, prediction = (
        target.to_images(tokens, scene.clips) for tokens in (scene.output.target, scene.output.prediction)
    )
    stride = scene.clips.shape[2] // wanted.shape[2]
    return {
        i * stride: draw_images(scene.frame(i * stride), wanted[:, :, i], prediction[:, :, i])
        for i in range(wanted.shape[2])
    }


@draw_clips.register
def _(target: HOGTarget, scene: ClipScene) -> dict[int, Columns]:
    """Each token holds the glyphs of the first of its frames."""
    frames = range(0, scene.clips.shape[2], target.temporal_stride)
    return {index: draw(target, scene.frame(index)) for index in frames}


def _still(drawn: dict[int, Columns], captions: Sequence[str]) -> Image.Image:
    """For each of the first clips a row of frames per kind of panel."""
    count = min(_MOST_FRAMES, len(drawn))
    shown = [list(drawn)[i * len(drawn) // count] for i in range(count)]
    rows, texts = [], []
    for clip, caption in enumerate(captions[:_MOST_CLIPS]):
        for title in drawn[shown[0]]:
            rows.append([drawn[index][title][clip] for index in shown])
            name = _NAMES.get(title, title)
            texts.append(f"{name}: {caption}" if caption and name in _NAMES.values() else name)
    return sheet(rows, [f"frame {index}" for index in shown], texts)
