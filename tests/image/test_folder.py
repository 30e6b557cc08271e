"""Listing image folders, and what a user is told when one is not as it should be."""

import os
import pickle
import shutil

import numpy as np
import pytest
from torchvision.datasets import ImageFolder as TorchvisionFolder

from mfm_core.data.listing import UNLABELLED, PathTable
from mfm_core.errors import UserError
from mfm_image.data.folder import ImageFolder


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def relative(folder):
    return [folder.paths.relative(i) for i in range(len(folder))]


def test_lists_the_same_files_and_labels_as_torchvision(tmp_path):
    touch(tmp_path, *(f"train/{c}/{i}.JPEG" for c in ("n02", "n01", "apple") for i in (10, 9, 1)))
    ours, theirs = ImageFolder(tmp_path, "train"), TorchvisionFolder(str(tmp_path / "train"))
    assert list(zip(ours.paths, ours.labels.tolist())) == theirs.samples
    assert list(ours.classes) == theirs.classes and len(ours) == len(theirs)


def test_nested_files_any_case_of_extension_and_hidden_files(tmp_path):
    touch(
        tmp_path, "train/b/x.JPG", "train/b/deep/er/y.png", "train/a b/z.WebP", "train/a b/1.tif", "train/b/notes.txt"
    )
    touch(tmp_path, "train/b/.hidden.jpg", "train/.cache/x.jpg", "train/readme.jpg")
    folder = ImageFolder(tmp_path, "train")
    assert folder.classes == ("a b", "b")
    assert relative(folder) == ["a b/1.tif", "a b/z.WebP", "b/deep/er/y.png", "b/x.JPG"]
    assert folder.labels.tolist() == [0, 0, 1, 1]
    assert folder.paths[2] == str(tmp_path / "train/b/deep/er/y.png") and folder.paths[-1].endswith("x.JPG")
    with pytest.raises(IndexError):
        folder.paths[4]


def test_symbolic_links_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path, "store/cats/1.jpg", "store/cats/2.jpg", "train/dog/1.jpg")
    os.symlink(tmp_path / "store/cats", tmp_path / "train/cat")
    os.symlink(tmp_path / "store/cats/1.jpg", tmp_path / "train/dog/linked.jpg")
    os.symlink(tmp_path / "store/cats", tmp_path / "store/cats/self")
    assert relative(ImageFolder(tmp_path, "train")) == ["cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/linked.jpg"]


def test_names_that_are_not_utf8_and_pickling(tmp_path):
    table = PathTable(tmp_path, ["a/ü.jpg", os.fsdecode(b"b/\xff.jpg"), ""])
    copy = pickle.loads(pickle.dumps(table))
    assert [copy.relative(i) for i in range(3)] == ["a/ü.jpg", os.fsdecode(b"b/\xff.jpg"), ""]


@pytest.mark.parametrize(
    ("files", "split", "expected"),
    [
        ([], "train", "{root}/data does not exist; set DATA.PATH_TO_DATA_DIR"),
        (["data/val/a/1.jpg"], "train", "{root}/data has no train/"),
        (["data/train/1.jpg"], "train", "{root}/data/train has no class folders"),
        (["data/train/a/1.jpg", "data/train/b/notes.txt"], "train", "{root}/data/train/b holds no image"),
    ],
)
def test_a_folder_that_is_not_right_is_one_line_with_its_name(tmp_path, files, split, expected):
    touch(tmp_path, *files)
    with pytest.raises(UserError) as error:
        ImageFolder(tmp_path / "data", split)
    assert expected.format(root=tmp_path) in one_line(error)


def test_val_takes_the_class_indices_of_train(tmp_path):
    touch(tmp_path, *(f"train/{c}/1.jpg" for c in "abc"), "val/c/1.jpg", "val/b/1.jpg")
    train = ImageFolder(tmp_path, "train")
    val = ImageFolder(tmp_path, "val", classes=train.classes)
    assert val.labels.tolist() == [1, 2] and val.classes == train.classes


def test_class_in_val_that_train_lacks_is_named(tmp_path):
    touch(tmp_path, "train/a/1.jpg", "val/a/1.jpg", "val/zebra/1.jpg")
    train = ImageFolder(tmp_path, "train")
    with pytest.raises(UserError, match="zebra") as error:
        ImageFolder(tmp_path, "val", classes=train.classes)
    assert str(tmp_path / "val") in one_line(error)


@pytest.mark.parametrize(
    ("files", "below", "train", "val"),
    [
        (["b.jpg", "c/d/a.png", "c/e.txt"], "", ["b.jpg", "c/d/a.png"], None),
        (["train/2.jpg", "train/1.jpg", "val/c/1.jpg"], "train", ["1.jpg", "2.jpg"], ["c/1.jpg"]),
        (["train/1.jpg", "val/1.jpg"], "train", ["1.jpg"], ["1.jpg"]),
    ],
)
def test_images_without_classes_where_no_labels_are_needed(tmp_path, files, below, train, val):
    touch(tmp_path, *files)
    folder = ImageFolder(tmp_path, "train", needs_labels=False)
    assert folder.folder == tmp_path / below and relative(folder) == train
    assert folder.classes == UNLABELLED and not folder.labels.any()
    if val:
        assert relative(ImageFolder(tmp_path, "val", classes=folder.classes, needs_labels=False)) == val
    again = ImageFolder(tmp_path, "train", classes=folder.classes, needs_labels=False)
    assert relative(again) == train, "the bank of neighbours"


def test_class_folders_are_classes_where_no_labels_are_needed(tmp_path):
    touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "train/readme.txt", "train/.hidden.jpg", "val/b/1.jpg")
    folder = ImageFolder(tmp_path, "train", needs_labels=False)
    assert folder.classes == ("a", "b") and relative(folder) == ["a/1.jpg", "b/1.jpg"] and not folder.remark
    val = ImageFolder(tmp_path, "val", classes=folder.classes, needs_labels=False)
    assert val.classes == ("a", "b") and val.labels.tolist() == [1] and not val.remark
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(UserError, match="has no train/"):  # rather than train on what is there to evaluate
        ImageFolder(tmp_path, "train", needs_labels=False)


def test_images_beside_class_folders(tmp_path):
    """Left out, and said so, where labels are needed; else they are images as all others."""
    touch(tmp_path, "train/x.jpg", "train/y.JFIF", "train/a/1.jpg", "train/readme.txt")
    folder = ImageFolder(tmp_path, "train")
    assert relative(folder) == ["a/1.jpg"]
    assert folder.remark == "has 2 images outside of class folders, which are left out"
    folder = ImageFolder(tmp_path, "train", needs_labels=False)
    assert relative(folder) == ["a/1.jpg", "x.jpg", "y.JFIF"] and folder.classes == UNLABELLED
    assert folder.remark == "has 2 images outside of class folders: all below it is taken"


@pytest.mark.parametrize(
    ("files", "val", "remark"),
    [
        (["val/1.jpg"], ["1.jpg"], "has no class folders"),
        (["val/b/1.jpg", "val/1.jpg"], ["1.jpg", "b/1.jpg"], "has 1 image outside of class folders"),
        (["val/b/1.jpg", "val/c/1.jpg"], ["b/1.jpg", "c/1.jpg"], "has the class c, which the training split lacks"),
    ],
)
def test_val_without_the_classes_of_train(tmp_path, files, val, remark):
    """Where no labels are needed it is of no class, and its files are all there."""
    touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg", *files)
    folder = ImageFolder(tmp_path, "val", classes=("a", "b"), needs_labels=False)
    assert relative(folder) == val and folder.classes == UNLABELLED and not folder.labels.any()
    assert folder.remark.startswith(remark)


def test_fraction_is_balanced_seeded_and_nested(tmp_path):
    touch(tmp_path, *(f"train/a/{i}.jpg" for i in range(40)), *(f"train/b/{i}.jpg" for i in range(20)), "train/c/0.jpg")
    whole = relative(ImageFolder(tmp_path, "train"))
    tenth, again, fifth = (ImageFolder(tmp_path, "train", fraction=f, seed=1) for f in (0.1, 0.1, 0.2))
    assert np.bincount(tenth.labels).tolist() == [4, 2, 1]  # at least one
    assert relative(tenth) == relative(again)
    assert set(relative(tenth)) < set(relative(fifth)) < set(whole)
    assert relative(fifth) == [name for name in whole if name in set(relative(fifth))]  # sorted as the whole
    assert relative(ImageFolder(tmp_path, "train", fraction=0.1, seed=2)) != relative(tenth)
    a, b = ([n.split("/")[1] for n in relative(fifth) if n.startswith(c)] for c in "ab")
    assert set(b) != set(a[: len(b)])  # classes draw independently
    subset = ImageFolder(tmp_path, "train").subset(0.2, seed=1)
    assert relative(subset) == relative(fifth) and subset.labels.tolist() == fifth.labels.tolist()
    with pytest.raises(UserError):
        ImageFolder(tmp_path, "train", fraction=0.0)
