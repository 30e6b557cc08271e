"""Runs on clips that must end with the same weights: stopped and resumed, with loader workers, in two processes."""

from __future__ import annotations

import pytest
import torch
from score_files import load_scores
from tiny_runs import QUIET, assert_same, last_state, log_of, tiny_clip_config

from mfm_core.parallel.launch import launch
from mfm_video.entry import main

RANDOM = {
    "maskfeat": ["TRAIN.EMA_DECAY", "0.9", "DATA.RANDOM_FLIP", "True"],
    "mae": ["DATA.TRAIN_CROP_NUM_TEMPORAL", "2", "TRAIN.ACCUM_STEPS", "2"],
    "mvit": ["MVIT.DROPPATH_RATE", "0.3", "MVIT.DROPOUT_RATE", "0.1", "MODEL.DROPOUT_RATE", "0.2", "AUG.ENABLE", "True"]
    + ["MIXUP.ENABLE", "True", "MODEL.LOSS_FUNC", "soft_cross_entropy", "AUG.AA_TYPE", "rand-m9-mstd0.5-inc1"]
    + ["AUG.RE_PROB", "0.5", "AUG.NUM_SAMPLE", "2", "DATA.TRAIN_JITTER_SCALES_RELATIVE", "[0.3, 1.0]"],
}
"""Everything that draws random numbers in a run."""
STEPS = 6


def config(kind, data, output, *overrides):
    return tiny_clip_config(kind, data, output, *QUIET, "TEST.ENABLE", "False", *RANDOM[kind], *overrides)


@pytest.mark.parametrize("kind", RANDOM)
def test_stopped_after_any_step(kind, clip_folder, tmp_path):
    """Bit for bit; one continuation reads with two workers, of which the run before knew nothing."""
    assert main(config(kind, clip_folder, tmp_path / "whole")) == 0
    expected = last_state(tmp_path / "whole")
    assert expected["step"] == STEPS
    for stop in range(1, STEPS) if kind == "maskfeat" else (2, 3):
        output = tmp_path / f"stopped_{stop}"
        assert main(config(kind, clip_folder, output, "TRAIN.STOP_STEP", stop)) == 0
        assert last_state(output)["step"] == stop
        workers = ["DATA_LOADER.NUM_WORKERS", 2] if stop == 2 else []
        assert main(config(kind, clip_folder, output, *workers)) == 0
        assert_same(last_state(output), expected)


def test_another_seed_is_another_run(clip_folder, tmp_path):
    """Guards the test above: were weights independent of what is drawn, it could not fail."""
    states = []
    for seed in (0, 1):
        output = tmp_path / str(seed)
        cfg = config("maskfeat", clip_folder, output, "RNG_SEED", seed, "TRAIN.STOP_STEP", "1")
        assert main(cfg) == 0
        states.append(last_state(output))
    with pytest.raises(AssertionError):
        assert_same(*states)


TRAINED = {
    # Masks differ in size from clip to clip: a mean of the ranks' means would be off by far more than 1e-5.
    "maskfeat": ["MONITOR.PERIOD", "1", "KNN.PERIOD", "1", "SOLVER.CLIP_GRAD_L2NORM", "0.05"],
    "mvit": ["SOLVER.OPTIMIZING_METHOD", "sgd", "SOLVER.BASE_LR", "0.01", "TRAIN.EVAL_PERIOD", "1"]
    + ["TEST.NUM_TEMPORAL_CLIPS", "[2, 1]", "TEST.NUM_SPATIAL_CROPS", "3", "TEST.BATCH_SIZE", "8"],
}


@pytest.mark.parametrize("kind", TRAINED)
def test_two_processes_equal_one(kind, clip_folder, tmp_path):
    """Weights to 1e-5, and all numbers of all epochs' lines.

    So are the scores of the test, whose shares of 30 and 15 views are uneven, and cut videos in two.
    """
    for processes in (1, 2):
        keys = [*QUIET, *TRAINED[kind], "NUM_GPUS", processes]
        cfg = tiny_clip_config(kind, clip_folder, tmp_path / f"{processes}", *keys)
        assert launch(main, (cfg,), processes=processes) == 0
    one, two = (last_state(tmp_path / name) for name in ("1", "2"))
    assert one["step"] == two["step"] == STEPS
    assert_same(one, two, atol=1e-5)
    lines = [log_of(tmp_path / name, "epoch") for name in ("1", "2")]
    assert len(lines[0]) == len(lines[1]) >= 2
    for first, second in zip(*lines):
        numbers = [key for key in first if not key.endswith("_s")]
        assert numbers == [key for key in second if not key.endswith("_s")]
        assert all(first[key] == pytest.approx(second[key], rel=1e-4) for key in numbers if key != "kind")
    for clips in (2, 1) if kind == "mvit" else ():
        one, two = (load_scores(tmp_path / name / f"test_scores_{clips}.safetensors")[0] for name in ("1", "2"))
        assert one.views.tolist() == two.views.tolist() == [3 * clips] * 5
        assert torch.equal(one.labels, two.labels)
        torch.testing.assert_close(one.scores, two.scores, rtol=0, atol=1e-4)
