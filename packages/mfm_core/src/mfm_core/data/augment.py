"""Augmentation policies and random erasing by name: timm's, with the constants that PySlowFast gives them.

timm's policies draw what is to be done; where there is a faster way to the same pixels than PIL's, `PLANES` has it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import auto_augment as timm_policies
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import str_to_pil_interp
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandAugment

from mfm_core.data import planes, shifts
from mfm_core.errors import UserError

CHOICES_OF_OPERATIONS = ("tweights", "t3a", "t3aw")
"""Parts of a name that timm's RandAugment reads as another set of operations."""


def build_auto_augment(
    policy: str, size: int, mean: Sequence[float] | None, interpolation: str
) -> Callable[[Image.Image], Image.Image]:
    """timm's RandAugment, AugMix or AutoAugment, with the constants that timm and PySlowFast give them.

    ra_M_N is torchvision's RandAugment at magnitude M of N bins, in the notation of CoinCheung/MFM. timm's has other
    operations (Invert and SolarizeAdd, no identity), applies each with probability one half, and fills with `mean`,
    or without one with a middle grey.

    Raises:
        UserError: for a policy that does not exist.
    """
    if match := re.fullmatch(r"ra_(\d+)_(\d+)", policy):
        return _torchvision_rand_augment(policy, int(match[1]), int(match[2]), interpolation)
    params: dict[str, object] = {"translate_const": int(size * 0.45)}
    if mean is not None:
        params["img_mean"] = tuple(min(255, round(255 * x)) for x in mean)
    if interpolation != "random":
        params["interpolation"] = str_to_pil_interp(interpolation)
    try:
        _refuse_unread(policy)
        if policy.startswith("rand"):
            transform = timm_policies.rand_augment_transform(policy, params)
        elif policy.startswith("augmix"):
            transform = timm_policies.augment_and_mix_transform(policy, {**params, "translate_pct": 0.3})
        else:
            transform = timm_policies.auto_augment_transform(policy, params)
    except (AssertionError, KeyError, ValueError) as error:
        raise UserError(
            f"AUG.AA_TYPE '{policy}' is no policy that timm knows; e.g. rand-m9-mstd0.5-inc1, ra_6_10, or '' for none"
        ) from error
    operations = transform.ops if hasattr(transform, "ops") else itertools.chain(*transform.policy)
    for operation in operations:
        extend(operation)
    return transform


def _refuse_unread(policy: str) -> None:
    """Raises ValueError for a part of the name that timm would pass over in silence: one without a number.

    RandAugment's choice of operations, t and a name, has none; timm takes its usual ones for a name it does not know.
    """
    kind, *parts = policy.split("-")
    for part in parts:
        a_choice = kind == "rand" and part.startswith("t")
        if part not in CHOICES_OF_OPERATIONS if a_choice else not re.search(r"\d", part):
            raise ValueError(part)


def extend(operation: timm_policies.AugmentOp) -> None:
    """Makes an operation of timm take arrays as well as images of PIL, and posterize to one bit at least."""
    function = operation.aug_fn
    on_image = posterize if function is timm_policies.posterize else function
    operation.aug_fn = Operation(on_image, PLANES.get(function))


def augmented(image: Tensor, transform: Callable[[Image.Image], Image.Image]) -> Tensor:
    """(3, h, w) uint8 after a policy of `build_auto_augment`, or any other transform of PIL images (RGB)."""
    if isinstance(transform, timm_policies.RandAugment | timm_policies.AutoAugment):
        return torch.from_numpy(transform(image.contiguous().numpy()))
    return from_pil(transform(to_pil(image)))


def _torchvision_rand_augment(policy: str, magnitude: int, bins: int, interpolation: str) -> RandAugment:
    if magnitude >= bins:
        raise UserError(f"AUG.AA_TYPE '{policy}': the magnitude {magnitude} must be below the number of bins, {bins}")
    mode = InterpolationMode.BILINEAR if interpolation == "bilinear" else InterpolationMode.BICUBIC
    return RandAugment(num_ops=2, magnitude=magnitude, num_magnitude_bins=bins, interpolation=mode)


def posterize(image: Image.Image, bits: int, **kwargs: object) -> Image.Image:
    """Keeps `bits` bits of each value, at least one.

    In the place of timm's: its strongest level keeps none, which made black images with older Pillow, and is an
    error with Pillow 13.
    """
    return image if bits >= 8 else ImageOps.posterize(image, max(1, bits))


@dataclass(frozen=True)
class Operation:
    """What one of timm's operations does to an image, which may be one of PIL or (3, h, w) uint8.

    Args:
        on_image: timm's function of an image of PIL, the operation's arguments, `resample` and `fillcolor`.
        on_planes: the same for an array, or None; it may return None where it cannot tell the result.
    """

    on_image: Callable[..., Image.Image]
    on_planes: Callable[..., np.ndarray | None] | None = None

    def __call__(self, image: Image.Image | np.ndarray, *args: float, **kwargs: object) -> Image.Image | np.ndarray:
        """The changed image, of the kind given."""
        if isinstance(image, Image.Image):
            return self.on_image(image, *args, **kwargs)
        result = None if self.on_planes is None else self.on_planes(image, *args, **kwargs)
        return planes.from_pil(self.on_image(planes.to_pil(image), *args, **kwargs)) if result is None else result


@dataclass(frozen=True)
class BicubicShift:
    """A function of `shifts` with timm's arguments; PIL is as fast where it is not to interpolate bicubically.

    Args:
        move: the function.
        share_of: the axis of whose length timm's argument is a share; None where it is not.
    """

    move: Callable[[np.ndarray, float, Sequence[int]], np.ndarray | None]
    share_of: int | None = None

    def __call__(
        self, image: np.ndarray, amount: float, resample: object, fillcolor: Sequence[int]
    ) -> np.ndarray | None:
        """The image (3, h, w) uint8 moved; None where PIL has to do it."""
        if resample != Image.Resampling.BICUBIC:
            return None
        return self.move(image, amount if self.share_of is None else amount * image.shape[self.share_of], fillcolor)


PLANES: dict[Callable[..., Image.Image], Callable[..., np.ndarray | None]] = {
    timm_policies.auto_contrast: planes.auto_contrast,
    timm_policies.equalize: planes.equalize,
    timm_policies.invert: planes.invert,
    timm_policies.posterize: planes.posterize,
    timm_policies.solarize: planes.solarize,
    timm_policies.solarize_add: planes.solarize_add,
    timm_policies.brightness: planes.brightness,
    timm_policies.contrast: planes.contrast,
    timm_policies.color: planes.color,
    timm_policies.desaturate: planes.desaturate,
    timm_policies.sharpness: planes.sharpness,
    timm_policies.shear_x: BicubicShift(shifts.shear_x),
    timm_policies.shear_y: BicubicShift(shifts.shear_y),
    timm_policies.translate_x_abs: BicubicShift(shifts.translate_x),
    timm_policies.translate_y_abs: BicubicShift(shifts.translate_y),
    timm_policies.translate_x_rel: BicubicShift(shifts.translate_x, share_of=2),
    timm_policies.translate_y_rel: BicubicShift(shifts.translate_y, share_of=1),
}
"""By timm's functions, what does the same to planes. The others (rotation, blurring) are left to PIL."""


def build_erasing(probability: float, mode: str, count: int) -> RandomErasing | None:
    """timm's random erasing of 1 to `count` rectangles after normalisation; None where the probability is 0."""
    if mode not in ("const", "rand", "pixel"):
        raise UserError(f"AUG.RE_MODE '{mode}' is not one of const, rand, pixel")
    return RandomErasing(probability, mode=mode, max_count=count, device="cpu") if probability > 0 else None


def to_pil(image: Tensor) -> Image.Image:
    """(3, h, w) uint8 to a PIL image."""
    if image.is_contiguous():  # merging planes is five times faster than interleaving them
        return planes.to_pil(image.numpy())
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def from_pil(image: Image.Image) -> Tensor:
    """A PIL image (RGB) to (3, h, w) uint8."""
    return torch.from_numpy(planes.from_pil(image))
