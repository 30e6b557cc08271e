"""The demo data: the same bytes for the same seed, and no class to be told by its mean colour."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mfm_image.data.folder import ImageFolder

SCRIPT = Path(__file__).parents[2] / "tools" / "make_demo_data.py"


def make(out, train, val, seed=0):
    command = [sys.executable, SCRIPT, "--out", out, "--train", train, "--val", val, "--seed", seed]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


def content(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "data"
    result = make(root, 40, 20)
    assert result.returncode == 0, result.stderr
    return root


def test_ten_classes_in_imagenets_layout(demo):
    train = ImageFolder(demo, "train")
    val = ImageFolder(demo, "val", classes=train.classes)
    assert len(train.classes) == 10 and np.bincount(train.labels).tolist() == [40] * 10 and len(val) == 200
    with Image.open(train.paths[0]) as image:
        assert image.format == "JPEG" and image.size == (64, 64)


def test_same_seed_same_bytes_and_a_complete_folder_is_left_alone(demo, tmp_path):
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    for root, seed in ((first, 3), (again, 3), (other, 4)):
        assert make(root, 2, 1, seed).returncode == 0
    assert content(first) == content(again)
    assert content(first)["train/checks_fine/000.JPEG"] != content(other)["train/checks_fine/000.JPEG"]
    before = (first / "demo.json").stat().st_mtime_ns
    assert "is complete" in make(first, 2, 1, seed=3).stdout
    assert (first / "demo.json").stat().st_mtime_ns == before
    assert make(first, 3, 1, seed=3).returncode == 0 and len(content(first)) == 10 * 4 + 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "first", "other"]  # nothing left over


def test_foreign_folder_is_not_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    result = make(tmp_path, 1, 1)
    assert result.returncode != 0 and "was not made by this script" in result.stderr
    assert (tmp_path / "mine.txt").read_text() == "keep me"


def test_mean_colour_tells_no_class(demo):
    """Nearest class centroid by mean (and by mean and spread of) colour stays near the chance of 10 %."""
    train = ImageFolder(demo, "train")
    val = ImageFolder(demo, "val", classes=train.classes)
    for moments in (1, 2):
        features = []
        for folder in (train, val):
            images = np.stack([np.asarray(Image.open(path), dtype=np.float64) for path in folder.paths])
            parts = [images.mean(axis=(1, 2)), images.std(axis=(1, 2))][:moments]
            features.append(np.concatenate(parts, axis=1))
        centroids = np.stack([features[0][train.labels == c].mean(axis=0) for c in range(10)])
        nearest = ((features[1][:, None] - centroids) ** 2).sum(-1).argmin(1)
        assert (nearest == val.labels).mean() < 0.2  # 200 images: chance + 4.7 standard deviations
