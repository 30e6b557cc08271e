"""From decoded pixels to a model's input: PySlowFast's ImageNet augmentation (`slowfast/datasets/imagenet.py`, which
follows timm's `transforms_imagenet_train`), in two phases so that the crop is known before the file is decoded.

`plan` draws a crop from the size of the image; `apply` resizes that crop and does everything after it. Resizing is
torch's antialiased uint8 kernel, which computes what PIL does (to one grey level, rarely two) five times faster.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import ColorJitter

from mfm_core.data.augment import augmented, build_auto_augment, build_erasing
from mfm_core.data.crops import Normalize, clamped_crop, random_crop, resize, short_side_size
from mfm_core.errors import UserError
from mfm_image.data.decode import largest_reduction

INTERPOLATIONS = ("bicubic", "bilinear")


@dataclass(frozen=True)
class Crop:
    """A box of the original image, in its pixels, and how it is resized and mirrored."""

    top: int
    left: int
    height: int
    width: int
    interpolation: str
    flip: bool = False

    def reduced(self, reduction: int) -> tuple[slice, slice]:
        """Rows and columns of this box in the image reduced by that factor.

        Edges move to the nearest pixel: by half a reduced pixel at most.
        """
        return _scaled(self.top, self.height, reduction), _scaled(self.left, self.width, reduction)


@dataclass(frozen=True)
class PaddedCrop(Crop):
    """The whole image, and where a window lies on it after resizing; -1 is one pixel beyond its edge."""

    top_after: int = 0
    left_after: int = 0


class Transform(Protocol):
    """What `ImageDataset` asks for."""

    def plan(self, height: int, width: int, rng: random.Random) -> Crop:
        """The crop of an image of this size; all its randomness is `rng`."""

    def reduction(self, crop: Crop) -> int:
        """By how much (1, 2, 4, 8) an image may be reduced while it is decoded."""

    def apply(self, pixels: Tensor, crop: Crop, reduction: int = 1) -> Tensor:
        """(3, h, w) uint8, the image reduced by `reduction`, to (3, size, size) float32."""


class TrainTransform:
    """Random resized crop, mirroring, RandAugment or colour jitter (or both), normalisation, random erasing.

    PySlowFast uses this for pre-training (scale 0.5 to 1, no augmentation policy) and for fine-tuning (scale 0.08
    to 1, RandAugment, erasing). Beside the crop and the mirroring, randomness is that of the global generators
    (timm's and torchvision's pieces draw there): call inside `mfm_core.data.seeding.seeded`.

    Args:
        size: height and width of the output, pixels (`DATA.TRAIN_CROP_SIZE`).
        mean, std: of RGB in [0, 1] (`DATA.MEAN`, `DATA.STD`).
        scale: share of the area that a crop covers (`DATA.TRAIN_JITTER_SCALES_RELATIVE`).
        ratio: width / height of a crop (`DATA.TRAIN_JITTER_ASPECT_RELATIVE`).
        clamp_crop: a crop that does not fit is clamped, not drawn again (`DATA.TRAIN_CROP_CLAMP`).
        interpolation: "bicubic", "bilinear" or "random", one of these at each crop (`AUG.INTERPOLATION`).
        flip: probability of mirroring.
        auto_augment: timm's name of a policy, ra_M_N for torchvision's RandAugment, "" for none (`AUG.AA_TYPE`).
        color_jitter: strength for brightness, contrast and saturation; None or 0 for none. A policy replaces it
            (`AUG.COLOR_JITTER`),
        jitter_on_top: or comes before it (`AUG.COLOR_JITTER_ON_TOP`).
        erase_prob, erase_mode, erase_count: random erasing (`AUG.RE_PROB`, `AUG.RE_MODE`, `AUG.RE_COUNT`).

    Raises:
        UserError: for an interpolation, policy or erasing mode that does not exist.
    """

    def __init__(
        self,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        interpolation: str = "bicubic",
        flip: float = 0.5,
        auto_augment: str = "",
        color_jitter: float | None = None,
        erase_prob: float = 0.0,
        erase_mode: str = "pixel",
        erase_count: int = 1,
        clamp_crop: bool = False,
        jitter_on_top: bool = False,
    ) -> None:
        self.size, self.scale, self.ratio, self.flip = size, tuple(scale), tuple(ratio), flip
        self.draw_crop = clamped_crop if clamp_crop else random_crop
        if interpolation not in (*INTERPOLATIONS, "random"):
            raise UserError(f"AUG.INTERPOLATION '{interpolation}' is not one of {', '.join(INTERPOLATIONS)}, random")
        self.interpolations = INTERPOLATIONS if interpolation == "random" else (interpolation,)
        jitter = ColorJitter(color_jitter, color_jitter, color_jitter) if color_jitter else None
        self.recolor: Callable[[Image.Image], Image.Image] | None = jitter
        if auto_augment:
            self.recolor = build_auto_augment(auto_augment, size, mean, interpolation)
        self.jitter = jitter if auto_augment and jitter_on_top else None
        self.normalize = Normalize(mean, std)
        self.erase = build_erasing(erase_prob, erase_mode, erase_count)

    def plan(self, height: int, width: int, rng: random.Random) -> Crop:
        """A random resized crop, then whether it is mirrored."""
        top, left, h, w = self.draw_crop(height, width, self.scale, self.ratio, rng)
        interpolation = rng.choice(self.interpolations) if len(self.interpolations) > 1 else self.interpolations[0]
        return Crop(top, left, h, w, interpolation, flip=rng.random() < self.flip)

    def reduction(self, crop: Crop) -> int:
        """The largest at which the crop still has the size of the output."""
        return largest_reduction(crop.height, crop.width, self.size, self.size)

    def apply(self, pixels: Tensor, crop: Crop, reduction: int = 1) -> Tensor:
        """(3, h, w) uint8, the image reduced by `reduction`, to (3, size, size) float32."""
        image = self.cut(pixels, crop, reduction)
        if crop.flip:
            image = image.flip(-1)
        for change in (self.recolor, self.jitter):
            if change is not None:
                image = augmented(image, change)
        image = self.normalize(image)
        return image if self.erase is None else self.erase(image)

    def cut(self, pixels: Tensor, crop: Crop, reduction: int) -> Tensor:
        """(3, h, w) uint8 to the crop's (3, size, size) uint8."""
        rows, columns = crop.reduced(reduction)
        return resize(pixels[:, rows, columns], (self.size, self.size), crop.interpolation)


class PaddedTransform(TrainTransform):
    """`TrainTransform` with another crop, MFF's: the short side is resized to the output's, the image padded by
    reflection, and a window of the output's size placed at random (torchvision's `Resize` and padded `RandomCrop`).

    Beside the arguments of `TrainTransform`, of which `scale` and `ratio` do not act:
        short_side: of the resized image, pixels (`DATA.TRAIN_RESIZE_SHORT_SIDE`); 0 is `size`.
        padding: pixels on each side (`DATA.TRAIN_CROP_PADDING`).

    Raises:
        UserError: where the padded image is smaller than the output, or the padding as large as the image.
    """

    def __init__(self, size: int, *args, short_side: int = 0, padding: int = 4, **kwargs) -> None:
        super().__init__(size, *args, **kwargs)
        self.short_side, self.padding = short_side or size, padding
        if self.short_side + 2 * padding < size or padding >= self.short_side:
            raise UserError(
                f"DATA.TRAIN_RESIZE_SHORT_SIDE {self.short_side} with DATA.TRAIN_CROP_PADDING {padding} does not cover "
                f"DATA.TRAIN_CROP_SIZE {size}; the padding must also be smaller than the image."
            )

    def plan(self, height: int, width: int, rng: random.Random) -> PaddedCrop:
        """Where the window lies on the resized and padded image, then whether it is mirrored."""
        interpolation = rng.choice(self.interpolations) if len(self.interpolations) > 1 else self.interpolations[0]
        sides = short_side_size(height, width, self.short_side)
        top, left = (rng.randint(0, side + 2 * self.padding - self.size) - self.padding for side in sides)
        flip = rng.random() < self.flip
        return PaddedCrop(0, 0, height, width, interpolation, flip, top_after=top, left_after=left)

    def reduction(self, crop: Crop) -> int:
        """The largest at which the image is not smaller than it will be resized to."""
        return largest_reduction(crop.height, crop.width, *short_side_size(crop.height, crop.width, self.short_side))

    def cut(self, pixels: Tensor, crop: PaddedCrop, reduction: int) -> Tensor:
        """(3, h, w) uint8, the whole image reduced by `reduction`, to the window's (3, size, size) uint8."""
        height, width = short_side_size(crop.height, crop.width, self.short_side)
        image = resize(pixels, (height, width), crop.interpolation)
        rows = reflected(crop.top_after, self.size, height)
        columns = reflected(crop.left_after, self.size, width)
        return image[:, rows][:, :, columns]


class EvalTransform:
    """Resizes the short side, to `int(size / crop_ratio)` if not told, and crops the centre; images may be enlarged.

    The same pixels as torchvision's `Resize` and `CenterCrop` (to one grey level, rarely two); always decoded in
    full, so that numbers compare with those of other code.

    Args:
        size: height and width of the output, pixels (`DATA.TEST_CROP_SIZE`).
        mean, std: of RGB in [0, 1].
        crop_ratio: `DATA.IN_VAL_CROP_RATIO`; 0 resizes the whole image to the output without a crop, as PySlowFast.
        interpolation: "bicubic" or "bilinear".
        short_side: the length itself (`TEST.RESIZE_SIZES`), at least `size`; 0 leaves it to `crop_ratio`.
    """

    def __init__(
        self,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        crop_ratio: float = 0.875,
        interpolation: str = "bicubic",
        short_side: int = 0,
    ) -> None:
        if not 0 <= crop_ratio <= 1:
            raise UserError(f"DATA.IN_VAL_CROP_RATIO must be in [0, 1], not {crop_ratio}")
        self.size, self.interpolation = size, interpolation
        self.short_side = short_side or (int(size / crop_ratio) if crop_ratio else 0)
        self.normalize = Normalize(mean, std)

    def plan(self, height: int, width: int, rng: random.Random) -> Crop:
        """The whole image; nothing is drawn."""
        return Crop(0, 0, height, width, self.interpolation)

    def reduction(self, crop: Crop) -> int:
        """1: numbers of an evaluation shall not depend on a shortcut."""
        return 1

    def apply(self, pixels: Tensor, crop: Crop, reduction: int = 1) -> Tensor:
        """(3, h, w) uint8, the whole image, to (3, size, size) float32."""
        if not self.short_side:
            return self.normalize(resize(pixels, (self.size, self.size), crop.interpolation))
        height, width = short_side_size(*pixels.shape[1:], self.short_side)
        image = resize(pixels, (height, width), crop.interpolation)
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        return self.normalize(image[:, top : top + self.size, left : left + self.size])


def reflected(start: int, count: int, side: int) -> Tensor:
    """The places `start` … of an axis of `side` pixels, (count,) int64; those beyond an edge are mirrored at it."""
    places = (torch.arange(start, start + count)).abs()
    return torch.where(places >= side, 2 * (side - 1) - places, places)


def _scaled(start: int, length: int, reduction: int) -> slice:
    first = round(start / reduction)
    return slice(first, max(first + 1, round((start + length) / reduction)))
