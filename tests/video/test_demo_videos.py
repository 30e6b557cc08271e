"""The demo clips: the same bytes for the same seed, classes that motion tells at once and a frame not at all."""

from __future__ import annotations

import subprocess
import sys

import av
import numpy as np
import pytest
import torch
from paths import TOOLS

from mfm_video.demo import MOTIONS, SPLITS, draw_clip, write_clip

SIZE, FRAMES = 48, 14
OPPOSITES = [("left", "right"), ("up", "down"), ("clockwise", "counterclockwise"), ("zoom_in", "zoom_out")]


def make(out, seed=0, train=2):
    command = [sys.executable, TOOLS / "make_demo_videos.py", "--out", out, "--seed", seed, "--train", train]
    command += ["--val", 1, "--test", 1, "--size", SIZE, "--frames", FRAMES]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


def content(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def decoded(path):
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


@pytest.mark.slow
def test_same_seed_same_bytes_and_a_complete_folder_is_left_alone(tmp_path):
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    for root, seed in ((first, 3), (again, 3), (other, 4)):
        result = make(root, seed)
        assert result.returncode == 0, result.stderr
    assert content(first) == content(again)
    name = "train/zoom_in/001.mp4"
    assert content(first)[name] != content(other)[name] != content(first)["train/zoom_in/000.mp4"]
    assert len({content(first)[f"{split}/left/000.mp4"] for split in SPLITS}) == 3
    assert "is complete" in make(first, 3).stdout
    assert make(first, 3, train=1).returncode == 0 and len(content(first)) == 8 * 3 + 5
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("keep me")
    assert "was not made by this script" in make(tmp_path / "mine").stderr
    assert content(tmp_path / "mine") == {"note.txt": b"keep me"}


def test_lists_name_every_clip_with_the_label_of_its_class(tmp_path):
    assert make(tmp_path / "data").returncode == 0
    root, names = tmp_path / "data", (tmp_path / "data" / "classes.txt").read_text().splitlines()
    assert names == list(MOTIONS)
    for split, count in (("train", 2), ("val", 1), ("test", 1)):
        lines = [line.split(" ") for line in (root / f"{split}.csv").read_text().splitlines()]
        assert sorted(path for path, _ in lines) == sorted(p for p in content(root) if p.startswith(f"{split}/"))
        assert all(path.split("/")[1] == names[int(label)] for path, label in lines) and len(lines) == 8 * count
    with av.open(str(root / "val/up/000.mp4")) as file:
        stream = file.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.average_rate == 12 and stream.frames == FRAMES
        assert (stream.width, stream.height) == (SIZE, SIZE)


@pytest.mark.parametrize(("one", "other"), OPPOSITES)
def test_opposite_motions_are_each_other_backwards(one, other):
    """So that what a frame shows cannot tell the two: for each clip of one there is as likely one of the other."""
    clips = [draw_clip(MOTIONS[name], np.random.default_rng(5), SIZE, FRAMES).astype(int) for name in (one, other)]
    assert np.abs(clips[0] - clips[1][::-1]).max() <= 1  # rounding
    assert np.abs(clips[0] - clips[1]).mean() > 10


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Encoded and read back: (N, FRAMES, SIZE, SIZE, 3) float64 for training and for testing, and their labels."""
    path, sets = tmp_path_factory.mktemp("clips") / "clip.mp4", []
    for split, count in (("train", 16), ("test", 8)):
        labels = np.repeat(np.arange(8), count)
        found = []
        for i, label in enumerate(labels):
            rng = np.random.default_rng([split == "test", i])
            write_clip(path, draw_clip(list(MOTIONS.values())[label], rng, SIZE, FRAMES))
            found.append(decoded(path))
        sets.append((np.stack(found).astype(np.float64), labels))
    return sets


def of_frame(frames):
    """What a frame shows (N, H, W, 3): colours here and there, contrast, texture by direction and by size."""
    blocks = frames.reshape(len(frames), 4, SIZE // 4, 4, SIZE // 4, 3)
    grey = frames.mean(axis=-1)
    spectrum = np.abs(np.fft.fftshift(np.fft.fft2(grey - grey.mean((1, 2), keepdims=True)), axes=(1, 2)))
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE // 2
    radius, angle = np.hypot(x, y), np.arctan2(y, x) % np.pi
    bands = [(radius >= a) & (radius < 2 * a) for a in (1, 2, 4, 8, 16)]
    sectors = [(angle >= a) & (angle < a + np.pi / 4) & (radius > 0) for a in np.arange(4) * np.pi / 4]
    texture = [np.log(spectrum[:, part].mean(axis=1) + 1) for part in bands + sectors]
    colours = [blocks.mean(axis=(2, 4)).reshape(len(frames), -1), frames.std(axis=(1, 2)), frames.mean(axis=(1, 2))]
    return np.concatenate([*colours, np.stack(texture, axis=1)], axis=1)


def of_motion(clip):
    """The mean movement of a clip (T, H, W, 3): right, down, clockwise, outwards (Lucas and Kanade's, affine)."""
    grey = clip.mean(axis=-1)
    y, x = (np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2)[:, 1:-1, 1:-1] / SIZE
    total = np.zeros(6)
    for one, other in zip(grey, grey[1:]):
        middle = (one + other) / 2
        gy, gx = (g[1:-1, 1:-1].ravel() for g in np.gradient(middle))
        change = -(other - one)[1:-1, 1:-1].ravel()
        columns = [gx, gx * x.ravel(), gx * y.ravel(), gy, gy * x.ravel(), gy * y.ravel()]
        total += np.linalg.lstsq(np.stack(columns, axis=1), change, rcond=None)[0]
    right, right_x, right_y, down, down_x, down_y = total
    return np.array([right, down, 0.38 * (down_x - right_y) / 2, 0.38 * (right_x + down_y) / 2])


def centroid_accuracy(train, labels, test, truth):
    scale = train.std(axis=0) + 1e-9
    centroids = np.stack([train[labels == c].mean(axis=0) for c in range(8)])
    return ((((test[:, None] - centroids) / scale) ** 2).sum(-1).argmin(1) == truth).mean()


def logistic_accuracy(train, labels, test, truth):
    mean, scale = train.mean(axis=0), train.std(axis=0) + 1e-9
    train, test = (torch.from_numpy((x - mean) / scale).float() for x in (train, test))
    layer = torch.nn.Linear(train.shape[1], 8)
    torch.nn.init.zeros_(layer.weight)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=50)

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(layer(train), torch.from_numpy(labels))
        loss = loss + 0.02 * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return float((layer(test).argmax(1).numpy() == truth).mean())


@pytest.mark.slow
@pytest.mark.parametrize("classify", [centroid_accuracy, logistic_accuracy])
def test_a_frame_does_not_tell_the_class(clips, classify):
    """Not even one that is known to be the first or the last: 64 clips, chance 12.5 % + 4 standard deviations."""
    (train, labels), (test, truth) = clips
    for t in (0, FRAMES // 2, FRAMES - 1):
        assert classify(of_frame(train[:, t]), labels, of_frame(test[:, t]), truth) < 0.29, t
    pooled = [of_frame(x.reshape(-1, SIZE, SIZE, 3)).reshape(len(x), FRAMES, -1).mean(axis=1) for x in (train, test)]
    assert classify(pooled[0], labels, pooled[1], truth) < 0.29, "nor all frames in any order"


def test_motion_tells_the_class(clips):
    """The strongest of four movements, and its sign: no training needed, so the names are what they say."""
    names = [("right", "left"), ("down", "up"), ("clockwise", "counterclockwise"), ("zoom_in", "zoom_out")]
    right = 0
    for clip, label in zip(*clips[1]):
        movement = of_motion(clip)
        strongest = np.abs(movement).argmax()
        right += names[strongest][int(movement[strongest] < 0)] == list(MOTIONS)[label]
    assert right >= 0.95 * len(clips[1][0])
