"""PySlowFast's ten files for Kinetics are described as they are, and shrunk copies of them take a step."""

from __future__ import annotations

import importlib.util
import math

import pytest
from paths import TOOLS
from pyslowfast_files import FILES, recipe
from tiny_runs import QUIET, TINY_CLIPS, last_state, log_of

from mfm_core.config import load_config, task_of
from mfm_core.config.plan import arch_of
from mfm_video.entry import main

spec = importlib.util.spec_from_file_location("run_net", TOOLS / "run_net.py")
run_net = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run_net)

RECIPES = [name for name in FILES if name.startswith("k400")]
PARAMETERS = {
    # as PySlowFast counts them, in millions
    "k400_MVITv2_S_16x4_MaskFeat_PT": 36.25,
    "k400_MVITv2_L_16x4_MaskFeat_PT": 217.25,
}
GFLOPS = {"k400_MVITv2_S_16x4_MaskFeat_PT": 86.6, "k400_MVITv2_S_16x4_FT": 71.16}
SMALL = {
    "mvit": ["MVIT.EMBED_DIM", "8", "AUG.MASK_WINDOW_SIZE", "[2, 2, 2]"],
    "space_time_vit": ["MVIT.EMBED_DIM", "16", "MVIT.NUM_HEADS", "2", "MASK.DECODER_EMBED_DIM", "16"]
    + ["MVIT.PATCH_KERNEL", "[2, 8, 8]", "MVIT.PATCH_STRIDE", "[2, 8, 8]"],
}


def test_there_are_ten():
    assert len(RECIPES) == 10


@pytest.mark.parametrize("name", RECIPES)
def test_dry_run(name, tmp_path, capsys):
    """The table, and one word on what reads in torchvision's place."""
    assert run_net.main(["--cfg", str(recipe(name, tmp_path)), "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert not shown.err and shown.out.count("torchvision no longer reads videos") == 1
    lines = {line.split("  ")[0]: line for line in shown.out.splitlines()}
    assert {"parameters", "compute", "memory", "learning rate", "batch", "steps"} <= lines.keys()
    assert "240,436 training files" in lines["steps"] and "Kinetics-400" in shown.out
    if name in PARAMETERS:
        assert f" {PARAMETERS[name]:.2f} M " in lines["parameters"]
    if name in GFLOPS:
        assert f" {GFLOPS[name]:.2f} GFLOPs" in lines["compute"]
    assert ("the above is for one" in shown.out) == (name == "k400_VIT_B_16x4_FT"), "its batch is of one file"


@pytest.mark.parametrize("name", RECIPES)
def test_a_shrunk_copy_takes_a_step(name, clip_folder, tmp_path):
    """At their depth, with their heads, augmentation and decoding, and the test of the fine-tuned ones."""
    file = recipe(name, tmp_path)
    theirs = load_config(str(file))
    kept = {"DATA.DECODING_BACKEND", "DATA.TRAIN_CROP_NUM_TEMPORAL"}
    pairs = [pair for pair in zip(TINY_CLIPS[::2], TINY_CLIPS[1::2]) if pair[0] not in kept]
    keys = [*(word for pair in pairs for word in pair), *QUIET, *SMALL[arch_of(theirs)], "TRAIN.STOP_STEP", "1"]
    if task_of(theirs) == "finetune":
        keys += ["MODEL.NUM_CLASSES", "3", "TEST.NUM_TEMPORAL_CLIPS", "[1]"]
    keys += ["DATA.PATH_TO_DATA_DIR", str(clip_folder), "OUTPUT_DIR", str(tmp_path / "run")]
    assert main(load_config(str(file), keys)) == 0
    assert last_state(tmp_path / "run")["step"] == 1
    (step,) = log_of(tmp_path / "run", "step")
    assert math.isfinite(step["loss"]) and step["grad_norm"] > 0
