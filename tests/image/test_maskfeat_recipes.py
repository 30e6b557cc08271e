"""mmpretrain's MaskFeat on images: the files of configs/maskfeat beside the published values, starts, colour jitter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from autoencoders import meta_model
from golden_cases import cases, load_case
from mmpretrain_recipes import (
    check_groups,
    check_keys,
    check_learning_rates,
    check_size,
    common_keys,
    entries,
    load,
    recipes,
)
from photos import picture
from torchvision.transforms import ColorJitter

from mfm_core.config import plan_run, validate
from mfm_core.config.plan import IMAGENET_TRAIN_IMAGES
from mfm_core.data.augment import augmented, from_pil
from mfm_core.data.seeding import seeded
from mfm_core.masking.block import ExactBlockMask
from mfm_core.methods.parts import masks_from_cfg
from mfm_core.optim.build import build_optimizer, follow
from mfm_image.data.build import eval_transform, train_transform
from mfm_image.data.transforms import Crop, TrainTransform
from mfm_image.models import build_model

IMAGES = ("maskfeat_pt_300e", "maskfeat_ft_100e")
SMALL = ("MVIT.SIZE", "", "MVIT.EMBED_DIM", 96, "MVIT.DEPTH", 2, "MVIT.NUM_HEADS", 3)
SMALL_CROP = ("DATA.TRAIN_CROP_SIZE", 64, "DATA.TEST_CROP_SIZE", 64)


def small(name: str, *overrides: object):
    depth = ("MASK.PRETRAIN_DEPTH", "[1]") if "_pt_" in name else ("MODEL.NUM_CLASSES", 7)
    return load(name, *SMALL, *depth, *overrides)


@recipes("maskfeat_pt_300e")
def test_pretraining(name, recipe):
    cfg, steps = load(name), {step["type"]: step for step in recipe["train_pipeline"]}
    crop, masks, hog = steps["RandomResizedCrop"], steps["BEiTMaskGenerator"], recipe["model"]["target_generator"]
    check_keys(cfg, common_keys(recipe))
    check_keys(
        cfg,
        {
            "DATA.TRAIN_CROP_SIZE": crop["scale"],
            "DATA.TRAIN_JITTER_SCALES_RELATIVE": crop["crop_ratio_range"],
            "AUG.INTERPOLATION": crop["interpolation"],
            "HOG.BINS": hog["nbins"],
            "HOG.CELL": hog["pool"],
            "HOG.GAUSSIAN_WINDOW": hog["gaussian_window"],
            "MVIT.SIZE": recipe["model"]["backbone"]["arch"].upper(),
            "MVIT.PATCH_STRIDE": [recipe["model"]["backbone"]["patch_size"]] * 2,
            "SOLVER.LR_REFERENCE_BATCH": recipe["auto_scale_lr"]["base_batch_size"],
            "SOLVER.NO_DECAY": list(recipe["paramwise"]["custom_keys"]),
        },
    )
    transform, model = train_transform(cfg), meta_model(cfg)
    assert transform.flip == steps["RandomFlip"]["prob"] and transform.recolor is transform.erase is None
    assert transform.ratio == pytest.approx((3 / 4, 4 / 3), abs=1e-6)
    masker = masks_from_cfg(cfg, model.backbone.grid)
    assert isinstance(masker, ExactBlockMask) and masker.grid == (masks["input_size"],) * 2
    assert (masker.exact, masker.min_block) == (masks["num_masking_patches"], masks["min_num_patches"])
    assert model.target.dim == recipe["model"]["neck"]["out_channels"] and model.depths == (11,)


@recipes("maskfeat_ft_100e")
def test_finetuning(name, recipe):
    cfg, (init,) = load(name), recipe["model"]["head"]["init_cfg"]
    steps = {step["type"]: step for step in recipe["train_pipeline"]}
    test = {step["type"]: step for step in recipe["test_pipeline"]}
    augment, erase, jitter = steps["RandAugment"], steps["RandomErasing"], steps["ColorJitter"]
    mixup, cutmix = (entry["alpha"] for entry in recipe["model"]["train_cfg"]["augments"])
    check_keys(cfg, common_keys(recipe))
    check_keys(
        cfg,
        {
            "SOLVER.LAYER_DECAY": recipe["paramwise"]["layer_decay_rate"],
            "SOLVER.COSINE_END_LR_ABSOLUTE": True,
            "SOLVER.LR_REFERENCE_BATCH": recipe["total_batch"],
            "MVIT.SIZE": recipe["model"]["backbone"]["arch"][0].upper(),
            "MVIT.USE_MEAN_POOLING": recipe["model"]["backbone"]["out_type"] == "avg_featmap",
            "MVIT.HEAD_INIT_STD": init["std"],
            "MVIT.HEAD_INIT_BIAS": init["bias"],
            "MODEL.NUM_CLASSES": recipe["model"]["head"]["num_classes"],
            "MIXUP.ENABLE": True,
            "MIXUP.ALPHA": mixup,
            "MIXUP.CUTMIX_ALPHA": cutmix,
            "MIXUP.SWITCH_PROB": 0.5,
            "MIXUP.LABEL_SMOOTH_VALUE": recipe["model"]["head"]["loss"]["label_smooth_val"],
            "MIXUP.LABEL_SMOOTH_OVER": "all",
            "AUG.AA_TYPE": f"rand-m{augment['magnitude_level']}-mstd{augment['magnitude_std']}-inc1",
            "AUG.COLOR_JITTER": jitter["brightness"],
            "AUG.COLOR_JITTER_ON_TOP": True,
            "AUG.RE_PROB": erase["erase_prob"],
            "AUG.RE_MODE": "pixel" if "fill_std" in erase else "const",
            "AUG.RE_COUNT": 1,
            "AUG.INTERPOLATION": steps["RandomResizedCrop"]["interpolation"],
            "DATA.TEST_CROP_SIZE": test["CenterCrop"]["crop_size"],
            "DATA.TEST_INTERPOLATION": test["ResizeEdge"].get("interpolation", "bilinear"),
        },
    )
    transform = train_transform(cfg)
    for kind in ("brightness", "contrast", "saturation"):
        assert getattr(transform.jitter, kind) == pytest.approx((1 - jitter[kind], 1 + jitter[kind]))
    assert transform.jitter.hue is None and "hue" not in jitter
    assert augment["policies"] == "timm_increasing" and transform.recolor.num_layers == augment["num_policies"]
    assert transform.size == steps["RandomResizedCrop"]["scale"] and transform.scale == (0.08, 1.0)
    assert transform.flip == steps["RandomFlip"]["prob"]
    assert eval_transform(cfg).short_side == test["ResizeEdge"]["scale"]
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in meta_model(cfg).backbone.blocks]
    assert rates[-1] == pytest.approx(recipe["model"]["backbone"]["drop_path_rate"])


@pytest.mark.parametrize("name", IMAGES)
def test_learning_rates_and_steps(name):
    for _, entry, tolerance in entries("mmpretrain/layer_decay", "schedules", name):
        check_learning_rates(load(name), entry, tolerance)
        plan = plan_run(load(name), IMAGENET_TRAIN_IMAGES, world_size=8)
        assert plan.steps_per_epoch == entry["iters_per_epoch"]
        assert plan.schedule.base == pytest.approx(entry["effective_base_lr"])


@pytest.mark.parametrize("name", IMAGES)
def test_groups(name):
    for _, entry, tolerance in entries("mmpretrain/layer_decay", "groups", name):
        check_groups(meta_model(load(name)), load(name), entry, tolerance)


@pytest.mark.parametrize("name", IMAGES)
def test_full_size(name):
    key = {"maskfeat_pt_300e": "maskfeat_pretrain_vit_base", "maskfeat_ft_100e": "maskfeat_finetune_vit_base"}[name]
    assert validate(load(name)) == []
    for folder in cases("mmpretrain/model_stats"):
        case, _ = load_case(folder)
        if key not in case["counts"]:
            continue
        model, counts = meta_model(load(name)), case["counts"][key]
        if key in case["state_dict_shapes"]:
            check_size(model, counts, case["state_dict_shapes"][key])
        assert sum(p.numel() for p in model.parameters()) == counts["total"]


def test_start_of_pretraining():
    """MaskFeatViT._init_weights: 0.02 for all weights, no bias but that of the patch projection, torch's own."""
    model = build_model(small("maskfeat_pt_300e")).requires_grad_(False)
    for name, p in model.named_parameters():
        if name == "backbone.patch_embed.proj.bias":
            bound = (3 * 16 * 16) ** -0.5
            assert 0.9 * bound < float(p.abs().max()) <= bound
            assert float(p.std()) == pytest.approx(bound / 3**0.5, rel=0.2)
        elif name.endswith(".bias"):
            assert not p.any(), name
        elif p.ndim == 1:
            assert (p == 1).all(), name
        else:
            assert float(p.std()) == pytest.approx(0.02, rel=0.25 if p.numel() < 1000 else 0.05), name
            assert p.numel() < 1000 or float(p.abs().max()) > 0.06, "cut off far out, if at all"


def test_only_biases_start_otherwise_than_pyslowfast_s():
    """And its own start is what it was."""
    starts = {}
    for init in ("", "pyslowfast", "mmpretrain"):
        torch.manual_seed(0)
        starts[init] = dict(build_model(small("maskfeat_pt_300e", "MASK.INIT", init)).named_parameters())
    for name, p in starts["mmpretrain"].items():
        theirs = starts[""][name]
        assert torch.equal(starts["pyslowfast"][name], theirs), name
        same = torch.equal(p, theirs)
        assert same != (name.endswith(".bias") and not name.startswith("head.")), name
    assert float(starts[""]["backbone.blocks.0.norm1.bias"].detach()[0]) == pytest.approx(0.02)


def test_start_of_the_classifier():
    """LinearClsHead: 2e-5, the bias too; the norm behind the mean is torch's."""
    head = build_model(small("maskfeat_ft_100e", "MODEL.NUM_CLASSES", 1000)).head.requires_grad_(False)
    weight = head.projection.weight
    assert float(weight.std()) == pytest.approx(2e-5, rel=0.02) and float(weight.abs().max()) > 6e-5
    assert torch.equal(head.projection.bias, torch.full((1000,), 2e-5))
    assert (head.norm.weight == 1).all() and not head.norm.bias.any()


@pytest.mark.parametrize("name", IMAGES)
def test_a_step_of_a_small_copy(name):
    cfg = small(name, *SMALL_CROP)
    model = build_model(cfg)
    optimizer = build_optimizer(model, cfg)
    follow(optimizer, lambda scale: scale * cfg.SOLVER.BASE_LR)
    images, generator = torch.randn(4, 3, 64, 64), torch.Generator().manual_seed(0)

    def loss():
        if "_ft_" in name:
            return torch.nn.functional.cross_entropy(model.eval()(images), torch.arange(4))
        return model(images, mask).loss

    if "_pt_" in name:
        masker = masks_from_cfg(cfg, model.backbone.grid)
        mask = torch.stack([masker(generator, image) for image in images])
        assert (mask.flatten(1).sum(dim=1) == round(0.4 * 16)).all()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    first = loss()
    first.backward()
    optimizer.step()
    assert float(loss().detach()) < float(first.detach())
    assert not [n for n, p in model.named_parameters() if torch.equal(before[n], p)]


# --- colour jitter on top of a policy ------------------------------------------------------------------------------

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
POLICY = "rand-m9-mstd0.5-inc1"


def on_top(**kwargs) -> TrainTransform:
    return TrainTransform(48, MEAN, STD, auto_augment=POLICY, color_jitter=0.4, **kwargs)


def test_colour_jitter_follows_the_policy():
    """Policy, then jitter, then erasing, with the draws of timm, torchvision and timm in this order."""
    transform, plain = on_top(jitter_on_top=True, erase_prob=1.0), TrainTransform(48, MEAN, STD)
    pixels, crop = from_pil(picture(3)), Crop(0, 0, 60, 90, "bicubic")
    jitter, changed = ColorJitter(0.4, 0.4, 0.4), 0
    for seed in range(10):
        with seeded(seed):
            result = transform.apply(pixels, crop)
        with seeded(seed):
            policed = augmented(plain.cut(pixels, crop, 1), transform.recolor)
            jittered = augmented(policed, jitter)
            expected = transform.erase(plain.normalize(jittered))
        assert torch.equal(result, expected)
        changed += not torch.equal(policed, jittered)
    assert changed == 10


def test_without_the_key_nothing_is_drawn_for_it():
    """The views of all other recipes are what they were, bit by bit."""
    pixels, crop = from_pil(picture(4)), Crop(0, 0, 60, 90, "bicubic")
    views = []
    for transform in (on_top(), TrainTransform(48, MEAN, STD, auto_augment=POLICY)):
        assert transform.jitter is None
        with seeded(5):
            views.append((transform.apply(pixels, crop), torch.rand(3), np.random.rand()))
    assert torch.equal(views[0][0], views[1][0]) and torch.equal(views[0][1], views[1][1])
    assert views[0][2] == views[1][2]
