"""Pre-training and k-NN on lists whose labels are missing, or go beyond those of the training list or of the model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_runs import assert_same, last_state, log_of, tiny_clip_config

from mfm_video.entry import doctor, main

ONE_EPOCH = ["SOLVER.MAX_EPOCH", "1", "KNN.PERIOD", "1", "KNN.K", "[1]", "MONITOR.NUM_PICTURES", "2"]


@pytest.fixture
def clips(clip_folder, tmp_path):
    """A copy of the clips whose lists are to be changed."""
    return Path(shutil.copytree(clip_folder, tmp_path / "clips"))


def relabel(clips: Path, split: str, labels: dict[str, str]) -> None:
    """Writes ` <label>` behind each path of a list, or nothing for an empty one."""
    file = clips / f"{split}.csv"
    lines = [line.split() for line in file.read_text().splitlines()]
    file.write_text("".join(f"{path} {labels[label]}".strip() + "\n" for path, label in lines))


def pretrained(clips: Path, output: Path) -> tuple[dict, list[str]]:
    """The numbers after an epoch, and what was warned of k-NN."""
    cfg = tiny_clip_config("maskfeat", clips, output, *ONE_EPOCH)
    assert main(cfg) == 0 and not log_of(output, "bad_file")
    warnings = [line["message"] for line in log_of(output, "warning")]
    return log_of(output, "epoch")[-1], [line for line in warnings if "k-NN." in line]


NONE = {"0": "", "1": "", "2": ""}


def test_pretraining_on_lists_without_labels(clips, tmp_path):
    """Neither list, or one of them, has any: the same weights and validation loss, and no accuracy out of nothing."""
    whole, _ = pretrained(clips, tmp_path / "whole")
    assert "knn" in whole
    for number, split in enumerate(("val", "train")):
        relabel(clips, split, NONE)
        values, warnings = pretrained(clips, tmp_path / split)
        assert_same(last_state(tmp_path / split), last_state(tmp_path / "whole"))
        assert values["val_loss"] == whole["val_loss"] and "knn" not in values
        assert warnings == [f"{clips}/{split}.csv has no labels, so there is no accuracy of k-NN."], number
    _, healthy = doctor(tiny_clip_config("maskfeat", clips, tmp_path / "out"))
    assert healthy


def test_validation_labels_beyond_those_of_training(clips, tmp_path):
    """They are counted, as wrong ones, and no class less."""
    whole, _ = pretrained(clips, tmp_path / "whole")
    relabel(clips, "val", {"0": "0", "1": "1", "2": "7"})
    values, warnings = pretrained(clips, tmp_path / "out")
    assert values["val_loss"] == whole["val_loss"] and values["knn"] <= whole["knn"] and not warnings


def test_the_classes_of_a_model_do_not_bound_labels_of_knn(clips, trained_clips, tmp_path, error_of):
    """MODEL.NUM_CLASSES has no part in it; but labels there must be."""
    found = []
    for classes in (3, 2):
        keys = ["TASK", "knn", "KNN.K", "[1, 3]", "MODEL.NUM_CLASSES", classes]
        keys += ["TEST.CHECKPOINT_FILE_PATH", trained_clips("maskfeat")]
        output = tmp_path / str(classes)
        assert main(tiny_clip_config("maskfeat", clips, output, *keys)) == 0 and not log_of(output, "bad_file")
        found.append({k: v for k, v in log_of(output, "epoch")[-1].items() if "knn" in k or k == "neighbours"})
    assert found[0] == found[1] and found[0]["neighbours"] == 12
    relabel(clips, "val", {"0": "0", "1": "1", "2": "7"})
    assert main(tiny_clip_config("maskfeat", clips, tmp_path / "beyond", *keys)) == 0
    relabel(clips, "val", {"0": "", "1": "", "7": ""})
    assert "val.csv line 1: the line has no label" in error_of(
        tiny_clip_config("maskfeat", clips, tmp_path / "u", *keys)
    )
