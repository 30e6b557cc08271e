"""Augmentation policies and random erasing by name: timm's, with the constants that PySlowFast gives them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import str_to_pil_interp
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandAugment

from mfm_core.errors import UserError


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
        if policy.startswith("rand"):
            transform = rand_augment_transform(policy, params)
        elif policy.startswith("augmix"):
            transform = augment_and_mix_transform(policy, {**params, "translate_pct": 0.3})
        else:
            transform = auto_augment_transform(policy, params)
    except (AssertionError, KeyError, ValueError) as error:
        raise UserError(
            f"AUG.AA_TYPE '{policy}' is no policy that timm knows; e.g. rand-m9-mstd0.5-inc1, ra_6_10, or '' for none"
        ) from error
    operations = transform.ops if hasattr(transform, "ops") else itertools.chain(*transform.policy)
    for operation in operations:
        if operation.name.startswith("Posterize"):
            operation.aug_fn = posterize
    return transform


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


def build_erasing(probability: float, mode: str, count: int) -> RandomErasing | None:
    """timm's random erasing of 1 to `count` rectangles after normalisation; None where the probability is 0."""
    if mode not in ("const", "rand", "pixel"):
        raise UserError(f"AUG.RE_MODE '{mode}' is not one of const, rand, pixel")
    return RandomErasing(probability, mode=mode, max_count=count, device="cpu") if probability > 0 else None


def to_pil(image: Tensor) -> Image.Image:
    """(3, h, w) uint8 to a PIL image."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def from_pil(image: Image.Image) -> Tensor:
    """A PIL image (RGB) to (3, h, w) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
