"""The doctor finds what was put into a folder, with and without worker processes."""

import shutil

import numpy as np
import pytest
from PIL import Image

from mfm_core.errors import UserError
from mfm_image.data.doctor import check_folder


@pytest.fixture(scope="module")
def sick(tmp_path_factory):
    """Two bad files, a duplicate with another label, a leak, an empty class, a class only in val, grey and CMYK."""
    root = tmp_path_factory.mktemp("sick")
    for name in ("train/a", "train/b", "train/empty", "val/a", "val/only_val"):
        (root / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("train/a/1", (30, 20)), ("train/a/2", (40, 10)), ("train/b/1", (50, 60)), ("val/a/1", (8, 9))):
        Image.fromarray(rng.integers(0, 256, size=(*size[::-1], 3), dtype=np.uint8)).save(root / f"{name}.jpg")
    Image.new("L", (5, 5)).save(root / "train/b/grey.png")
    Image.new("CMYK", (6, 6)).save(root / "train/b/cmyk.jpg")
    (root / "train/a/empty.jpg").write_bytes(b"")
    (root / "train/b/text.jpg").write_text("no image")
    shutil.copy(root / "train/a/1.jpg", root / "train/b/copy.jpg")
    shutil.copy(root / "train/a/2.jpg", root / "val/only_val/leak.jpg")
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_doctor_finds_everything(sick, workers):
    report = check_folder(sick, workers=workers)
    train, val = report.splits
    assert (train.images, train.classes, train.smallest, train.largest) == (8, 3, ("empty", 0), ("b", 5))
    assert (val.images, val.classes) == (2, 2) and report.checked == 10
    assert [(b.path, b.reason[:12]) for b in report.unreadable] == [
        ("train/a/empty.jpg", "the file is "),
        ("train/b/text.jpg", "this is not "),
    ]
    assert report.duplicates == [["train/a/1.jpg", "train/b/copy.jpg"], ["train/a/2.jpg", "val/only_val/leak.jpg"]]
    assert report.leaks == [("train/a/2.jpg", "val/only_val/leak.jpg")] and report.leaks_total == 1
    assert report.conflicts_total == 2
    assert report.modes == {"RGB": 6, "L": 1, "CMYK": 1}
    assert report.widths == (5, 30, 50) and report.heights == (5, 10, 60)
    assert len(report.problems) == 2 and "train/empty" in report.problems[0] and "only_val" in report.problems[1]
    assert report.speed > 0 and (report.pool_speed > 0) == (workers > 0) and not report.healthy
    text = "\n".join(report.lines())
    for word in ("train/b/text.jpg", "LEAKS", "only_val", "8 images in 3 classes", "not healthy"):
        assert word in text


def test_lists_are_cut_and_say_so(sick):
    report = check_folder(sick, listed=1)
    assert len(report.unreadable) == 1 and report.unreadable_total == 2
    assert "  ... and 1 more" in report.lines()


def test_limit_spreads_over_the_folder(sick):
    report = check_folder(sick, limit=3)
    assert report.checked == 3 and sum(s.images for s in report.splits) == 10


def test_healthy_folder_and_missing_folder(tmp_path):
    for i, split in enumerate(("train", "val")):
        (tmp_path / split / "a").mkdir(parents=True)
        Image.new("RGB", (9, 9), (i, 0, 0)).save(tmp_path / split / "a" / "1.png")
    assert check_folder(tmp_path).healthy
    shutil.rmtree(tmp_path / "val")
    assert any("no val/" in problem for problem in check_folder(tmp_path).problems)
    with pytest.raises(UserError, match="does not exist"):
        check_folder(tmp_path / "nowhere")


def test_images_without_classes(sick, tmp_path):
    """All below train/ of the sick folder: the same findings, but none about classes, and no val/ is no problem."""
    report = check_folder(sick / "train", needs_labels=False)
    assert report.lines()[1] == "train: 8 images without classes" and report.checked == 8 and not report.problems
    assert [file.path for file in report.unreadable] == ["a/empty.jpg", "b/text.jpg"]
    assert report.duplicates == [["a/1.jpg", "b/copy.jpg"]] and report.conflicts_total == 0
    with pytest.raises(UserError, match="has no train/"):
        check_folder(sick / "train")


def test_what_a_run_passes_over_is_named(tmp_path):
    """Images of formats that are not read, and those outside of class folders, are problems; other files are none."""
    for number, name in enumerate(("train/a/1.jpg", "train/a/2.jfif", "train/loose.png", "val/a/1.JPE")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / name, "JPEG")
    (tmp_path / "train/a/notes.txt").write_text("")
    text = check_folder(tmp_path).lines()
    assert "train: 2 images in 1 classes, from 2 (a) to 2 (a) per class" in text
    assert "other files, which are not read: .txt 1" in text
    problem = f"PROBLEM {tmp_path}/train has 1 image outside of class folders, which are left out"
    assert [line for line in text if line.startswith("PROBLEM")] == [problem] and text[-1].startswith("not healthy")
    report = check_folder(tmp_path, needs_labels=False)
    text = report.lines()
    assert report.healthy and "train: 3 images without classes" in text and report.conflicts_total == 0
    assert "train has 1 image outside of class folders: all below it is taken" in text
    for i in range(3):
        (tmp_path / f"train/a/{i}.GIF").write_bytes(b"")
    report = check_folder(tmp_path, needs_labels=False)
    assert report.problems == ["3 images are not read (.gif 3); convert them, to JPEG or PNG"] and not report.healthy


def test_other_classes_in_val_are_none_of_pretrainings(sick):
    report = check_folder(sick, needs_labels=False)
    assert len(report.problems) == 1 and "train/empty" in report.problems[0] and report.conflicts_total == 0
    assert "val: 2 images without classes" in report.lines() and report.leaks_total == 1
