"""mmpretrain's MaskFeat recipes are described at full size without a word of warning, and small copies take a step."""

from __future__ import annotations

import math

import pytest
from entry_point import run_net
from mmpretrain_recipes import FILES, load
from paths import CONFIGS
from tiny_runs import QUIET, TINY, TINY_CLIPS, last_state, log_of

from mfm_core.config import plan_run, task_of
from mfm_core.config.plan import modality_of
from mfm_image.entry import main as image_main
from mfm_video.entry import main as video_main

LINES = {
    "maskfeat_pt_300e": ["(85,882,476)", "300 epochs x 626", "1.6e-09 -> 0.0016 in 30 epochs"],
    "maskfeat_ft_100e": ["(86,567,656)", "100 epochs x 626", "8e-07 -> 0.008 in 20 epochs"],
    "maskfeat_video_pt_16x32": ["(36,253,356)", "x 2 micro-batch(es) x 32", "1.6e-07 -> 0.0016 in 10 epochs"],
    "maskfeat_video_pt_8x32": ["(36,253,356)", "x 1 micro-batch(es) x 32", "8e-08 -> 0.0008 in 10 epochs"],
    "maskfeat_video_ft_100e": ["(36,475,120)", "128 files x 2 view(s)", "8e-06 -> 0.0048 in 20 epochs"],
}
"""Parts of their descriptions."""


@pytest.mark.parametrize("name", FILES)
def test_dry_run(name, capsys):
    assert run_net.main(["--cfg", str(CONFIGS / "maskfeat" / f"{FILES[name]}.yaml"), "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert not shown.err and "warning" not in shown.out
    assert all(part in shown.out for part in LINES[name])


def shrunk(name: str, folder, output):
    """A copy for a step on tiny inputs."""
    cfg = load(name)
    clips, pretrains = modality_of(cfg) == "video", task_of(cfg) == "pretrain"
    keys = dict(zip(*[iter(TINY_CLIPS if clips else TINY)] * 2))
    keys |= {"KNN.K": "[20]", "TRAIN.MIXED_PRECISION": False, "TRAIN.STOP_STEP": 1}
    keys |= {"MVIT.EMBED_DIM": 8} if clips else {"MVIT.SIZE": ""}
    keys |= dict(zip(*[iter(QUIET)] * 2)) if pretrains else {"MODEL.NUM_CLASSES": 3}
    if pretrains:
        keys |= {"AUG.MASK_WINDOW_SIZE": "[2, 2, 2]"} if clips else {"MASK.PRETRAIN_DEPTH": "[1]"}
    keys |= {"DATA.PATH_TO_DATA_DIR": folder, "OUTPUT_DIR": output}
    keys.pop("DATA.TRAIN_CROP_NUM_TEMPORAL", None)
    return load(name, *(word for pair in keys.items() for word in pair))


@pytest.mark.parametrize("name", FILES)
def test_a_step_of_a_small_copy(name, photo_folder, clip_folder, tmp_path):
    """With its augmentation, mixing, masks and learning rate; classifiers start with next to no opinion."""
    clips = "_video_" in name
    cfg = shrunk(name, clip_folder if clips else photo_folder, tmp_path)
    assert (video_main if clips else image_main)(cfg) == 0
    state, (step,) = last_state(tmp_path), log_of(tmp_path, "step")
    assert state["step"] == 1 and math.isfinite(step["loss"]) and step["grad_norm"] > 0
    plan = plan_run(cfg, 12 if clips else 24, world_size=1)
    for group in state["optimizer_state"]["param_groups"]:
        assert group["lr"] == pytest.approx(plan.lr(0, group["lr_scale"]))
    if task_of(cfg) == "finetune":
        assert step["loss"] == pytest.approx(math.log(3), abs=0.01)
    assert not log_of(tmp_path, "warning")
