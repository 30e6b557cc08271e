"""The configuration: PySlowFast's keys and files, and what each mistake in one says."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import yaml
from paths import CONFIGS, REPOSITORY

from mfm_core.config import flatten, get_cfg, load_config, modality_of, validate
from mfm_core.config.tables import CHOICES, LENGTHS, NOT_EMPTY, NULLABLE, RANGES
from mfm_core.errors import UserError

KEYS = json.loads((REPOSITORY / "tests" / "recipes" / "pyslowfast_masked_ssl.json").read_text())
FILES = sorted({name for key in KEYS.values() for name in key["used"]})
IMAGE = str(CONFIGS / "masked_ssl" / "in1k_VIT_B_MaskFeat_PT.yaml")
FINETUNE = str(CONFIGS / "masked_ssl" / "in1k_VIT_B_MaskFeat_FT.yaml")
MFM = str(CONFIGS / "mfm" / "mfm_pretrain__vit_base__img224__300ep.yaml")
RESNET = str(CONFIGS / "mfm" / "mfm_pretrain__resnet50__img224__300ep.yaml")


def recipe(name: str, folder: Path) -> Path:
    """The YAML file of PySlowFast that used these values."""
    tree: dict = {}
    for key, about in KEYS.items():
        if name in about["used"]:
            *parents, leaf = key.split(".")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = about["used"][name]
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


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


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("**/*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_our_files_validate(path):
    if path.stem != "base":
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
        ("SOLVER:\n  BASE_LR: .nan\n", ["run.yaml", "SOLVER.BASE_LR", "finite"]),
        ("TRAIN:\n  [\n", ["run.yaml", "not valid YAML"]),
        ("- 1\n- 2\n", ["run.yaml", "cannot be read as a config"]),
        ("just words\n", ["run.yaml", "cannot be read as a config"]),
        ("", ["run.yaml", "cannot be read as a config"]),
        ("_BASE_: absent.yaml\n", ["run.yaml", "absent.yaml", "_BASE_"]),
        ("_BASE_: 5\n", ["run.yaml", "cannot be read as a config"]),
        ("_BASE_: run.yaml\n", ["run.yaml", "cannot be read as a config"]),
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
    }
    cfg = dict(flatten(load_config(None, [w for key, (text, _) in overrides.items() for w in (key, text)])))
    for key, (_, value) in overrides.items():
        assert cfg[key] == value and type(cfg[key]) is type(value), key


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
        if isinstance(default, (list, tuple)):
            value = [type(n)(value) for n in default] or [value, value]
        else:
            value = kind(value)
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
        (["SOLVER.COSINE_END_LR", "1.0"], "SOLVER.COSINE_END_LR"),
        (["TEST.ENABLE", "True", "TEST.DATASET", "kinetics"], "TEST.DATASET"),
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
        (["MFM.BLUR_KERNEL_LIST", "[7]"], ["MFM.BLUR_KERNEL_LIST", "words"]),
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


def test_a_loss_over_the_batch_depends_on_the_processes():
    keys = ["MFM.AVE_SPECTRUM", "True"]
    assert any(w.startswith("MFM.AVE_SPECTRUM True") for w in validate(load_config(RESNET, keys)))
    assert not validate(load_config(RESNET, [*keys, "NUM_GPUS", "1"]))


@pytest.mark.parametrize(
    ("path", "overrides"),
    [
        (IMAGE, ["DATA.SAMPLING_RATE", "4"]),
        (IMAGE, ["MVIT.RESIDUAL_POOLING", "True"]),
        (IMAGE, ["MASK.DECODER_DEPTH", "4"]),
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
        (FINETUNE, ["AUG.COLOR_JITTER", "0.3"]),
        (FINETUNE, ["AUG.RE_PROB", "0.5", "AUG.ENABLE", "False"]),
        (FINETUNE, ["MIXUP.PROB", "0.5", "MIXUP.ENABLE", "False"]),
        (FINETUNE, ["SOLVER.COSINE_END_LR", "1e-5", "SOLVER.LR_POLICY", "constant"]),
        (FINETUNE, ["SOLVER.BETAS", "(0.9, 0.95)", "SOLVER.OPTIMIZING_METHOD", "sgd"]),
    ],
    ids=lambda p: p[0] if isinstance(p, list) else "",
)
def test_keys_that_cannot_act_are_warned_of(path, overrides):
    usual = validate(load_config(path))
    more = [w for w in validate(load_config(path, overrides)) if w not in usual]
    assert any(w.startswith(f"{overrides[0]} ") and "\n" not in w for w in more), more


def test_every_key_is_read_or_warned_of():
    """No dead keys: code reads each one, or `validate` says that it cannot act."""
    sources = [p for p in (REPOSITORY / "packages").rglob("*.py") if p.name != "defaults.py"]
    everything = "\n".join(path.read_text() for path in sources)
    for key in dict(flatten(get_cfg())):
        section, _, leaf = key.rpartition(".")
        read = re.search(rf"\bcfg\.{re.escape(key)}\b", everything)
        by_name = f"cfg.{section}[" in everything and f'"{leaf}"' in everything
        assert read or by_name or f'"{key}"' in everything, f"{key} is a dead key"
    assert modality_of(load_config(IMAGE)) == "image"


def test_tables_name_keys_that_exist():
    known = dict(flatten(get_cfg()))
    for table in (NULLABLE, CHOICES, RANGES, LENGTHS, NOT_EMPTY):
        assert set(table) <= set(known)
    for key, choices in CHOICES.items():
        assert known[key] in choices or key in ("MODEL.MODEL_NAME", "MODEL.ARCH"), key  # which must be given
