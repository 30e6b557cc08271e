"""mmpretrain's MaskFeat on clips, and mmaction2's fine-tuning of it: configs/maskfeat beside the published values."""

from __future__ import annotations

import pytest
import torch
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

from mfm_core.checkpoint.init_from import init_from
from mfm_core.config import schedule_of, validate
from mfm_core.masking.cube import CubeMask
from mfm_core.methods.parts import masks_from_cfg
from mfm_video.data.build import clip_spec, train_transform, view_transforms
from mfm_video.data.sampling import even_start
from mfm_video.models import build_model

PRETRAINING = ("maskfeat_video_pt_16x32", "maskfeat_video_pt_8x32")
CLIPS = (*PRETRAINING, "maskfeat_video_ft_100e")
STATS = {"maskfeat_video_ft_100e": "maskfeat_video_finetune_mvit_small"}
SMALL = (
    *("MVIT.EMBED_DIM", 16, "DATA.NUM_FRAMES", 4, "DATA.TRAIN_CROP_SIZE", 64, "DATA.TEST_CROP_SIZE", 64),
    *("MVIT.POOL_KV_STRIDE_ADAPTIVE", "[1, 4, 4]"),
)


def meta_model(cfg):
    """The model at full size, without content."""
    with torch.device("meta"):
        return build_model(cfg)


def steps_of(pipeline: list[dict]) -> dict[str, list[dict]]:
    """The steps of a pipeline by their types, in order."""
    steps: dict[str, list[dict]] = {}
    for step in pipeline:
        steps.setdefault(step["type"].split(".")[-1], []).append(step)
    return steps


def check_clips(cfg, steps: dict[str, list[dict]]) -> None:
    """Sampling, and the way from frames to a clip."""
    (sample,), (crop,), resizes = steps["SampleFrames"], steps["RandomResizedCrop"], steps["Resize"]
    spec, transform = clip_spec(cfg), train_transform(cfg)
    assert (spec.num_frames, spec.sampling_rate, 1) == (
        sample["clip_len"],
        sample["frame_interval"],
        sample["num_clips"],
    )
    assert [resize["scale"] for resize in resizes] == [[-1, transform.short_side], [transform.size] * 2]
    assert transform.resized and list(transform.scale) == crop.get("area_range", [0.08, 1.0])
    assert transform.ratio == pytest.approx((3 / 4, 4 / 3), abs=1e-6)
    assert transform.flip == steps["Flip"][0]["flip_ratio"]


@recipes(*PRETRAINING)
def test_pretraining(name, recipe):
    cfg, steps = load(name), steps_of(recipe["train_pipeline"])
    (masks,), hog = steps["MaskFeatMaskGenerator3D"], recipe["model"]["target_generator"]
    check_keys(cfg, common_keys(recipe))
    check_keys(
        cfg,
        {
            "HOG.BINS": hog["nbins"],
            "HOG.CELL": hog["pool"],
            "HOG.GAUSSIAN_WINDOW": hog["gaussian_window"],
            "MVIT.DIM_MUL_IN_ATT": recipe["model"]["backbone"]["dim_mul_in_attention"],
            "SOLVER.LR_REFERENCE_BATCH": recipe["total_batch"],
            "AUG.ENABLE": False,
        },
    )
    check_clips(cfg, steps)
    per_step = cfg.TRAIN.BATCH_SIZE // cfg.NUM_GPUS // cfg.TRAIN.ACCUM_STEPS
    assert per_step == recipe["batch_per_gpu"], "so many at a time, on half the GPUs where there are 16"
    model = meta_model(cfg)
    enlarged = masks_from_cfg(cfg, model.backbone.grid)
    masker = enlarged.masker
    assert isinstance(masker, CubeMask) and list(masker.grid) == masks["input_size"]
    assert (masker.requested, masker.exact) == (masks["num_masking_patches"], None)
    assert (masker.min_block, masker.max_block) == (masks["min_num_patches"], masks["max_num_patches"])
    assert model.target.dim == recipe["model"]["neck"]["out_channels"] and model.depths == (15,)
    assert (cfg.MASK.INIT, cfg.MASK.TARGET, cfg.MASK.PRED_HOG) == ("mmpretrain", "", True)


@recipes("maskfeat_video_ft_100e")
def test_finetuning(name, recipe):
    cfg, steps, test = load(name), steps_of(recipe["train_pipeline"]), steps_of(recipe["test_pipeline"])
    head, (mixup, cutmix) = recipe["model"]["cls_head"], recipe["data_preprocessor"]["blending"]["augments"]
    (policy,), (erase,), (views,) = steps["PytorchVideoWrapper"], steps["RandomErasing"], test["SampleFrames"]
    check_keys(cfg, common_keys(recipe))
    check_keys(
        cfg,
        {
            "SOLVER.LAYER_DECAY": recipe["paramwise"]["decay_rate"],
            "SOLVER.LR_REFERENCE_BATCH": recipe["auto_scale_lr"]["base_batch_size"],
            "SOLVER.LR_REFERENCE_SCALES": "all",
            "DATA.TRAIN_CROP_NUM_TEMPORAL": recipe["train_dataset"]["num_repeats"],
            "AUG.NUM_SAMPLE": 1,
            "AUG.AA_TYPE": f"rand-m{policy['magnitude']}-mstd0.5-inc1",
            "AUG.INTERPOLATION": "bilinear",
            "AUG.COLOR_JITTER": None,
            "AUG.RE_PROB": erase["erase_prob"],
            "AUG.RE_COUNT": 1,
            "MIXUP.ALPHA": mixup["alpha"],
            "MIXUP.CUTMIX_ALPHA": cutmix["alpha"],
            "MIXUP.PROB": 1.0,
            "MIXUP.SWITCH_PROB": 0.5,
            "MIXUP.LABEL_SMOOTH_VALUE": head["label_smooth_eps"],
            "MODEL.NUM_CLASSES": head["num_classes"],
            "MODEL.DROPOUT_RATE": head["dropout_ratio"],
            "MVIT.HEAD_INIT_SCALE": head["init_scale"],
            "MVIT.USE_MEAN_POOLING": False,
            "MVIT.DIM_MUL_IN_ATT": recipe["model"]["backbone"]["dim_mul_in_attention"],
            "TEST.NUM_ENSEMBLE_VIEWS": views["num_clips"],
            "TEST.NUM_SPATIAL_CROPS": 1,
        },
    )
    assert policy["op"] == "RandAugment" and head["average_clips"] == "prob"
    check_clips(cfg, steps)
    (view,) = view_transforms(cfg, cfg.TEST.NUM_SPATIAL_CROPS)
    assert [-1, view.side] == test["Resize"][0]["scale"] and view.size == test["CenterCrop"][0]["crop_size"]
    last = even_start(300, 64, views["num_clips"] - 1, views["num_clips"], cfg.DATA.USE_OFFSET_SAMPLING)
    assert last == pytest.approx(300 - 64, abs=views["num_clips"]), "the last view ends with the video"
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in meta_model(cfg).backbone.blocks]
    assert rates[-1] == pytest.approx(recipe["model"]["backbone"]["drop_path_rate"])


@pytest.mark.parametrize("name", CLIPS)
def test_learning_rates(name):
    """The points are for the written rate; fine-tuning's goes with the batch, start and end too."""
    for _, entry, tolerance in entries("mmpretrain/layer_decay", "schedules", name):
        written = entry["auto_scale_base_batch"] if entry["auto_scale_enabled"] else entry["total_batch"]
        check_learning_rates(load(name, "TRAIN.BATCH_SIZE", written), entry, tolerance)
        schedule, whole = (schedule_of(load(name, *keys), 1) for keys in ((), ("TRAIN.BATCH_SIZE", written)))
        assert schedule.base == pytest.approx(entry["effective_base_lr"])
        share = entry["effective_base_lr"] / entry["config_base_lr"]
        assert schedule.end == pytest.approx(share * whole.end)
        assert schedule.warmup_start == pytest.approx(share * whole.warmup_start)


@pytest.mark.parametrize("name", CLIPS)
def test_groups(name):
    """Of pre-training they are the same for both batches."""
    published = {"maskfeat_video_pt_16x32": "maskfeat_video_pt_8x32"}.get(name, name)
    for _, entry, tolerance in entries("mmpretrain/layer_decay", "groups", published):
        check_groups(meta_model(load(name)), load(name), entry, tolerance)


@pytest.mark.parametrize("name", CLIPS)
def test_full_size(name):
    assert validate(load(name)) == []
    key = STATS.get(name, "maskfeat_video_pretrain_mvit_small")
    for folder in cases("mmpretrain/model_stats"):
        case, _ = load_case(folder)
        if key in case["counts"]:
            check_size(meta_model(load(name)), case["counts"][key], case["state_dict_shapes"][key])


def test_start_of_pretraining():
    """MaskFeatMViT's init_cfg: 0.02 for all weights and tables; biases of norms 0.02, the last one's too, others 0."""
    model = build_model(load("maskfeat_video_pt_8x32", *SMALL, "AUG.MASK_WINDOW_SIZE", "[2, 2, 2]"))
    norms = {n for n, m in model.named_modules() if isinstance(m, torch.nn.LayerNorm)}
    assert {"head.transforms.0.0", "backbone.blocks.0.attn.norm_q"} <= norms
    for name, p in model.named_parameters():
        p = p.detach()
        owner, _, kind = name.rpartition(".")
        if kind == "bias":
            assert torch.equal(p, torch.full_like(p, 0.02 if owner in norms else 0.0)), name
        elif owner in norms:
            assert (p == 1).all(), name
        elif p.numel() > 1000:
            assert float(p.std()) == pytest.approx(0.02, rel=0.1), name
        else:
            assert p.any(), name


def test_start_of_the_classifier(tmp_path):
    """From MaskFeat's weights: its norm is never taken, and the fresh one is torch's; weight and bias are 2e-5."""
    pretrained = build_model(load("maskfeat_video_pt_8x32", *SMALL, "AUG.MASK_WINDOW_SIZE", "[2, 2, 2]"))
    torch.save({"model_state": pretrained.state_dict()}, tmp_path / "x.pyth")
    classifier = build_model(load("maskfeat_video_ft_100e", *SMALL))
    report = init_from(classifier, str(tmp_path / "x.pyth"))
    head = classifier.head.requires_grad_(False)
    assert set(report.missing) == {f"head.{name}" for name, _ in head.named_parameters()}
    assert float(head.projection.weight.std()) == pytest.approx(2e-5, rel=0.05)
    assert torch.allclose(head.projection.bias, torch.tensor(2e-5))
    assert (head.norm.weight == 1).all() and not head.norm.bias.any()
