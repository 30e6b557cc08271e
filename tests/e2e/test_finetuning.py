"""What the keys of fine-tuning promise, on whole runs of a few steps."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tiny_runs import assert_same, last_state, tiny_config

from mfm_core.data.loader import Loader
from mfm_core.tasks import finetune
from mfm_image.entry import main

STEPS = 3


def train(data, output, *overrides):
    """The last checkpoint of a run of one epoch."""
    assert main(tiny_config("finetune", data, output, "SOLVER.MAX_EPOCH", 1, *overrides)) == 0
    return last_state(output)


def epochs_of(output):
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "epoch"]


@pytest.fixture
def evaluated(monkeypatch):
    """The short sides of all evaluations, in order; each has its own made-up accuracy, that of its size."""
    seen = []

    def spy(model, loader, world, autocast, criterion):
        size = loader.dataset.transform.short_side
        seen.append(size)
        return {"top1": float(size), "top5": size + 0.5, "val_loss": 1.0, "images": len(loader.dataset)}

    monkeypatch.setattr(finetune, "evaluate_classifier", spy)
    return seen


def test_several_resize_sizes_make_a_table_after_the_last_epoch(photo_folder, tmp_path, evaluated):
    sizes = ["TEST.RESIZE_SIZES", "[36, 34, 40]"]
    train(photo_folder, tmp_path, *sizes, "SOLVER.MAX_EPOCH", 2)
    assert evaluated == [36, 36, 34, 40]
    first, last = epochs_of(tmp_path)
    assert first["top1"] == last["top1"] == 36 and "top1/resize_34" not in first
    assert {size: (last[f"top1/resize_{size}"], last[f"top5/resize_{size}"]) for size in (34, 36, 40)} == {
        size: (size, size + 0.5) for size in (34, 36, 40)
    }
    for text in ((tmp_path / "log.txt").read_text(), (tmp_path / "report.html").read_text()):
        assert "short side, pixels" in text


def test_testing_at_chosen_sizes(photo_folder, tmp_path, evaluated):
    train(photo_folder, tmp_path)
    evaluated.clear()
    test = ["TRAIN.ENABLE", False, "TEST.CHECKPOINT_FILE_PATH", tmp_path / "checkpoints/checkpoint_epoch_00001.pyth"]
    assert main(tiny_config("finetune", photo_folder, tmp_path / "one", *test, "TEST.RESIZE_SIZES", "[50]")) == 0
    assert evaluated == [50] and epochs_of(tmp_path / "one")[-1]["top1"] == 50
    assert main(tiny_config("finetune", photo_folder, tmp_path / "two", *test, "TEST.RESIZE_SIZES", "[50, 40]")) == 0
    assert evaluated == [50, 50, 40] and epochs_of(tmp_path / "two")[-1]["top1/resize_40"] == 40


def test_pictures_that_fail_leave_the_accuracy(photo_folder, tmp_path, monkeypatch):
    def fail(self, model, epoch, last):
        if last:
            raise ValueError("no picture")
        return []

    cfg = tiny_config("finetune", photo_folder, tmp_path, "SOLVER.MAX_EPOCH", 1, "MVIT.DEPTH", 1)
    with monkeypatch.context() as patched:
        patched.setattr(finetune.FinetuneTask, "pictures", fail)
        with pytest.raises(ValueError, match="no picture"):
            main(cfg)
        assert [line["epoch"] for line in epochs_of(tmp_path)] == [1] and "top1" in epochs_of(tmp_path)[0]
        assert main(cfg) == 0, "the next start has nothing left to do"
    assert len(epochs_of(tmp_path)) == 1


def test_bce_of_mixed_labels_and_plain_ones_in_evaluation(photo_folder, tmp_path):
    """The logged losses are binary cross-entropies: of zero logits log 2 whatever the labels, where CE has log 3."""
    options = ["MODEL.LOSS_FUNC", "bce", "MIXUP.ENABLE", True, "MIXUP.LABEL_SMOOTH_OVER", "others"]
    still = [
        "MVIT.HEAD_INIT_SCALE",
        0.0,
        "SOLVER.BASE_LR",
        1e-12,
        "SOLVER.COSINE_END_LR",
        0,
        "SOLVER.WARMUP_START_LR",
        0,
    ]
    train(photo_folder, tmp_path, *options, *still)
    epoch = epochs_of(tmp_path)[-1]
    assert epoch["val_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert epoch["train_loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_smoothing_without_mixup(photo_folder, tmp_path):
    """The labels of training are smoothed; those of evaluation are not."""
    seen = []
    prepare = finetune.FinetuneTask.prepare

    def spy(task, batch):
        prepared = prepare(task, batch)
        seen.append((batch.labels, prepared.labels))
        return prepared

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune.FinetuneTask, "prepare", spy)
        train(photo_folder, tmp_path, "MIXUP.LABEL_SMOOTH_ALWAYS", True, "MIXUP.LABEL_SMOOTH_VALUE", 0.3)
    for labels, smoothed in seen:
        expected = torch.full((len(labels), 3), 0.1).scatter_(1, labels[:, None], 0.8)
        torch.testing.assert_close(smoothed, expected)
    assert len(seen) == STEPS


def test_repeated_augmentation_goes_on_in_mid_epoch(photo_folder, tmp_path):
    """Eight of each step's images come from three files; a stop after any step changes nothing."""
    batches = []
    iterate = Loader.__iter__

    def spy(loader):
        for batch in iterate(loader):
            if len(batch) == 8:
                batches.append(batch.index.tolist())
            yield batch

    repeated = ["AUG.REPEATED_SAMPLER", 3]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loader, "__iter__", spy)
        whole = train(photo_folder, tmp_path / "whole", *repeated)
    assert [len(set(batch)) for batch in batches] == [3, 4, 3]  # 24 places, three each: 8 files, two cut in two
    train(photo_folder, tmp_path / "parts", *repeated, "TRAIN.STOP_STEP", 2)
    resumed = train(photo_folder, tmp_path / "parts", *repeated)
    assert resumed["step"] == whole["step"] == STEPS
    assert_same(whole, resumed)


def test_a_test_leaves_the_training_run_as_it_is(photo_folder, tmp_path):
    """An early stop is no finished run because its weights were tested, nor are they those of its last epoch."""
    train(photo_folder, tmp_path, "SOLVER.MAX_EPOCH", 3, "TRAIN.STOP_STEP", 4)
    left = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    keys = ["SOLVER.MAX_EPOCH", 3, "TRAIN.ENABLE", False]
    for _ in range(2):
        assert main(tiny_config("finetune", photo_folder, tmp_path, *keys)) == 0
    assert {path: path.read_bytes() for path in left} == left
    assert [(line["epoch"], line["step"]) for line in epochs_of(tmp_path / "test")] == [(0, 0)] * 2
    assert "testing" in (tmp_path / "test" / "log.txt").read_text()
    assert "Top-1, best" in (tmp_path / "test" / "report.html").read_text()
