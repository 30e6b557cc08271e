"""What a person gets wrong with video: files that cannot be used leave a run that goes on, wrong keys give one line."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from clips import moving, rotate, truncate, write_clip, write_sound
from entry_point import run_net
from paths import CONFIGS, TOOLS
from score_files import load_scores
from tiny_runs import QUIET, last_state, log_of, tiny_clip_config

from mfm_video.entry import main

PRETRAIN, FINETUNE = (str(CONFIGS / "demo_video" / f"{name}.yaml") for name in ("pretrain", "finetune"))
AUTOENCODER = str(CONFIGS / "masked_ssl" / "k400_VIT_B_16x4_MAE_PT.yaml")
ONE_EPOCH = [*QUIET, "SOLVER.MAX_EPOCH", "1", "TRAIN.EVAL_PERIOD", "1"]


@pytest.fixture
def clips(clip_folder, tmp_path):
    """A copy of the clips to spoil."""
    return Path(shutil.copytree(clip_folder, tmp_path / "clips"))


def spoil(clips: Path, split: str) -> dict[str, str]:
    """Adds a line of each kind that cannot be used to a list; path -> what the reason has to name."""
    whole = write_clip(clips / "whole.mp4", moving(0, 77), options={"movflags": "faststart"})
    truncate(whole, clips / "truncated.mp4", 0.6)
    whole.unlink()
    (clips / "empty.mp4").write_bytes(b"")
    write_sound(clips / "sound.mp4")
    (clips / "text.mp4").write_text("this is a text")
    os.mkfifo(clips / "pipe.mp4")  # who opens it waits for ever
    reasons = {
        "truncated.mp4": "",
        "empty.mp4": "empty",
        "sound.mp4": "sound",
        "text.mp4": "no video",
        "absent.mp4": "no such file",
        "pipe.mp4": "no such file",
        "unlabelled.mp4": "no label",
        "beyond.mp4": "label 9 is not possible",
    }
    labels = {"unlabelled.mp4": "", "beyond.mp4": " 9"}
    for name in labels:
        write_clip(clips / name, moving(1, 78))
    with (clips / f"{split}.csv").open("a") as file:
        file.writelines(f"{name}{labels.get(name, ' 1')}\n" for name in reasons)
    return {str(clips / name): reason for name, reason in reasons.items()}


def check_listed(output: Path, reasons: dict[str, str], split: str) -> None:
    listed = {line["path"]: line["reason"] for line in log_of(output, "bad_file")}
    assert listed.keys() == reasons.keys()
    for path, reason in listed.items():
        assert reasons[path] in reason and f"({split}.csv line " in reason and "\n" not in reason, (path, reason)
    page = (output / "report.html").read_text()
    assert "Unreadable files" in page and all(path in page for path in reasons)


class TestFiles:
    @pytest.mark.parametrize("backend", ["pyav", "decord"])
    @pytest.mark.parametrize("workers", [0, 2])
    def test_training_goes_on_with_other_clips(self, backend, workers, clips, tmp_path):
        """Each is listed once with its line; every step is of readable clips, and the epoch as long as the list."""
        reasons = spoil(clips, "train")
        keys = [*ONE_EPOCH, "TEST.ENABLE", "False", "DATA.MAX_BAD_SHARE", "0.5", "TRAIN.BATCH_SIZE", "20"]
        keys += ["DATA.DECODING_BACKEND", backend, "DATA_LOADER.NUM_WORKERS", workers]
        assert main(tiny_clip_config("mvit", clips, tmp_path / "out", *keys)) == 0
        check_listed(tmp_path / "out", reasons, "train")
        state = last_state(tmp_path / "out")
        assert state["step"] == 1 and all(torch.isfinite(t).all() for t in state["model_state"].values())
        assert log_of(tmp_path / "out", "end")[-1]["status"] == "finished"

    def test_pretraining_needs_no_labels(self, clips, tmp_path):
        """A label beyond the classes is none of its business; a line without one, among others that have theirs, is."""
        reasons = spoil(clips, "train")
        del reasons[str(clips / "beyond.mp4")]
        keys = [*ONE_EPOCH, "DATA.MAX_BAD_SHARE", "0.5", "TRAIN.BATCH_SIZE", "20"]
        assert main(tiny_clip_config("maskfeat", clips, tmp_path / "out", *keys)) == 0
        check_listed(tmp_path / "out", reasons, "train")

    def test_unusual_videos_are_not_bad(self, clips, tmp_path):
        """3 of the 7 frames that a clip covers, a single one, odd sizes, an uneven rate, a header that turns frames."""
        for name, frames, size in (("three", 3, (32, 32)), ("one", 1, (32, 32)), ("odd", 16, (47, 33))):
            pixels = [f[: size[1], : size[0]] for f in moving(2, 5, 64, 64, frames)]
            write_clip(clips / f"{name}.mkv", pixels, pix_fmt="yuv444p")
        write_clip(clips / "uneven.mkv", moving(0, 6), times=[10 * i + 25 * (i // 5) for i in range(16)])
        rotate(write_clip(clips / "plain.mp4", moving(1, 7, 48, 32)), clips / "turned.mp4")
        names = ("three.mkv", "one.mkv", "odd.mkv", "uneven.mkv", "turned.mp4")
        for split in ("train", "test"):
            (clips / f"{split}.csv").write_text("".join(f"{name} {i % 3}\n" for i, name in enumerate(names)))
        keys = [*ONE_EPOCH, "TRAIN.BATCH_SIZE", "5", "DATA.MAX_BAD_SHARE", "0.0", "TEST.NUM_TEMPORAL_CLIPS", "[2]"]
        assert main(tiny_clip_config("mvit", clips, tmp_path / "out", *keys)) == 0
        assert not log_of(tmp_path / "out", "bad_file")
        assert log_of(tmp_path / "out", "epoch")[-1]["test_videos"] == 5

    def test_too_many_stop_the_run(self, clips, tmp_path, error_of):
        spoil(clips, "train")
        keys = [*ONE_EPOCH, "TRAIN.BATCH_SIZE", "20", "DATA.MAX_BAD_SHARE", "0.3", "DATA_LOADER.NUM_WORKERS", "1"]
        error = error_of(tiny_clip_config("mvit", clips, tmp_path / "out", *keys))
        assert "DATA.MAX_BAD_SHARE 0.3" in error and "8 of 20 training files" in error and str(clips) in error
        end = log_of(tmp_path / "out", "end")[-1]
        assert end["status"] == "failed" and "DATA.MAX_BAD_SHARE" in end["message"]
        assert "DATA.MAX_BAD_SHARE" in (tmp_path / "out" / "report.html").read_text()

    def test_the_command_ends_at_once_with_workers_alive(self, clips, tmp_path):
        """One line, code 2, and no process is left to wait for."""
        spoil(clips, "train")
        keys = ["DEVICE", "cpu", "NUM_GPUS", "1", "DATA.PATH_TO_DATA_DIR", clips, "OUTPUT_DIR", tmp_path / "out"]
        keys += ["TRAIN.BATCH_SIZE", "2", "DATA.MAX_BAD_SHARE", "0.1", "LOG_PERIOD", "1", *QUIET]
        command = [sys.executable, TOOLS / "run_net.py", "--cfg", PRETRAIN, "SOLVER.MAX_EPOCH", "100", *keys]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        run = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               text=True, env=environment, start_new_session=True)  # fmt: skip
        _, error = run.communicate(timeout=120)
        assert run.returncode == 2 and error.startswith("error: ") and error.count("\n") == 1, error
        with pytest.raises(ProcessLookupError):
            os.killpg(run.pid, 0)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_all_of_them(self, workers, clips, tmp_path, error_of):
        for path in clips.glob("train*.mp4"):
            path.write_bytes(b"")
        cfg = tiny_clip_config("maskfeat", clips, tmp_path / "out", "DATA_LOADER.NUM_WORKERS", workers, *ONE_EPOCH)
        error = error_of(cfg)
        assert "unreadable files" in error and "doctor" in error and "train.csv" in error

    def test_tests_name_what_is_missing(self, clips, trained_clips, tmp_path):
        """Each bad video has no view and does not count; the others' scores are those of a list without it."""
        test = ["TRAIN.ENABLE", "False", "TEST.CHECKPOINT_FILE_PATH", trained_clips("mvit")]
        test += ["TEST.NUM_TEMPORAL_CLIPS", "[2, 1]", *QUIET]
        assert main(tiny_clip_config("mvit", clips, tmp_path / "before", *test)) == 0
        reasons = spoil(clips, "test")
        workers = ["DATA_LOADER.NUM_WORKERS", "2"]
        assert main(tiny_clip_config("mvit", clips, tmp_path / "out", *test, *workers)) == 0
        check_listed(tmp_path / "out", reasons, "test")
        (table,) = (table for table in log_of(tmp_path / "out", "table") if table["name"] == "missing_videos")
        assert {row[0]: row[1] for row in table["rows"]} == {Path(path).name: "0 of 2" for path in reasons}
        assert "8 of 13 videos" in table["caption"]
        page = (tmp_path / "out" / "report.html").read_text()
        assert "views that count" in page and "absent.mp4" in page
        (before,), (after,) = (log_of(tmp_path / name, "epoch") for name in ("before", "out"))
        assert after["test_videos"] == 5 and {k: v for k, v in after.items() if k.startswith("test_")} == {
            k: v for k, v in before.items() if k.startswith("test_")
        }
        for number in (2, 1):
            one, two = (
                load_scores(tmp_path / name / f"test_scores_{number}.safetensors")[0] for name in ("before", "out")
            )
            torch.testing.assert_close(two.scores[:5], one.scores, rtol=0, atol=1e-6)
            assert two.views.tolist() == [number] * 5 + [0] * 8 and not two.scores[5:].any()

    def test_nothing_that_can_be_tested(self, clips, trained_clips, tmp_path, error_of):
        test = ["TRAIN.ENABLE", "False", "TEST.CHECKPOINT_FILE_PATH", trained_clips("mvit"), *QUIET]
        for path in clips.glob("test*.mp4"):
            path.write_bytes(b"")
        error = error_of(tiny_clip_config("mvit", clips, tmp_path / "out", *test))
        assert "can be read" in error and "doctor" in error

    def test_the_last_test_costs_no_numbers(self, clips, tmp_path, error_of):
        """Where it fails, those of the last epoch are logged, and the next start goes through that evaluation again."""
        (clips / "away").mkdir()
        gone = [path.rename(clips / "away" / path.name) for path in clips.glob("test*.mp4")]
        cfg = tiny_clip_config("mvit", clips, tmp_path / "out", *ONE_EPOCH, "TEST.NUM_TEMPORAL_CLIPS", "[1]")
        assert "None of the files to test on can be read" in error_of(cfg)
        failed = log_of(tmp_path / "out", "epoch")[-1]
        assert failed["epoch"] == 1 and failed["images"] == 5 and "test_top1" not in failed
        assert "Top-1, best" in (tmp_path / "out" / "report.html").read_text()
        for path in gone:
            path.rename(clips / path.name)
        assert main(cfg) == 0
        lines = [line for line in log_of(tmp_path / "out", "epoch") if line["epoch"] == 1]
        (line,) = lines
        assert line["test_videos"] == 5 and line["top1"] == failed["top1"] and "unfinished" not in line
        assert main(cfg) == 0 and log_of(tmp_path / "out", "epoch") == lines  # the third start finds nothing to do

    @pytest.mark.parametrize("problem", ["no labels", "no class folders", "unknown class"])
    def test_a_test_that_cannot_be_is_refused_before_training(self, problem, clips, tmp_path, error_of):
        if problem == "no labels":
            (clips / "test.csv").write_text("test_0.mp4\ntest_1.mp4\n")
        else:
            (clips / "test.csv").unlink()
            place = clips / "test" / ("other" if problem == "unknown class" else "")
            place.mkdir(parents=True)
            shutil.copy(clips / "test_0.mp4", place)
        error = error_of(tiny_clip_config("mvit", clips, tmp_path / "out", *ONE_EPOCH))
        words = {"no labels": "the line has no label", "unknown class": "which the training split lacks"}
        assert words.get(problem, problem) in error and "TEST.ENABLE False" in error and ".." not in error
        assert not list(tmp_path.glob("out/checkpoints/*")) and not list(tmp_path.glob("out/log.jsonl"))
        off = tiny_clip_config("mvit", clips, tmp_path / "out", *ONE_EPOCH, "TEST.ENABLE", "False")
        assert main(off) == 0

    @pytest.mark.parametrize("kind", ["maskfeat", "mvit"])
    def test_unreadable_validation_clips(self, kind, clips, tmp_path, error_of):
        """Some are left out of the numbers; where all are, no number is made up."""
        reasons = spoil(clips, "val")
        if kind == "maskfeat":  # no model's classes bound its labels
            del reasons[str(clips / "beyond.mp4")]
        keys = ["SOLVER.MAX_EPOCH", "1", "TRAIN.EVAL_PERIOD", "1", "TEST.ENABLE", "False", "MONITOR.NUM_PICTURES", "0"]
        assert main(tiny_clip_config(kind, clips, tmp_path / "out", *keys)) == 0
        check_listed(tmp_path / "out", reasons, "val")
        epoch = log_of(tmp_path / "out", "epoch")[-1]
        assert epoch.get("images", 5) == 5 and math.isfinite(epoch["val_loss"])
        for path in clips.glob("val*.mp4"):
            path.write_bytes(b"")
        (clips / "val.csv").write_text("val_0.mp4 0\nval_1.mp4 1\n")
        error = error_of(tiny_clip_config(kind, clips, tmp_path / "none", *keys))
        assert "can be read" in error and "doctor" in error

    def test_doctor_names_them_all(self, clips, tmp_path, capsys):
        reasons = spoil(clips, "train")
        keys = ["DATA.PATH_TO_DATA_DIR", str(clips), "MODEL.NUM_CLASSES", "3", "DATA_LOADER.NUM_WORKERS", "0"]
        assert run_net.main(["doctor", "--cfg", FINETUNE, *keys]) == 1
        said = capsys.readouterr().out
        del reasons[str(clips / "absent.mp4")]
        assert all(
            any(path in line and reason in line for line in said.splitlines()) for path, reason in reasons.items()
        )
        assert f"missing: 1\n  {clips}/absent.mp4\n" in said and "unreadable: 5\n" in said


PIXELS = ["MASK.METHOD", "maskfeat", "MASK.PRED_HOG", "False", "MASK.TARGET", "pixel"]
MISTAKES = [
    (PRETRAIN, ["DATA.DECODING_BACKEND", "opencv"], ["DATA.DECODING_BACKEND", "pyav"]),
    (PRETRAIN, ["AUG.MASK_WINDOW_SIZE", "[3, 8, 8]"], ["AUG.MASK_WINDOW_SIZE", "3"]),
    (PRETRAIN, ["AUG.MASK_WINDOW_SIZE", "[4, 5, 8]"], ["AUG.MASK_WINDOW_SIZE", "5"]),
    (PRETRAIN, ["AUG.MASK_WINDOW_SIZE", "[8, 8]"], ["AUG.MASK_WINDOW_SIZE", "three"]),
    (PRETRAIN, ["AUG.MASK_WINDOW_SIZE", "[4, 8, 16]"], ["AUG.MASK_WINDOW_SIZE"]),
    (PRETRAIN, ["DATA.NUM_FRAMES", "7"], ["DATA.NUM_FRAMES 7", "multiple of 2"]),
    (PRETRAIN, [*PIXELS, "DATA.NUM_FRAMES", "7"], ["DATA.NUM_FRAMES 7", "multiple of 2"]),
    (PRETRAIN, ["AUG.MASK_TUBE", "True", "AUG.MASK_FRAMES", "True"], ["AUG.MASK_TUBE", "AUG.MASK_FRAMES"]),
    (PRETRAIN, ["AUG.MASK_TYPE", "block"], ["AUG.MASK_TYPE", "cube"]),
    (PRETRAIN, ["MASK.METHOD", "mff"], ["MASK.METHOD mff", "images"]),
    (PRETRAIN, ["MASK.PRED_HOG", "False", "MASK.METHOD", "mfm"], ["MASK.METHOD mfm", "images"]),
    (PRETRAIN, ["MASK.METHOD", "mae", "MASK.PRED_HOG", "False"], ["mae"]),
    (PRETRAIN, ["MASK.PRETRAIN_DEPTH", "[4]"], ["MASK.PRETRAIN_DEPTH"]),
    (PRETRAIN, ["MASK.PRETRAIN_DEPTH", "[0]"], ["MASK.PRETRAIN_DEPTH"]),
    (PRETRAIN, ["MVIT.POOL_Q_STRIDE", "[[0, 1, 2]]"], ["MVIT.POOL_Q_STRIDE", "[0, 1, 2]"]),
    (PRETRAIN, ["MVIT.POOL_Q_STRIDE", "[[9, 1, 2, 2]]"], ["MVIT.POOL_Q_STRIDE", "MVIT.DEPTH"]),
    (PRETRAIN, ["MVIT.POOL_Q_STRIDE", "[[1, 0, 2, 2]]"], ["MVIT.POOL_Q_STRIDE"]),
    (PRETRAIN, ["MVIT.POOL_Q_STRIDE", "[[1, 1, 1.5, 2]]"], ["MVIT.POOL_Q_STRIDE"]),
    (PRETRAIN, ["MVIT.POOL_Q_STRIDE", "[3]"], ["MVIT.POOL_Q_STRIDE"]),
    (PRETRAIN, ["MVIT.POOL_Q_STRIDE", "[[1, 1, 64, 64]]"], ["MVIT.POOL_Q_STRIDE"]),
    (PRETRAIN, ["MVIT.POOL_KV_STRIDE_ADAPTIVE", "[1, 2]"], ["MVIT.POOL_KV_STRIDE_ADAPTIVE"]),
    (PRETRAIN, ["MVIT.POOL_KVQ_KERNEL", "[3, 3]"], ["MVIT.POOL_KVQ_KERNEL"]),
    (PRETRAIN, ["MVIT.POOL_KVQ_KERNEL", "[2, 2, 2]"], ["MVIT.POOL_KVQ_KERNEL"]),
    (PRETRAIN, ["MVIT.NUM_HEADS", "5"], ["MVIT.EMBED_DIM", "NUM_HEADS"]),
    (PRETRAIN, ["MVIT.DIM_MUL", "[[1]]"], ["MVIT.DIM_MUL", "a factor"]),
    (PRETRAIN, ["MVIT.HEAD_MUL", "[[1, -2.0]]"], ["MVIT.HEAD_MUL", "a factor"]),
    (PRETRAIN, ["MVIT.SIZE", "B"], ["MVIT.SIZE"]),
    (PRETRAIN, ["MODEL.ARCH", "vit"], ["MODEL.ARCH vit", "no stages"]),
    (PRETRAIN, ["MVIT.PATCH_KERNEL", "[7, 7]"], ["MVIT.PATCH_KERNEL"]),
    (PRETRAIN, ["MVIT.PATCH_2D", "True"], ["MVIT.PATCH_2D"]),
    (PRETRAIN, ["MODEL.ARCH", "resnet"], ["MODEL.ARCH"]),
    (PRETRAIN, ["DATA.TRAIN_CROP_SIZE", "60", "DATA.TEST_CROP_SIZE", "60"], ["DATA.TRAIN_CROP_SIZE"]),
    (PRETRAIN, ["DATA.TRAIN_JITTER_SCALES", "[72, 64]"], ["DATA.TRAIN_JITTER_SCALES"]),
    (PRETRAIN, ["DATA.TRAIN_JITTER_SCALES", "[32, 64]"], ["DATA.TRAIN_JITTER_SCALES"]),
    (PRETRAIN, ["DATA.NUM_FRAMES", "0"], ["DATA.NUM_FRAMES"]),
    (PRETRAIN, ["DATA.NUM_FRAMES", "10"], ["AUG.MASK_WINDOW_SIZE", "5 x 8 x 8"]),
    (PRETRAIN, ["DATA.PATH_LABEL_SEPARATOR", ""], ["DATA.PATH_LABEL_SEPARATOR"]),
    (PRETRAIN, ["TRAIN.DATASET", "ucf101"], ["TRAIN.DATASET", "kinetics"]),
    (FINETUNE, ["TEST.NUM_SPATIAL_CROPS", "2"], ["TEST.NUM_SPATIAL_CROPS"]),
    (FINETUNE, ["TEST.NUM_ENSEMBLE_VIEWS", "0"], ["TEST.NUM_ENSEMBLE_VIEWS"]),
    (FINETUNE, ["TEST.NUM_TEMPORAL_CLIPS", "[0]"], ["TEST.NUM_TEMPORAL_CLIPS"]),
    (FINETUNE, ["TEST.NUM_TEMPORAL_CLIPS", "[1.5]"], ["TEST.NUM_TEMPORAL_CLIPS"]),
    (FINETUNE, ["TEST.NUM_TEMPORAL_CLIPS", "['a']"], ["TEST.NUM_TEMPORAL_CLIPS"]),
    (AUTOENCODER, ["MVIT.PATCH_KERNEL", "[3, 16, 16]"], ["MVIT.PATCH_KERNEL"]),
    (AUTOENCODER, ["DATA.NUM_FRAMES", "15"], ["DATA.NUM_FRAMES"]),
    (AUTOENCODER, ["AUG.MASK_RATIO", "0.9999"], ["AUG.MASK_RATIO"]),
]


class TestKeys:
    @pytest.mark.parametrize(
        ("path", "keys", "parts"), MISTAKES, ids=lambda p: Path(p).stem if isinstance(p, str) else " ".join(p)[-40:]
    )
    def test_mistakes(self, path, keys, parts, error_of):
        error = error_of(["--cfg", path, "--dry-run", "DATA.PATH_TO_DATA_DIR", "/absent", *keys])
        assert all(part in error for part in parts), error

    def test_data_that_are_not_there(self, clips, tmp_path, error_of):
        for kind in ("maskfeat", "mvit"):
            assert "DATA.PATH_TO_DATA_DIR" in error_of(tiny_clip_config(kind, "", tmp_path / "out"))
            assert f"{tmp_path}/absent" in error_of(tiny_clip_config(kind, tmp_path / "absent", tmp_path / "out"))
        (clips / "train.csv").rename(clips / "away.csv")
        assert "train.csv" in error_of(tiny_clip_config("maskfeat", clips, tmp_path / "out"))
        (clips / "train.csv").write_text("\n")
        assert "train.csv is empty" in error_of(tiny_clip_config("maskfeat", clips, tmp_path / "out"))
        (clips / "train.csv").write_text("train_0.mp4\n")
        assert "train.csv line 1" in error_of(tiny_clip_config("mvit", clips, tmp_path / "out"))
        (clips / "away.csv").rename(clips / "train.csv")
        (clips / "val.csv").unlink()
        assert "val.csv" in error_of(tiny_clip_config("mvit", clips, tmp_path / "out"))
        for command in (["doctor"], []):
            line = [*command, "--cfg", FINETUNE, "DATA.PATH_TO_DATA_DIR", "", "OUTPUT_DIR", str(tmp_path / "out")]
            assert "DATA.PATH_TO_DATA_DIR" in error_of([*line, "NUM_GPUS", "1", "DEVICE", "cpu"])

    def test_tests_need_weights_and_a_list(self, clips, trained_clips, tmp_path, error_of):
        test = ["TRAIN.ENABLE", "False", *QUIET, "TEST.CHECKPOINT_FILE_PATH"]
        weights = trained_clips("mvit")
        assert "TEST.CHECKPOINT_FILE_PATH" in error_of(tiny_clip_config("mvit", clips, tmp_path, *test, ""))
        absent = tmp_path / "absent.pyth"
        assert str(absent) in error_of(tiny_clip_config("mvit", clips, tmp_path, *test, absent))
        pretrained = trained_clips("maskfeat")
        assert "head.projection.weight" in error_of(tiny_clip_config("mvit", clips, tmp_path, *test, pretrained))
        (clips / "test.csv").unlink()
        assert "test.csv" in error_of(tiny_clip_config("mvit", clips, tmp_path, *test, weights))
        off = tiny_clip_config("mvit", clips, tmp_path, *test, weights, "TEST.ENABLE", "False")
        assert "TEST.ENABLE" in error_of(off)

    def test_weights_that_do_not_fit(self, clip_folder, trained_clips, tmp_path, error_of):
        """Of another width, of another kind of model, and of a ResNet for images."""

        def error(kind, weights, *keys):
            cfg = tiny_clip_config(kind, clip_folder, tmp_path, "TRAIN.CHECKPOINT_FILE_PATH", weights, *keys)
            return error_of(cfg)

        assert "MVIT.EMBED_DIM" in error("mvit", trained_clips("maskfeat"), "MVIT.EMBED_DIM", "32")
        assert str(trained_clips("mae")) in error("mvit", trained_clips("mae"))
        assert str(trained_clips("maskfeat")) in error("vit", trained_clips("maskfeat"))
        names = ["conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "fc.weight", "fc.bias"]
        torch.save({name: torch.zeros(4, 4) for name in names}, tmp_path / "resnet.pth")
        assert "resnet.pth" in error("vit", tmp_path / "resnet.pth")

    def test_mixup_needs_pairs_of_clips(self, clip_folder, tmp_path, error_of):
        """What counts is the number of views of a step, not of files."""
        mixed = [*ONE_EPOCH, "TEST.ENABLE", "False", "MIXUP.ENABLE", "True", "MODEL.LOSS_FUNC", "soft_cross_entropy"]
        mixed += ["TRAIN.BATCH_SIZE", "3", "TRAIN.STOP_STEP", "1"]
        assert "TRAIN.BATCH_SIZE" in error_of(tiny_clip_config("mvit", clip_folder, tmp_path / "odd", *mixed))
        all_files = tiny_clip_config("mvit", clip_folder, tmp_path / "all", *mixed, "DATA_LOADER.DROP_LAST", "False")
        assert main(all_files) == 0
        two = tiny_clip_config("mvit", clip_folder, tmp_path / "even", *mixed, "DATA.TRAIN_CROP_NUM_TEMPORAL", "2")
        assert main(two) == 0
