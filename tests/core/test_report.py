"""Glyphs point along edges, sheets fit, and the report is one safe file whatever the log holds."""

import json
import math
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont
from torch.nn import functional as F

from mfm_core.errors import UserError
from mfm_core.monitor.writers import JsonLines
from mfm_core.report import figures
from mfm_core.report.curves import LINE_COLOURS, Series, line_chart, thin
from mfm_core.report.glyphs import hog_glyphs
from mfm_core.report.html import write_report
from mfm_core.report.lettering import lettered, shortened
from mfm_core.report.panels import denormalise, masked_image, save_png, sheet
from mfm_core.report.runs import read_run
from mfm_core.report.style import CSS

TOOL = Path(__file__).parents[2] / "tools" / "report.py"


def hog(image, cell=16, bins=9):
    """The HOG of PySlowFast written plainly, for an image (H, W): (1, bins, H / cell, W / cell)."""
    sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
    padded = F.pad(image[None, None], (1, 1, 1, 1), mode="reflect")
    gx, gy = F.conv2d(padded, sobel[None, None]), F.conv2d(padded, sobel.T[None, None])
    bin_of = (torch.atan2(gx, gy) / math.pi * bins).floor().long() % bins
    volume = torch.zeros(1, bins, *image.shape).scatter_(1, bin_of, (gx**2 + gy**2).sqrt())
    return F.normalize(F.avg_pool2d(volume, cell), dim=1)


def stroke_angle(picture):
    """The direction of the light in a picture, degrees from the x axis towards up, in [0, 180)."""
    light = picture.astype(float).sum(axis=2) - picture[0, 0].astype(float).sum()
    y, x = np.mgrid[: light.shape[0], : light.shape[1]]
    x, y = x - (light * x).sum() / light.sum(), -(y - (light * y).sum() / light.sum())
    xx, yy, xy = ((light * a).sum() for a in (x * x, y * y, x * y))
    return math.degrees(0.5 * math.atan2(2 * xy, xx - yy)) % 180


@pytest.mark.parametrize("edge", range(5, 180, 10))
def test_strokes_lie_along_the_edge(edge):
    """A straight edge at `edge` degrees, through real Sobel gradients: its stroke is within half a bin of it."""
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    angle = math.radians(edge)
    distance = (x - 23.5) * math.sin(angle) + (y - 23.5) * math.cos(angle)
    cells = hog(torch.sigmoid(distance))
    drawn = hog_glyphs(cells[:, :, 1:2, 1:2], cell_px=33)
    difference = abs(stroke_angle(drawn) - edge)
    assert min(difference, 180 - difference) < 11


def test_glyphs_shape_brightness_and_dimming():
    cells = torch.zeros(3, 9, 2, 3)
    cells[:, 4, 0, 0], cells[:, 4, 0, 1], cells[:, 4, 1, 0], cells[:, 4, 1, 1] = 1.0, 0.3, -1.0, math.nan
    drawn = hog_glyphs(cells, cell_px=16)
    assert drawn.shape == (32, 48, 3) and drawn.dtype == np.uint8
    peak = drawn.max(axis=2).reshape(2, 16, 3, 16).max(axis=(1, 3)).astype(int)
    ground = drawn[31, 47].max()
    assert peak[0, 0] == 255 and ground < peak[0, 1] < 200 and peak[1, 0] == peak[1, 1] == peak[0, 2] == ground
    shown = torch.tensor([[False, True, True], [True, True, True]])
    dimmed = hog_glyphs(cells, cell_px=16, shown=shown)
    assert ground < dimmed[:16, :16].max() < 120 and np.array_equal(dimmed[:, 16:], drawn[:, 16:])
    with pytest.raises(ValueError, match=r"\(9, 2, 3\)"):
        hog_glyphs(cells[0])


def test_denormalise_inverts():
    image = torch.randint(0, 256, (3, 8, 10), generator=torch.Generator().manual_seed(0))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    normal = (image / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert np.array_equal(denormalise(normal, mean, std), image.permute(1, 2, 0).numpy())
    assert denormalise(torch.full((1, 4, 4), 9.0), (0.5,), (0.5,)).tolist() == [[[255] * 3] * 4] * 4


def test_masked_image_hides_what_is_masked():
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    mask = torch.tensor([[True, False], [False, False]])
    hidden = masked_image(image, mask, 2)
    assert len(np.unique(hidden[:2, :2].reshape(-1, 3), axis=0)) == 1
    assert np.array_equal(hidden[2:], image[2:]) and np.array_equal(hidden[:2, 2:], image[:2, 2:])
    with pytest.raises(ValueError, match="does not fit"):
        masked_image(image, mask, 3)


@pytest.mark.parametrize("size, side", [(64, 192), (224, 224), (8, 192)])
def test_sheet_has_a_panel_for_each_image(tmp_path, size, side):
    image = np.zeros((size, size, 3), np.uint8)
    image[0, 0] = 255
    page = sheet([[image, image], [image]], ["left", "a title far too long for its column " * 5], ["cat", "dog"])
    assert page.width > 2 * side and page.height > 2 * side
    pixels = np.asarray(page)
    white = (pixels == 255).all(axis=2).sum()
    assert white == 3 * (side // size) ** 2
    save_png(page, tmp_path / "new" / "sheet.png")
    assert Image.open(tmp_path / "new" / "sheet.png").size == page.size
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["sheet.png"]


def test_sheet_scales_to_the_largest():
    page = sheet([[np.zeros((64, 64, 3), np.uint8), np.zeros((256, 256, 3), np.uint8)]], ["a", "b"])
    assert page.width > 512


def drawn(text: str) -> bytes:
    """The ink of a caption, as it is on a sheet."""
    return np.asarray(sheet([[np.zeros((64, 64, 3), np.uint8)]], ["image"], [text]))[230:].tobytes()


def test_captions_in_other_letters_than_ascii():
    """Each name is told from others, not a row of boxes; what no face has stands there as its code."""
    names = ["üñí", "üñì", "Ωμέγα", "кот", "文字", "文学", "a\udcff", "uni"]
    assert len({drawn(name) for name in names}) == len(names)
    assert lettered("文 кот\n\udcff", 15)[0] == r"\u6587 кот \udcff"
    assert lettered("cat… 0.97 · dog", 15)[1].getname() == ImageFont.load_default(15).getname()


def test_a_caption_in_other_letters_keeps_to_its_room():
    text, font = lettered("Ёлка " * 40, 15)
    assert font.getlength(shortened(text, font, 192)) <= 192 and shortened(text, font, 192).endswith("…")


def test_png_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="x.png"):
        save_png(np.zeros((2, 2, 3), np.uint8), tmp_path / "file" / "x.png")


def test_chart_is_deterministic_and_takes_its_colours_from_the_page():
    lines = [Series([(i / 10, 1 / (i + 1)) for i in range(1000)]), Series([(0, 0.5), (50, 0.1)], 1, dashed=True)]
    svg = line_chart(lines, log_y=True)
    assert svg == line_chart(lines, log_y=True) and svg.startswith("<svg ")
    assert "var(--line-0, " in svg and "var(--line-1, " in svg and "var(--ink-soft, " in svg
    assert "<metadata" not in svg and "<style" not in svg
    other = line_chart(lines[:1])
    assert not set(re.findall(r'\bid="([^"]+)"', svg)) & set(re.findall(r'\bid="([^"]+)"', other))


def test_style_and_charts_agree_on_colours():
    light = CSS[: CSS.index("@media")]
    assert all(f"--line-{i}: {colour}" in light for i, colour in enumerate(LINE_COLOURS))


def test_thin_keeps_mean_and_range():
    x = np.arange(1000.0)
    thinned = thin(list(zip(x, x % 7)), most=100)
    assert thinned.shape == (100, 4) and thinned[0].tolist() == [4.5, 2.4, 0, 6]
    assert thin([(1, 2)]).tolist() == [[1, 2, 2, 2]]


NASTY = 'n01 <script>alert("x")</script>&\'$a_{b$'


def write_log(folder, *records):
    with JsonLines(folder / "log.jsonl") as log:
        for record in records:
            log.write(record)
    return folder


def start(name="run", task="pretrain", **plan):
    plan = {"task": task, "parameters": 5_400_000, "epochs": 4, "steps_per_epoch": 10, "batch_size": 8} | plan
    config = {"TRAIN": {"BATCH_SIZE": 8, "CHECKPOINT_FILE_PATH": NASTY}, "SOLVER": {"BASE_LR": 1e-3}}
    return {"kind": "run", "name": name, "time": "t", "config": config, "environment": {"cpu": NASTY}, "plan": plan}


def step(n, loss, **more):
    return {"kind": "step", "step": n, "epoch": n / 10, "loss": loss, "lr": 1e-3, "images_per_s": 100.0} | more


def epoch(n, **more):
    return {"kind": "epoch", "epoch": n, "step": 10 * n, "train_loss": 1 / n, "seconds": 5.0} | more


@pytest.fixture
def full(tmp_path):
    """A run with something for every section, and text from hostile hands in all of it."""
    folder = tmp_path / "full"
    save_png(np.zeros((4, 4, 3), np.uint8), folder / "pictures" / "epoch_0002.png")
    save_png(np.zeros((4, 4, 3), np.uint8), folder / "pictures" / "epoch_0004.png")
    save_png(np.zeros((4, 4, 3), np.uint8), tmp_path / "secret.png")
    measured = {"val_loss": 0.4, "knn": 20.0, "feature_rank": 9.5, "feature_std": 0.7, "clipped_share": 0.25}
    return write_log(
        folder,
        start(NASTY),
        *(step(n, 1 / n, grad_norm=2.0, **{NASTY: 1.0}) for n in range(1, 41)),
        *(epoch(n, **measured, top1=10.0 * n, top5=20.0 * n) for n in range(1, 5)),
        {"kind": "bad_file", "path": NASTY, "reason": NASTY, "epoch": 1},
        {"kind": "bad_file", "path": NASTY, "reason": NASTY, "epoch": 2},
        {"kind": "bad_file", "path": "caf\udce9.jpg", "reason": "zero bytes", "epoch": 2},
        {"kind": "picture", "file": "pictures/epoch_0002.png", "epoch": 2, "caption": NASTY},
        {"kind": "picture", "file": "pictures/epoch_0004.png", "epoch": 4, "caption": "columns"},
        {"kind": "picture", "file": "../secret.png", "epoch": 9, "caption": "outside"},
        {"kind": "picture", "file": "pictures/missing.png", "epoch": 9, "caption": "gone"},
        {"kind": "warning", "message": NASTY},
        {"kind": "end", "time": "t", "seconds": 3723, "status": "failed", "message": NASTY},
    )


def report_of(*folders):
    path = folders[0].parent / "out" / "report.html"
    write_report(list(folders), path)
    return path.read_text()


def test_report_is_one_safe_file(full):
    text = report_of(full)
    assert not re.search(r"<script|<link|<iframe|@import", text)
    assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;" in text
    outside = [url for url in re.findall(r"https?://[^\s\"'<>]+", text) if not url.startswith("http://www.w3.org/")]
    assert outside == []
    assert all(url.startswith(("data:image/png", "#")) for url in re.findall(r'(?:src|href)="([^"]*)"', text))
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", text))
    assert text == report_of(full)


def test_report_has_every_section(full):
    text = report_of(full)
    for title in ("Curves", "Pictures", "Unreadable files", "Configuration", "Environment"):
        assert f"<h2>{title}</h2>" in text
    for chart in ("Loss", "Accuracy", "Learning rate", "Share of clipped steps", "Effective rank", "Spread", "k-NN"):
        assert f"<h3>{chart}" in text
    assert "40.00 %" in text and "5.40 M" in text and "1:02:03" in text and "prefers-color-scheme: dark" in text
    assert text.index("epoch 4") < text.index("epoch 2") and "outside" not in text and "gone" not in text
    assert r"caf\udce9.jpg" in text and ">2</td>" in text


def test_several_runs_are_compared(tmp_path):
    folders = [
        write_log(tmp_path / name, start(name, "finetune"), step(1, 1.0), epoch(1, top1=top1), epoch(2, top1=top1 + 1))
        for name, top1 in [("from pre-training", 40.0), ("from scratch", 35.0)]
    ]
    text = report_of(*folders)
    assert "2 runs compared" in text and "<strong class=best>41.00 %</strong>" in text
    assert "<strong class=best>36.00 %</strong>" not in text and text.count("<h2>Curves</h2>") == 1
    tasks = report_of(write_log(tmp_path / "pt", start("pt"), step(1, 1.0)), *folders)
    assert "Curves: pretrain" in tasks and "Curves: finetune" in tasks


def test_measures_of_several_settings_share_a_chart(tmp_path):
    """MFF's fusion weights: one chart with a line for each, open and not under "More"; also for several runs."""
    weights = [
        write_log(
            tmp_path / name,
            start(name),
            *(
                step(n, 1.0, **{f"fusion_weight/layer_{i}": i + n / 100 for i in (0, 1)}, alone_3=5.0)
                for n in (1, 2, 3)
            ),
        )
        for name in ("a", "b")
    ]
    text = report_of(weights[0])
    shown, more = text.split("<summary>More</summary>")
    assert shown.count("<h3>Fusion weight") == 1 and "fusion_weight" not in more and "<h3>alone_3" in more
    figure = shown[shown.index("<h3>Fusion weight") :].split("</figure>")[0]
    assert figure.count("<li>") == 2 and "layer 0" in figure and "layer 1" in figure
    assert "var(--line-0, " in figure and "var(--line-1, " in figure
    both = report_of(*weights)
    assert both.count("<h3>Fusion weight") == 1


def test_same_names_are_told_apart(tmp_path):
    folders = [write_log(tmp_path / name, start("same"), step(1, 1.0)) for name in ("a", "b")]
    assert "same (a)" in (text := report_of(*folders)) and "same (b)" in text
    assert "same (a) #2" in report_of(folders[0], folders[0])


def test_resumed_run_goes_back_to_its_checkpoint(tmp_path):
    first = [start(), *(step(n, 9.0) for n in range(1, 26)), epoch(1), epoch(2, knn=5.0)]
    first[12:12] = [epoch(1)]
    folder = write_log(tmp_path / "run", *first[:-2], epoch(2, knn=5.0), {"kind": "end", "seconds": 30})
    write_log(folder, start(), *(step(n, 1.0) for n in range(16, 19)))
    run = read_run(folder)
    assert [r["step"] for r in run.steps] == list(range(1, 19))
    assert [r["loss"] for r in run.steps] == [9.0] * 15 + [1.0] * 3
    assert [r["epoch"] for r in run.epochs] == [1] and run.starts == 2 and run.status == "" and run.seconds == 30
    write_log(folder, *(step(n, 1.0) for n in range(19, 21)), epoch(2, knn=6.0))
    assert read_run(folder).series("epoch", "knn") == [(2.0, 6.0)]


@pytest.mark.parametrize("records", [[], [start()], [step(1, 1.0)], [epoch(1, top1=None)], [{"kind": "end"}]])
def test_partial_runs(tmp_path, records):
    text = report_of(write_log(tmp_path / "run", *records))
    assert "</html>" in text and "<h2>Pictures</h2>" not in text and "<h2>Unreadable files</h2>" not in text


def test_log_from_other_hands_is_tolerated(tmp_path):
    folder = write_log(tmp_path / "run", start(), step(1, math.nan), step(2, 0.5))
    odd = [
        "[1, 2]",
        "7",
        '{"kind": "step"}',
        '{"kind": "step", "step": "x", "loss": 1}',
        '{"kind": "epoch", "epoch": null}',
        '{"kind": "run", "config": 3, "plan": null, "environment": []}',
        '{"kind": ["run"]}',
        '{"kind": "step", "step": 3, "epoch": 0.3, "loss": true, "lr": "1", "grad_norm": 1e999}',
        '{"kind": "picture", "file": "a\\u0000b.png"}',
        '{"kind": "step", "step": 4, "lo',
    ]
    with (folder / "log.jsonl").open("ab") as log:
        log.write("\n".join(odd).encode() + b"\xff")
    run = read_run(folder)
    assert run.series("step", "loss") == [(0.2, 0.5)] and run.unreadable_lines == 3
    assert "3 lines of log.jsonl could not be read" in report_of(folder)


def test_the_latest_of_each_kind_is_open(tmp_path):
    folder = tmp_path / "run"
    for name in ("reconstruction_00002", "reconstruction_00004", "neighbours_00004", "attention"):
        save_png(np.zeros((4, 4, 3), np.uint8), folder / "pictures" / f"{name}.png")
    names = ("reconstruction_00002", "reconstruction_00004", "neighbours_00004")
    write_log(folder, *({"kind": "picture", "file": f"pictures/{n}.png", "epoch": int(n[-5:])} for n in names))
    text = report_of(folder)
    section = text[text.index("<h2>Pictures") :]
    folded = re.findall(r"<details>.*?</details>", section, flags=re.S)
    assert len(folded) == 1 and "1 earlier" in folded[0] and "Reconstruction, epoch 2" in folded[0]
    still_open = re.sub(r"<details>.*?</details>", "", section, flags=re.S)
    for title in ("Reconstruction, epoch 4", "Neighbours, epoch 4", "<h3>attention</h3>"):
        assert still_open.count(title) == 1, title
    assert "epoch 2" not in still_open


def test_many_pictures_are_thinned(tmp_path, monkeypatch):
    folder = write_log(tmp_path / "run", start())
    for n in range(1, 41):
        save_png(np.zeros((4, 4, 3), np.uint8), folder / "pictures" / f"epoch_{n:04d}.png")
    text = report_of(folder)
    assert text.count("<img ") == 12 and "11 earlier (28 more in the folder)" in text
    assert "epoch_0040" in text and "epoch_0001" in text
    monkeypatch.setattr(figures, "_MOST_BYTES", 10)
    assert report_of(folder).count("<img ") == 1


def test_folder_without_a_log(tmp_path):
    with pytest.raises(UserError, match="log.jsonl"):
        write_report([tmp_path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_command_line(tmp_path, monkeypatch, capsys):
    folder = write_log(tmp_path / "run", start(), step(1, 1.0))
    for arguments, code in [([str(folder)], 0), ([str(tmp_path / "nothing")], 2)]:
        monkeypatch.setattr(sys, "argv", ["report.py", *arguments, "--out", str(tmp_path / "r.html")])
        with pytest.raises(SystemExit) as exit:
            runpy.run_path(str(TOOL), run_name="__main__")
        assert exit.value.code == code
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert json.loads((folder / "log.jsonl").read_text().splitlines()[0])["name"] in (tmp_path / "r.html").read_text()
