"""Linear probes, k-NN and pictures of frozen encoders of clips, as whole runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import write_frames
from PIL import Image, ImageSequence
from tiny_runs import QUIET, assert_same, last_state, log_of, tiny_clip_config

from mfm_core.checkpoint.init_from import init_from
from mfm_core.interfaces import SampleKey
from mfm_core.probe.knn import knn_accuracy
from mfm_video.data.build import eval_dataset
from mfm_video.entry import main
from mfm_video.models import build_model

LOSS = ["MODEL.LOSS_FUNC", "cross_entropy", "MIXUP.ENABLE", "False", "SOLVER.CLIP_GRAD_L2NORM", "None"]


@pytest.mark.parametrize("kind", ["maskfeat", "mae"])
class TestProbe:
    def config(self, kind, weights, data, output, *overrides):
        classifier = {"maskfeat": "mvit", "mae": "vit"}[kind]
        keys = ["TASK", "probe", "TRAIN.CHECKPOINT_FILE_PATH", weights, "PROBE.LRS", "[0.01, 0.1]"]
        return tiny_clip_config(classifier, data, output, *QUIET, *LOSS, *keys, "TRAIN.EVAL_PERIOD", "1", *overrides)

    def test_runs_resumes_and_tests(self, kind, trained_clips, clip_folder, tmp_path):
        """The encoder stays what it was; stopped and resumed is undisturbed; testing repeats the last evaluation."""
        pretrained = trained_clips(kind)
        same_pooling = ["MVIT.POOL_Q_STRIDE", "[[0, 1, 1, 1], [1, 1, 2, 2], [2, 1, 1, 1], [3, 1, 1, 1]]"]
        same_pooling = same_pooling if kind == "maskfeat" else []
        assert main(self.config(kind, pretrained, clip_folder, tmp_path / "whole", *same_pooling)) == 0
        state = last_state(tmp_path / "whole")
        before = torch.load(pretrained, weights_only=True)["model_state"]
        encoder = [name for name in before if name.startswith("backbone.")]
        assert len(encoder) > 20 and all(torch.equal(before[n], state["model_state"][n]) for n in encoder)
        for stop in (2, 3, 0):
            cfg = self.config(kind, pretrained, clip_folder, tmp_path / "parts", *same_pooling, "TRAIN.STOP_STEP", stop)
            assert main(cfg) == 0
        assert_same(last_state(tmp_path / "parts"), state)
        test = self.config(kind, "", clip_folder, tmp_path / "whole", *same_pooling, "TRAIN.ENABLE", "False")
        assert main(test) == 0
        trained, tested = (log_of(folder, "epoch")[-1] for folder in (tmp_path / "whole", tmp_path / "whole" / "test"))
        numbers = [key for key in tested if key.startswith(("top", "val_loss", "best_lr", "images"))]
        assert len(numbers) == 11 and all(trained[key] == tested[key] for key in numbers)
        assert tested["images"] == 5 and tested["val_loss/lr_0.1"] != tested["val_loss/lr_0.01"]


def features_of(cfg, weights: Path, split: str):
    """Read plainly: the clip in the middle of one video after the other, tokens normalised and averaged."""
    model = build_model(cfg)
    init_from(model, str(weights))
    backbone, dataset = model.eval().backbone, eval_dataset(cfg, split)
    features, labels = [], []
    with torch.no_grad():
        for i in range(len(dataset)):
            sample = dataset[SampleKey(0, i)]
            tokens = backbone.tokens(sample.views[0][None])[0, backbone.num_prefix_tokens :]
            features.append(torch.nn.functional.layer_norm(tokens, tokens.shape[1:]).mean(0))
            labels.append(sample.label)
    return torch.stack(features), torch.tensor(labels)


class TestKnn:
    def config(self, kind, weights, data, output, *overrides):
        classes = ["MODEL.NUM_CLASSES", "3", "TASK", "knn", "KNN.K", "[1, 3, 12]"]
        return tiny_clip_config(kind, data, output, *classes, "TEST.CHECKPOINT_FILE_PATH", weights, *overrides)

    @pytest.mark.parametrize("kind", ["maskfeat", "mae"])
    def test_numbers(self, kind, trained_clips, clip_folder, tmp_path):
        """Those of the classifier on features that are read here clip by clip; and again from the saved features."""
        weights = trained_clips(kind)
        cfg = self.config(kind, weights, clip_folder, tmp_path)
        for _ in range(2):
            assert main(cfg) == 0
        bank, queries = (features_of(cfg, weights, split) for split in ("train", "val"))
        expected = knn_accuracy(*bank, *queries, 3, [1, 3, 12])
        first, again = log_of(tmp_path, "epoch")
        assert first == again and (first["neighbours"], first["images"]) == (12, 5)
        assert {k: first[f"knn/k_{k}"] for k in (1, 3, 12)} == pytest.approx(expected)

    def test_another_clip_is_another_feature(self, trained_clips, clip_folder, tmp_path, capsys):
        """Saved features are not those of clips that are sampled otherwise, or of the same names elsewhere."""
        weights, elsewhere = trained_clips("maskfeat"), shutil.copytree(clip_folder, tmp_path / "elsewhere")
        assert main(self.config("maskfeat", weights, clip_folder, tmp_path / "usual")) == 0
        changes = (
            [],
            ["DATA.SAMPLING_RATE", "1"],
            ["DATA.TARGET_FPS", "24"],
            ["DATA.TRAIN_JITTER_SCALES", "[36, 40]"],
            ["DATA.PATH_PREFIX", str(elsewhere)],
        )
        for number, change in enumerate(changes):
            output = shutil.copytree(tmp_path / "usual", tmp_path / str(number))
            capsys.readouterr()
            assert main(self.config("maskfeat", weights, clip_folder, output, *change)) == 0
            assert ("read from" in capsys.readouterr().out) == (not change), change

    def test_other_labels_of_the_same_clips(self, trained_clips, clip_folder, tmp_path, capsys):
        """Saved with the features, they would be answered with what the list said before."""
        data, output = Path(shutil.copytree(clip_folder, tmp_path / "data")), tmp_path / "out"
        run = ["maskfeat", trained_clips("maskfeat"), data, output]
        assert main(self.config(*run)) == 0
        lines = (data / "train.csv").read_text().splitlines()
        (data / "train.csv").write_text("\n".join(f"{line[:-1]}{(int(line[-1]) + 1) % 3}" for line in lines))
        capsys.readouterr()
        assert main(self.config(*run)) == 0
        said = capsys.readouterr().out
        assert "features of train: 12 saved" in said and "features of val" in said

    def test_beside_the_run_that_made_the_weights(self, trained_clips, clip_folder, tmp_path):
        """A video that cannot be read is listed, and is nobody's neighbour."""
        data = Path(shutil.copytree(clip_folder, tmp_path / "data"))
        (data / "train_4.mp4").write_bytes((data / "train_4.mp4").read_bytes()[:900])
        output = Path(shutil.copytree(trained_clips("maskfeat").parents[1], tmp_path / "run"))
        log = (output / "log.jsonl").read_bytes()
        cfg = tiny_clip_config("maskfeat", data, output, "TASK", "knn", "MODEL.NUM_CLASSES", "3")
        assert main(cfg) == 0
        assert (output / "log.jsonl").read_bytes() == log
        assert [line["path"] for line in log_of(output / "knn", "bad_file")] == [str(data / "train_4.mp4")]
        assert log_of(output / "knn", "epoch")[0]["neighbours"] == 11


class TestVisualise:
    def config(self, kind, weights, data, output, *overrides):
        keys = ["TASK", "visualise", "TEST.CHECKPOINT_FILE_PATH", weights, "PICTURE.NUM_IMAGES", "2"]
        return tiny_clip_config(kind, data, output, *keys, *overrides)

    @pytest.mark.parametrize("kind", ["maskfeat", "mae"])
    def test_validation_clips(self, kind, trained_clips, clip_folder, tmp_path, capsys):
        """Reconstruction, still and moving, and neighbours; the same command gives the same page."""
        pages = []
        for _ in range(2):
            assert main(self.config(kind, trained_clips(kind), clip_folder, tmp_path)) == 0
            pages.append((tmp_path / "pictures.html").read_bytes())
        assert pages[0] == pages[1]
        names = {path.name for path in (tmp_path / "pictures").iterdir()}
        assert names == {"reconstruction.png", "reconstruction_moving.gif", "neighbours.png"}
        with Image.open(tmp_path / "pictures" / "reconstruction_moving.gif") as moving:
            assert len(list(ImageSequence.Iterator(moving))) == 2, "one for each time that a token stands for"
        said = capsys.readouterr().out
        assert "TEST.CHECKPOINT_FILE_PATH" not in said and f"{tmp_path}/pictures.html" in said

    def test_a_file_a_folder_of_files_and_a_folder_of_frames(self, trained_clips, clip_folder, tmp_path, capsys):
        """Without a data folder; what is no video is skipped by name, and a folder of images is one video."""
        weights = trained_clips("maskfeat")
        mixed = tmp_path / "mixed"
        (mixed / "deep").mkdir(parents=True)
        shutil.copy(clip_folder / "val_0.mp4", mixed / "deep")
        (mixed / "notes.txt").write_text("no video")
        write_frames(mixed / "frames", 10)
        sizes = {}
        for name, path in (("file", clip_folder / "val_0.mp4"), ("frames", mixed / "frames"), ("mixed", mixed)):
            keys = ["PICTURE.INPUT", path, "PICTURE.NUM_IMAGES", "3"]
            assert main(self.config("maskfeat", weights, "", tmp_path / "out" / name, *keys)) == 0
            with Image.open(tmp_path / "out" / name / "pictures" / "reconstruction.png") as sheet:
                sizes[name] = sheet.size
            assert not (tmp_path / "out" / name / "pictures" / "neighbours.png").exists()
            said = capsys.readouterr().out
            skipped = [line for line in said.splitlines() if line.startswith("skipped")]
            assert len(skipped) == (name == "mixed") and all("notes.txt" in line for line in skipped), said
        assert sizes["file"] == sizes["frames"] and sizes["mixed"][1] > 1.8 * sizes["file"][1]

    def test_neighbours_of_a_training_clip(self, trained_clips, clip_folder, tmp_path):
        """A training video asked for finds itself first."""
        keys = ["PICTURE.KIND", "neighbours", "PICTURE.NUM_NEIGHBOURS", "1"]
        query = ["PICTURE.INPUT", clip_folder / "train_7.mp4"]
        assert main(self.config("maskfeat", trained_clips("maskfeat"), clip_folder, tmp_path, *keys, *query)) == 0
        page = np.asarray(Image.open(tmp_path / "pictures" / "neighbours.png").convert("RGB"))
        one, other = (page[30:222, 4 + 202 * i : 4 + 202 * i + 192] for i in range(2))
        assert np.array_equal(one, other) and len(np.unique(one)) > 50

    def test_a_classifier_shows_neighbours(self, trained_clips, clip_folder, tmp_path):
        assert main(self.config("mvit", trained_clips("mvit"), clip_folder, tmp_path)) == 0
        assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"neighbours.png"}


@pytest.mark.parametrize("kind", ["maskfeat", "mvit"])
def test_pictures_of_training_change_nothing(kind, clip_folder, tmp_path):
    """Reports show what is due; without any the weights are the same, bit by bit."""
    shown = ["SOLVER.MAX_EPOCH", "1", "MONITOR.NUM_PICTURES", "2", "TEST.NUM_TEMPORAL_CLIPS", "[1]"]
    assert main(tiny_clip_config(kind, clip_folder, tmp_path / "shown", *shown)) == 0
    assert main(tiny_clip_config(kind, clip_folder, tmp_path / "quiet", *shown, *QUIET)) == 0
    assert_same(last_state(tmp_path / "shown"), last_state(tmp_path / "quiet"))
    names = {line["file"] for line in log_of(tmp_path / "shown", "picture")}
    still, moving = "pictures/reconstruction_{}.png", "pictures/reconstruction_moving_{}.gif"
    both = [name.format(f"0000{epoch}") for name in (still, moving, "pictures/neighbours_{}.png") for epoch in (0, 1)]
    assert names == (set(both) if kind == "maskfeat" else {"pictures/confusion_00001.png"})
    page = (tmp_path / "shown" / "report.html").read_text()
    assert page.count("data:image/") == len(names) and all((tmp_path / "shown" / name).is_file() for name in names)
