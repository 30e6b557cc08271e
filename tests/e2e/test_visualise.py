"""TASK visualise from the command's side, and the pictures that training leaves in its report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import picture
from PIL import Image
from tiny_runs import assert_same, last_state, log_of, tiny_config

from mfm_core.checkpoint.init_from import init_from
from mfm_core.interfaces import SampleKey
from mfm_core.objective import EncoderModel
from mfm_core.report.panels import sheet
from mfm_core.tasks.monitor import Monitor
from mfm_core.tasks.shown import from_dataset
from mfm_image.data.build import eval_dataset
from mfm_image.entry import main
from mfm_image.models import build_model
from mfm_image.pictures import attention

ONE_EPOCH = ["SOLVER.MAX_EPOCH", "1", "MONITOR.PERIOD", "0"]
KINDS = {"pretrain": ["reconstruction", "attention", "neighbours"], "finetune": ["attention", "gradient", "neighbours"]}


@pytest.fixture(scope="module", params=["pretrain", "finetune"])
def trained(request, photo_folder, tmp_path_factory):
    """The kind of a run and its folder, with one epoch of training in it."""
    output = tmp_path_factory.mktemp(request.param)
    assert main(tiny_config(request.param, photo_folder, output, *ONE_EPOCH)) == 0
    return request.param, output


def visualise(kind, photos, output, *overrides):
    return tiny_config(kind, photos, output, *ONE_EPOCH, "TASK", "visualise", *overrides)


def weights(output: Path) -> list[str]:
    return ["TEST.CHECKPOINT_FILE_PATH", str(output / "checkpoints" / "checkpoint_epoch_00001.pyth")]


def shapes(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.stem: Image.open(path).size for path in (folder / "pictures").glob("*.png")}


def test_all_kinds_of_the_newest_checkpoint(trained, photo_folder, tmp_path, capsys):
    kind, first = trained
    output = tmp_path / "copy"
    shutil.copytree(first / "checkpoints", output / "checkpoints")
    assert main(visualise(kind, photo_folder, output, "PICTURE.NUM_IMAGES", "3")) == 0
    said = capsys.readouterr().out
    assert set(shapes(output)) == set(KINDS[kind])
    page = (output / "pictures.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and "checkpoint_epoch_00001.pyth" in page
    for name in KINDS[kind]:
        assert f"<h2>{name.capitalize()}</h2>" in page and f"{output}/pictures/{name}.png" in said
    assert f"{output}/pictures.html" in said and not (output / "log.jsonl").exists()
    assert main(visualise(kind, photo_folder, output, "PICTURE.NUM_IMAGES", "3")) == 0
    assert (output / "pictures.html").read_text() == page, "the same command gives the same pictures"


def test_one_kind_of_a_nested_folder(trained, photo_folder, tmp_path, capsys):
    """What is no image is skipped by name; images come evenly from the whole folder, at any depth."""
    kind, first = trained
    nested = tmp_path / "photos" / "a" / "b"
    nested.mkdir(parents=True)
    for i in range(3):
        picture(i).save(nested / f"{i}.png")
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    (nested / "torn.JPEG").write_bytes((photo_folder / "val" / "cat" / "0.JPEG").read_bytes()[:200])
    (nested / ".hidden.png").write_text("never looked at")
    cfg = ["PICTURE.INPUT", tmp_path / "photos", "PICTURE.KIND", "attention", *weights(first)]
    assert main(visualise(kind, "", tmp_path / "out", *cfg)) == 0
    skipped = [line for line in capsys.readouterr().out.splitlines() if line.startswith("skipped")]
    assert len(skipped) == 2 and "notes.txt: " in skipped[1] and "torn.JPEG: " in skipped[0]
    assert set(shapes(tmp_path / "out")) == {"attention"}
    assert "3 of" in (tmp_path / "out" / "pictures.html").read_text()


@pytest.mark.parametrize("folder", ["", "/absent"])
def test_one_file_without_a_data_folder(folder, trained, tmp_path, capsys):
    """All kinds but neighbours, which need training images."""
    kind, first = trained
    picture(5).save(tmp_path / "one.webp")
    assert main(visualise(kind, folder, tmp_path, "PICTURE.INPUT", tmp_path / "one.webp", *weights(first))) == 0
    assert set(shapes(tmp_path)) == set(KINDS[kind]) - {"neighbours"}
    assert ("DATA.PATH_TO_DATA_DIR /absent does not exist" in capsys.readouterr().out) is bool(folder)


def test_what_a_classifier_says_of_a_class(trained, photo_folder, tmp_path, monkeypatch):
    """Of one that answers each class by itself it is a sigmoid."""
    kind, first = trained
    if kind != "finetune":
        pytest.skip("pre-training has no classes")
    written = []

    def spy(rows, titles, texts):
        written.extend(texts)
        return sheet(rows, titles, texts)

    monkeypatch.setattr(attention, "sheet", spy)
    keys = [*weights(first), "PICTURE.KIND", "gradient", "PICTURE.NUM_IMAGES", "1"]
    for loss in ("cross_entropy", "bce"):
        assert main(visualise(kind, photo_folder, tmp_path / loss, *keys, "MODEL.LOSS_FUNC", loss)) == 0
    cfg = visualise(kind, photo_folder, tmp_path, *keys)
    model = build_model(cfg).eval()
    init_from(model, weights(first)[1])
    image = from_dataset(eval_dataset(cfg, "val", ("apple", "bear", "cat")), 1).inputs
    with torch.no_grad():
        logits = model(image)
    for (text, *_), said in zip(written, (logits.softmax(dim=1), logits.sigmoid())):
        assert f", {float(said.max()):.0%} ·" in text


def test_mistakes(trained, photo_folder, tmp_path, error_of):
    kind, first = trained
    output, load = tmp_path / "out", weights(first)

    def error(*overrides, data=photo_folder):
        return error_of(visualise(kind, data, output, *overrides))

    assert "TEST.CHECKPOINT_FILE_PATH" in error()
    assert f"{tmp_path}/absent.pyth" in error("TEST.CHECKPOINT_FILE_PATH", tmp_path / "absent.pyth")
    assert f"{tmp_path}/absent" in error(*load, "PICTURE.INPUT", tmp_path / "absent")
    (tmp_path / "hollow").mkdir()
    assert f"{tmp_path}/hollow" in error(*load, "PICTURE.INPUT", tmp_path / "hollow")
    (tmp_path / "hollow" / "text.jpg").write_text("no image")
    assert "none of the 1 file(s)" in error(*load, "PICTURE.INPUT", tmp_path / "hollow")
    wrong = {"pretrain": "gradient", "finetune": "reconstruction"}[kind]
    assert f"PICTURE.KIND {wrong}" in error(*load, "PICTURE.KIND", wrong)
    assert "PICTURE.LAYER is 2" in error(*load, "PICTURE.LAYER", "2")
    assert "PICTURE.NUM_NEIGHBOURS is 25" in error(*load, "PICTURE.NUM_NEIGHBOURS", "25")
    assert "MVIT.EMBED_DIM" in error(*load, "MVIT.EMBED_DIM", "48")
    assert "DATA.PATH_TO_DATA_DIR" in error(*load, data="")
    one = ["PICTURE.INPUT", photo_folder / "val" / "cat" / "0.JPEG"]
    assert "DATA.PATH_TO_DATA_DIR" in error(*load, *one, "PICTURE.KIND", "neighbours", data="")


def test_a_device_whose_memory_is_full(trained, photo_folder, tmp_path, error_of, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20.00 MiB.")

    kind, first = trained
    monkeypatch.setattr(EncoderModel, "features", full)
    error = error_of(visualise(kind, photo_folder, tmp_path, *weights(first), "PICTURE.KIND", "neighbours"))
    assert "CUDA out of memory" in error and "PICTURE.NUM_IMAGES" in error


def test_heads_are_needed_by_those_who_ask_them(photo_folder, tmp_path, error_of):
    """A pre-trained backbone shows its attention and neighbours in a classifier's place, but explains no class."""
    pretrained = tmp_path / "pretrained"
    assert main(tiny_config("pretrain", photo_folder, pretrained, *ONE_EPOCH)) == 0
    cfg = [*weights(pretrained), "PICTURE.KIND"]
    assert "head.projection.weight" in error_of(visualise("finetune", photo_folder, tmp_path, *cfg, "gradient"))
    assert main(visualise("finetune", photo_folder, tmp_path, *cfg, "attention,neighbours")) == 0
    assert "head.projection.weight" in (tmp_path / "pictures.html").read_text()


def test_keys_act(trained, photo_folder, tmp_path):
    """Each key that shapes a map changes the picture."""
    kind, first = trained
    changes = {
        "attention": (["PICTURE.HEAD_FUSION", "max"], ["PICTURE.DISCARD_RATIO", "0.8"], ["PICTURE.LAYER", "0"]),
        "gradient": (["PICTURE.CLASS", "1"], ["PICTURE.DISCARD_RATIO", "0.8"], ["PICTURE.LAYER", "1"]),
        "reconstruction": (["PICTURE.SEED", "1"], ["PICTURE.NUM_IMAGES", "2"]),
        "neighbours": (["PICTURE.NUM_NEIGHBOURS", "2"], ["KNN.NUM_TRAIN", "8"]),
    }
    for name in KINDS[kind]:
        seen = set()
        for i, change in enumerate(([], *changes[name])):
            output = tmp_path / f"{name}_{i}"
            cfg = visualise(kind, photo_folder, output, *weights(first), "PICTURE.KIND", name, *change)
            assert main(cfg) == 0
            seen.add((output / "pictures" / f"{name}.png").read_bytes())
        assert len(seen) == 1 + len(changes[name]), name


METHODS = {
    "mae": ["MASK.METHOD", "mae", "MASK.DECODER_DEPTH", "1", "MASK.DECODER_EMBED_DIM", "32"],
    "maskfeat_pixel": ["MASK.METHOD", "maskfeat", "MASK.TARGET", "pixel"],
    "maskfeat_spectrum": ["MASK.METHOD", "maskfeat", "MASK.TARGET", "spectrum", "MFM.GREY", "True"],
    "mfm": ["MASK.METHOD", "mfm"],
    "mfm_hog": ["MASK.METHOD", "mfm", "MASK.TARGET", "hog", "MASK.PRED_HOG", "True"],
    "sr": ["MASK.METHOD", "mfm", "MFM.CORRUPTION", "sr", "MODEL.ARCH", "resnet"],
    "denoise": ["MASK.METHOD", "mfm", "MFM.CORRUPTION", "denoise", "MFM.GREY", "True"],
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_shows_its_reconstruction(method, photo_folder, tmp_path):
    """Columns as the method and the target need them, from weights that need not be trained."""
    keys = ["MASK.PRED_HOG", "False", "MFM.RADIUS", "6", *METHODS[method], "PICTURE.KIND", "reconstruction"]
    torch.manual_seed(0)
    model = build_model(visualise("pretrain", photo_folder, tmp_path, *keys))
    torch.save({"model_state": model.state_dict()}, tmp_path / "weights.pyth")
    keys += ["TEST.CHECKPOINT_FILE_PATH", tmp_path / "weights.pyth", "PICTURE.NUM_IMAGES", "2"]
    assert main(visualise("pretrain", photo_folder, tmp_path, *keys)) == 0
    columns = {"mae": 4, "maskfeat_pixel": 4, "maskfeat_spectrum": 5, "mfm": 7, "mfm_hog": 4, "sr": 6, "denoise": 7}
    side = 448 if "hog" in method else 192
    assert shapes(tmp_path)["reconstruction"][0] == 8 + columns[method] * (side + 10) - 10


def test_neighbours_are_the_nearest_training_images(photo_folder, tmp_path):
    """A training image asked for finds itself first; an unreadable one shifts nobody's picture."""
    photos = Path(shutil.copytree(photo_folder, tmp_path / "photos"))
    (photos / "train" / "apple" / "0.JPEG").write_bytes(b"")
    torch.manual_seed(0)
    model = build_model(visualise("pretrain", photos, tmp_path))
    torch.save({"model_state": model.state_dict()}, tmp_path / "weights.pyth")
    keys = ["TEST.CHECKPOINT_FILE_PATH", tmp_path / "weights.pyth", "PICTURE.KIND", "neighbours"]
    query = ["PICTURE.INPUT", photos / "train" / "cat" / "3.JPEG"]
    keys += ["PICTURE.NUM_NEIGHBOURS", "1"]
    assert main(visualise("pretrain", photos, tmp_path / "out", *keys, *query)) == 0
    page = np.asarray(Image.open(tmp_path / "out" / "pictures" / "neighbours.png").convert("RGB"))
    one, other = (page[30:222, 4 + 202 * i : 4 + 202 * i + 192] for i in range(2))
    assert np.array_equal(one, other) and len(np.unique(one)) > 50


def test_training_leaves_pictures_and_is_not_changed_by_them(trained, photo_folder, tmp_path):
    """The last epoch's pictures of each kind are in the report; without any the weights are the same, bit by bit."""
    kind, first = trained
    lines = [json.loads(line) for line in (first / "log.jsonl").read_text().splitlines()]
    named = {line["file"] for line in lines if line["kind"] == "picture"}
    expected = {
        "pretrain": {f"pictures/{n}_0000{e}.png" for n in ("reconstruction", "neighbours") for e in (0, 1)},
        "finetune": {"pictures/attention_00001.png"},
    }[kind]
    assert named == expected and all((first / name).is_file() for name in named)
    report = (first / "report.html").read_text()
    assert report.count("data:image/png;base64,") == len(named)
    assert main(tiny_config(kind, photo_folder, tmp_path, *ONE_EPOCH, "MONITOR.NUM_PICTURES", "0")) == 0
    assert_same(last_state(first), last_state(tmp_path))
    assert not (tmp_path / "pictures").exists()


def test_pictures_of_what_can_be_read(photo_folder, tmp_path, monkeypatch):
    """Of each half of the files the first readable one; with none the run goes on without, and lists the files."""
    photos, drawn = Path(shutil.copytree(photo_folder, tmp_path / "photos")), []
    examples = Monitor.examples

    def kept(monitor, count):
        drawn.append((examples(monitor, count), monitor.fixed))
        return drawn[-1][0]

    monkeypatch.setattr(Monitor, "examples", kept)
    files = sorted((photos / "val").glob("*/*"))
    for i in (0, 1, 3):
        files[i].write_bytes(b"")
    keys = [*ONE_EPOCH, "KNN.PERIOD", "0", "MONITOR.NUM_PICTURES", "2", "MONITOR.PICTURE_PERIOD", "1"]
    assert main(tiny_config("pretrain", photos, tmp_path / "some", *keys)) == 0
    (inputs, masks), fixed = drawn[-1]
    assert len(inputs) == len(masks) == 2
    for shown, i in zip(inputs, (2, 4)):
        assert torch.equal(shown, fixed[SampleKey(0, i)].views[0])
    listed = [line["path"] for line in log_of(tmp_path / "some", "bad_file")]
    assert sorted(listed) == [str(files[i]) for i in (0, 1, 3)]
    for file in files:
        file.write_bytes(b"")
    assert main(tiny_config("pretrain", photos, tmp_path / "none", *keys)) == 0
    assert drawn[-1][0] is None and not (tmp_path / "none" / "pictures").exists()


def test_files_that_vanish_before_they_are_drawn(photo_folder, tmp_path, monkeypatch):
    """Those that the report's last sheet of neighbours would show again."""
    photos, output = Path(shutil.copytree(photo_folder, tmp_path / "photos")), tmp_path / "out"
    draw = Monitor.neighbours

    def late(monitor, stills):
        if list((output / "checkpoints").iterdir()):
            for file in photos.rglob("*.JPEG"):
                file.unlink()
        return draw(monitor, stills)

    monkeypatch.setattr(Monitor, "neighbours", late)
    assert main(tiny_config("pretrain", photos, output, *ONE_EPOCH, "KNN.PERIOD", "1", "MVIT.DEPTH", "2")) == 0
    assert not list(photos.rglob("*.JPEG")) and (output / "pictures" / "neighbours_00001.png").is_file()
