"""From the decoded frames of a clip to a model's input; whatever is drawn holds for all frames of the clip.

PySlowFast's order (`slowfast/datasets/kinetics.py`): augmentation policy on whole frames, crop and mirroring,
normalisation, erasing. Frames stay 8-bit until they have the size of the crop; resizing is antialiased and bilinear.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import ColorJitter

from mfm_core.data.augment import augmented, build_auto_augment, build_erasing
from mfm_core.data.crops import Normalize, random_crop, resize, short_side_size
from mfm_core.data.seeding import seeded
from mfm_core.errors import UserError

Policy = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class ClipCrop:
    """A box of the frames, in pixels after they are resized to `frame`; then the box is resized to the output.

    frame: (height, width), or None for frames as they are.
    """

    top: int
    left: int
    height: int
    width: int
    frame: tuple[int, int] | None = None
    flip: bool = False


class ClipTransform(Protocol):
    """What `VideoDataset` asks for."""

    short_side: int
    """What frames may be reduced to while they are decoded, pixels; 0 is not at all."""

    def plan(self, height: int, width: int, rng: random.Random) -> ClipCrop:
        """The crop of frames of this size; all its randomness is `rng`."""

    def apply(self, frames: Tensor, crop: ClipCrop) -> Tensor:
        """(T, 3, h, w) uint8 to (3, T, size, size) float32."""


class TrainClipTransform:
    """Augmentation policy or colour jitter (or both), random crop, mirroring, normalisation, random erasing.

    The crop is a random resized one where `scale` or `ratio` is given. Otherwise frames are resized so that their
    short side is drawn from `jitter`, and a window of the output's size is placed at random. Beside crop and
    mirroring, randomness is that of the global generators: call inside `mfm_core.data.seeding.seeded`.

    Args:
        size: height and width of the output, pixels (`DATA.TRAIN_CROP_SIZE`).
        mean, std: of RGB in [0, 1] (`DATA.MEAN`, `DATA.STD`).
        jitter: range of the short side, pixels (`DATA.TRAIN_JITTER_SCALES`).
        scale: share of the area that a crop covers (`DATA.TRAIN_JITTER_SCALES_RELATIVE`).
        ratio: width / height of a crop (`DATA.TRAIN_JITTER_ASPECT_RELATIVE`).
        short_side: frames are reduced to it while they are decoded, pixels; 0 for not (`DATA.DECODING_SHORT_SIZE`).
        flip: probability of mirroring.
        auto_augment: name of a policy (`AUG.AA_TYPE`), "" for none.
        policy_interpolation: of the policy's rotations and shears (`AUG.INTERPOLATION`).
        color_jitter: strength for brightness, contrast and saturation; None or 0 for none. A policy replaces it
            (`AUG.COLOR_JITTER`),
        jitter_on_top: or comes before it (`AUG.COLOR_JITTER_ON_TOP`).
        erase_prob, erase_mode, erase_count: random erasing (`AUG.RE_PROB`, `AUG.RE_MODE`, `AUG.RE_COUNT`).

    Raises:
        UserError: for a jitter that is smaller than the output, a policy or erasing mode that does not exist.
    """

    def __init__(
        self,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        jitter: Sequence[int] = (256, 320),
        scale: Sequence[float] = (),
        ratio: Sequence[float] = (),
        short_side: int = 0,
        flip: float = 0.5,
        auto_augment: str = "",
        policy_interpolation: str = "bicubic",
        color_jitter: float | None = None,
        erase_prob: float = 0.0,
        erase_mode: str = "pixel",
        erase_count: int = 1,
        jitter_on_top: bool = False,
    ) -> None:
        self.size, self.flip, self.short_side = size, flip, short_side
        self.resized = bool(scale or ratio)
        self.scale, self.ratio = tuple(scale) or (0.08, 1.0), tuple(ratio) or (3 / 4, 4 / 3)
        self.jitter = tuple(jitter)
        if not self.resized and min(self.jitter) < size:
            raise UserError(
                f"DATA.TRAIN_JITTER_SCALES {list(jitter)} goes below DATA.TRAIN_CROP_SIZE {size}: the window would "
                "reach beyond the frames."
            )
        self.policy_of: Callable[[int], Policy] | None = None
        if auto_augment:  # how far it moves frames depends on their short side
            self.policy_of = partial(build_auto_augment, auto_augment, mean=None, interpolation=policy_interpolation)
            self.policy_of(size)
        jitters = color_jitter and (jitter_on_top or not auto_augment)
        self.recolor = ColorJitter(*[color_jitter] * 3) if jitters else None
        self.normalize = Normalize(mean, std)
        self.erase = build_erasing(erase_prob, erase_mode, erase_count)

    def plan(self, height: int, width: int, rng: random.Random) -> ClipCrop:
        """Where the crop lies, then whether it is mirrored."""
        if self.resized:
            crop = *random_crop(height, width, self.scale, self.ratio, rng), None
        else:
            frame = short_side_size(height, width, round(rng.uniform(*self.jitter)))
            top, left = (rng.randint(0, side - self.size) for side in frame)
            crop = top, left, self.size, self.size, frame
        return ClipCrop(*crop, flip=rng.random() < self.flip)

    def apply(self, frames: Tensor, crop: ClipCrop) -> Tensor:
        """(T, 3, h, w) uint8 to (3, T, size, size) float32."""
        if self.policy_of is not None:
            frames = same_for_all(self.policy_of(min(frames.shape[2:])), frames)
        frames = cut(frames, crop, self.size)
        if crop.flip:
            frames = frames.flip(-1)
        if self.recolor is not None:
            frames = self.recolor(frames)
        clip = normalized(frames, self.normalize)
        if self.erase is not None:  # frames as further channels: the same boxes, filled anew in each
            self.erase(clip.view(-1, self.size, self.size))
        return clip


class ViewTransform:
    """One spatial view of a test: resizes the short side and crops the left, middle or right (or top, …, bottom).

    Frames are decoded in full, so that numbers compare with those of other code.

    Args:
        size: height and width of the output, pixels (`DATA.TEST_CROP_SIZE`).
        mean, std: of RGB in [0, 1].
        short_side: what the short side is resized to, pixels, at least `size`.
        position: 0, 1 or 2: where the crop lies along the longer side.
    """

    short_side = 0

    def __init__(
        self, size: int, mean: Sequence[float], std: Sequence[float], short_side: int, position: int = 1
    ) -> None:
        self.size, self.side, self.position = size, short_side, position
        self.normalize = Normalize(mean, std)

    def plan(self, height: int, width: int, rng: random.Random | None = None) -> ClipCrop:
        """Nothing is drawn."""
        frame = short_side_size(height, width, self.side)
        top, left = uniform_crop(*frame, self.size, self.position)
        return ClipCrop(top, left, self.size, self.size, frame)

    def apply(self, frames: Tensor, crop: ClipCrop) -> Tensor:
        """(T, 3, h, w) uint8 to (3, T, size, size) float32."""
        return normalized(cut(frames, crop, self.size), self.normalize)


def uniform_crop(height: int, width: int, size: int, position: int) -> tuple[int, int]:
    """Top and left of one of three crops along the longer side: at its beginning, in the middle, at its end."""
    top, left = math.ceil((height - size) / 2), math.ceil((width - size) / 2)
    along = (0, top if height > width else left, (height if height > width else width) - size)[position]
    return (along, left) if height > width else (top, along)


def cut(frames: Tensor, crop: ClipCrop, size: int) -> Tensor:
    """(T, 3, h, w) uint8 to the crop's (T, 3, size, size) uint8."""
    if crop.frame is not None:
        frames = resize(frames, crop.frame, "bilinear")
    box = frames[:, :, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    return resize(box, (size, size), "bilinear")


def normalized(frames: Tensor, normalize: Normalize) -> Tensor:
    """(T, 3, h, w) uint8 to the clip (3, T, h, w) float32."""
    planar = frames.transpose(0, 1).contiguous()
    return normalize(planar.flatten(1, 2)).view(planar.shape)


def same_for_all(policy: Policy, frames: Tensor) -> Tensor:
    """Applies the policy to each frame (T, 3, h, w) uint8, with the same draws."""
    seed = int(torch.randint(2**62, ()))
    changed = []
    for frame in frames:
        with seeded(seed):
            changed.append(augmented(frame, policy))
    return torch.stack(changed)
