"""What a person gets wrong, from the command line to the last file: one line that names it, or a run that goes on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from entry_point import run_net
from paths import CONFIGS, TOOLS
from photos import picture
from PIL import Image
from tiny_runs import TINY, assert_same, last_state, tiny_config

from mfm_core.config import load_config
from mfm_core.engine.trainer import Trainer, tolerated
from mfm_core.errors import UserError
from mfm_core.interfaces import PretrainOutput
from mfm_core.objective import MaskedPrediction
from mfm_core.parallel.launch import launch
from mfm_image.entry import dry_run, main

PRETRAIN = str(CONFIGS / "demo" / "pretrain.yaml")
FINETUNE = str(CONFIGS / "demo" / "finetune.yaml")
CLIPS = str(CONFIGS / "demo_video" / "pretrain.yaml")
ONE_EPOCH = ["SOLVER.MAX_EPOCH", "1", "MONITOR.PICTURE_PERIOD", "0", "KNN.PERIOD", "0"]
TWO_PROCESSES = ["DEVICE", "cpu", "NUM_GPUS", "2"]
SHRUNK = [*TINY, "MASK.PRETRAIN_DEPTH", "[1]"]


@pytest.fixture
def photos(photo_folder, tmp_path):
    """A copy of the photos to spoil."""
    return Path(shutil.copytree(photo_folder, tmp_path / "photos"))


def log_of(output: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def finite(state: dict) -> bool:
    return all(torch.isfinite(t).all() for t in state["model_state"].values() if t.is_floating_point())


class TestCommandLine:
    @pytest.mark.parametrize(
        ("arguments", "parts"),
        [
            ([], ["--cfg"]),
            (["--cfg"], ["--cfg"]),
            (["--cfg", "absent.yaml"], ["absent.yaml"]),
            (["--cfg", PRETRAIN, "--dryrun"], ["--dryrun"]),
            (["--cfg", PRETRAIN, "--bogus", "1", "RNG_SEED", "2"], ["--bogus"]),
            (["--cfg", PRETRAIN, "--shard_id", "x"], ["--shard_id"]),
            *(
                (
                    ["--cfg", PRETRAIN, "DEVICE", "cpu", "NUM_GPUS", "2", "--init_method", address],
                    [address, "host:port"],
                )
                for address in ("tcp://localhost:99999", "tcp://localhost:abc", "tcp://[::1:99", "tcp://localhost")
            ),
            (["--cfg", PRETRAIN, "NUM_SHARDS", "2", "--shard_id", "2"], ["--shard_id is 2", "0 to 1"]),
            (["--cfg", PRETRAIN, "NUM_SHARDS", "2", "--shard_id", "-1"], ["--shard_id is -1", "NUM_SHARDS is 2"]),
            (["--cfg", PRETRAIN, "NUM_GPUS", "2", "--shard_id", "1"], ["--shard_id is 1", "NUM_SHARDS is 1"]),
            (["--cfg", PRETRAIN, "NUM_SHARDS", "0"], ["NUM_SHARDS is 0", "at least 1"]),
            (["--cfg", PRETRAIN, "RNG_SEED"], ["RNG_SEED", "no value"]),
            (["--cfg", PRETRAIN, "--dry-run", "RNGSEED", "2"], ["RNGSEED", "RNG_SEED"]),
            (
                ["--cfg", PRETRAIN, "--dry-run", "TRAIN.DATASET", "kinetics", "TEST.DATASET", "kinetics"],
                ["MVIT.PATCH_2D"],
            ),
            (["--cfg", PRETRAIN, "--dry-run", "HOG.CELL", "3"], ["HOG.CELL"]),
            (["--cfg", PRETRAIN, "--dry-run", "MVIT.NUM_HEADS", "5"], ["MVIT.NUM_HEADS"]),
            (["--cfg", PRETRAIN, "--dry-run", "MASK.PRETRAIN_DEPTH", "[9]"], ["MASK.PRETRAIN_DEPTH"]),
            (["--cfg", PRETRAIN, "--dry-run", "DATA.TRAIN_CROP_SIZE", "60"], ["DATA.TRAIN_CROP_SIZE"]),
            (["--cfg", PRETRAIN, "--dry-run", "AUG.MASK_RATIO", "0.001"], ["AUG.MASK_RATIO"]),
            (["doctor", "--cfg", PRETRAIN, "DATA.PATH_TO_DATA_DIR", "/absent"], ["/absent"]),
            (["doctor", "--cfg", PRETRAIN, "DATA.PATH_TO_DATA_DIR", ""], ["DATA.PATH_TO_DATA_DIR"]),
        ],
        ids=lambda p: " ".join(p)[-30:],
    )
    def test_mistakes(self, arguments, parts, error_of):
        error = error_of(arguments)
        assert all(part in error for part in parts), error

    @pytest.mark.parametrize(
        ("variables", "part"),
        [
            ({"WORLD_SIZE": "abc"}, "WORLD_SIZE=abc"),
            ({"LOCAL_RANK": ""}, "LOCAL_RANK="),
            ({"RANK": "1.5"}, "RANK=1.5"),
            ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1"),
            ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 and WORLD_SIZE=2"),
        ],
        ids=lambda p: p if isinstance(p, str) else "",
    )
    def test_an_environment_that_is_not_torchruns(self, variables, part, tmp_path, error_of, monkeypatch):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert part in error_of(tiny_config("pretrain", tmp_path, tmp_path))
        if "RANK" in variables and "WORLD_SIZE" not in variables:
            assert part in error_of(tiny_config("pretrain", tmp_path, tmp_path, "TASK", "visualise"))

    def test_a_modality_that_is_not_installed(self, error_of, monkeypatch):
        def absent(name: str):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

        monkeypatch.setattr(run_net.importlib, "import_module", absent)
        assert "pip install packages/mfm_video" in error_of(["--cfg", CLIPS, "--dry-run"])

    def test_a_description_of_what_the_run_would_refuse(self, photo_folder, error_of):
        """A job would find out behind its queue."""
        command = ["--cfg", FINETUNE, "--dry-run", "DATA.PATH_TO_DATA_DIR", str(photo_folder), "TRAIN.BATCH_SIZE", "8"]
        assert "MODEL.NUM_CLASSES is 10" in error_of([*command, "MODEL.NUM_CLASSES", "10"])
        assert run_net.main([*command, "MODEL.NUM_CLASSES", "3"]) == 0

    @pytest.mark.parametrize("command", ["doctor", "--dry-run", "visualise"])
    def test_an_interruption_shows_no_traceback(self, command, monkeypatch, capsys):
        def interrupted(*_):
            raise KeyboardInterrupt

        entry = run_net.entry_of(load_config(PRETRAIN))
        for name in ("doctor", "dry_run", "main"):
            monkeypatch.setattr(entry, name, interrupted)
        first = [command] if command == "doctor" else []
        options = ["--dry-run"] if command == "--dry-run" else ["TASK", "visualise", "DEVICE", "cpu"]
        assert run_net.main([*first, "--cfg", PRETRAIN, *options]) == 130
        assert "Traceback" not in capsys.readouterr().err

    def test_pairs_before_and_after_options(self, capsys):
        before = ["RNG_SEED", "3", "SOLVER.MAX_EPOCH", "7"]
        after = ["SOLVER.BASE_LR", "0.5", "DATA.PATH_TO_DATA_DIR", "/absent"]
        assert run_net.main([*before, "--cfg", PRETRAIN, "--dry-run", *after]) == 0
        shown = capsys.readouterr()
        assert "= 7 epochs" in shown.out and "-> 0.5 in" in shown.out and not shown.err

    def test_options_of_pyslowfast(self, capsys):
        """--opts before the pairs, and --num_shards."""
        options = ["--num_shards", "2", "--shard_id", "1", "--dry-run", "--opts"]
        pairs = ["SOLVER.MAX_EPOCH", "7", "DATA.PATH_TO_DATA_DIR", "/absent"]
        assert run_net.main(["--cfg", PRETRAIN, *options, *pairs]) == 0
        theirs = capsys.readouterr().out
        assert run_net.main(["--cfg", PRETRAIN, "--dry-run", *pairs, "NUM_SHARDS", "2"]) == 0
        assert theirs == capsys.readouterr().out and "= 7 epochs" in theirs

    def test_no_gpus_are_the_cpu(self, tmp_path, error_of, monkeypatch):
        """NUM_GPUS 0, as in PySlowFast, whatever the machine has."""

        def asked(device, timeout):
            raise UserError(f"asked for {device}")

        monkeypatch.setattr("mfm_core.engine.run.join_world", asked)
        for number, device in (("0", "cpu"), ("1", "auto")):
            cfg = tiny_config("pretrain", tmp_path, tmp_path, "DEVICE", "auto", "NUM_GPUS", number)
            assert f"asked for {device}" in error_of(cfg)

    @pytest.mark.parametrize(
        "path",
        sorted(p for p in CONFIGS.glob("**/*.yaml") if not p.stem.endswith("base")),
        ids=lambda p: f"{p.parent.name}/{p.stem}",
    )
    def test_dry_run_needs_no_data(self, path, capsys):
        assert run_net.main(["--cfg", str(path), "--dry-run", "DATA.PATH_TO_DATA_DIR", "/absent"]) == 0
        shown = capsys.readouterr()
        assert "parameters" in shown.out and not shown.err


class TestDataFolder:
    @pytest.mark.parametrize("kind", ["pretrain", "finetune"])
    def test_missing(self, kind, tmp_path, error_of):
        assert f"{tmp_path}/absent" in error_of(tiny_config(kind, tmp_path / "absent", tmp_path / "out"))
        assert "DATA.PATH_TO_DATA_DIR" in error_of(tiny_config(kind, "", tmp_path / "out"))
        (tmp_path / "hollow").mkdir()
        assert "train/" in error_of(tiny_config(kind, tmp_path / "hollow", tmp_path / "out"))
        (tmp_path / "hollow" / "train").mkdir()
        said = "no image below" if kind == "pretrain" else "class folders"
        assert said in error_of(tiny_config(kind, tmp_path / "hollow", tmp_path / "out"))

    @pytest.mark.parametrize("kind", ["pretrain", "finetune"])
    def test_classes(self, kind, photos, tmp_path, error_of):
        cfg = tiny_config(kind, photos, tmp_path / "out")
        (photos / "train" / "dog").mkdir()
        assert f"{photos}/train/dog" in error_of(cfg)
        (photos / "train" / "dog").rmdir()
        shutil.copytree(photos / "val" / "cat", photos / "val" / "dog")
        error = error_of(cfg)
        assert f"{photos}/val" in error and "dog" in error

    def test_sizes_that_do_not_fit(self, photos, tmp_path, error_of):
        assert "TRAIN.BATCH_SIZE" in error_of(tiny_config("pretrain", photos, tmp_path, "TRAIN.BATCH_SIZE", "25"))
        assert "ACCUM_STEPS" in error_of(tiny_config("pretrain", photos, tmp_path, "TRAIN.ACCUM_STEPS", "3"))
        uneven = ["DATA_LOADER.DROP_LAST", "False", "TRAIN.BATCH_SIZE", "23", "TRAIN.ACCUM_STEPS", "23"]
        error = error_of(tiny_config("pretrain", photos, tmp_path, *uneven))
        assert "DROP_LAST False cuts 24 training files into 2 batches of 12" in error and "ACCUM_STEPS 23" in error
        error = error_of(tiny_config("finetune", photos, tmp_path, "MODEL.NUM_CLASSES", "7"))
        assert "MODEL.NUM_CLASSES" in error and "3" in error and str(photos) in error
        shutil.rmtree(photos / "val")
        assert "val/" in error_of(tiny_config("finetune", photos, tmp_path))

    @pytest.mark.parametrize(
        ("batch", "accum", "said"), [(20, 10, "in batches of 12)"), (5, 1, "in batches of 4 or one more)")]
    )
    def test_batches_of_an_epoch_that_drops_nothing(self, batch, accum, said, photo_folder, tmp_path):
        keys = ["DATA_LOADER.DROP_LAST", "False", "TRAIN.BATCH_SIZE", batch, "TRAIN.ACCUM_STEPS", accum]
        lines = dry_run(tiny_config("pretrain", photo_folder, tmp_path, *keys))
        assert [line for line in lines if line.startswith("steps ")][0].endswith(said), lines

    def test_output_folder_that_cannot_be_written(self, photo_folder, tmp_path, error_of):
        (tmp_path / "file").write_text("")
        for output in (tmp_path / "file", tmp_path / "file" / "deeper"):
            error = error_of(tiny_config("pretrain", photo_folder, output))
            assert "OUTPUT_DIR" in error and str(output) in error
        for name in ("log.txt", "log.jsonl", "tensorboard", "checkpoints"):
            output = tmp_path / name
            occupied = output / name
            occupied.parent.mkdir()
            occupied.mkdir() if "." in name else occupied.write_text("")
            cfg = tiny_config("pretrain", photo_folder, output, *ONE_EPOCH, "LOG_PERIOD", "100")
            assert str(occupied) in error_of(cfg)
            assert not list(output.glob("log.jsonl/*")) and not (output / "report.html").exists(), (
                "said before it trains"
            )

    def test_output_folder_whose_name_is_not_utf_8(self, photo_folder, tmp_path, error_of):
        error = error_of(tiny_config("pretrain", photo_folder, tmp_path / "caf\udce9", *ONE_EPOCH))
        assert "not UTF-8" in error and "OUTPUT_DIR" in error

    def test_a_full_disk_under_the_log(self, photo_folder, tmp_path, error_of):
        (tmp_path / "log.jsonl").symlink_to("/dev/full")
        error = error_of(tiny_config("pretrain", photo_folder, tmp_path, *ONE_EPOCH))
        assert "log.jsonl" in error and "No space left" in error


class TestFiles:
    def spoil(self, photos: Path) -> dict[str, Path]:
        folder = photos / "train" / "apple"
        (folder / "0.JPEG").write_bytes((folder / "0.JPEG").read_bytes()[:300])
        (folder / "1.JPEG").write_bytes(b"")
        (folder / "2.JPEG").write_text("this is a text")
        return {name: folder / f"{i}.JPEG" for i, name in enumerate(("truncated", "empty", "text"))}

    def test_few_are_skipped_counted_and_listed(self, photos, tmp_path):
        bad = self.spoil(photos)
        bad["val"] = photos / "val" / "bear" / "0.JPEG"  # listed, and not counted in the share
        bad["val"].write_bytes(b"")
        overrides = ["DATA_LOADER.NUM_WORKERS", "1"]  # three of 24 are above the default share, and only a few
        assert main(tiny_config("pretrain", photos, tmp_path / "out", *ONE_EPOCH, *overrides)) == 0
        listed = log_of(tmp_path / "out", "bad_file")
        assert sorted(line["path"] for line in listed) == sorted(map(str, bad.values()))
        assert all(line["reason"] for line in listed)
        report = (tmp_path / "out" / "report.html").read_text()
        assert "Unreadable files" in report and "4 unreadable files" in report
        assert all(str(path) in report for path in bad.values())
        assert log_of(tmp_path / "out", "end")[-1]["status"] == "finished"

    def test_names_that_are_not_text(self, photos, tmp_path, capsys):
        for split in ("train", "val"):
            (photos / split / "bear" / os.fsdecode(b"bad\xff.JPEG")).write_bytes(b"")
        cfg = tiny_config("pretrain", photos, tmp_path / "out", *ONE_EPOCH)
        assert main(cfg) == 0
        said = capsys.readouterr()
        lines = [f"skipped {photos}/{split}/bear/bad\\udcff.JPEG: " for split in ("train", "val")]
        for text in (said.out, (tmp_path / "out" / "log.txt").read_text()):
            assert all(line in text for line in lines), text
        assert "Traceback" not in said.err
        assert "bad\\udcff.JPEG" in (tmp_path / "out" / "report.html").read_text()
        assert run_net.main(["doctor", "--cfg", PRETRAIN, "DATA.PATH_TO_DATA_DIR", str(photos)]) == 1
        assert "bear/bad\\udcff.JPEG" in capsys.readouterr().out

    def test_too_many_stop_the_run(self, photos, tmp_path, error_of):
        for path in sorted((photos / "train").glob("*/*"))[:6]:
            path.write_bytes(b"")
        cfg = tiny_config("pretrain", photos, tmp_path / "out", *ONE_EPOCH, "DATA.MAX_BAD_SHARE", "0.1")
        error = error_of(cfg)
        assert "6 of 24 training files cannot be read, more than the 5 that DATA.MAX_BAD_SHARE 0.1 allows" in error
        assert str(photos) in error
        end = log_of(tmp_path / "out", "end")[-1]
        assert end["status"] == "failed" and "DATA.MAX_BAD_SHARE" in end["message"]
        assert "DATA.MAX_BAD_SHARE" in (tmp_path / "out" / "report.html").read_text()

    @pytest.mark.parametrize(
        ("share", "files", "count"),
        [(0.01, 24, 5), (0.01, 9, 4), (0.01, 1, 0), (0.01, 1000, 10), (0.01, 499, 5), (0.0, 24, 0), (0.29, 100, 29)],
    )
    def test_how_many_are_too_many(self, share, files, count):
        assert tolerated(share, files) == count

    def test_none_are_allowed_at_0(self, photos, tmp_path, error_of):
        self.spoil(photos)
        cfg = tiny_config("pretrain", photos, tmp_path / "out", *ONE_EPOCH, "DATA.MAX_BAD_SHARE", "0.0")
        assert "more than the 0 that DATA.MAX_BAD_SHARE 0 allows" in error_of(cfg)

    def test_all_of_them(self, photos, tmp_path, error_of):
        for path in (photos / "train").glob("*/*"):
            path.write_bytes(b"")
        error = error_of(tiny_config("pretrain", photos, tmp_path / "out", "DATA_LOADER.NUM_WORKERS", "1"))
        assert "can be read" in error and "doctor" in error

    @pytest.mark.parametrize("kind", ["pretrain", "finetune"])
    def test_unreadable_validation_images(self, kind, photos, tmp_path, error_of):
        """One is left out of the numbers; where all are, no number is made up."""
        files = sorted((photos / "val").glob("*/*"))
        files[0].write_bytes(b"")
        cfg = tiny_config(kind, photos, tmp_path / "out", *ONE_EPOCH)
        assert main(cfg) == 0
        epoch = log_of(tmp_path / "out", "epoch")[-1]
        assert epoch.get("images", 5) == 5 and np.isfinite(epoch["val_loss"])
        for path in files:
            path.write_bytes(b"")
        for period in ("0", "1"):
            output = tmp_path / f"none_{period}"
            error = error_of(tiny_config(kind, photos, output, *ONE_EPOCH, "MONITOR.PICTURE_PERIOD", period))
            assert "can be read" in error and "doctor" in error

    def test_uncommon_images_are_images(self, photos, tmp_path):
        folder = photos / "train" / "bear"
        picture(1).convert("CMYK").save(folder / "0.JPEG", "JPEG")
        picture(2).convert("L").save(folder / "1.JPEG", "JPEG")
        deep = np.asarray(picture(3).convert("L"), dtype=np.uint16) * 257
        Image.fromarray(deep).save(folder / "2.png")
        picture(4).convert("RGBA").save(folder / "3.png")
        picture(5).convert("P").save(folder / "4.png")
        cfg = tiny_config("pretrain", photos, tmp_path / "out", *ONE_EPOCH, "DATA.MAX_BAD_SHARE", "0.0")
        assert main(cfg) == 0
        assert not log_of(tmp_path / "out", "bad_file") and finite(last_state(tmp_path / "out"))


class TestCheckpointKeys:
    @pytest.fixture(scope="class")
    def first(self, photo_folder, tmp_path_factory):
        """A finished pre-training run of two epochs."""
        output = tmp_path_factory.mktemp("first")
        overrides = ["TRAIN.CHECKPOINT_PERIOD", "1", "TRAIN.EMA_DECAY", "0.5", "MONITOR.PICTURE_PERIOD", "0"]
        assert main(tiny_config("pretrain", photo_folder, output, *overrides)) == 0
        return output

    def test_unfit_files(self, first, photo_folder, tmp_path, error_of):
        def error(path, *overrides, kind="finetune"):
            chosen = ["TRAIN.CHECKPOINT_FILE_PATH", path, *ONE_EPOCH, *overrides]
            return error_of(tiny_config(kind, photo_folder, tmp_path / "out", *chosen))

        good = first / "checkpoints" / "checkpoint_epoch_00002.pyth"
        assert f"{tmp_path}/absent.pyth" in error(tmp_path / "absent.pyth")
        corrupt = tmp_path / "corrupt.pyth"
        corrupt.write_bytes(good.read_bytes()[:5000])
        assert str(corrupt) in error(corrupt)
        assert "MVIT.EMBED_DIM" in error(good, "MVIT.EMBED_DIM", "48")
        assert "MVIT.DEPTH" in error(good, "MVIT.DEPTH", "3")
        continued = error(good, kind="pretrain")
        assert "SOLVER.MAX_EPOCH" in continued and "TRAIN.CHECKPOINT_EPOCH_RESET" in continued

    def test_testing_needs_the_whole_model(self, first, photo_folder, tmp_path, error_of):
        path = first / "checkpoints" / "checkpoint_epoch_00002.pyth"
        test = ["TRAIN.ENABLE", "False", "TEST.CHECKPOINT_FILE_PATH"]
        error = error_of(tiny_config("finetune", photo_folder, tmp_path / "out", *test, path))
        assert "head.projection.weight" in error and str(path) in error
        error = error_of(tiny_config("finetune", photo_folder, tmp_path / "out", *test, ""))
        assert "TEST.CHECKPOINT_FILE_PATH" in error

    def test_testing_repeats_the_last_evaluation(self, photo_folder, tmp_path):
        """With the moving average, which is what training evaluates, from the newest checkpoint of the folder."""
        overrides = ["TRAIN.EMA_DECAY", "0.5", "SOLVER.MAX_EPOCH", "1"]
        assert main(tiny_config("finetune", photo_folder, tmp_path, *overrides)) == 0
        assert main(tiny_config("finetune", photo_folder, tmp_path, *overrides, "TRAIN.ENABLE", "False")) == 0
        (trained,), (tested,) = log_of(tmp_path, "epoch"), log_of(tmp_path / "test", "epoch")
        assert all(trained[key] == tested[key] for key in ("top1", "top5", "val_loss", "images"))

    def test_continuing_the_run_of_another_folder(self, first, photo_folder, tmp_path):
        middle = first / "checkpoints" / "checkpoint_epoch_00001.pyth"
        overrides = ["TRAIN.CHECKPOINT_FILE_PATH", middle, "TRAIN.EMA_DECAY", "0.5", "MONITOR.PICTURE_PERIOD", "0"]
        assert main(tiny_config("pretrain", photo_folder, tmp_path / "second", *overrides)) == 0
        assert_same(last_state(first), last_state(tmp_path / "second"))
        assert [line["epoch"] for line in log_of(tmp_path / "second", "epoch")] == [1, 2]

    def test_only_the_newest_stay(self, photo_folder, tmp_path):
        overrides = ["TRAIN.CHECKPOINT_STEPS", "1", "TRAIN.CHECKPOINT_KEEP", "2"]
        assert main(tiny_config("pretrain", photo_folder, tmp_path, *overrides, *ONE_EPOCH)) == 0
        names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
        assert names == ["checkpoint_epoch_00001.pyth", "checkpoint_step_00000002.pyth"]

    def test_a_full_disk_costs_a_periodic_checkpoint_only(self, photo_folder, tmp_path, monkeypatch, error_of):
        calls = []

        def full_at_first(fd):
            calls.append(fd)
            if len(calls) == 1:
                raise OSError(28, "No space left on device")

        cfg = tiny_config("pretrain", photo_folder, tmp_path / "run", *ONE_EPOCH, "TRAIN.CHECKPOINT_STEPS", "2")
        with monkeypatch.context() as patch:
            patch.setattr("mfm_core.checkpoint.io.os.fsync", full_at_first)
            assert main(cfg) == 0
        assert any("No space left" in line["message"] for line in log_of(tmp_path / "run", "warning"))
        assert last_state(tmp_path / "run")["step"] == 3
        with monkeypatch.context() as patch:
            patch.setattr("mfm_core.checkpoint.io.os.fsync", lambda fd: full_at_first(calls.clear()))
            assert "No space left" in error_of(tiny_config("pretrain", photo_folder, tmp_path / "full", *ONE_EPOCH))


class TestGuard:
    """A loss that is not finite at the second step."""

    @pytest.fixture
    def faulty(self, monkeypatch):
        """Multiplies the loss of the given training steps (counted from 1)."""

        def faulty(factors: dict[int, float]) -> None:
            calls, original = [0], MaskedPrediction.forward

            def forward(model, images, mask) -> PretrainOutput:
                output = original(model, images, mask)
                if model.training:
                    calls[0] += 1
                    output.loss = output.loss * factors.get(calls[0], 1.0)
                return output

            monkeypatch.setattr(MaskedPrediction, "forward", forward)

        return faulty

    @pytest.mark.parametrize("period", ["1", "10"])
    def test_stop_names_step_and_files(self, period, faulty, photo_folder, tmp_path, error_of):
        faulty({2: float("nan")})
        error = error_of(tiny_config("pretrain", photo_folder, tmp_path, *ONE_EPOCH, "LOG_PERIOD", period))
        assert "at step 1 " in error and "nan" in error and "TRAIN.NONFINITE" in error
        assert len(re.findall(re.escape(f"{photo_folder}/train/"), error)) == 8
        assert not list(tmp_path.glob("checkpoints/*")) and log_of(tmp_path, "end")[-1]["status"] == "failed"

    @pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
    @pytest.mark.parametrize("step", [1, 2])
    def test_skip_goes_on(self, optimizer, step, faulty, photo_folder, tmp_path):
        faulty({step: float("inf")})
        overrides = ["TRAIN.NONFINITE", "skip", "SOLVER.OPTIMIZING_METHOD", optimizer, *ONE_EPOCH]
        overrides += ["SOLVER.LR_POLICY", "constant", "TRAIN.EMA_DECAY", "0.9"]
        assert main(tiny_config("pretrain", photo_folder, tmp_path, *overrides)) == 0
        assert finite(last_state(tmp_path))
        assert log_of(tmp_path, "step")[-1]["skipped_steps"] == 1
        assert np.isfinite(log_of(tmp_path, "epoch")[-1]["train_loss"])

    def test_a_skipped_step_changes_nothing(self, faulty, photo_folder, tmp_path):
        """The checkpoint after it equals the one before: weights, moments and step counts."""
        overrides = ["TRAIN.NONFINITE", "skip", "TRAIN.CHECKPOINT_STEPS", "1", *ONE_EPOCH]
        faulty({2: float("nan")})
        assert main(tiny_config("pretrain", photo_folder, tmp_path, *overrides)) == 0
        one, two = (torch.load(tmp_path / f"checkpoints/checkpoint_step_0000000{i}.pyth") for i in (1, 2))
        assert_same(one, two)

    @pytest.mark.parametrize("remedy", ["stop", "skip"])
    def test_explosion(self, remedy, faulty, photo_folder, tmp_path, error_of):
        """TRAIN.EXPLOSION says what it does, whatever TRAIN.NONFINITE says; the step and its files are named."""
        faulty({3: 50.0})
        other = {"stop": "skip", "skip": "stop"}[remedy]
        overrides = ["TRAIN.KILL_LOSS_EXPLOSION_FACTOR", "3.0", "TRAIN.EXPLOSION", remedy, "TRAIN.NONFINITE", other]
        overrides += ["TRAIN.CHECKPOINT_STEPS", "1", *ONE_EPOCH]
        cfg = tiny_config("pretrain", photo_folder, tmp_path, *overrides)
        if remedy == "stop":
            said = error_of(cfg)
            assert "Training stopped: at step 2 " in said and last_state(tmp_path)["step"] == 2
        else:
            assert main(cfg) == 0
            (said,) = [line["message"] for line in log_of(tmp_path, "warning") if "skipped" in line["message"]]
            states = [torch.load(path) for path in sorted((tmp_path / "checkpoints").glob("*.pyth"))]
            before, after = (next(s for s in states if s["step"] == step) for step in (2, 3))
            assert_same(before, after)
        assert "running mean" in said and len(re.findall(re.escape(f"{photo_folder}/train/"), said)) == 8

    def test_a_stop_on_request_saves_no_fault(self, faulty, photo_folder, tmp_path, error_of):
        """The fault comes at the step the run is told to stop after, between two logging steps."""
        faulty({2: float("nan")})
        cfg = tiny_config("pretrain", photo_folder, tmp_path, *ONE_EPOCH, "LOG_PERIOD", "10", "TRAIN.STOP_STEP", "2")
        assert "at step 1 " in error_of(cfg)
        assert not list(tmp_path.glob("checkpoints/*"))

    def test_learning_rate_beyond_reason(self, photo_folder, tmp_path, error_of):
        overrides = ["SOLVER.BASE_LR", "1e30", "SOLVER.WARMUP_EPOCHS", "0.0", "SOLVER.CLIP_GRAD_L2NORM", "None"]
        error = error_of(tiny_config("pretrain", photo_folder, tmp_path, *overrides))
        assert "SOLVER.BASE_LR" in error and f"{photo_folder}/train/" in error


def test_a_device_whose_memory_is_full(photo_folder, tmp_path, error_of, monkeypatch):
    def full(trainer, batch):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20.00 MiB. " + "GPU 0 has more. " * 99)

    monkeypatch.setattr(Trainer, "train_step", full)
    error = error_of(tiny_config("pretrain", photo_folder, tmp_path, *ONE_EPOCH))
    for part in ("CUDA out of memory", "TRAIN.BATCH_SIZE", "TRAIN.ACCUM_STEPS", "MODEL.ACT_CHECKPOINT"):
        assert part in error
    (end,) = log_of(tmp_path, "end")
    assert end["status"] == "failed" and "TRAIN.BATCH_SIZE" in str(end)


def test_stopped_at_the_end_of_an_epoch(photo_folder, tmp_path):
    """The epoch is evaluated and logged before the run leaves, and not mixed into the next one's means."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    quiet = ["MONITOR.PICTURE_PERIOD", "0", "KNN.PERIOD", "0"]
    assert main(tiny_config("pretrain", photo_folder, whole, *quiet)) == 0
    for stop in (3, 6):
        assert main(tiny_config("pretrain", photo_folder, run, *quiet, "TRAIN.STOP_STEP", stop)) == 0
        assert [line["epoch"] for line in log_of(run, "epoch")] == list(range(stop // 3 + 1))
    assert log_of(run, "end")[-1]["status"] == "finished"
    for one, other in zip(log_of(whole, "epoch"), log_of(run, "epoch"), strict=True):
        assert one.get("train_loss") == other.get("train_loss") and one["val_loss"] == other["val_loss"]
    assert_same(last_state(whole), last_state(run))


def test_epoch_saved_and_not_evaluated(photo_folder, tmp_path):
    """A kill between saving and evaluating: the next start makes up for the epoch's line, with the same numbers."""
    quiet = ["MONITOR.PICTURE_PERIOD", "0", "KNN.PERIOD", "0", "TRAIN.CHECKPOINT_PERIOD", "1"]
    assert main(tiny_config("pretrain", photo_folder, tmp_path, *quiet)) == 0
    whole = log_of(tmp_path, "epoch")
    (tmp_path / "checkpoints" / "checkpoint_epoch_00002.pyth").unlink()
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    kept = [line for line in map(json.loads, lines) if line["kind"] in ("run", "step") and line.get("step", 0) <= 3]
    kept.insert(1, whole[0])
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    assert main(tiny_config("pretrain", photo_folder, tmp_path, *quiet)) == 0
    for one, other in zip(whole, log_of(tmp_path, "epoch"), strict=True):
        assert all(one.get(key) == other.get(key) for key in ("epoch", "train_loss", "val_loss", "clipped_share"))


class TestProcesses:
    """Runs of the command itself, where exit codes, signals and the end of its processes matter."""

    LONG = [*SHRUNK, "SOLVER.MAX_EPOCH", "40", "MONITOR.PERIOD", "20", "MONITOR.PICTURE_PERIOD", "0", "KNN.PERIOD", "0"]

    def start(self, data, output, *overrides, python=(TOOLS / "run_net.py",)) -> subprocess.Popen:
        command = [sys.executable, *python, "--cfg", PRETRAIN, *self.LONG]
        command += ["DATA.PATH_TO_DATA_DIR", data, "OUTPUT_DIR", output, *overrides]
        return subprocess.Popen(
            [str(word) for word in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )

    def wait_for_steps(self, run: subprocess.Popen, output: Path, steps: int) -> None:
        deadline = time.time() + 90
        while time.time() < deadline and run.poll() is None:
            if (output / "log.jsonl").exists() and len(log_of(output, "step")) >= steps:
                return
            time.sleep(0.02)
        pytest.fail(f"no {steps} steps in time: {run.communicate(timeout=5)}")

    @pytest.mark.parametrize(("workers", "processes"), [(0, 1), (2, 1), (1, 2)])
    def test_sigterm_saves_and_the_rest_is_the_same(self, workers, processes, photo_folder, tmp_path):
        """To the process alone; with workers, to the whole group; with two processes, to the one that started them."""
        output = tmp_path / "run"
        overrides = ["DATA_LOADER.NUM_WORKERS", workers, "NUM_GPUS", processes]
        run = self.start(photo_folder, output, *overrides)
        self.wait_for_steps(run, output, 5)
        send = os.killpg if workers == 2 else os.kill
        send(run.pid, signal.SIGTERM)
        out, error = run.communicate(timeout=60)
        assert run.returncode == 75 and error == "", error
        assert "stopped and saved" in out
        if processes > 1:
            return
        stopped = last_state(output)["step"]
        assert 5 <= stopped < 120
        limit = ["SOLVER.MAX_EPOCH", "40", "TRAIN.STOP_STEP", stopped + 2]
        quiet = ["MONITOR.PERIOD", "20", "MONITOR.PICTURE_PERIOD", "0", "KNN.PERIOD", "0"]
        assert main(tiny_config("pretrain", photo_folder, output, *limit, *quiet)) == 0
        assert main(tiny_config("pretrain", photo_folder, tmp_path / "whole", *limit, *quiet)) == 0
        assert_same(last_state(tmp_path / "whole"), last_state(output))

    def test_the_death_of_the_launcher_ends_what_it_launched(self, photo_folder, tmp_path):
        """They save and leave, where SIGINT is ignored, too: shells do that to the background jobs of a script."""
        code = (
            "import runpy, signal, sys\n"
            "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
            f"sys.argv[0] = {str(TOOLS / 'run_net.py')!r}\n"
            "runpy.run_path(sys.argv[0], run_name='__main__')\n"
        )
        output, keys = tmp_path / "run", ["NUM_GPUS", "2", "SOLVER.MAX_EPOCH", "4000"]
        run = self.start(photo_folder, output, *keys, python=("-c", code))
        try:
            self.wait_for_steps(run, output, 2)
            run.kill()
            run.communicate(timeout=60)
            deadline = time.time() + 60
            with pytest.raises(ProcessLookupError):
                while time.time() < deadline:
                    os.killpg(run.pid, 0)
                    time.sleep(0.1)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
        assert log_of(output, "end")[-1]["status"] == "stopped"

    def test_an_interruption_while_processes_are_started(self, photo_folder, tmp_path, monkeypatch):
        def interrupted(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(torch.multiprocessing, "start_processes", interrupted)
        assert launch(main, (tiny_config("pretrain", photo_folder, tmp_path, "NUM_GPUS", "2"),), processes=2) == 130

    def test_an_error_with_workers_alive_ends_at_once(self, photos, tmp_path):
        """One line, code 2, and no process is left to wait for."""
        for path in sorted((photos / "train").glob("*/*"))[:6]:
            path.write_bytes(b"")
        run = self.start(photos, tmp_path / "out", "DATA_LOADER.NUM_WORKERS", "2")
        out, error = run.communicate(timeout=60)
        assert run.returncode == 2
        assert error.startswith("error: ") and error.count("\n") == 1, error
        with pytest.raises(ProcessLookupError):
            os.killpg(run.pid, 0)

    def test_a_bug_with_workers_alive_shows_its_traceback_and_ends(self, photo_folder, tmp_path):
        code = (
            "import runpy, sys\n"
            "from mfm_core.engine.trainer import Trainer, tolerated\n"
            "def fail(*arguments): raise RuntimeError('a bug')\n"
            "Trainer.log_step = fail\n"
            f"sys.argv[0] = {str(TOOLS / 'run_net.py')!r}\n"
            "runpy.run_path(sys.argv[0], run_name='__main__')\n"
        )
        run = self.start(photo_folder, tmp_path / "out", "DATA_LOADER.NUM_WORKERS", "2", python=("-c", code))
        out, error = run.communicate(timeout=60)
        assert run.returncode == 1 and error.startswith("Traceback") and "RuntimeError: a bug" in error
        assert log_of(tmp_path / "out", "end")[-1]["message"] == "RuntimeError: a bug"
        with pytest.raises(ProcessLookupError):
            os.killpg(run.pid, 0)

    def test_two_processes_speak_once(self, tmp_path):
        run = self.start(tmp_path / "absent", tmp_path / "out", "NUM_GPUS", "2")
        out, error = run.communicate(timeout=60)
        assert run.returncode == 2
        assert error.startswith("error: ") and error.count("\n") == 1 and "absent" in error, error
