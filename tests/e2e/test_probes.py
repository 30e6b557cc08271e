"""Linear probes and k-NN as whole runs: what they log, what stays frozen, resuming, saved features, processes."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from paths import CONFIGS
from tiny_runs import TINY, assert_same, last_state, tiny_config

from mfm_core.checkpoint.init_from import init_from
from mfm_core.config import load_config
from mfm_core.heads.probe import FeatureNorm
from mfm_core.interfaces import BadFile, SampleKey
from mfm_core.parallel.launch import launch
from mfm_core.probe.knn import knn_accuracy
from mfm_core.probe.store import SavedFeatures, load_features, save_features
from mfm_image.data import dataset
from mfm_image.data.build import eval_dataset
from mfm_image.entry import main
from mfm_image.models import build_model

LRS = ["PROBE.LRS", "[0.01, 0.1, 1.0]"]


@pytest.fixture(scope="module")
def pretrained(photo_folder, tmp_path_factory) -> Path:
    """The last checkpoint of two epochs of MaskFeat."""
    output = tmp_path_factory.mktemp("pretrained")
    assert main(tiny_config("pretrain", photo_folder, output, "MONITOR.PICTURE_PERIOD", "0")) == 0
    return output / "checkpoints" / "checkpoint_epoch_00002.pyth"


def log_of(output: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


class TestProbe:
    def config(self, pretrained, photos, output, *overrides):
        return tiny_config("probe", photos, output, "TRAIN.CHECKPOINT_FILE_PATH", pretrained, *LRS, *overrides)

    def test_log_and_report(self, pretrained, photo_folder, tmp_path):
        assert main(self.config(pretrained, photo_folder, tmp_path)) == 0
        for line in log_of(tmp_path, "epoch"):
            tops = {lr: line[f"top1/lr_{lr}"] for lr in ("0.01", "0.1", "1")}
            assert line["top1"] == max(tops.values()) == tops[f"{line['best_lr']:g}"]
            assert line["val_loss"] == line[f"val_loss/lr_{line['best_lr']:g}"]
            assert len({line[f"val_loss/lr_{lr}"] for lr in tops}) == 3, "three classifiers must differ"
        page = (tmp_path / "report.html").read_text()
        table = re.search(r"<h2>By setting</h2>.*?</table>", page, re.DOTALL)[0]
        assert "learning rate" in table and all(f">{lr}<" in table for lr in ("0.01", "0.1", "1"))
        assert f">{line['top1/lr_0.1']:.4g}<" in table and "Top-1 by learning rate" in page

    @pytest.mark.parametrize("optimizer", ["sgd", "lars", "adamw"])
    def test_each_classifier_learns_as_if_alone(self, optimizer, pretrained, photo_folder, tmp_path):
        overrides = ["SOLVER.OPTIMIZING_METHOD", optimizer, "SOLVER.BASE_LR", "0.1", "RNG_SEED", "3"]
        assert main(self.config(pretrained, photo_folder, tmp_path / "all", *overrides)) == 0
        together = last_state(tmp_path / "all")["model_state"]
        for i, lr in enumerate(("0.01", "0.1", "1.0")):
            own = [*overrides, "SOLVER.BASE_LR", lr, "PROBE.LRS", "[]"]
            assert main(self.config(pretrained, photo_folder, tmp_path / lr, *own)) == 0
            alone = last_state(tmp_path / lr)["model_state"]
            for name in ("weight", "bias"):
                difference = together[f"head.probes.{i}.{name}"] - alone[f"head.probes.0.{name}"]
                assert difference.abs().max() < 1e-6, (lr, name)

    def test_a_single_input_has_no_statistics(self, pretrained, photo_folder, tmp_path, error_of):
        """Uneven batches may leave one to a micro-batch: refused, and of itself it spoils nothing."""
        uneven = ["DATA_LOADER.DROP_LAST", "False", "TRAIN.BATCH_SIZE", "20", "TRAIN.ACCUM_STEPS", "10"]
        assert "PROBE.BATCH_NORM needs two" in error_of(self.config(pretrained, photo_folder, tmp_path, *uneven))
        norm = FeatureNorm(3, 1e-6).train()
        norm(torch.ones(1, 3))
        assert torch.equal(norm.running_mean, torch.zeros(3)) and torch.equal(norm.running_var, torch.ones(3))
        norm(torch.arange(6.0).view(2, 3))
        assert norm.running_var.isfinite().all() and norm.running_mean.any()

    @pytest.mark.parametrize("optimizer", ["sgd", "lars"])
    def test_stopped_and_resumed(self, optimizer, pretrained, photo_folder, tmp_path):
        overrides = ["SOLVER.OPTIMIZING_METHOD", optimizer]
        assert main(self.config(pretrained, photo_folder, tmp_path / "whole", *overrides)) == 0
        expected = last_state(tmp_path / "whole")
        for stop in (2, 3, 5):
            output = tmp_path / f"stopped_{stop}"
            for step in ("TRAIN.STOP_STEP", stop), ("TRAIN.STOP_STEP", 0):
                assert main(self.config(pretrained, photo_folder, output, *overrides, *step)) == 0
            assert_same(last_state(output), expected)

    def test_the_encoder_stays_what_it_was(self, pretrained, photo_folder, tmp_path):
        assert main(self.config(pretrained, photo_folder, tmp_path)) == 0
        before = torch.load(pretrained, weights_only=True)["model_state"]
        state = last_state(tmp_path)
        after = state["model_state"]
        encoder = [name for name in before if name.startswith("backbone.")]
        assert len(encoder) > 20 and all(torch.equal(before[name], after[name]) for name in encoder)
        assert (after["head.norm.weight"] == 1).all() and (after["head.norm.bias"] == 0).all()
        assert after["head.batch_norm.num_batches_tracked"] == state["step"] == 6
        assert after["head.probes.0.bias"].any()
        assert len(state["optimizer_state"]["state"]) == 6  # weight and bias of three classifiers, and nothing else

    def test_testing_repeats_the_last_evaluation(self, pretrained, photo_folder, tmp_path):
        assert main(self.config(pretrained, photo_folder, tmp_path)) == 0
        test = tiny_config("probe", photo_folder, tmp_path, *LRS, "TRAIN.ENABLE", "False")
        assert main(test) == 0
        *_, trained = log_of(tmp_path, "epoch")
        (tested,) = log_of(tmp_path / "test", "epoch")
        numbers = [key for key in tested if key.startswith(("top", "val_loss", "best_lr", "images"))]
        assert len(numbers) == 14 and all(trained[key] == tested[key] for key in numbers)

    @pytest.mark.parametrize("optimizer", ["sgd", "lars"])
    def test_two_processes_equal_one(self, optimizer, pretrained, photo_folder, tmp_path):
        """BatchNorm's statistics are those of the whole step, so the number of processes does not matter."""
        overrides = ["SOLVER.OPTIMIZING_METHOD", optimizer, "TRAIN.BATCH_SIZE", "12", "SOLVER.MAX_EPOCH", "4"]
        assert main(self.config(pretrained, photo_folder, tmp_path / "one", *overrides)) == 0
        two = self.config(pretrained, photo_folder, tmp_path / "two", *overrides, "NUM_GPUS", "2")
        assert launch(main, (two,), processes=2) == 0
        assert_same(last_state(tmp_path / "one"), last_state(tmp_path / "two"), atol=1e-5)
        for first, second in zip(*(log_of(tmp_path / name, "epoch") for name in ("one", "two"))):
            for key in ("train_loss", "val_loss/lr_0.1", "top1/lr_1"):
                assert first[key] == pytest.approx(second[key], rel=1e-4), key

    def test_a_faulty_step_leaves_the_head_alone(self, pretrained, photo_folder, tmp_path, monkeypatch):
        """An image of NaN: neither weights nor momentum nor the running statistics may see it."""
        overrides = ["SOLVER.OPTIMIZING_METHOD", "lars", "TRAIN.NONFINITE", "skip"]
        whole = dataset.ImageDataset.__getitem__

        def poisoned(self, key: SampleKey):
            sample = whole(self, key)
            if self.train:
                sample.views = [view * float("nan") for view in sample.views]
            return sample

        monkeypatch.setattr(dataset.ImageDataset, "__getitem__", poisoned)
        assert main(self.config(pretrained, photo_folder, tmp_path, *overrides)) == 0
        state = last_state(tmp_path)
        head = {name: t for name, t in state["model_state"].items() if name.startswith("head.")}
        assert not head["head.batch_norm.running_mean"].any() and (head["head.batch_norm.running_var"] == 1).all()
        assert not head["head.probes.1.bias"].any() and torch.isfinite(head["head.probes.1.weight"]).all()
        assert state["guard_state"]["skipped"] == 6
        assert all(not slots["momentum_buffer"].any() for slots in state["optimizer_state"]["state"].values())

    def test_random_weights_are_warned_of(self, photo_folder, tmp_path):
        cfg = tiny_config("probe", photo_folder, tmp_path, *LRS, "SOLVER.MAX_EPOCH", "1")
        assert main(cfg) == 0
        assert any("random weights" in line["message"] for line in log_of(tmp_path, "warning"))

    def test_bad_input(self, pretrained, photo_folder, tmp_path, error_of):
        assert "MODEL.NUM_CLASSES" in error_of(
            self.config(pretrained, photo_folder, tmp_path, "MODEL.NUM_CLASSES", "4")
        )
        assert "MVIT.DEPTH" in error_of(self.config(pretrained, photo_folder, tmp_path, "MVIT.DEPTH", "3"))
        assert "absent.pyth" in error_of(self.config(tmp_path / "absent.pyth", photo_folder, tmp_path))
        test = ["TRAIN.ENABLE", "False", "TEST.CHECKPOINT_FILE_PATH", pretrained]
        assert "head.probes.0.weight" in error_of(tiny_config("probe", photo_folder, tmp_path, *test))


class TestKnn:
    def config(self, pretrained, photos, output, *overrides):
        weights = ["TEST.CHECKPOINT_FILE_PATH", pretrained, "KNN.K", "[1, 3, 20]"]
        return tiny_config("knn", photos, output, *weights, *overrides)

    def test_numbers(self, pretrained, photo_folder, tmp_path, capsys):
        """Those of the classifier on features that are read here image by image, for each read-out."""
        for read_out in ("mean", "mean_raw", "cls", "cls_raw"):
            output = tmp_path / read_out
            cfg = self.config(pretrained, photo_folder, output, "KNN.FEATURES", read_out)
            assert main(cfg) == 0
            bank, queries = (features_of(cfg, pretrained, split) for split in ("train", "val"))
            (line,) = log_of(output, "epoch")
            for top, name in ((1, "knn"), (5, "knn_top5")):
                expected = knn_accuracy(*bank, *queries, 3, [1, 3, 20], top=top)
                assert {k: line[f"{name}/k_{k}"] for k in (1, 3, 20)} == pytest.approx(expected), read_out
            assert line["knn"] == line["knn/k_1"] and (line["neighbours"], line["images"]) == (24, 6)
        table = re.search(r"<h2>By setting</h2>.*?</table>", (output / "report.html").read_text(), re.DOTALL)[0]
        assert f">{line['knn_top5/k_3']:.4g}<" in table
        shown = capsys.readouterr().out
        assert re.search(r"k +top-1 +top-5\n", shown) and re.search(rf"\n +20 +{line['knn/k_20']:.4g} ", shown)

    def test_features_are_reloaded_without_a_look_at_the_images(self, pretrained, photo_folder, tmp_path, monkeypatch):
        assert main(self.config(pretrained, photo_folder, tmp_path)) == 0

        def unseen(*_):
            raise AssertionError("an image was read")

        with monkeypatch.context() as patch:
            patch.setattr(dataset, "ImageReader", unseen)
            again = ["KNN.TEMPERATURE", "0.1", "KNN.K", "[2, 4]"]  # of no consequence to the features
            assert main(self.config(pretrained, photo_folder, tmp_path, *again)) == 0
            copy = tmp_path / "copy.pyth"
            copy.write_bytes(pretrained.read_bytes())
            assert main(self.config(copy, photo_folder, tmp_path)) == 0
            first, _, third = log_of(tmp_path, "epoch")
            assert first == third
            for changed in (
                ["KNN.REUSE_FEATURES", "False"],
                ["KNN.FEATURES", "cls"],
                ["KNN.NUM_TRAIN", "20"],
                ["DATA.IN_VAL_CROP_RATIO", "0.5"],
                ["TEST.RESIZE_SIZES", "[40]"],
                ["DATA.TEST_INTERPOLATION", "bilinear"],
                ["DATA.MEAN", "[0.5, 0.5, 0.5]"],
                ["TRAIN.PRECISION", "bf16"],
            ):
                with pytest.raises(AssertionError, match="an image was read"):
                    main(self.config(pretrained, photo_folder, tmp_path, *changed))
            other = tmp_path / "other.pyth"
            state = torch.load(pretrained, weights_only=True)
            state["model_state"]["backbone.cls_token"] += 1e-3
            torch.save(state, other)
            with pytest.raises(AssertionError, match="an image was read"):
                main(self.config(other, photo_folder, tmp_path))

    def test_a_damaged_file_of_features_is_made_anew(self, pretrained, photo_folder, tmp_path):
        assert main(self.config(pretrained, photo_folder, tmp_path)) == 0
        path = tmp_path / "features_train.safetensors"
        whole = path.read_bytes()
        path.write_bytes(whole[:100])
        assert main(self.config(pretrained, photo_folder, tmp_path)) == 0
        assert path.read_bytes() == whole
        first, second = log_of(tmp_path, "epoch")
        assert first == second

    def test_two_processes_equal_one(self, pretrained, photo_folder, tmp_path):
        assert main(self.config(pretrained, photo_folder, tmp_path / "one")) == 0
        two = self.config(pretrained, photo_folder, tmp_path / "two", "NUM_GPUS", "2", "TEST.BATCH_SIZE", "10")
        assert launch(main, (two,), processes=2) == 0
        assert launch(main, (two,), processes=2) == 0  # from the saved features
        lines = [line for name in ("one", "two") for line in log_of(tmp_path / name, "epoch")]
        assert len(lines) == 3 and lines[0] == lines[1] == lines[2]

    def test_beside_the_run_that_made_the_weights(self, pretrained, photo_folder):
        """OUTPUT_DIR of the pre-training run: its newest weights, its configuration, and its log left alone."""
        output = pretrained.parents[1]
        log = (output / "log.jsonl").read_bytes()
        cfg = tiny_config("pretrain", photo_folder, output, "TASK", "knn")
        assert main(cfg) == 0
        assert (output / "log.jsonl").read_bytes() == log
        (line,) = log_of(output / "knn", "epoch")
        assert line["knn"] == [line["knn"] for line in log_of(output, "epoch") if "knn" in line][-1]

    def test_other_inputs_than_in_training_are_warned_of(self, pretrained, photo_folder, tmp_path):
        assert main(self.config(pretrained, photo_folder, tmp_path, "DATA.MEAN", "[0.1,0.1,0.1]")) == 0
        said = [line["message"] for line in log_of(tmp_path, "warning") if "was trained with" in line["message"]]
        assert len(said) == 1 and "DATA.MEAN" in said[0] and str(pretrained) in said[0]

    def test_unreadable_images_are_listed(self, pretrained, photo_folder, tmp_path):
        photos = Path(shutil.copytree(photo_folder, tmp_path / "photos"))
        broken = photos / "train" / "bear" / "3.JPEG"
        broken.write_bytes(broken.read_bytes()[:200])
        assert main(self.config(pretrained, photos, tmp_path / "out")) == 0
        assert [line["path"] for line in log_of(tmp_path / "out", "bad_file")] == [str(broken)]
        assert log_of(tmp_path / "out", "epoch")[0]["neighbours"] == 23

    def test_files_that_changed_are_read_again(self, pretrained, photo_folder, tmp_path, capsys):
        """Features that are reused say what they lack; a mended or replaced file is not what they were taken of."""
        photos, output = Path(shutil.copytree(photo_folder, tmp_path / "photos")), tmp_path / "out"
        broken = photos / "train" / "bear" / "3.JPEG"
        whole = broken.read_bytes()
        broken.write_bytes(whole[:200])

        def knn() -> tuple[list[str], float, bool]:
            (output / "log.jsonl").unlink(missing_ok=True)
            assert main(self.config(pretrained, photos, output)) == 0
            bad = [line["path"] for line in log_of(output, "bad_file")]
            reused = re.search(r"features of train: \d+ read from", capsys.readouterr().out) is not None
            return bad, log_of(output, "epoch")[0]["neighbours"], reused

        assert knn() == ([str(broken)], 23, False)
        assert knn() == ([str(broken)], 23, True)
        broken.write_bytes(whole)
        assert knn() == ([], 24, False)
        assert knn() == ([], 24, True)
        replaced = photos / "train" / "cat" / "3.JPEG"
        replaced.write_bytes(replaced.read_bytes()[::-1])  # of the same size
        assert knn() == ([str(replaced)], 23, False)

    def test_bad_input(self, pretrained, photo_folder, tmp_path, error_of):
        def error(*overrides):
            return error_of(self.config(pretrained, photo_folder, tmp_path, *overrides))

        more = error("KNN.K", "[3, 25]")
        assert "KNN.K" in more and "25" in more and "24" in more
        assert "KNN.NUM_TRAIN" in error("KNN.NUM_TRAIN", "6")
        assert "TEST.CHECKPOINT_FILE_PATH" in error("TEST.CHECKPOINT_FILE_PATH", "")
        assert "MVIT.EMBED_DIM" in error("MVIT.EMBED_DIM", "48")
        assert "MVIT.DEPTH" in error("MVIT.DEPTH", "1")
        assert "trained with MVIT.NUM_HEADS 2, and this model has 1" in error("MVIT.NUM_HEADS", "1")
        assert "DATA.PATH_TO_DATA_DIR" in error("DATA.PATH_TO_DATA_DIR", "")


def features_of(cfg, weights: Path, split: str):
    """Read plainly: one image after the other through the read-out as it is defined."""
    model = build_model(cfg)
    init_from(model, str(weights))
    backbone = model.eval().backbone
    images = eval_dataset(cfg, split, ("apple", "bear", "cat"))
    features, labels = [], []
    with torch.no_grad():
        for i in range(len(images)):
            sample = images[SampleKey(0, i)]
            tokens = backbone.tokens(sample.views[0][None])[0]
            normalised = torch.nn.functional.layer_norm(tokens, tokens.shape[1:], eps=1e-6)
            read = {"mean": normalised[1:].mean(0), "mean_raw": tokens[1:].mean(0)}
            features.append({**read, "cls": normalised[0], "cls_raw": tokens[0]}[cfg.KNN.FEATURES])
            labels.append(sample.label)
    return torch.stack(features), torch.tensor(labels)


def test_saved_features_are_those_of_their_identity(tmp_path):
    path = tmp_path / "features.safetensors"
    features, labels = torch.randn(5, 3), torch.arange(5)
    assert load_features(path, {"a": 1}) is None
    bad = [BadFile(os.fsdecode(b"\xff.jpg"), "torn")]
    save_features(path, SavedFeatures(features, labels, bad), {"a": 1, "b": [2, 3]})
    found = load_features(path, {"b": [2, 3], "a": 1})
    assert torch.equal(found.features, features) and torch.equal(found.labels, labels) and found.bad == bad
    assert load_features(path, {"a": 1, "b": [2, 4]}) is None and load_features(path, {"a": 1}) is None
    assert [p.name for p in tmp_path.iterdir()] == ["features.safetensors"]


SHRUNK = [*("MVIT.SIZE", "", "TRAIN.STOP_STEP", "1", "TRAIN.BATCH_SIZE", "8", "SOLVER.WARMUP_EPOCHS", "0.5")]
RECIPES = sorted(path for path in (CONFIGS / "probe").glob("*.yaml") if path.stem != "base")


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipes_shrunk(path, photo_folder, tmp_path):
    """Each linear-probe recipe takes a step of a small model; k-NN's needs weights, which such a step leaves."""
    sizes = ["MODEL.NUM_CLASSES", "3", "MVIT.PATCH_KERNEL", "[8, 8]", "MVIT.PATCH_STRIDE", "[8, 8]"]
    data = ["DATA.PATH_TO_DATA_DIR", str(photo_folder), "OUTPUT_DIR", str(tmp_path)]
    overrides = [*TINY, *sizes, *SHRUNK, *data, "KNN.K", "[5, 20]"]
    task = load_config(str(path)).TASK
    for override in (["TASK", "probe"], ["TASK", task]) if task == "knn" else ([],):
        assert main(load_config(str(path), [*overrides, *override])) == 0
    assert log_of(tmp_path / "knn", "epoch") if task == "knn" else last_state(tmp_path)["step"] == 1
