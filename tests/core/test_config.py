"""The configuration: PySlowFast's keys and files, and what each mistake in one says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
from paths import CONFIGS, REPOSITORY
from pyslowfast_files import FILES, KEYS, recipe

from mfm_core.config import device_of, flatten, get_cfg, load_config, modality_of, pictures_of, validate
from mfm_core.config.plan import arch_of, corruption_of, drawing_of, mask_window
from mfm_core.config.tables import CHOICES, LENGTHS, NOT_EMPTY, NULLABLE, RANGES, WHOLE_LISTS, WORDS
from mfm_core.engine.trainer import Settings
from mfm_core.errors import UserError
from mfm_core.optim.build import OPTIMIZERS

IMAGE = str(CONFIGS / "masked_ssl" / "in1k_VIT_B_MaskFeat_PT.yaml")
PROBE, KNN = (str(CONFIGS / "demo" / f"{name}.yaml") for name in ("probe", "knn"))
FINETUNE = str(CONFIGS / "masked_ssl" / "in1k_VIT_B_MaskFeat_FT.yaml")
CUBES = str(CONFIGS / "masked_ssl" / "k400_MVITv2_S_16x4_MaskFeat_PT.yaml")
DEMO_CLIPS = str(CONFIGS / "demo_video" / "finetune.yaml")
CLIPS = str(CONFIGS / "masked_ssl" / "k400_VIT_B_16x4_MAE_PT.yaml")
MAE = ["MASK.METHOD", "mae", "MASK.DECODER_DEPTH", "2"]
MFM = str(CONFIGS / "mfm" / "mfm_pretrain__vit_base__img224__300ep.yaml")
RESNET = str(CONFIGS / "mfm" / "mfm_pretrain__resnet50__img224__300ep.yaml")


def message_of(path, *overrides: str) -> str:
    """The one line that a faulty configuration gives."""
    with pytest.raises(UserError) as caught:
        validate(load_config(None if path is None else str(path), overrides))
    message = str(caught.value)
    assert message and "\n" not in message
    return message


@pytest.fixture
def write(tmp_path):
    """Writes a YAML file and returns its path."""

    def write(text: str, name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_pyslowfast_keys_and_defaults():
    ours = dict(flatten(get_cfg()))
    assert len(KEYS) == 113
    for key, about in KEYS.items():
        default = tuple(about["default"]) if about["type"] == "tuple" else about["default"]
        assert ours[key] == default and type(ours[key]).__name__ == about["type"], key


@pytest.mark.parametrize("name", FILES)
def test_pyslowfast_files_load(name, tmp_path):
    cfg = dict(flatten(load_config(str(recipe(name, tmp_path)))))
    for key, about in KEYS.items():
        value = about["used"].get(name, about["default"])
        if isinstance(value, str) and not isinstance(cfg[key], str):
            value = ast.literal_eval(value)
        as_list = list(cfg[key]) if isinstance(cfg[key], tuple) else cfg[key]
        assert as_list == (list(value) if isinstance(value, tuple) else value), key


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("in1k")])
def test_image_files_run_and_are_ours(name, tmp_path):
    theirs = load_config(str(recipe(name, tmp_path)))
    assert theirs == load_config(str(CONFIGS / "masked_ssl" / f"{name}.yaml"))
    warnings = validate(theirs)
    assert all(w.startswith(("BN.USE_PRECISE_STATS", "TRAIN.EVAL_PERIOD 10000")) for w in warnings), warnings


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("k400")])
def test_video_files_run_and_are_ours(name, tmp_path):
    theirs = load_config(str(recipe(name, tmp_path)))
    assert theirs == load_config(str(CONFIGS / "masked_ssl" / f"{name}.yaml"))
    assert modality_of(theirs) == "video"
    assert arch_of(theirs) == ("mvit" if "MVIT" in name else "space_time_vit")
    idle = ("TRAIN.EVAL_PERIOD 1000", "MVIT.SEP_POS_EMBED True acts with", "DATA.DECODING_BACKEND torchvision: ")
    if name.endswith("_PT"):
        idle += ("DATA.USE_OFFSET_SAMPLING True acts in tests", "TEST.NUM_TEMPORAL_CLIPS [5, 10] acts in tests")
    assert all(w.startswith(idle) for w in validate(theirs)), validate(theirs)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("**/*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_our_files_validate(path):
    if not path.stem.endswith("base"):
        validate(load_config(str(path)))


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["SOLVER.BASELR", "1"], ["SOLVER.BASELR", "Did you mean SOLVER.BASE_LR?"]),
        (["TRAIN", "1"], ["TRAIN is a section"]),
        (["TRAIN.BATCH_SIZE.X", "1"], ["no key TRAIN.BATCH_SIZE.X"]),
        (["TRAIN.BATCH_SIZE"], ["'TRAIN.BATCH_SIZE' has no value", "KEY VALUE"]),
        (["TRAIN.BATCH_SIZE", "many"], ["TRAIN.BATCH_SIZE", "whole number", "'many'"]),
        (["TRAIN.BATCH_SIZE", "1.5"], ["TRAIN.BATCH_SIZE", "whole number"]),
        (["TRAIN.BATCH_SIZE", "True"], ["TRAIN.BATCH_SIZE", "whole number"]),
        (["SOLVER.BASE_LR", "True"], ["SOLVER.BASE_LR", "a number"]),
        (["SOLVER.BASE_LR", "1e999"], ["SOLVER.BASE_LR", "finite"]),
        (["TRAIN.ENABLE", "1"], ["TRAIN.ENABLE", "True or False"]),
        (["AUG.COLOR_JITTER", "much"], ["AUG.COLOR_JITTER", "a number or None"]),
        (["DATA.MEAN", "[a, b]"], ["DATA.MEAN", "a list"]),
        (["DATA.MEAN", "['a', 'b', 'c']"], ["DATA.MEAN", "numbers"]),
        (["MASK.PRETRAIN_DEPTH", "[1.5]"], ["MASK.PRETRAIN_DEPTH", "whole numbers"]),
        (["DATA.TRAIN_JITTER_SCALES_RELATIVE", "['a', 'b']"], ["DATA.TRAIN_JITTER_SCALES_RELATIVE", "numbers"]),
        (["SOLVER.OPTIMIZING_METHOD", "adam"], ["SOLVER.OPTIMIZING_METHOD", "'adamw'"]),
        (["SOLVER.BASE_LR", "(" * 5000], ["SOLVER.BASE_LR", "a number"]),
        (["PICTURE.HEAD_FUSION", "sum"], ["PICTURE.HEAD_FUSION", "'mean'"]),
        (["SOLVER.NO_DECAY", "['cls_token', 'pos']"], ["SOLVER.NO_DECAY", "mask_token", "'pos'"]),
        (["TEST.RESIZE_SIZES", "[234.5]"], ["TEST.RESIZE_SIZES", "whole numbers"]),
    ],
    ids=lambda p: p[0][:40] if len(p[0]) < 90 else "nested",
)
def test_mistakes_on_the_command_line(overrides, parts):
    message = message_of(None, *overrides)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("TRAIN:\n  BATCHSIZE: 1\n", ["run.yaml", "TRAIN.BATCHSIZE", "Did you mean TRAIN.BATCH_SIZE?"]),
        ("TRAIN: 1\n", ["run.yaml", "TRAIN is a section"]),
        ("TRAIN:\n", ["run.yaml", "TRAIN is a section"]),
        ("RNG_SEED: {A: 1}\n", ["run.yaml", "RNG_SEED.A"]),
        ("RNG_SEED: a\n", ["run.yaml", "RNG_SEED", "whole number"]),
        ("PICTURE: {KIND: [1]}\n", ["run.yaml", "PICTURE.KIND", "attention"]),
        ("SOLVER:\n  BASE_LR: .nan\n", ["run.yaml", "SOLVER.BASE_LR", "finite"]),
        ("TRAIN:\n  [\n", ["run.yaml", "not valid YAML"]),
        ("- 1\n- 2\n", ["run.yaml", "cannot be read as a config"]),
        ("just words\n", ["run.yaml", "cannot be read as a config"]),
        ("", ["run.yaml", "cannot be read as a config"]),
        ("_BASE_: absent.yaml\n", ["run.yaml", "absent.yaml", "_BASE_"]),
        ("_BASE_: 5\n", ["run.yaml", "cannot be read as a config"]),
        ("_BASE_: run.yaml\n", ["run.yaml", "cannot be read as a config"]),
        ("TRAIN: &a\n  ENABLE: *a\n", ["run.yaml", "cannot be read as a config"]),
        ("TRAIN: {}\nAUG: {}\nTRAIN: {ENABLE: True}", ["run.yaml", "section TRAIN stands twice (lines 1 and 3)"]),
        ("TRAIN: {}\nAUG: {}\n\nTRAIN:\n", ["run.yaml", "section TRAIN stands twice (lines 1 and 4)"]),
    ],
    ids=lambda p: repr(p)[:30],
)
def test_mistakes_in_a_file(text, parts, write):
    message = message_of(write(text))
    assert all(part in message for part in parts), message


def test_bytes_and_folders_are_no_config(tmp_path):
    assert "absent.yaml" in message_of(tmp_path / "absent.yaml")
    assert str(tmp_path) in message_of(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(bytes(range(256)))
    assert "binary.yaml" in message_of(binary)
    assert "https://" in message_of("https://nowhere.invalid/run.yaml")


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir", "!!python/name:os"])
def test_yaml_never_runs_code(tag, write, tmp_path):
    trap = tmp_path / "made_by_yaml"
    message = message_of(write(f'OUTPUT_DIR: {tag} ["{trap}"]\n'))
    assert "run.yaml" in message and "refused" in message
    base = write(f'OUTPUT_DIR: {tag} ["{trap}"]\n', "base.yaml")
    assert "refused" in message_of(write(f"_BASE_: {base.name}\n"))
    assert not trap.exists()


def test_base_files_are_relative_and_overridden(write, tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    write("RNG_SEED: 5\nTRAIN:\n  BATCH_SIZE: 7\n  EVAL_PERIOD: 3\n", "deep/base.yaml")
    path = write("_BASE_: deep/base.yaml\nTRAIN:\n  BATCH_SIZE: 9\n")
    monkeypatch.chdir("/")
    cfg = load_config(str(path), ["TRAIN.EVAL_PERIOD", "4"])
    assert (cfg.RNG_SEED, cfg.TRAIN.BATCH_SIZE, cfg.TRAIN.EVAL_PERIOD) == (5, 9, 4)


def test_what_stands_twice_in_a_file(write, caplog):
    """A section is refused, in a `_BASE_` too; of a key the last counts, as in files of PySlowFast, and is said."""
    write("SOLVER:\n  BASE_LR: 1.0\nSOLVER:\n  MAX_EPOCH: 3\n", "base.yaml")
    message = message_of(write("_BASE_: base.yaml\nSOLVER:\n  MAX_EPOCH: 5\n"))
    assert "base.yaml: the section SOLVER stands twice (lines 1 and 3)" in message
    assert not caplog.messages
    cfg = load_config(str(write("MVIT:\n  NUM_HEADS: 3\n  DEPTH: 7\n  NUM_HEADS: 1\nTRAIN:\n  BATCH_SIZE: 2\n")))
    assert (cfg.MVIT.NUM_HEADS, cfg.MVIT.DEPTH, cfg.TRAIN.BATCH_SIZE) == (1, 7, 2)
    (said,) = caplog.messages
    assert "run.yaml: MVIT.NUM_HEADS stands twice (lines 2 and 4); the last counts" in said


def test_spellings_of_values():
    overrides = {
        "SOLVER.BASE_LR": ("1", 1.0),
        "SOLVER.WEIGHT_DECAY": ("1e-6", 1e-6),
        "TRAIN.ENABLE": ("false", False),
        "AUG.COLOR_JITTER": ("None", None),
        "SOLVER.CLIP_GRAD_L2NORM": ("null", None),
        "MVIT.PATCH_KERNEL": ("(2, 16, 16)", [2, 16, 16]),
        "SOLVER.BETAS": ("[0.9, 0.95]", (0.9, 0.95)),
        "DATA.TRAIN_JITTER_SCALES_RELATIVE": ("[0.5, 1]", [0.5, 1]),
        "TRAIN.CHECKPOINT_FILE_PATH": ("None", ""),
        "OUTPUT_DIR": ("7", "7"),
        "PICTURE.KIND": ("attention, 'neighbours'", ["attention", "neighbours"]),
        "SOLVER.NO_DECAY": ("('cls_token', 'mask_token')", ["cls_token", "mask_token"]),
        "TEST.RESIZE_SIZES": ("[234, 235]", [234, 235]),
    }
    cfg = dict(flatten(load_config(None, [w for key, (text, _) in overrides.items() for w in (key, text)])))
    for key, (_, value) in overrides.items():
        assert cfg[key] == value and type(cfg[key]) is type(value), key


@pytest.mark.parametrize(
    ("device", "num_gpus", "expected"),
    [("auto", 0, "cpu"), ("auto", 1, "auto"), ("cpu", 2, "cpu"), ("cuda", 0, "cuda")],
)
def test_no_gpus_are_the_cpu(device, num_gpus, expected):
    assert device_of(load_config(None, ["DEVICE", device, "NUM_GPUS", str(num_gpus)])) == expected


def test_the_result_is_frozen():
    with pytest.raises(AttributeError):
        load_config(None).RNG_SEED = 3


@pytest.mark.parametrize("key", sorted(RANGES))
def test_numbers_out_of_range_are_refused(key):
    low, high = RANGES[key]
    default = dict(flatten(get_cfg()))[key]
    kind = NULLABLE.get(key, type(default))
    values = [low - 1] + ([high + 1] if high < float("inf") else [])
    for value in values:
        value = kind(value) if kind not in (list, tuple) else [type(n)(value) for n in default or ()] or [value] * 2
        message = message_of(IMAGE, key, str(value))
        assert key in message and "must be at least" in message, message


@pytest.mark.parametrize("key", sorted({*LENGTHS, *NOT_EMPTY}))
def test_lists_of_another_length_are_refused(key):
    value = "[]" if key in NOT_EMPTY else "[0.5]"
    assert key in message_of(IMAGE, key, value)


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["MASK.PRED_HOG", "False"], "MASK.PRED_HOG"),
        (["AUG.MASK_RATIO", "0.0"], "AUG.MASK_RATIO"),
        (["MODEL.LOSS_FUNC", "cross_entropy"], "MODEL.LOSS_FUNC"),
        (["MODEL.MODEL_NAME", "ResNet"], "MODEL.MODEL_NAME"),
        (["MVIT.PATCH_2D", "False"], "MVIT.PATCH_2D"),
        (["MVIT.SIZE", "B", "MVIT.DEPTH", "12"], "MVIT.SIZE"),
        (["MVIT.DIM_MUL", "[[1, 2.0]]"], "MVIT.DIM_MUL"),
        (["SOLVER.WARMUP_EPOCHS", "300"], "SOLVER.WARMUP_EPOCHS"),
        (["SOLVER.LAYER_DECAY", "0.0"], "SOLVER.LAYER_DECAY"),
        (["SOLVER.COSINE_END_LR", "1.0"], "SOLVER.COSINE_END_LR"),
        (["TEST.ENABLE", "True", "TEST.DATASET", "kinetics"], "TEST.DATASET"),
        (["MASK.METHOD", "mae"], "MASK.DECODER_DEPTH"),
        (["MASK.METHOD", "mff"], "MASK.DECODER_DEPTH"),
        ([*MAE, "MASK.MAE_RND_MASK", "True", "AUG.MASK_TYPE", "block"], "MASK.MAE_RND_MASK"),
        (["MASK.INIT", "mae"], "MASK.INIT mae is no start of maskfeat's; it takes pyslowfast, mmpretrain."),
        (
            [*MAE, "MASK.INIT", "mmpretrain"],
            "MASK.INIT mmpretrain is no start of mae's; it takes mae, mae_priv, pyslow",
        ),
        (["SOLVER.LR_REFERENCE_BATCH", "256"], "SOLVER.BASE_LR_SCALE_NUM_SHARDS False"),
        (["TEST.RESIZE_SIZES", "[256, 200]"], "TEST.RESIZE_SIZES has 200, which is below DATA.TEST_CROP_SIZE 224"),
    ],
    ids=lambda p: p if isinstance(p, str) else "",
)
def test_impossible_combinations(overrides, part):
    assert part in message_of(IMAGE, *overrides)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["MASK.METHOD", "maskfeat"], ["MODEL.ARCH resnet", "maskfeat"]),
        (["AUG.MASK_TYPE", "block"], ["AUG.MASK_TYPE block", "mfm"]),
        (["MFM.CORRUPTION", "sr", "MFM.LOSS_REDUCTION", "masked"], ["MFM.LOSS_REDUCTION masked", "sr"]),
        (["MFM.AVE_SPECTRUM", "True", "TRAIN.ACCUM_STEPS", "2"], ["MFM.AVE_SPECTRUM", "TRAIN.ACCUM_STEPS"]),
        (["MFM.WITH_MATRIX", "True", "MFM.BATCH_MATRIX", "True", "TRAIN.ACCUM_STEPS", "2"], ["MFM.BATCH_MATRIX"]),
        (["MFM.PATCH_FACTOR", "3"], ["MFM.PATCH_FACTOR 3", "DATA.TRAIN_CROP_SIZE 224"]),
        (["MFM.BLUR_KERNEL_LIST", "['disc']"], ["MFM.BLUR_KERNEL_LIST", "'disc'", "plateau_iso"]),
        (["MFM.BLUR_KERNEL_LIST", "['iso']"], ["MFM.BLUR_KERNEL_PROB", "['iso']"]),
        (["MFM.BLUR_KERNEL_LIST", "[7]"], ["MFM.BLUR_KERNEL_LIST", "'7'"]),
        (["MFM.NOISE_PROB", "[0, 0]"], ["MFM.NOISE_PROB"]),
        (["MFM.NOISE_TYPE", "['salt', 'poisson']"], ["MFM.NOISE_TYPE", "'salt'"]),
        (["MFM.BLUR_KERNEL_SIZE", "[7, 8]"], ["MFM.BLUR_KERNEL_SIZE", "odd"]),
        (["MFM.CORRUPTION", "deblur", "MFM.BLUR_KERNEL_SIZE", "[449]"], ["MFM.BLUR_KERNEL_SIZE 449"]),
        (["MFM.CORRUPTION", "sr", "MFM.SR_FACTOR", "225"], ["MFM.SR_FACTOR 225"]),
        (["DATA.TEST_CROP_SIZE", "256"], ["DATA.TEST_CROP_SIZE 256", "DATA.TRAIN_CROP_SIZE 224"]),
        (["RESNET.DEPTH", "34"], ["RESNET.DEPTH", "50"]),
        (["TRAIN.COMPILE", "True", "MODEL.ACT_CHECKPOINT", "True"], ["TRAIN.COMPILE", "MODEL.ACT_CHECKPOINT"]),
    ],
    ids=lambda p: p[0] if isinstance(p, list) else "",
)
def test_impossible_combinations_of_mfm(overrides, parts):
    message = message_of(RESNET, *overrides)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("path", "overrides", "parts"),
    [
        (CLIPS, ["MVIT.PATCH_2D", "True"], ["TRAIN.DATASET kinetics", "MVIT.PATCH_2D False"]),
        (CLIPS, ["MODEL.ARCH", "resnet"], ["MODEL.ARCH resnet", "mvit"]),
        (CUBES, ["MODEL.ARCH", "vit"], ["MODEL.ARCH vit", "DIM_MUL"]),
        (CUBES, ["MASK.METHOD", "mae", "MASK.PRED_HOG", "False", "MASK.DECODER_DEPTH", "1"], ["by mae", "plain ViT"]),
        (CLIPS, ["MASK.METHOD", "mff"], ["MASK.METHOD mff is for images"]),
        (CLIPS, ["MASK.TARGET", "spectrum"], ["MASK.TARGET spectrum is for images"]),
        (CLIPS, ["DATA.TEST_CROP_SIZE", "256"], ["DATA.TEST_CROP_SIZE 256", "positions"]),
        (CLIPS, ["MVIT.USE_FIXED_SINCOS_POS", "True"], ["MVIT.SEP_POS_EMBED", "MVIT.USE_FIXED_SINCOS_POS"]),
        (CLIPS, ["AUG.MASK_TYPE", "block"], ["AUG.MASK_TYPE block", "cube"]),
        (CLIPS, ["AUG.MASK_TYPE", "cube"], ["MASK.MAE_RND_MASK True", "AUG.MASK_TYPE cube"]),
        (CUBES, ["AUG.MASK_TUBE", "True", "AUG.MASK_FRAMES", "True"], ["AUG.MASK_TUBE", "AUG.MASK_FRAMES"]),
        (CUBES, ["AUG.MASK_WINDOW_SIZE", "[7, 7]"], ["AUG.MASK_WINDOW_SIZE [7, 7]", "three numbers"]),
        (CLIPS, ["AUG.MASK_RATIO", "1.0", "AUG.MASK_TUBE", "True"], ["AUG.MASK_RATIO is 1.0"]),
        (IMAGE, ["AUG.MASK_TYPE", "cube"], ["AUG.MASK_TYPE cube", "block, random"]),
    ],
    ids=lambda p: p[0] if isinstance(p, list) else "",
)
def test_impossible_combinations_of_video(path, overrides, parts):
    message = message_of(path, *overrides)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("path", "overrides", "drawing", "hides", "window"),
    [
        (CUBES, [], "cube", "cube", (8, 7, 7)),
        (CUBES, ["AUG.MASK_TUBE", "True", "AUG.MASK_WINDOW_SIZE", "[7, 7]"], "cube", "tube", (1, 7, 7)),
        (CUBES, ["AUG.MASK_FRAMES", "True"], "cube", "frames", (8, 1, 1)),
        (CUBES, ["AUG.MASK_TYPE", "random"], "random", "random", (4, 14, 14)),
        (CLIPS, [], "random", "random", (4, 14, 14)),
        (CLIPS, ["AUG.MASK_TUBE", "True"], "random", "tube", (1, 14, 14)),
        (CLIPS, ["AUG.MASK_FRAMES", "True"], "random", "frames", (4, 1, 1)),
        (IMAGE, ["AUG.MASK_TUBE", "True"], "block", "block", (4, 14, 14)),
    ],
    ids=lambda p: "-".join(map(str, p)) if isinstance(p, list) else "",
)
def test_where_video_masks_are_drawn(path, overrides, drawing, hides, window):
    cfg = load_config(path, overrides)
    assert (drawing_of(cfg), corruption_of(cfg), mask_window(cfg, (4, 14, 14))) == (drawing, hides, window)


def test_a_loss_over_the_batch_depends_on_the_processes():
    keys = ["MFM.AVE_SPECTRUM", "True"]
    assert any(w.startswith("MFM.AVE_SPECTRUM True") for w in validate(load_config(RESNET, keys)))
    assert not validate(load_config(RESNET, [*keys, "NUM_GPUS", "1"]))


@pytest.mark.parametrize(
    ("path", "overrides", "part"),
    [
        (IMAGE, ["PICTURE.KIND", "attention,saliency"], "PICTURE.KIND takes"),
        (IMAGE, ["PICTURE.KIND", "gradient"], "needs a classifier"),
        (FINETUNE, ["PICTURE.KIND", "reconstruction"], "needs a pre-training model"),
        (FINETUNE, ["PICTURE.KIND", "attention", "MODEL.ARCH", "resnet"], "MODEL.ARCH resnet has none"),
        (FINETUNE, ["PICTURE.KIND", "gradient", "PICTURE.CLASS", "1000"], "PICTURE.CLASS is 1000"),
    ],
    ids=lambda p: p[1] if isinstance(p, list) else "",
)
def test_impossible_pictures(path, overrides, part):
    assert part in message_of(path, "TASK", "visualise", *overrides)


@pytest.mark.parametrize(("size", "blocks"), [("", 3), ("L", 24)])
def test_the_block_to_show_is_looked_for_before_training(size, blocks):
    """A fine-tuning run would meet it in its last picture."""
    three = {key: get_cfg().MVIT[key] for key in ("EMBED_DIM", "DEPTH", "NUM_HEADS")} if size else {"DEPTH": 3}
    size = ["MVIT.SIZE", size, *(str(word) for key, value in three.items() for word in (f"MVIT.{key}", value))]
    assert f"blocks are 0 to {blocks - 1}" in message_of(FINETUNE, *size, "PICTURE.LAYER", str(blocks))
    validate(load_config(FINETUNE, [*size, "PICTURE.LAYER", str(blocks - 1)]))
    validate(load_config(FINETUNE, [*size, "PICTURE.LAYER", str(blocks), "MONITOR.NUM_PICTURES", "0"]))


def test_which_pictures_a_model_gives():
    def kinds(path, *overrides):
        return pictures_of(load_config(path, ["TASK", "visualise", *overrides]))

    assert kinds(IMAGE) == ["reconstruction", "attention", "neighbours"]
    assert kinds(IMAGE, "MODEL.MODEL_NAME", "") == ["reconstruction", "attention", "neighbours"]
    assert kinds(FINETUNE) == kinds(FINETUNE, "MODEL.MODEL_NAME", "") == ["attention", "gradient", "neighbours"]
    assert kinds(FINETUNE, "MODEL.ARCH", "resnet") == ["neighbours"]
    assert pictures_of(load_config(IMAGE)) == []


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["MODEL.LOSS_FUNC", "cross_entropy"], "MIXUP.ENABLE makes soft labels"),
        (["MODEL.LOSS_FUNC", "multi_mse"], "bce"),
        (
            ["MODEL.LOSS_FUNC", "cross_entropy", "MIXUP.ENABLE", "False", "MIXUP.LABEL_SMOOTH_ALWAYS", "True"],
            "MIXUP.LABEL_SMOOTH_ALWAYS makes soft labels",
        ),
        (["MIXUP.LABEL_SMOOTH_OVER", "others", "MODEL.NUM_CLASSES", "1"], "MIXUP.LABEL_SMOOTH_OVER"),
        (["SOLVER.OPTIMIZING_METHOD", "sgd", "SOLVER.DAMPENING", "0.1"], "set SOLVER.NESTEROV False"),
        # what counts is the learning rate after scaling: 0.002 for 65536 images is 1.6e-5 for 512
        (
            [
                *("SOLVER.BASE_LR_SCALE_NUM_SHARDS", "False", "SOLVER.LR_REFERENCE_BATCH", "65536"),
                *("SOLVER.COSINE_END_LR", "1e-4"),
            ],
            "for this batch 1.5625e-05",
        ),
    ],
    ids=lambda p: p if isinstance(p, str) else "",
)
def test_impossible_combinations_of_fine_tuning(overrides, part):
    assert part in message_of(FINETUNE, *overrides)


@pytest.mark.parametrize(
    ("path", "overrides", "part"),
    [
        (PROBE, ["MODEL.MODEL_NAME", "MaskMViT"], "MODEL.MODEL_NAME"),
        (PROBE, ["MODEL.LOSS_FUNC", "soft_cross_entropy"], "MODEL.LOSS_FUNC"),
        (PROBE, ["TRAIN.EMA_DECAY", "0.9"], "TRAIN.EMA_DECAY"),
        (PROBE, ["PROBE.LRS", "[0.1, 0.1]"], "PROBE.LRS"),
        (PROBE, ["SOLVER.BASE_LR", "0.0", "SOLVER.LR_POLICY", "constant"], "SOLVER.BASE_LR"),
        (PROBE, ["SOLVER.CLIP_GRAD_L2NORM", "1.0"], "SOLVER.CLIP_GRAD_L2NORM"),
        (PROBE, ["TRAIN.BATCH_SIZE", "8", "TRAIN.ACCUM_STEPS", "8"], "PROBE.BATCH_NORM"),
        (KNN, ["KNN.FEATURES", "cls", "MVIT.CLS_EMBED_ON", "False"], "KNN.FEATURES"),
        (KNN, ["KNN.FEATURES", "cls_raw", "MODEL.ARCH", "resnet"], "KNN.FEATURES"),
    ],
    ids=lambda p: p[0] if isinstance(p, list) else "",
)
def test_impossible_probes(path, overrides, part):
    assert part in message_of(path, *overrides)


def test_keys_of_video_masks_that_act_are_not_warned_of():
    usual = validate(load_config(CUBES))
    tubes = ["AUG.MASK_TUBE", "True", "AUG.MAX_MASK_PATCHES_PER_BLOCK", "9", "AUG.MASK_WINDOW_SIZE", "[14, 14]"]
    assert validate(load_config(CUBES, tubes)) == usual
    assert validate(load_config(CUBES, ["AUG.MAX_MASK_PATCHES_PER_BLOCK", "9"])) == usual
    assert validate(load_config(CUBES, ["AUG.MASK_TYPE", "random", "MASK.COUNT", "hidden"])) == usual


def test_keys_of_mmpretrain_that_act_are_not_warned_of():
    exact = ["AUG.MASK_EXACT", "True", "MASK.INIT", "mmpretrain"]
    assert validate(load_config(IMAGE, exact)) == validate(load_config(IMAGE))
    assert validate(load_config(CUBES, ["MASK.INIT", "mmpretrain"])) == validate(load_config(CUBES))
    on_top = ["AUG.COLOR_JITTER_ON_TOP", "True", "AUG.COLOR_JITTER", "0.3", "MVIT.HEAD_INIT_NORM_BIAS", "0.0"]
    assert validate(load_config(FINETUNE, on_top)) == validate(load_config(FINETUNE))


def test_keys_of_views_that_act_are_not_warned_of():
    usual = validate(load_config(DEMO_CLIPS))
    keys = ["TEST.NUM_TEMPORAL_CLIPS", "[5]", "TEST.NUM_SPATIAL_CROPS", "3", "DATA.USE_OFFSET_SAMPLING", "True"]
    assert not any("TEST." in warning for warning in usual)
    assert validate(load_config(DEMO_CLIPS, ["TEST.NUM_ENSEMBLE_VIEWS", "10", *keys])) == usual  # the default


def test_one_file_serves_training_and_tests():
    """Keys of training say nothing where TRAIN.ENABLE is off."""
    assert validate(load_config(FINETUNE, ["TRAIN.ENABLE", "False"])) == validate(load_config(FINETUNE))


def test_dampening_that_acts_is_taken():
    sgd = ["SOLVER.OPTIMIZING_METHOD", "sgd", "SOLVER.DAMPENING", "0.1"]
    for other in (["SOLVER.NESTEROV", "False"], ["SOLVER.MOMENTUM", "0.0"]):
        cfg = load_config(FINETUNE, [*sgd, *other])
        validate(cfg)
        OPTIMIZERS.get("sgd")([{"params": [torch.nn.Parameter(torch.zeros(2))]}], cfg)


def test_knn_of_a_pretraining_configuration_names_what_cannot_act_once():
    first, *others = validate(load_config(IMAGE, ["TASK", "knn"]))
    assert all(key in first for key in ("MASK.PRED_HOG", "SOLVER.BASE_LR", "AUG.MASK_RATIO", "TRAIN.BATCH_SIZE"))
    assert not any(word in first for word in ("TRAIN.ENABLE", "TRAIN.DATASET", "KNN."))
    assert not any(key in other for key in ("MASK.", "SOLVER.", "AUG.") for other in others), others


@pytest.mark.parametrize(
    ("path", "overrides"),
    [
        (IMAGE, ["DATA.SAMPLING_RATE", "4"]),
        (IMAGE, ["AUG.MASK_TUBE", "True"]),
        (IMAGE, ["MASK.TIME_STRIDE_LOSS", "False"]),
        (FINETUNE, ["AUG.MASK_FRAMES", "True"]),
        (CUBES, ["MASK.TIME_STRIDE_LOSS", "False"]),
        (CUBES, ["MASK.DECODER_SEP_POS_EMBED", "True"]),
        (CUBES, ["AUG.MAX_MASK_PATCHES_PER_BLOCK", "9", "AUG.MASK_FRAMES", "True"]),
        (CUBES, ["MASK.COUNT", "hidden", "AUG.MASK_TUBE", "True"]),
        (CLIPS, ["AUG.MASK_WINDOW_SIZE", "[8, 14, 14]"]),
        (CLIPS, ["MVIT.DIM_MUL_IN_ATT", "True"]),
        (CLIPS, ["MVIT.SINCOS_FIRST", "row"]),
        (
            CLIPS,
            [
                *("MASK.DECODER_SEP_POS_EMBED", "True", "MVIT.USE_FIXED_SINCOS_POS", "True"),
                *("MVIT.SEP_POS_EMBED", "False"),
            ],
        ),
        (IMAGE, ["MVIT.RESIDUAL_POOLING", "True"]),
        (IMAGE, ["MASK.DECODER_DEPTH", "4"]),
        (IMAGE, ["MASK.DECODER_NUM_HEADS", "4"]),
        (IMAGE, ["MASK.DECODER_CLS_TOKEN", "False"]),
        (MFM, ["MASK.INIT", "mae_priv"]),
        (FINETUNE, ["MASK.INIT", "mmpretrain"]),
        (IMAGE, ["AUG.MASK_EXACT", "True", *MAE]),
        (IMAGE, ["AUG.MASK_EXACT", "True", "AUG.MASK_TYPE", "random"]),
        (CUBES, ["AUG.MASK_EXACT", "True"]),
        (MFM, ["AUG.MASK_EXACT", "True"]),
        (FINETUNE, ["AUG.MASK_EXACT", "True"]),
        (IMAGE, ["MASK.COUNT", "hidden"]),
        (IMAGE, ["MASK.PIXEL_ORDER", "chw"]),
        (IMAGE, ["MASK.NORM_PRED_PIXEL", "False"]),
        (IMAGE, ["MASK.PIXEL_VARIANCE", "biased", *MAE, "MASK.PRED_HOG", "False", "MASK.NORM_PRED_PIXEL", "False"]),
        (IMAGE, ["HOG.CELL", "4", *MAE, "MASK.PRED_HOG", "False"]),
        (IMAGE, ["AUG.MAX_MASK_PATCHES_PER_BLOCK", "9", *MAE]),
        (IMAGE, ["MFF.LAYERS", "[0, 1]", *MAE]),
        (IMAGE, ["MVIT.SINCOS_FIRST", "row"]),
        (IMAGE, ["MVIT.KEY_BIAS", "False", "MVIT.QKV_BIAS", "False"]),
        (IMAGE, ["DATA.TRAIN_CROP_PADDING", "8"]),
        (IMAGE, ["DATA.TRAIN_RESIZE_SHORT_SIDE", "256"]),
        (IMAGE, ["DATA.TRAIN_CROP_CLAMP", "True", "DATA.TRAIN_CROP_TYPE", "padded"]),
        (FINETUNE, ["MASK.PIXEL_ORDER", "chw"]),
        (IMAGE, ["MIXUP.ENABLE", "True"]),
        (IMAGE, ["MODEL.NUM_CLASSES", "10"]),
        (IMAGE, ["SOLVER.MOMENTUM", "0.8"]),
        (IMAGE, ["AUG.RE_MODE", "const"]),
        (IMAGE, ["AUG.RE_SPLIT", "True"]),
        (IMAGE, ["KNN.K", "[5]"]),
        (IMAGE, ["TRAIN.MIXED_PRECISION", "True", "TRAIN.PRECISION", "fp32"]),
        (IMAGE, ["SOLVER.CLIP_GRAD_L2NORM", "1.0", "SOLVER.CLIP_GRAD_VAL", "1.0"]),
        (IMAGE, ["TEST.CHECKPOINT_FILE_PATH", "x.pyth"]),
        (IMAGE, ["MFM.RADIUS", "8"]),
        (IMAGE, ["MFM.LOSS_GAMMA", "2.0"]),
        (IMAGE, ["RESNET.DEPTH", "101"]),
        (MFM, ["MFM.SR_FACTOR", "4"]),
        (MFM, ["MFM.BLUR_SIGMA_X", "[1, 2]"]),
        (MFM, ["MFM.NOISE_PROB", "[0.1, 0.9]"]),
        (MFM, ["MFM.GREY", "True", "MASK.TARGET", "hog"]),
        (MFM, ["MFM.LOG_MATRIX", "True"]),
        (MFM, ["AUG.MASK_RATIO", "0.4"]),
        (MFM, ["MASK.PRETRAIN_DEPTH", "[11]"]),
        (MFM, ["MFM.LOW_PASS_RATIO", "0.2", "MFM.CORRUPTION", "sr"]),
        (RESNET, ["MVIT.SIZE", "B"]),
        (RESNET, ["BN.USE_PRECISE_STATS", "True"]),
        (FINETUNE, ["MFM.CORRUPTION", "sr"]),
        (FINETUNE, ["MASK.PRED_HOG", "True"]),
        (FINETUNE, ["AUG.MASK_RATIO", "0.4"]),
        (FINETUNE, ["HOG.CELL", "4"]),
        (FINETUNE, ["KNN.PERIOD", "1"]),
        (FINETUNE, ["MONITOR.NUM_IMAGES", "16"]),
        (FINETUNE, ["MONITOR.NUM_PICTURES", "3", "MODEL.ARCH", "resnet"]),
        (IMAGE, ["PICTURE.INPUT", "photo.jpg"]),
        (IMAGE, ["PICTURE.DISCARD_RATIO", "0.9"]),
        (FINETUNE, ["PICTURE.HEAD_FUSION", "max", "MONITOR.NUM_PICTURES", "0"]),
        (FINETUNE, ["PICTURE.CLASS", "3", "TASK", "visualise", "PICTURE.KIND", "attention"]),
        (FINETUNE, ["PICTURE.NUM_NEIGHBOURS", "3", "TASK", "visualise", "PICTURE.KIND", "attention"]),
        (IMAGE, ["PICTURE.SEED", "3", "TASK", "visualise", "PICTURE.KIND", "attention"]),
        (DEMO_CLIPS, ["MONITOR.NUM_PICTURES", "3"]),
        (PROBE, ["MONITOR.NUM_PICTURES", "3"]),
        (DEMO_CLIPS, ["TEST.NUM_ENSEMBLE_VIEWS", "5", "TEST.NUM_TEMPORAL_CLIPS", "[5]"]),
        (IMAGE, ["DATA.USE_OFFSET_SAMPLING", "True"]),
        (IMAGE, ["DATA.ENSEMBLE_METHOD", "max"]),
        (CLIPS, ["TEST.NUM_ENSEMBLE_VIEWS", "5"]),
        (CLIPS, ["TEST.NUM_TEMPORAL_CLIPS", "[5]"]),
        *(
            (DEMO_CLIPS, [key, value, "TASK", task])
            for task in ("probe", "knn")
            for key, value in (
                ("TEST.NUM_ENSEMBLE_VIEWS", "5"),
                ("TEST.NUM_TEMPORAL_CLIPS", "[5]"),
                ("DATA.USE_OFFSET_SAMPLING", "True"),
                ("DATA.ENSEMBLE_METHOD", "max"),
            )
        ),
        (KNN, ["DATA_LOADER.DROP_LAST", "False"]),
        (FINETUNE, ["DATA_LOADER.DROP_LAST", "False", "TRAIN.ENABLE", "False"]),
        (FINETUNE, ["AUG.COLOR_JITTER", "0.3"]),
        (FINETUNE, ["AUG.COLOR_JITTER_ON_TOP", "True", "AUG.AA_TYPE", ""]),
        (FINETUNE, ["AUG.COLOR_JITTER_ON_TOP", "True", "AUG.COLOR_JITTER", "None"]),
        (FINETUNE, ["AUG.COLOR_JITTER_ON_TOP", "True", "AUG.ENABLE", "False"]),
        (FINETUNE, ["AUG.RE_PROB", "0.5", "AUG.ENABLE", "False"]),
        (FINETUNE, ["MIXUP.PROB", "0.5", "MIXUP.ENABLE", "False"]),
        (FINETUNE, ["MVIT.FRESH_NORM", "True", "MVIT.USE_MEAN_POOLING", "True"]),
        (FINETUNE, ["MVIT.HEAD_INIT_BIAS", "0.0", "MVIT.HEAD_INIT_STD", "0.0", "MODEL.ARCH", "resnet"]),
        (FINETUNE, ["SOLVER.COSINE_END_LR", "1e-5", "SOLVER.LR_POLICY", "constant"]),
        (IMAGE, ["DATA.TRAIN_CROP_CLAMP", "True", "DATA.TRAIN_CROP_TYPE", "padded"]),
        (IMAGE, ["MONITOR.PICTURE_PERIOD", "5", "MONITOR.NUM_PICTURES", "0"]),
        (FINETUNE, ["PROBE.LRS", "[0.1]"]),
        (FINETUNE, ["KNN.FEATURES", "cls"]),
        (FINETUNE, ["SOLVER.LARS_ADAPT_1D", "True"]),
        (IMAGE, ["PROBE.LAYER_NORM", "False"]),
        (PROBE, ["SOLVER.LAYER_DECAY", "0.75"]),
        (PROBE, ["MVIT.DROPPATH_RATE", "0.2"]),
        (PROBE, ["MIXUP.ENABLE", "True"]),
        (PROBE, ["MODEL.DROPOUT_RATE", "0.2"]),
        (PROBE, ["KNN.K", "[5]"]),
        (PROBE, ["PROBE.BATCH_NORM_EPS", "1e-5", "PROBE.BATCH_NORM", "False"]),
        (PROBE, ["SOLVER.DAMPENING", "0.1", "SOLVER.OPTIMIZING_METHOD", "lars"]),
        (KNN, ["DATA.LABEL_FRACTION", "0.5"]),
        (KNN, ["MVIT.USE_MEAN_POOLING", "True"]),
        (FINETUNE, ["SOLVER.BETAS", "(0.9, 0.95)", "SOLVER.OPTIMIZING_METHOD", "sgd"]),
        (FINETUNE, ["SOLVER.LR_REFERENCE_SCALES", "all"]),
        (FINETUNE, ["SOLVER.WARMUP_TO_BASE_LR", "True"]),
        (FINETUNE, ["SOLVER.WARMUP_INCLUSIVE", "True", "SOLVER.WARMUP_EPOCHS", "0"]),
        (FINETUNE, ["SOLVER.WARMUP_START_LR_ABSOLUTE", "True", "SOLVER.WARMUP_EPOCHS", "0"]),
        (FINETUNE, ["SOLVER.COSINE_END_LR_ABSOLUTE", "True", "SOLVER.LAYER_DECAY", "1.0"]),
        (PROBE, ["SOLVER.COSINE_END_LR_ABSOLUTE", "True", "PROBE.LRS", "[0.1]", "SOLVER.BASE_LR", "0.1"]),
        (PROBE, ["SOLVER.WARMUP_START_LR_ABSOLUTE", "True", "PROBE.LRS", "[]", "SOLVER.LAYER_DECAY", "0.5"]),
        (FINETUNE, ["MIXUP.PARTNER", "next", "MIXUP.ENABLE", "False"]),
        (FINETUNE, ["MIXUP.LABEL_SMOOTH_OVER", "others", "MIXUP.ENABLE", "False"]),
        (FINETUNE, ["DATA.IN_VAL_CROP_RATIO", "0.9", "TEST.RESIZE_SIZES", "[235]"]),
        (IMAGE, ["MIXUP.LABEL_SMOOTH_ALWAYS", "True"]),
        (IMAGE, ["MVIT.HEAD_INIT_STD", "2e-5"]),
        (IMAGE, ["MVIT.HEAD_INIT_NORM_BIAS", "0.0"]),
        (FINETUNE, ["MVIT.HEAD_INIT_NORM_BIAS", "0.0", "MODEL.ARCH", "resnet"]),
        *((path, ["TEST.RESIZE_SIZES", "[235, 236]"]) for path in (IMAGE, PROBE, KNN)),
        (FINETUNE, ["TEST.RESIZE_SIZES", "[235, 236]", "TASK", "visualise"]),
    ],
    ids=lambda p: p[0] if isinstance(p, list) else "",
)
def test_keys_that_cannot_act_are_warned_of(path, overrides):
    usual = validate(load_config(path))
    more = [w for w in validate(load_config(path, overrides)) if w not in usual]
    assert any(w.startswith(f"{overrides[0]} ") and "\n" not in w for w in more), more


def test_clipping_at_zero_is_off():
    """As in PySlowFast, which asks whether the number is true: at zero nothing would be learned."""
    settings = Settings.from_cfg(
        load_config(IMAGE, ["SOLVER.CLIP_GRAD_L2NORM", "0.0", "SOLVER.CLIP_GRAD_VAL", "0"]), "fp32"
    )
    assert settings.clip_norm is None and settings.clip_value is None
    assert validate(load_config(IMAGE, ["SOLVER.CLIP_GRAD_VAL", "0"])) == validate(load_config(IMAGE))
    assert validate(load_config(PROBE, ["SOLVER.CLIP_GRAD_L2NORM", "0"])) == validate(load_config(PROBE))
    with pytest.raises(UserError, match="PROBE.LRS"):
        validate(load_config(PROBE, ["SOLVER.CLIP_GRAD_L2NORM", "1", "SOLVER.CLIP_GRAD_VAL", "0"]))


@pytest.mark.parametrize("key", ["SOLVER.COSINE_END_LR_ABSOLUTE", "SOLVER.WARMUP_START_LR_ABSOLUTE"])
def test_keys_of_several_learning_rates_act_in_probes_of_several(key):
    for path, rates in ((PROBE, ["PROBE.LRS", "[0.01, 0.1]"]), (FINETUNE, ["SOLVER.LAYER_DECAY", "0.75"])):
        rates = [*rates, "SOLVER.WARMUP_EPOCHS", "1.0", "SOLVER.LR_POLICY", "cosine"]
        assert not [w for w in validate(load_config(path, [*rates, key, "True"])) if key in w]


def test_every_key_is_read_or_warned_of():
    """No dead keys: code reads each one, or `validate` says that it cannot act."""
    sources = [p for p in (REPOSITORY / "packages").glob("*/src/**/*.py") if p.parent.name != "keys"]
    everything = "\n".join(path.read_text() for path in sources if path.name != "defaults.py")
    for key in dict(flatten(get_cfg())):
        section, _, leaf = key.rpartition(".")
        read = re.search(rf"\bcfg\.{re.escape(key)}\b", everything)
        by_name = f"cfg.{section}[" in everything and f'"{leaf}"' in everything
        assert read or by_name or f'"{key}"' in everything, f"{key} is a dead key"
    assert modality_of(load_config(IMAGE)) == "image"


def test_tables_name_keys_that_exist():
    known = dict(flatten(get_cfg()))
    for table in (NULLABLE, CHOICES, RANGES, LENGTHS, NOT_EMPTY, WORDS, WHOLE_LISTS):
        assert set(table) <= set(known)
    for key, choices in CHOICES.items():
        assert known[key] in choices or key in ("MODEL.MODEL_NAME", "MODEL.ARCH"), key  # which must be given


@pytest.mark.parametrize("folder", ["mae", "mfm", "probe"])
def test_each_recipe_has_a_folder_of_its_own(folder):
    """So that one command after the other does not meet the checkpoints of another recipe."""
    paths = [path for path in (CONFIGS / folder).glob("*.yaml") if not path.stem.endswith("base")]
    folders = [load_config(str(path)).OUTPUT_DIR for path in paths]
    assert len(set(folders)) == len(folders) > 5 and "." not in folders
