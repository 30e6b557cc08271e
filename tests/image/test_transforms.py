"""Our augmentation beside torchvision's, timm's and PIL's."""

import random

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from golden_cases import cases, load_case
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation

from mfm_core.data.augment import build_auto_augment, from_pil, posterize, to_pil
from mfm_core.data.crops import Normalize, clamped_crop, random_crop, resize
from mfm_core.data.seeding import seeded
from mfm_core.errors import UserError
from mfm_image.data.decode import ImageReader
from mfm_image.data.transforms import Crop, EvalTransform, PaddedTransform, TrainTransform

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BICUBIC = T.InterpolationMode.BICUBIC
TO_INPUT = T.Compose([T.ToTensor(), T.Normalize(MEAN, STD)])
ONE_LEVEL = 1 / 255 / min(STD)


def picture(seed, width=90, height=60):
    """A smooth colour picture: few random cells, enlarged, so that reduced-scale decoding can be compared."""
    cells = np.random.default_rng(seed).integers(0, 256, size=(8, 12, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def assert_same_pixels(ours, theirs):
    """Equal but for the rounding of the resampling: two grey levels at most, and none in nine pixels of ten."""
    difference = (ours - theirs).abs()
    assert difference.max() < 2.01 * ONE_LEVEL
    assert (difference > 1e-5).float().mean() < 0.1


# --- crops ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (64, 64), (31, 200)])
@pytest.mark.parametrize(("short_side", "padding"), [(0, 4), (56, 0), (40, 12)])
def test_padded_crop_is_torchvisions(size, short_side, padding):
    """MFF's crop: for the same window, the pixels of torchvision's Resize, reflection padding, crop and flip."""
    image, side = picture(3, *size), 48
    side = min(side, (short_side or side) + 2 * padding)
    transform = PaddedTransform(
        side, MEAN, STD, interpolation="bilinear", short_side=short_side, padding=padding, flip=0.5
    )
    resized = T.Resize(short_side or side)(image)
    padded = T.functional.pad(resized, padding, padding_mode="reflect")
    flips = set()
    for seed in range(12):
        crop = transform.plan(image.height, image.width, random.Random(seed))
        window = T.functional.crop(padded, crop.top_after + padding, crop.left_after + padding, side, side)
        window = T.functional.hflip(window) if crop.flip else window
        flips.add(crop.flip)
        assert_same_pixels(transform.apply(from_pil(image), crop), TO_INPUT(window))
    assert flips == {True, False}


def test_padded_crop_places_the_window_evenly():
    transform = PaddedTransform(8, MEAN, STD, padding=2)
    crops = [transform.plan(60, 90, random.Random(seed)) for seed in range(3000)]
    tops = torch.tensor([crop.top_after + 2 for crop in crops]).bincount()
    lefts = torch.tensor([crop.left_after + 2 for crop in crops]).bincount()
    assert len(tops) == 5 and len(lefts) == 12 + 4 - 8 + 1
    for counts in (tops, lefts):
        expected = 3000 / len(counts)
        assert (counts - expected).abs().max() < 5 * expected**0.5
    # a photo may be decoded at a fraction of its size, as long as it stays larger than it is resized to
    assert transform.reduction(transform.plan(80, 120, random.Random(0))) == 8
    assert transform.reduction(transform.plan(60, 90, random.Random(0))) == 4


@pytest.mark.parametrize(("short_side", "padding"), [(6, 0), (8, 8)])
def test_padded_crop_that_cannot_be(short_side, padding):
    with pytest.raises(UserError, match="DATA.TRAIN_CROP_PADDING"):
        PaddedTransform(8, MEAN, STD, short_side=short_side, padding=padding)


@pytest.mark.parametrize("size", [(500, 375), (64, 64), (30, 300), (300, 30), (2, 50)])
@pytest.mark.parametrize("scale", [(0.5, 1.0), (0.08, 1.0)])
def test_random_crop_draws_the_boxes_of_timm(size, scale):
    width, height = size
    image = Image.new("RGB", size)
    for seed in range(20):
        random.seed(seed)
        expected = RandomResizedCropAndInterpolation.get_params(image, scale, (0.75, 1.3333))
        box = random_crop(height, width, scale, (0.75, 1.3333), random.Random(seed))
        assert box == tuple(expected)
        assert 0 <= box[0] <= height - box[2] and 0 <= box[1] <= width - box[3] and min(box[2:]) >= 1


def test_random_crop_of_a_single_pixel_is_that_pixel():
    assert {random_crop(1, 1, (0.08, 1), (0.75, 1.3333), random.Random(seed)) for seed in range(50)} == {(0, 0, 1, 1)}


class TorchDraws:
    """Draws as MAE's and torchvision's crops do, in place of `random.Random`."""

    def __init__(self, seed):
        torch.manual_seed(seed)

    def uniform(self, low, high):
        low, high = torch.tensor([low, high]).tolist()
        return torch.empty(1).uniform_(low, high).item()

    def randint(self, low, high):
        return torch.randint(low, high + 1, size=(1,)).item()


@pytest.mark.parametrize("folder", cases("mae/crop"), ids=lambda p: p.name)
def test_clamped_crop_is_that_of_maes_linear_probe(folder):
    """Every box, and with the same draws torchvision's of every box, which tries again."""
    case, _ = load_case(folder)
    ratio, out = case["config"]["ratio"], case["outputs"]
    clamped = 0
    for box in out["boxes"]:
        size, seed, scale = (box["height"], box["width"]), box["torch_seed"], box["scale"]
        assert list(clamped_crop(*size, scale, ratio, TorchDraws(seed))) == box["mae_top_left_h_w"], box
        assert list(random_crop(*size, scale, ratio, TorchDraws(seed))) == box["torchvision_top_left_h_w"], box
        clamped += box["mae_top_left_h_w"] != box["torchvision_top_left_h_w"]
    assert clamped > 0.2 * len(out["boxes"])  # else the two would not be told apart
    width, height = out["statistics_image_width_height"]
    rng, scale = random.Random(0), out["statistics_scale"]
    boxes = np.array([clamped_crop(height, width, scale, ratio, rng) for _ in range(out["statistics_draws"])])
    area = (boxes[:, 2] * boxes[:, 3]).mean() / (height * width)
    full = (boxes[:, 2] == height).mean()
    assert area == pytest.approx(out["statistics_mae"]["mean_area_fraction"], abs=0.02)
    assert full == pytest.approx(out["statistics_mae"]["fraction_full_height"], abs=0.03)


def test_clamped_crop_of_a_single_pixel_is_that_pixel():
    assert {clamped_crop(1, 1, (0.08, 1), (0.75, 1.3333), random.Random(seed)) for seed in range(50)} == {(0, 0, 1, 1)}
    transform = TrainTransform(32, MEAN, STD, clamp_crop=True)
    crops = [transform.plan(20, 400, random.Random(seed)) for seed in range(50)]
    assert all(crop.height <= 20 and crop.width <= 400 for crop in crops)
    assert max(crop.width / crop.height for crop in crops) > 2


def test_plan_is_its_generator_and_flips_half():
    transform = TrainTransform(32, MEAN, STD, scale=(0.5, 1.0), interpolation="random")
    crops = [transform.plan(60, 80, random.Random(seed)) for seed in range(400)]
    assert crops == [transform.plan(60, 80, random.Random(seed)) for seed in range(400)]
    assert 160 < sum(crop.flip for crop in crops) < 240
    assert 160 < sum(crop.interpolation == "bilinear" for crop in crops) < 240
    assert not any(TrainTransform(32, MEAN, STD, flip=0).plan(9, 9, random.Random(s)).flip for s in range(50))


# --- pixels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("box", [(5, 9, 40, 61), (0, 0, 60, 90), (20, 30, 7, 11)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_resizing_a_crop_is_what_pil_does(box, interpolation):
    image = picture(1)
    top, left, height, width = box
    cropped = image.crop((left, top, left + width, top + height))
    expected = from_pil(cropped.resize((32, 24), getattr(Image.Resampling, interpolation.upper()))).int()
    ours = resize(from_pil(image)[:, top : top + height, left : left + width], (24, 32), interpolation).int()
    assert (ours - expected).abs().max() <= 1
    assert (ours != expected).float().mean() < 0.1


@pytest.mark.parametrize("flip", [False, True])
def test_train_transform_is_torchvisions_resized_crop_flip_and_normalise(flip):
    image = picture(2)
    crop = Crop(4, 7, 50, 66, "bicubic", flip)
    expected = T.functional.resized_crop(image, 4, 7, 50, 66, [32, 32], BICUBIC)
    expected = TO_INPUT(T.functional.hflip(expected) if flip else expected)
    ours = TrainTransform(32, MEAN, STD).apply(from_pil(image), crop)
    assert ours.dtype == torch.float32 and ours.is_contiguous()
    assert_same_pixels(ours, expected)


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (33, 33), (20, 15), (41, 300)])
def test_eval_transform_is_torchvisions_resize_and_centre_crop(size):
    image = picture(3, *size)
    expected = T.Compose([T.Resize(int(32 / 0.875), BICUBIC), T.CenterCrop(32), TO_INPUT])(image)
    transform = EvalTransform(32, MEAN, STD)
    crop = transform.plan(size[1], size[0], random.Random(0))
    assert transform.reduction(crop) == 1
    assert_same_pixels(transform.apply(from_pil(image), crop), expected)


@pytest.mark.parametrize("short_side", [32, 35, 36, 50])
@pytest.mark.parametrize("size", [(90, 60), (33, 41)])
def test_eval_transform_at_a_chosen_resize_size(size, short_side):
    image = picture(3, *size)
    expected = T.Compose([T.Resize(short_side, BICUBIC), T.CenterCrop(32), TO_INPUT])(image)
    transform = EvalTransform(32, MEAN, STD, short_side=short_side)
    assert_same_pixels(transform.apply(from_pil(image), transform.plan(size[1], size[0], None)), expected)


@pytest.mark.parametrize(("size", "ratio", "short_side"), [(224, 0.875, 256), (160, 0.875, 182), (384, 1.0, 384)])
def test_short_sides_of_mae(size, ratio, short_side):
    """int(size / 0.875) up to 224 pixels, the size itself above; MAE-priv's 224 / 256 is the same ratio."""
    assert EvalTransform(size, MEAN, STD, crop_ratio=ratio).short_side == short_side


def test_eval_transform_without_a_crop_resizes_the_whole_image():
    image = picture(3)
    expected = TO_INPUT(image.resize((32, 32), Image.Resampling.BICUBIC))
    transform = EvalTransform(32, MEAN, STD, crop_ratio=0)
    assert_same_pixels(transform.apply(from_pil(image), transform.plan(60, 90, None)), expected)


def test_normalise_is_totensor_and_normalize():
    image = picture(4)
    torch.testing.assert_close(Normalize(MEAN, STD)(from_pil(image)), TO_INPUT(image), rtol=0, atol=1e-6)


def test_pil_and_back():
    pixels = from_pil(picture(5))
    assert torch.equal(from_pil(to_pil(pixels)), pixels)


@pytest.mark.parametrize(
    ("crop", "tolerance"),
    [
        (Crop(80, 160, 640, 640, "bicubic"), 0.003),  # on the grid of reduced pixels
        (Crop(84, 164, 640, 640, "bicubic"), 0.03),  # half a reduced pixel off, the worst case
        (Crop(0, 0, 803, 1001, "bicubic", flip=True), 0.006),
    ],
)
def test_crop_of_a_reduced_image_is_near_that_of_the_full_one(tmp_path, crop, tolerance):
    path = str(tmp_path / "a.jpg")
    picture(6, 1001, 803).save(path, quality=95)
    transform = TrainTransform(48, (0, 0, 0), (1, 1, 1))
    assert transform.reduction(crop) == 8
    views = []
    for reduction in (1, 8):
        with ImageReader(path) as image:
            views.append(transform.apply(image.decode(reduction), crop, image.reduction))
        assert image.reduction == reduction
    assert (views[0] - views[1]).abs().mean() < tolerance


# --- policies ------------------------------------------------------------------------------------------------------


def test_rand_augment_is_timms_with_pyslowfasts_constants():
    params = {"translate_const": int(64 * 0.45), "img_mean": (124, 116, 104), "interpolation": Image.BICUBIC}
    theirs = rand_augment_transform("rand-m9-mstd0.5-inc1", params)
    ours = build_auto_augment("rand-m9-mstd0.5-inc1", 64, MEAN, "bicubic")
    image, equal = picture(7, 64, 64), 0
    for seed in range(60):
        with seeded(seed):
            result = np.asarray(ours(image))
        try:
            with seeded(seed):
                equal += np.array_equal(result, np.asarray(theirs(image)))
        except ValueError:  # posterize to no bits, with a recent Pillow
            equal += 1
    assert equal >= 59  # older Pillow: black instead


def test_ra_is_torchvisions_rand_augment_on_pil_images():
    """The augmentation of CoinCheung/MFM; the same pixels for the same seed, in its place after crop and mirroring."""
    theirs = T.RandAugment(num_ops=2, magnitude=6, num_magnitude_bins=10, interpolation=BICUBIC)
    ours = build_auto_augment("ra_6_10", 64, MEAN, "bicubic")
    assert repr(ours) == repr(theirs)
    transform = TrainTransform(60, MEAN, STD, auto_augment="ra_6_10")
    image, plain = picture(7, 60, 60), TO_INPUT(picture(7, 60, 60))
    changed = 0
    for seed in range(30):
        with seeded(seed):
            result = transform.apply(from_pil(image), Crop(0, 0, 60, 60, "bicubic"))
        with seeded(seed):
            expected = TO_INPUT(theirs(image))
        torch.testing.assert_close(result, expected)
        changed += bool((result - plain).abs().max() > 0.01)
    assert changed > 20


def test_posterize_keeps_at_least_one_bit():
    image = picture(7, 8, 8)
    assert set(np.unique(np.asarray(posterize(image, 0)))) == {0, 128}
    assert np.array_equal(np.asarray(posterize(image, 8)), np.asarray(image))
    for policy in ("rand-m10-inc1", "augmix-m10", "original"):
        build_auto_augment(policy, 64, MEAN, "bicubic")


def test_every_part_of_a_policys_name_that_timm_reads_is_taken():
    names = "rand", "rand-m9-n3-p0.5-mmax12-mstd0.5-inc0-tweights", "rand-t3a", "rand-t3aw-m5"
    for policy in (*names, "augmix-m5-w4-d2-b1-a1.5-mstd1", "v0r-mstd0.5", "3a"):
        build_auto_augment(policy, 64, MEAN, "bicubic")


def test_a_policy_replaces_colour_jitter_and_erasing_is_timms():
    assert isinstance(TrainTransform(8, MEAN, STD, color_jitter=0.4).recolor, T.ColorJitter)
    assert not isinstance(TrainTransform(8, MEAN, STD, color_jitter=0.4, auto_augment="rand-m9").recolor, T.ColorJitter)
    assert TrainTransform(8, MEAN, STD).recolor is None and TrainTransform(8, MEAN, STD).erase is None
    transform = TrainTransform(32, MEAN, STD, erase_prob=1.0, erase_mode="pixel", erase_count=2)
    pixels, crop = from_pil(picture(8)), Crop(0, 0, 60, 90, "bicubic")
    plain = TrainTransform(32, MEAN, STD).apply(pixels, crop)
    with seeded(3):
        erased = transform.apply(pixels, crop)
    with seeded(3):
        expected = RandomErasing(1.0, mode="pixel", max_count=2, device="cpu")(plain.clone())
    assert torch.equal(erased, expected) and not torch.equal(erased, plain)


def test_colour_jitter_follows_the_seed_and_changes_the_image():
    transform = TrainTransform(32, MEAN, STD, color_jitter=0.4)
    pixels, crop, views = from_pil(picture(9)), Crop(0, 0, 60, 90, "bicubic"), []
    for seed in (1, 1, 2):
        with seeded(seed):
            views.append(transform.apply(pixels, crop))
    assert torch.equal(views[0], views[1]) and not torch.equal(views[0], views[2])


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"interpolation": "cubic"}, "AUG.INTERPOLATION"),
        ({"auto_augment": "rnd-m9"}, "AUG.AA_TYPE"),
        ({"auto_augment": "rand-z9"}, "AUG.AA_TYPE"),
        ({"auto_augment": "ra_10_10"}, "AUG.AA_TYPE"),
        ({"auto_augment": "rand-foo"}, "AUG.AA_TYPE"),
        ({"auto_augment": "rand-m10-mstdx"}, "AUG.AA_TYPE"),
        ({"auto_augment": "rand-m9-"}, "AUG.AA_TYPE"),
        ({"auto_augment": "rand-m9-tweight"}, "AUG.AA_TYPE"),
        ({"auto_augment": "rand-m9-t3"}, "AUG.AA_TYPE"),
        ({"auto_augment": "augmix-tweights"}, "AUG.AA_TYPE"),
        ({"auto_augment": "augmix-m3-blended"}, "AUG.AA_TYPE"),
        ({"auto_augment": "original-mstd"}, "AUG.AA_TYPE"),
        ({"erase_mode": "black"}, "AUG.RE_MODE"),
    ],
)
def test_options_that_do_not_exist_name_their_key(options, key):
    with pytest.raises(UserError, match=key) as error:
        TrainTransform(32, MEAN, STD, **options)
    assert "\n" not in str(error.value)
