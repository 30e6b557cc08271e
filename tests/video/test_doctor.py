"""The doctor finds what is wrong with lists of videos."""

from __future__ import annotations

import shutil
from functools import partial

import pytest
from clips import truncate, write_clip, write_frames

from mfm_video.data.decode import open_video
from mfm_video.data.doctor import check_videos
from mfm_video.data.lists import list_videos
from mfm_video.data.sampling import ClipSpec

SPEC = ClipSpec(4, 4)


@pytest.fixture
def lists(tmp_path):
    """Four good videos, in train and val."""
    for i, (frames, fps) in enumerate(((60, 30), (60, 15), (10, 30), (61, 30))):
        write_clip(tmp_path / f"{i}.mp4", frames, fps=fps)
    (tmp_path / "train.csv").write_text("".join(f"{tmp_path}/{i}.mp4 {i % 2}\n" for i in range(3)))
    (tmp_path / "val.csv").write_text(f"{tmp_path}/3.mp4 0\n")
    return tmp_path


def check(root, splits=("train", "val"), num_classes=2, **kwargs):
    return check_videos({s: list_videos(root, s, num_classes) for s in splits}, SPEC, partial(open_video), **kwargs)


def add(root, *lines, split="train"):
    with open(root / f"{split}.csv", "a") as file:
        file.writelines(f"{line}\n" for line in lines)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_healthy_list(lists, workers):
    report = check(lists, workers=workers)
    text = "\n".join(report.lines())
    assert report.healthy and report.lines()[-1] == "healthy"
    assert report.frames == (10, 60, 61) and report.rates == (15, 30, 30) and report.heights == (48, 48, 48)
    assert report.short == [f"{lists}/2.mp4: 10 frames"] and report.seconds[0] > 0
    assert "train: 3 videos in 2 classes, from 1 to 2 per class" in text and "checked 4 of 4 videos" in text


def test_what_is_wrong_is_named(lists):
    shutil.copy(lists / "0.mp4", lists / "copy.mp4")
    whole = write_clip(lists / "whole.mp4", 200, options={"movflags": "+faststart"})
    cut = truncate(whole, lists / "cut.mp4", 0.6)
    add(lists, "/absent.mp4 0", f"{cut} 1", f"{lists}/copy.mp4 0", f"{lists}/1.mp4 1", "/x.mp4 7", "/y.mp4")
    add(lists, f"{lists}/copy.mp4 0", split="val")
    report = check(lists)
    text = "\n".join(report.lines())
    assert not report.healthy and report.lines()[-1].startswith("not healthy")
    assert [bad.path for bad in report.missing] == ["/absent.mp4", "/x.mp4", "/y.mp4"] and report.missing_total == 3
    assert [bad.path for bad in report.unreadable] == [str(cut)] and "truncated" in text
    assert "the label 7 is not possible: MODEL.NUM_CLASSES is 2 (train.csv line 8)" in text
    assert "no label" in text and "(train.csv line 9)" in text
    assert report.duplicates == [[f"{lists}/0.mp4", f"{lists}/copy.mp4"]]
    assert report.repeated == [f"{lists}/1.mp4 (train)"]
    assert [other for _, other in report.leaks] == [f"{lists}/copy.mp4"]


def test_copies_in_one_split_do_no_harm_and_equal_test_and_val_neither(lists):
    shutil.copy(lists / "0.mp4", lists / "copy.mp4")
    shutil.copy(lists / "val.csv", lists / "test.csv")
    add(lists, f"{lists}/copy.mp4 0")
    report = check(lists, ("train", "val", "test"))
    assert report.healthy and report.duplicates_total == 1 and report.checked == 5


def test_limits(lists):
    for i in range(5):
        add(lists, f"/absent/{i}.mp4 0")
    report = check(lists, listed=2)
    assert report.missing_total == 5 and len(report.missing) == 2 and "  ... and 3 more" in report.lines()
    report = check(lists, limit=3)
    assert (report.checked, report.total) == (3, 9)


def test_folders_of_images(tmp_path):
    write_frames(tmp_path / "train" / "a" / "one", 20)
    write_frames(tmp_path / "train" / "b" / "two", 20)
    report = check(tmp_path, ("train",))
    assert report.healthy and report.frames == (20, 20, 20)
    assert report.duplicates_total == 1  # the same images under other names
