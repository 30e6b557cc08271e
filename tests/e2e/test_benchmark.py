"""Every benchmark runs: on tiny cases, for what it says and not for its times."""

from __future__ import annotations

import subprocess
import sys

import pytest
from paths import TOOLS

TINY = ("MVIT.SIZE", "", "MVIT.EMBED_DIM", "48", "MVIT.DEPTH", "2", "MVIT.NUM_HEADS", "3")
DECODER = ("MASK.DECODER_DEPTH", "1", "MASK.DECODER_EMBED_DIM", "32", "MASK.DECODER_NUM_HEADS", "2")
SMALL = ("DATA.TRAIN_CROP_SIZE", "64", "DATA.TEST_CROP_SIZE", "64")
BLOCKS = ("MVIT.DIM_MUL", "[[1, 2.0]]", "MVIT.HEAD_MUL", "[[1, 2.0]]", "MVIT.EMBED_DIM", "16", "MVIT.DEPTH", "3")
STRIDES = ("MVIT.POOL_Q_STRIDE", "[[0, 1, 1, 1], [1, 1, 2, 2], [2, 1, 2, 2]]", "MASK.PRETRAIN_DEPTH", "[2]")
CLIPS = ("DATA.NUM_FRAMES", "4", "AUG.MASK_WINDOW_SIZE", "[2, 4, 4]")
CASES = {
    "hog": (),
    "attention": ("--attention-shapes", "1", "2", "9", "8"),
    "step": ("--batch", "2", "--set", *TINY, *SMALL, "MASK.PRETRAIN_DEPTH", "[1]"),
    "mae": ("--batch", "2", "--set", *TINY, *DECODER, *SMALL),
    "mfm": ("--batch", "2", "--set", *TINY, *SMALL),
    "methods": ("--batch", "2", "--set", *TINY, *SMALL, "MVIT.DEPTH", "12"),
    "loader": ("--photos", "20"),
    "decode": ("--frames", "80"),
    "mvit": ("--batch", "2", "--set", *BLOCKS, *STRIDES, *CLIPS, *SMALL),
    "pooling": (),
    "strategies": ("--batch", "2", "--set", *TINY, *SMALL, "MASK.PRETRAIN_DEPTH", "[1]"),
}


@pytest.mark.parametrize("name", CASES)
def test_prints_its_rows(name):
    command = [sys.executable, TOOLS / "benchmark.py", "--only", name, "--device", "cpu", "--threads", "1"]
    done = subprocess.run([*command, "--repeats", "1", *CASES[name]], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith(f"| {name} |")]
    assert rows, done.stdout
    assert all(float(row.split("|")[6]) >= 0 for row in rows), done.stdout  # one repeat of next to nothing may be 0.0


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--only", "step", "--set", "SOLVER.BASE_LR"), "'SOLVER.BASE_LR' has no value"),
        (("--only", "decode", "--videos", "/absent"), "/absent"),
    ],
)
def test_mistakes_get_one_line(words, part):
    command = [sys.executable, TOOLS / "benchmark.py", "--device", "cpu", "--threads", "1", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and part in done.stderr, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
