"""Animations keep their frames and their gaps, tables come back from the log, confusions are counted by the row."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from mfm_core.engine.log import RunLog
from mfm_core.report.confusion import class_table, confusion_counts, confusion_picture
from mfm_core.report.exhibits import Animation, Table
from mfm_core.report.heat import colours
from mfm_core.report.runs import read_run


def frames(count=5):
    """A white square on transparent ground that walks to the right over a coloured band."""
    found = []
    for i in range(count):
        pixels = np.zeros((32, 48, 4), np.uint8)
        pixels[20:28, :, :] = (200, 60, 10, 255)
        pixels[4:12, 4 + 8 * i : 12 + 8 * i] = (250, 250, 250, 255)
        pixels[0, 0] = (255, 0, 0, 100)  # half transparent: left out
        found.append(Image.fromarray(pixels))
    return found


def test_a_gif_has_every_frame_and_its_gaps():
    animation = Animation(frames(), seconds=0.2)
    gif = Image.open(io.BytesIO(animation.gif()))
    assert (gif.format, gif.n_frames, gif.info["duration"], gif.info["loop"]) == ("GIF", 5, 200, 0)
    for i, wanted in enumerate(frames()):
        gif.seek(i)
        shown, wanted = np.asarray(gif.convert("RGBA")).astype(int), np.asarray(wanted).astype(int)
        opaque = wanted[..., 3] == 255
        assert np.array_equal(shown[..., 3] == 255, opaque), f"frame {i}: nothing of the one before shines through"
        assert np.abs(shown - wanted)[opaque].max() <= 4
    assert animation.gif() == Animation(frames(), 0.2).gif()
    assert animation.still.tobytes() == frames()[2].tobytes()


def test_many_colours_keep_to_one_table():
    noise = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3)).astype(np.uint8)
    noise[:, :20] = noise[0, :20]
    gif = Image.open(io.BytesIO(Animation([Image.fromarray(x) for x in noise]).gif()))
    shown = []
    for i in range(3):
        gif.seek(i)
        shown.append(np.asarray(gif.convert("RGBA")))
    assert np.array_equal(shown[0][:20], shown[2][:20]), "what stands still does not flicker"
    assert (np.stack(shown)[..., 3] == 255).all()
    assert np.abs(np.stack(shown)[..., :3].astype(int) - noise).mean() < 25


@pytest.fixture
def report(tmp_path):
    """A run that left a picture, an animation and two tables, one of them twice; its page."""
    log = RunLog(tmp_path)
    log.run("run", {}, {}, {"task": "finetune"})
    log.picture("still", Image.new("RGB", (8, 8), (9, 9, 9)), "one", 1, 10)
    log.picture("moving", Animation(frames()), "walks <b>", 2, 20)
    log.picture("per_class", Table(["class", "top-1"], [["old", "1"]]), "", 1, 10)
    log.picture("per_class", Table(["class", "top-1"], [["<cat>", "50.0"], ["dog", "–"]], (1,)), "of 9", 2, 20)
    log.picture("long", Table(["n"], [[str(i)] for i in range(50)]), "", 2, 20)
    log.end("finished")
    return tmp_path, (tmp_path / "report.html").read_text()


def test_the_report_embeds_animations(report):
    folder, page = report
    file = (folder / "pictures" / "moving_00002.gif").read_bytes()
    assert file == Animation(frames()).gif()
    assert f"data:image/gif;base64,{base64.b64encode(file).decode()}" in page and "data:image/png;base64," in page
    assert "walks &lt;b&gt;" in page and "Moving, epoch 2" in page and "<b>" not in page
    (folder / "pictures" / "other.gif").write_bytes(file)
    (folder / "pictures" / "fake.gif").write_bytes(b"<script>")
    assert sorted(p.path.name for p in read_run(folder).pictures) == [
        "moving_00002.gif",
        "other.gif",
        "still_00001.png",
    ]


def test_the_report_shows_the_latest_table(report):
    _, page = report
    assert "<h2>Per class</h2>" in page and "old" not in page and "of 9" in page
    assert '<th class="mono">&lt;cat&gt;</th><td class="figure">50.0</td>' in page
    assert re.search(r"<details><summary>50 rows</summary>", page) and "<summary>2 rows" not in page


def test_a_record_that_is_no_table_does_no_harm(tmp_path):
    lines = [
        '{"kind": "table"}',
        '{"kind": "table", "name": 3, "head": "ab", "rows": [1, [2, null]], "figures": ["x"]}',
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
    tables = read_run(tmp_path).tables
    assert tables["3"].table.rows == [["2", "None"]] and tables["None"].table.rows == []


LABELS, PREDICTED = torch.tensor([0, 0, 0, 0, 2, 2, 1, -1]), torch.tensor([0, 0, 1, 2, 2, 0, 1, -1])


def test_rows_are_true_classes():
    counts = confusion_counts(LABELS, PREDICTED, 4)
    assert counts.tolist() == [[2, 1, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    table = class_table(counts, ["a", "b", "c", "d"])
    assert table.rows == [
        ["a", "4", "50.0", "b (1)"],
        ["b", "1", "100.0", "–"],
        ["c", "2", "50.0", "a (1)"],
        ["d", "0", "–", "–"],
    ]


@pytest.mark.parametrize("classes", [4, 20, 300])
def test_the_matrix_shows_shares_of_each_row(classes):
    """Class 0 is half taken for class 2; its row is one line of cells, the true class on the left."""
    labels = torch.arange(classes).repeat_interleave(2)
    predicted = labels.clone()
    predicted[0] = 2
    page = np.asarray(
        confusion_picture(confusion_counts(labels, predicted, classes), [f"c{i}" for i in range(classes)])
    )
    cell = min(84, round(760 / classes))
    dark = (page[..., :3] == colours()[0]).all(axis=2) & (page[..., 3] == 255)
    top, left = (int(np.flatnonzero(dark.any(axis=axis))[0]) for axis in (1, 0))
    left = int(
        np.flatnonzero((page[top, :, :3] == colours()[round(255 * (0.5 if classes < 17 else 0.5**0.5))]).all(1))[0]
    )
    corner = [
        page[top + i * cell + cell // 8, left + j * cell + cell // 8, :3] for i, j in ((0, 0), (0, 2), (1, 1), (2, 0))
    ]
    half = colours()[round(255 * (0.5 if classes < 17 else 0.5**0.5))]
    assert np.array_equal(corner[0], half) and np.array_equal(corner[1], half)
    assert np.array_equal(corner[2], colours()[-1]) and np.array_equal(corner[3], colours()[0])
    named = bool((page[..., 3] > 0)[top + cell * classes + 2 :].any())
    assert named == (classes <= 40)
