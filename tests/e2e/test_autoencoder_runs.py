"""Whole runs of MAE and MFF: they train, resume exactly, and MFF's fusion weights reach log and report."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_runs import assert_same, last_state, tiny_config

from mfm_image.entry import main

DECODER = ["MASK.DECODER_DEPTH", 1, "MASK.DECODER_EMBED_DIM", 16, "MASK.DECODER_NUM_HEADS", 2, "MFF.LAYERS", "[0]"]
QUIET = ["MASK.PRED_HOG", False, "AUG.MASK_RATIO", 0.75, "MONITOR.PICTURE_PERIOD", 0, *DECODER]


def run(method, data, output, *overrides):
    """The newest checkpoint of a run of six steps."""
    assert main(tiny_config("pretrain", data, output, "MASK.METHOD", method, *QUIET, *overrides)) == 0
    return last_state(output)


def lines(output, kind):
    records = map(json.loads, (output / "log.jsonl").read_text().splitlines())
    return [record for record in records if record["kind"] == kind]


@pytest.mark.parametrize("method", ["mae", "mff"])
def test_run(method, photo_folder, tmp_path):
    state = run(method, photo_folder, tmp_path, "SOLVER.BASE_LR", 0.01)
    steps = lines(tmp_path, "step")
    assert state["step"] == len(steps) == 6 and lines(tmp_path, "end")[-1]["status"] == "finished"
    assert "val_loss" in lines(tmp_path, "epoch")[-1]
    weights = [[value for key, value in step.items() if key.startswith("fusion_weight/")] for step in steps]
    report = (tmp_path / "report.html").read_text()
    if method == "mff":
        assert all(len(pair) == 2 and sum(pair) == pytest.approx(1, abs=1e-5) for pair in weights)
        assert weights[0] != weights[-1]
        saved = state["model_state"]["neck.proj_weights"].flatten().softmax(dim=0)
        torch.testing.assert_close(saved, torch.tensor(weights[-1]), rtol=1e-5, atol=1e-6)
        assert "<h3>Fusion weight" in report
    else:
        assert not any(weights) and "Fusion weight" not in report


def test_stopped_and_resumed_run_is_the_whole_run(photo_folder, tmp_path):
    whole = run("mff", photo_folder, tmp_path / "whole")
    run("mff", photo_folder, tmp_path / "parts", "TRAIN.STOP_STEP", 4)
    assert_same(whole, run("mff", photo_folder, tmp_path / "parts"))


def test_accumulated_gradients_are_those_of_the_whole_batch(photo_folder, tmp_path):
    """Without biases on the keys, whose gradient is zero but for rounding, which AdamW would make steps of."""
    whole = run("mae", photo_folder, tmp_path / "whole", "MVIT.KEY_BIAS", False)
    parts = run("mae", photo_folder, tmp_path / "parts", "MVIT.KEY_BIAS", False, "TRAIN.ACCUM_STEPS", 2)
    assert_same(whole, parts, atol=1e-6)
