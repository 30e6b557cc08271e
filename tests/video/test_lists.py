"""Lists and class folders: every line that cannot be used is named, and the others are."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
from web import ask_anew

from mfm_core.errors import UserError
from mfm_video.data.lists import list_videos


def write(root, text, name="train.csv"):
    (root / name).write_text(text)
    return root


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_a_list(tmp_path):
    videos = list_videos(write(tmp_path, "/a/x.mp4 2\n\n/a/with space.mp4 0\n/b.mp4 1\n"), "train", num_classes=3)
    assert [*videos.paths] == ["/a/x.mp4", "/a/with space.mp4", "/b.mp4"]
    assert videos.labels.tolist() == [2, 0, 1] and videos.classes == ("class 0", "class 1", "class 2")
    assert [videos.where(i) for i in range(3)] == [f" (train.csv line {n})" for n in (1, 3, 4)]
    assert videos.origin == str(tmp_path / "train.csv") and not videos.problems


def test_separator_and_prefix(tmp_path):
    videos = list_videos(write(tmp_path, "a,b.mp4,1\nc.mp4, 0\n"), "train", 2, separator=",", prefix="/data")
    assert [*videos.paths] == ["/data/a,b.mp4", "/data/c.mp4"] and videos.labels.tolist() == [1, 0]


def test_relative_paths_start_here_or_beside_the_list(tmp_path, monkeypatch):
    root = tmp_path / "root"
    touch(root / "v" / "a.mp4")
    write(root, "v/a.mp4 0\nv/b.mp4 0\n")
    monkeypatch.chdir(tmp_path)
    assert os.path.exists(list_videos(root, "train").paths[0])
    touch(tmp_path / "v" / "a.mp4")  # PySlowFast looks from the working folder
    assert list_videos(root, "train").paths[1] == "v/b.mp4"


@pytest.mark.parametrize("first", ["path label", "gone.mp4 0", "gone/0.mp4 0\n" * 400, "https://host/x.mp4 0"])
def test_where_relative_paths_start_is_not_for_the_first_line_to_say(first, tmp_path, monkeypatch):
    """It may be a header, or name a video that is gone; and so may the first hundreds, one class of many."""
    root = tmp_path / "root"
    touch(root / "v" / "a.mp4", *(tmp_path / name for name in ("path", "elsewhere/b.mp4")))
    write(root, first + "\n" + "v/a.mp4 1\n" * 500)
    monkeypatch.chdir(tmp_path)
    found = list_videos(root, "train", 2)
    assert found.paths[len(found) - 1] == str(root / "v" / "a.mp4")
    monkeypatch.chdir(tmp_path / "elsewhere")
    write(root, first + "\n" + "b.mp4 1\n" * 500)
    assert list_videos(root, "train", 2).paths[500] == "b.mp4"


def test_paths_that_lead_nowhere_are_looked_for_beside_the_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "root").mkdir()
    videos = list_videos(write(tmp_path / "root", "v/a.mp4 0\n/b.mp4 1\n"), "train", 2)
    assert [*videos.paths] == [str(tmp_path / "root" / "v/a.mp4"), "/b.mp4"]
    assert list_videos(write(tmp_path / "root", "/a.mp4 0\n/b.mp4 1\n"), "train", 2).paths.relative(0) == "/a.mp4"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("a.mp4", "no label"),
        ("my video.mp4", "'video.mp4' is no number"),
        ("a.mp4 x", "no number"),
        ("a.mp4 5", "label 5 .*NUM_CLASSES is 3"),
        ("a.mp4 -1", "label -1"),
    ],
)
def test_a_line_that_cannot_be_used_is_a_problem_of_its_own(line, why, tmp_path):
    videos = list_videos(write(tmp_path, f"/x.mp4 0\n{line}\n/y.mp4 2\n"), "train", num_classes=3)
    assert videos.labels[[0, 2]].tolist() == [0, 2] and list(videos.problems) == [1]
    assert re.search(why, videos.problems[1])
    assert videos.where(1) == " (train.csv line 2)"


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize(
    ("label", "why"),
    [
        ("--5", "'--5' is no number"),
        ("\N{SUPERSCRIPT TWO}", "is no number"),
        ("\N{ARABIC-INDIC DIGIT TWO}", "is no number"),
        ("99999999999999999999", "the label 99999999999999999999 is not possible"),
        ("-99999999999999999999", "labels start at 0"),
        ("20000000", "the label 20000000 is not possible"),
        ("9" * 5000, "the label 999"),
    ],
)
def test_numbers_that_are_no_labels(label, why, num_classes, tmp_path):
    """Neither a traceback, nor names for twenty million classes."""
    videos = list_videos(write(tmp_path, f"/a.mp4 {label}\n/b.mp4 2\n"), "train", num_classes)
    assert why in videos.problems[0] and len(videos.problems[0]) < 200
    assert len(videos.classes) == 3 and videos.labels.tolist() == [0, 2]


def test_where_no_line_can_be_used_the_list_is_refused(tmp_path):
    write(tmp_path, "a.mp4 1\nb.mp4 2\n")
    with pytest.raises(UserError, match=r"train.csv line 1: .*no label.*no line"):
        list_videos(tmp_path, "train", num_classes=3, separator=",")
    with pytest.raises(UserError, match="line 1: the label 1 is not possible: MODEL.NUM_CLASSES is 1"):
        list_videos(tmp_path, "train", num_classes=1)


def test_pretraining_takes_any_label_or_none(tmp_path):
    assert list_videos(write(tmp_path, "a.mp4 7\n"), "train").classes == tuple(f"class {i}" for i in range(8))
    videos = list_videos(write(tmp_path, "my a.mp4\nb.mp4\n"), "train", separator=",")
    assert [videos.paths.relative(i) for i in (0, 1)] == ["my a.mp4", "b.mp4"]
    assert videos.labels.tolist() == [0, 0] and not videos.problems and videos.classes == ("",)
    with pytest.raises(UserError, match="the line has no label"):
        list_videos(tmp_path, "train", separator=",", needs_labels=True)


def test_only_a_models_classes_bound_labels(tmp_path):
    """Not those of the training list, which may have no labels, or not the last ones."""
    write(tmp_path, "a.mp4 1\nb.mp4 5\n", "val.csv")
    for train in ("a.mp4 1\nb.mp4 0\n", "a.mp4\nb.mp4\n"):
        known = list_videos(write(tmp_path, train), "train").classes
        videos = list_videos(tmp_path, "val", classes=known)
        assert not videos.problems and videos.labels.tolist() == [1, 5] and len(videos.classes) == 6
    write(tmp_path, "a.mp4\nb.mp4\n", "val.csv")
    assert not list_videos(tmp_path, "val", classes=("class 0", "class 1")).problems
    videos = list_videos(write(tmp_path, "a.mp4 1\nb.mp4 -1\n"), "train", needs_labels=True)
    assert videos.problems == {1: "the label -1 is not possible: labels start at 0"}


def test_class_folders(tmp_path):
    touch(*(tmp_path / "train" / name for name in ("run/2.mp4", "run/deep/1.AVI", "jump/x.mkv", "jump/notes.txt")))
    touch(*(tmp_path / "train" / "jump" / "frames" / f"{i}.jpg" for i in range(3)))
    touch(tmp_path / "val" / "run" / "9.webm")
    train = list_videos(tmp_path, "train")
    assert train.classes == ("jump", "run")
    assert [train.paths.relative(i) for i in range(len(train))] == [
        *("jump/frames", "jump/x.mkv", "run/2.mp4", "run/deep/1.AVI"),
    ]
    assert train.labels.tolist() == [0, 0, 1, 1] and train.where(0) == ""
    assert list_videos(tmp_path, "val", classes=train.classes).labels.tolist() == [1]


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ((), "neither train.csv .* nor train/<class>/"),
        (("train/a.mp4",), "no class folders"),
        (("train/x/a.txt",), "holds no video"),
    ],
)
def test_data_that_are_not_there(files, why, tmp_path):
    touch(*(tmp_path / name for name in files))
    with pytest.raises(UserError, match=why):
        list_videos(tmp_path, "train")
    with pytest.raises(UserError, match="PATH_TO_DATA_DIR"):
        list_videos(tmp_path / "absent", "train")
    with pytest.raises(UserError, match="is empty"):
        list_videos(write(tmp_path, " \n"), "train")


def test_a_class_that_training_lacks(tmp_path):
    touch(tmp_path / "train" / "a" / "1.mp4", tmp_path / "val" / "b" / "1.mp4")
    with pytest.raises(UserError, match="class b, which the training split lacks"):
        list_videos(tmp_path, "val", classes=("a",))


def test_a_share_of_each_class(tmp_path):
    lines = "".join(f"/{i}.mp4 {i % 3}\n" for i in range(30)) + "/bad.mp4 x\n"
    videos = list_videos(write(tmp_path, lines), "train", 3)
    half, tenth = videos.subset(0.5, 1), videos.subset(0.1, 1)
    assert set(tenth.paths) < set(half.paths) < set(videos.paths)
    assert np.bincount(tenth.labels).tolist() == [1, 1, 1]
    whole = videos.subset(1.0, 1)
    assert [*whole.paths] == [*videos.paths] and whole.problems == videos.problems
    assert half.where(3) == f" (train.csv line {int(os.path.basename(half.paths[3])[:-4]) + 1})"


def test_a_file_beside_the_list_names_the_classes(tmp_path):
    (tmp_path / "train.csv").write_text("a.mp4 0\nb.mp4 2\n")
    assert list(list_videos(tmp_path, "train", 3).classes) == ["class 0", "class 1", "class 2"]
    (tmp_path / "classes.txt").write_text("left\nright\n\nturning round\n")
    assert list(list_videos(tmp_path, "train", 3).classes) == ["left", "right", "turning round"]
    assert list(list_videos(tmp_path, "train").classes) == ["left", "right", "turning round"]
    with pytest.raises(UserError, match="names 3 classes where labels need 4"):
        list_videos(tmp_path, "train", 4)


def test_a_list_from_the_web(site, tmp_path):
    """With the names of classes, and without them; the videos lie here."""
    video = tmp_path / "a.mp4"
    video.write_text("")
    (site.folder / "train.csv").write_text(f"{video} 1\nb.mp4 0\n")
    found = list_videos(f"{site.address}/", "train", num_classes=2)
    assert list(found.paths) == [str(video), "b.mp4"] and found.labels.tolist() == [1, 0]
    assert found.classes == ("class 0", "class 1") and found.origin == f"{site.address}/train.csv"
    (site.folder / "classes.txt").write_text("cat\ndog\n")
    ask_anew()
    assert list_videos(site.address, "train", num_classes=2).classes == ("cat", "dog")
    (site.folder / "test.csv").write_text("b.mp4 0\n")
    assert list(list_videos(site.address, "test").paths) == ["b.mp4"]  # not beside the list, which lies nowhere
    with pytest.raises(UserError, match="DATA.PATH_TO_DATA_DIR: .*/val.csv .*404"):
        list_videos(site.address, "val")


def test_videos_are_not_fetched(site, tmp_path):
    (tmp_path / "train.csv").write_text(f"{site.address}/a.mp4 0\nb.mp4 1\n")
    found = list_videos(tmp_path, "train", num_classes=2)
    assert list(found.problems) == [0] and "not from addresses" in found.problems[0]
    (tmp_path / "train.csv").write_text("s3://bucket/a.mp4 0\n")
    with pytest.raises(UserError, match="line 1: videos are read from the disks of this machine"):
        list_videos(tmp_path, "train", num_classes=2)
