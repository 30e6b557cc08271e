"""Pre-training on images without classes: a folder of JPEG files, however they lie in it, with and without val/."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_runs import assert_same, last_state, log_of, tiny_config

from mfm_image.entry import main

ONE_EPOCH = ["SOLVER.MAX_EPOCH", "1", "KNN.PERIOD", "1", "KNN.K", "[1]"]


def logged(folder: Path) -> tuple[dict, set[str], list[str]]:
    """The last epoch's numbers, the names of its pictures, and the warnings."""
    pictures = {Path(line["file"]).stem for line in log_of(folder, "picture") if line["epoch"] == 1}
    return log_of(folder, "epoch")[-1], pictures, [line["message"] for line in log_of(folder, "warning")]


@pytest.fixture(scope="module")
def labelled(photo_folder, tmp_path_factory):
    """The folder of a run on the same images in class folders."""
    output = tmp_path_factory.mktemp("labelled")
    assert main(tiny_config("pretrain", photo_folder, output, *ONE_EPOCH)) == 0
    return output


def flat(source: Path, target: Path) -> None:
    """The files of class folders in one folder, in the same order."""
    target.mkdir(parents=True)
    for file in source.rglob("*.JPEG"):
        shutil.copy(file, target / f"{file.parent.name}_{file.name}")


def test_a_folder_of_images_alone(labelled, photo_folder, tmp_path):
    """It trains as on class folders, and looks at what it trains on."""
    assert main(tiny_config("pretrain", photo_folder / "train", tmp_path, *ONE_EPOCH)) == 0
    assert_same(last_state(tmp_path), last_state(labelled))
    values, pictures, warnings = logged(tmp_path)
    assert {"feature_std", "feature_rank"} <= values.keys() and not {"val_loss", "knn"} & values.keys()
    assert pictures == {"reconstruction_00001"}
    assert [("no val" in line, "no class folders" in line) for line in warnings] == [(True, False), (False, True)]
    again = tiny_config("pretrain", photo_folder / "train", tmp_path, *ONE_EPOCH, "TASK", "visualise")
    assert main(again) == 0
    assert {"reconstruction.png", "neighbours.png"} <= {path.name for path in (tmp_path / "pictures").iterdir()}


def test_splits_without_classes(labelled, photo_folder, tmp_path):
    """Validation loss and neighbours as with classes; no accuracy."""
    photos, output = tmp_path / "photos", tmp_path / "out"
    for split in ("train", "val"):
        flat(photo_folder / split, photos / split)
    assert main(tiny_config("pretrain", photos, output, *ONE_EPOCH)) == 0
    assert_same(last_state(output), last_state(labelled))
    values, pictures, warnings = logged(output)
    expected, shown, _ = logged(labelled)
    assert values["val_loss"] == expected["val_loss"] and "knn" in expected and "knn" not in values
    assert pictures == shown and [f"{photos}/train has no class folders" in line for line in warnings] == [True]


@pytest.mark.parametrize("case", ["flat", "unknown"])
def test_val_of_other_classes_than_train(case, labelled, photo_folder, tmp_path):
    """Its images have a loss and neighbours; no accuracy, and a warning says why."""
    photos, output = tmp_path / "photos", tmp_path / "out"
    shutil.copytree(photo_folder / "train", photos / "train")
    if case == "flat":
        flat(photo_folder / "val", photos / "val")
    else:
        shutil.copytree(photo_folder / "val", photos / "val")
        (photos / "val" / "cat").rename(photos / "val" / "cow")
    assert main(tiny_config("pretrain", photos, output, *ONE_EPOCH)) == 0
    assert_same(last_state(output), last_state(labelled))
    values, pictures, warnings = logged(output)
    expected, shown, _ = logged(labelled)
    assert values["val_loss"] == expected["val_loss"] and "knn" not in values and pictures == shown
    said = "has no class folders" if case == "flat" else "has the class cow, which the training split lacks"
    assert [f"{photos}/val {said}" in line and "no accuracy of k-NN" in line for line in warnings] == [True]


def test_images_beside_class_folders(photo_folder, tmp_path):
    """Pre-training takes them; fine-tuning warns of what it leaves out, in every split."""
    photos = Path(shutil.copytree(photo_folder, tmp_path / "photos"))
    for split in ("train", "val"):
        shutil.copy(photos / "val" / "cat" / "0.JPEG", photos / split / "loose.JPEG")
    assert main(tiny_config("pretrain", photos, tmp_path / "pre", *ONE_EPOCH)) == 0
    assert log_of(tmp_path / "pre", "run")[0]["plan"]["images"] == 25
    assert main(tiny_config("finetune", photos, tmp_path / "fine", "SOLVER.MAX_EPOCH", "1")) == 0
    assert log_of(tmp_path / "fine", "run")[0]["plan"]["images"] == 24
    _, _, warnings = logged(tmp_path / "fine")
    left_out = "has 1 image outside of class folders, which are left out."
    assert [line for line in warnings if "outside" in line] == [f"{photos}/{s} {left_out}" for s in ("train", "val")]
    knn = ["TASK", "knn", "TEST.CHECKPOINT_FILE_PATH", tmp_path / "pre/checkpoints/checkpoint_epoch_00001.pyth"]
    assert main(tiny_config("pretrain", photos, tmp_path / "knn", *knn)) == 0
    _, _, warnings = logged(tmp_path / "knn")
    assert sum(left_out in line for line in warnings) == 2


def test_other_tasks_need_classes(photo_folder, tmp_path, error_of):
    assert "train/" in error_of(tiny_config("finetune", photo_folder / "train", tmp_path))
    flat(photo_folder / "train", tmp_path / "photos" / "train")
    assert "no class folders" in error_of(tiny_config("finetune", tmp_path / "photos", tmp_path))
    knn = tiny_config("pretrain", tmp_path / "photos", tmp_path, "TASK", "knn")
    assert "no class folders" in error_of(knn)
