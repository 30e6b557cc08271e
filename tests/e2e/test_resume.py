"""A run that was stopped and resumed ends bit for bit where an undisturbed one does."""

from __future__ import annotations

import pytest
from tiny_runs import assert_same, last_state, tiny_config

from mfm_image.entry import main

CASES = {
    "pretrain": ["TRAIN.EMA_DECAY", "0.9", "KNN.PERIOD", "1"],
    "finetune": ["MVIT.DROPPATH_RATE", "0.3", "MODEL.DROPOUT_RATE", "0.2", "MIXUP.ENABLE", "True", "AUG.AA_TYPE"]
    + ["rand-m9-mstd0.5-inc1", "AUG.RE_PROB", "0.5", "AUG.NUM_SAMPLE", "2", "TRAIN.ACCUM_STEPS", "2"],
}


@pytest.mark.parametrize("kind", CASES)
def test_stopped_after_any_step(kind, photo_folder, tmp_path):
    whole = tiny_config(kind, photo_folder, tmp_path / "whole", *CASES[kind])
    assert main(whole) == 0
    expected = last_state(tmp_path / "whole")
    steps = expected["step"]
    assert steps == 6
    stops = range(1, steps) if kind == "pretrain" else (2, 3)
    for stop in stops:
        output = tmp_path / f"stopped_{stop}"
        assert main(tiny_config(kind, photo_folder, output, *CASES[kind], "TRAIN.STOP_STEP", stop)) == 0
        assert last_state(output)["step"] == stop
        workers = ["DATA_LOADER.NUM_WORKERS", 1] if stop == 2 else []
        assert main(tiny_config(kind, photo_folder, output, *CASES[kind], *workers)) == 0
        assert_same(last_state(output), expected)


def test_another_seed_is_another_run(photo_folder, tmp_path):
    """Guards the test above: were weights independent of the data order, it could not fail."""
    states = []
    for seed in (0, 1):
        assert main(tiny_config("pretrain", photo_folder, tmp_path / str(seed), "RNG_SEED", seed)) == 0
        states.append(last_state(tmp_path / str(seed)))
    with pytest.raises(AssertionError):
        assert_same(*states)


def test_corrupt_newest_checkpoint_falls_back(photo_folder, tmp_path, capsys):
    output = tmp_path / "run"
    overrides = ["TRAIN.CHECKPOINT_PERIOD", "1"]
    assert main(tiny_config("pretrain", photo_folder, output, *overrides)) == 0
    expected = last_state(output)
    newest = output / "checkpoints" / "checkpoint_epoch_00002.pyth"
    newest.write_bytes(newest.read_bytes()[:1000])
    assert main(tiny_config("pretrain", photo_folder, output, *overrides)) == 0
    assert "Taking the checkpoint before it" in capsys.readouterr().out
    assert_same(last_state(output), expected)


def test_resuming_another_run_is_refused(photo_folder, tmp_path, capsys):
    output = tmp_path / "run"
    assert main(tiny_config("pretrain", photo_folder, output)) == 0
    assert main(tiny_config("pretrain", photo_folder, output, "TRAIN.BATCH_SIZE", "4")) == 2
    error = capsys.readouterr().err
    assert "TRAIN.BATCH_SIZE" in error and "OUTPUT_DIR" in error and error.count("\n") == 1
