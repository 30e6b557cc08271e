"""Policies on planes of pixels beside timm's on images of PIL: the same draws, the same pixels, every one."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
from matplotlib.cbook import get_sample_data
from PIL import Image
from timm.data import auto_augment as timm_policies
from timm.data.auto_augment import AugmentOp

from mfm_core.data import planes, shifts
from mfm_core.data.augment import PLANES, augmented, build_auto_augment, extend, posterize
from mfm_core.data.seeding import seeded

FILL = (124, 116, 104)
INTERPOLATIONS = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, None)


def photos():
    """A real photo whole and in parts, enlarged (flat), reduced (rough), with few levels; then what no photo is."""
    with get_sample_data("grace_hopper.jpg") as file:
        photo = Image.open(file).convert("RGB")
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (3, 57, 43), dtype=np.uint8)
    extremes = np.where(noise < 128, 0, 255).astype(np.uint8)
    images = {
        "photo": photo.resize((160, 187)),
        "face": photo.crop((180, 60, 340, 220)),
        "enlarged": photo.crop((300, 40, 320, 60)).resize((96, 96), Image.Resampling.BICUBIC),
        "reduced": photo.resize((40, 31), Image.Resampling.NEAREST),
        "few levels": photo.crop((0, 300, 120, 420)).point(lambda value: value // 64 * 85),
        "noise": planes.to_pil(noise),
        "extremes": planes.to_pil(extremes),
        "black": Image.new("RGB", (20, 30)),
        "one colour": Image.new("RGB", (30, 20), (255, 7, 130)),
        "one row": photo.crop((100, 100, 150, 101)),
        "two columns": photo.crop((100, 100, 102, 150)),
        "a pixel": Image.new("RGB", (1, 1), (3, 2, 1)),
    }
    return images.items()


def assert_equal_pixels(ours, image, theirs):
    """`ours` on the planes of the image, `theirs` on itself, after the same seed; the draws are as many."""
    for seed in (0, 1):
        pixels, results, states = planes.from_pil(image), [], []
        before = pixels.copy()
        for transform, picture in ((ours, pixels), (theirs, image)):
            with seeded(seed):
                results.append(transform(picture))
                states.append((random.random(), np.random.rand(), torch.rand(()).item()))
        assert results[0].dtype == np.uint8 and np.array_equal(pixels, before)
        np.testing.assert_array_equal(results[0], planes.from_pil(results[1]))
        assert states[0] == states[1]


def of_timm(operation):
    """A copy that works as timm has it, except that it posterizes to one bit at least."""
    operation = copy.copy(operation)
    if operation.aug_fn is timm_policies.posterize:
        operation.aug_fn = posterize
    return operation


# --- operations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "image"), photos(), ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("operation", timm_policies.NAME_TO_OP)
def test_every_operation_is_timms(operation, name, image):
    """Fixed magnitudes (the shifts then fall on simple fractions), and random ones."""
    for magnitude, deviation in [(0, 0), (3, 0), (5, 0), (9, 0), (10, 0), *[(m, 1.5) for m in (1, 4, 6, 8, 9)]]:
        for interpolation in INTERPOLATIONS if operation.startswith(("Shear", "Translate")) else INTERPOLATIONS[:1]:
            params = {"translate_const": 13, "img_mean": FILL, "magnitude_std": deviation}
            if interpolation is not None:  # else one of both is drawn
                params["interpolation"] = interpolation
            theirs = AugmentOp(operation, prob=1.0, magnitude=magnitude, hparams=params)
            ours = copy.copy(theirs)
            extend(ours)
            assert_equal_pixels(ours, image, of_timm(theirs))


@pytest.mark.parametrize("function", [PLANES[f] for f in PLANES if f.__name__ in ("brightness", "contrast", "color")])
def test_enhancement_beyond_its_usual_range(function):
    """Factors at which blending copies, and those at which it extrapolates to both sides."""
    theirs = {PLANES[f]: f for f in PLANES}[function]
    for _, image in photos():
        for factor in (-0.7, 0.0, 1.0, 1.0001, 2.5, 30.0):
            np.testing.assert_array_equal(
                function(planes.from_pil(image), factor), planes.from_pil(theirs(image, factor))
            )


def test_tables_reach_every_value():
    """Every table of a point operation holds timm's values for all 256 levels and every argument."""
    ramp = planes.RAMP
    levels = np.asarray(ramp)
    image = Image.merge("RGB", [ramp, ramp, ramp])
    for argument in range(257):
        expected = np.asarray(timm_policies.solarize(ramp, argument))
        np.testing.assert_array_equal(planes.solarize(levels, argument), expected)
        if argument <= 128:
            expected = np.asarray(timm_policies.solarize_add(ramp, argument))
            np.testing.assert_array_equal(planes.solarize_add(levels, argument), expected)
        if argument <= 8:
            np.testing.assert_array_equal(
                planes.posterize(planes.from_pil(image), argument), planes.from_pil(posterize(image, argument))
            )


# --- shifts --------------------------------------------------------------------------------------------------------


MATRICES = {
    shifts.shear_x: lambda amount: (1, amount, 0, 0, 1, 0),
    shifts.shear_y: lambda amount: (1, 0, 0, amount, 1, 0),
    shifts.translate_x: lambda amount: (1, 0, amount, 0, 1, 0),
    shifts.translate_y: lambda amount: (1, 0, 0, 0, 1, amount),
}


def shifted(image, function, amount):
    """PIL's pixels."""
    matrix = MATRICES[function](amount)
    bicubic = Image.Resampling.BICUBIC
    return planes.from_pil(image.transform(image.size, Image.Transform.AFFINE, matrix, bicubic, fillcolor=FILL))


@pytest.mark.parametrize("function", MATRICES, ids=lambda f: f.__name__)
def test_shifts_are_pils_bicubic_transform(function):
    """By random amounts that no rounding matters to; beyond the image, too."""
    images = [image for name, image in photos() if name in ("photo", "few levels", "extremes", "two columns")]
    rng, untold = random.Random(0), 0
    for trial in range(120):
        image = images[trial % len(images)]
        reach = 0.35 if "shear" in function.__name__ else 1.2 * image.width
        amount = rng.uniform(-reach, reach)
        ours = function(planes.from_pil(image), amount, FILL)
        untold += ours is None
        if ours is not None:
            np.testing.assert_array_equal(ours, shifted(image, function, amount))
    assert untold < 6


@pytest.mark.parametrize("function", MATRICES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("error", [0.0, 1e-13, -1e-13, 1e-11, -1e-11, 1e-8, -1e-8, 1e-5, -1e-5])
def test_shifts_say_where_rounding_matters(function, error):
    """Whole and half pixels, and simple fractions, which give many integers: PIL's pixels, or none."""
    image = dict(photos())["face"].crop((40, 40, 100, 90))
    told = 0
    for amount in (0, 0.25, 0.5, 0.125, 1 / 3, 0.2, 0.3, 5, 7.5, -11.25, -20, 30.2, -0.25, -0.2):
        ours = function(planes.from_pil(image), amount + error, FILL)
        told += ours is not None
        if ours is not None:
            np.testing.assert_array_equal(ours, shifted(image, function, amount + error))
    assert told or abs(error) < 1e-8


def test_a_doubtful_sum_is_not_told():
    """A triple root: 213 - 12 d + 24 d^2 - 16 d^3 is 211 at one half, and nearly so around it."""
    row = np.tile(np.array([221, 213, 209, 201], np.uint8), (3, 1, 2))
    assert shifts.translate_x(row, 0.500001, FILL) is None
    assert shifts.translate_x(row, 0.501, FILL) is not None


# --- policies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "policy",
    ["rand-m9-mstd0.5-inc1", "rand-m7-n4-mstd0.5", "rand-m5-tweights", "rand-m9-t3aw", "v0", "originalr-mstd0.5", "3a"],
)
@pytest.mark.parametrize("interpolation", ["bicubic", "random"])
def test_policies_draw_and_give_what_they_do_on_images_of_pil(policy, interpolation):
    transform = build_auto_augment(policy, 96, (0.485, 0.456, 0.406), interpolation)
    image = dict(photos())["face"].resize((96, 96))
    pixels, changed = torch.from_numpy(planes.from_pil(image)), 0
    for seed in range(80):
        with seeded(seed):
            ours = augmented(pixels, transform)
        with seeded(seed):
            expected = planes.from_pil(transform(image))
        np.testing.assert_array_equal(ours.numpy(), expected)
        changed += not torch.equal(ours, pixels)
    assert changed > 30


def test_policies_travel_to_worker_processes_and_take_any_layout():
    transform = build_auto_augment("rand-m9-mstd0.5-inc1", 96, (0.485, 0.456, 0.406), "bicubic")
    image = dict(photos())["photo"]
    planar = torch.from_numpy(planes.from_pil(image))
    interleaved = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    for seed in range(20):
        results = []
        for policy, pixels in ((transform, planar), (pickle.loads(pickle.dumps(transform)), interleaved)):
            with seeded(seed):
                results.append(augmented(pixels, policy))
        assert torch.equal(*results)


def test_augmix_and_transforms_of_pil_images_get_these():
    pixels = torch.from_numpy(planes.from_pil(dict(photos())["face"]))
    transform = build_auto_augment("augmix-m3", 96, None, "bicubic")
    with seeded(1):
        ours = augmented(pixels, transform)
    with seeded(1):
        assert np.array_equal(ours.numpy(), planes.from_pil(transform(planes.to_pil(pixels.numpy()))))
    assert torch.equal(augmented(pixels, lambda image: image.rotate(180)), pixels.flip(-1, -2))
