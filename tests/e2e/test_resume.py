"""A run that was stopped and resumed ends bit for bit where an undisturbed one does."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from tiny_runs import QUIET, assert_same, last_state, log_of, tiny_config

from mfm_core.checkpoint.resume import list_checkpoints, machines_of, newest_checkpoint
from mfm_core.report.runs import read_run
from mfm_image.entry import main

CASES = {
    "pretrain": ["TRAIN.EMA_DECAY", "0.9", "KNN.PERIOD", "1"],
    "finetune": ["MVIT.DROPPATH_RATE", "0.3", "MODEL.DROPOUT_RATE", "0.2", "MIXUP.ENABLE", "True", "AUG.AA_TYPE"]
    + ["rand-m9-mstd0.5-inc1", "AUG.RE_PROB", "0.5", "AUG.NUM_SAMPLE", "2", "TRAIN.ACCUM_STEPS", "2"],
}


@pytest.mark.parametrize("kind", CASES)
def test_stopped_after_any_step(kind, photo_folder, tmp_path):
    whole = tiny_config(kind, photo_folder, tmp_path / "whole", *CASES[kind])
    assert main(whole) == 0
    expected = last_state(tmp_path / "whole")
    steps = expected["step"]
    assert steps == 6
    stops = range(1, steps) if kind == "pretrain" else (2, 3)
    for stop in stops:
        output = tmp_path / f"stopped_{stop}"
        assert main(tiny_config(kind, photo_folder, output, *CASES[kind], "TRAIN.STOP_STEP", stop)) == 0
        assert last_state(output)["step"] == stop
        workers = ["DATA_LOADER.NUM_WORKERS", 1] if stop == 2 else []
        assert main(tiny_config(kind, photo_folder, output, *CASES[kind], *workers)) == 0
        assert_same(last_state(output), expected)


def test_another_seed_is_another_run(photo_folder, tmp_path):
    """Guards the test above: were weights independent of the data order, it could not fail."""
    states = []
    for seed in (0, 1):
        assert main(tiny_config("pretrain", photo_folder, tmp_path / str(seed), "RNG_SEED", seed)) == 0
        states.append(last_state(tmp_path / str(seed)))
    with pytest.raises(AssertionError):
        assert_same(*states)


def test_corrupt_newest_checkpoint_falls_back(photo_folder, tmp_path, capsys):
    output = tmp_path / "run"
    overrides = ["TRAIN.CHECKPOINT_PERIOD", "1"]
    assert main(tiny_config("pretrain", photo_folder, output, *overrides)) == 0
    expected = last_state(output)
    newest = output / "checkpoints" / "checkpoint_epoch_00002.pyth"
    newest.write_bytes(newest.read_bytes()[:1000])
    assert main(tiny_config("pretrain", photo_folder, output, *overrides)) == 0
    assert "Taking the checkpoint before it" in capsys.readouterr().out
    assert_same(last_state(output), expected)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("TRAIN.BATCH_SIZE", "4", "TRAIN.BATCH_SIZE"),
        ("DATA_LOADER.DROP_LAST", "False", "DATA_LOADER.DROP_LAST"),
        ("SOLVER.OPTIMIZING_METHOD", "sgd", "another optimizer (AdamW there, SGD here)"),
    ],
)
def test_resuming_another_run_is_refused(key, value, said, photo_folder, tmp_path, capsys):
    output = tmp_path / "run"
    assert main(tiny_config("pretrain", photo_folder, output, *QUIET)) == 0
    assert main(tiny_config("pretrain", photo_folder, output, *QUIET, key, value)) == 2
    error = capsys.readouterr().err
    assert said in error and "OUTPUT_DIR" in error and error.count("\n") == 1


def warnings_of(output):
    return [line["message"] for line in log_of(output, "warning") if "other values" in line["message"]]


OTHER = ["SOLVER.BASE_LR", "0.5", "DATA.MEAN", "[0.1,0.1,0.1]", "AUG.MASK_RATIO", "0.8"]
HARMLESS = [
    *("LOG_PERIOD", "2", "DATA_LOADER.NUM_WORKERS", "1", "TRAIN.ACCUM_STEPS", "2", "TRAIN.CHECKPOINT_KEEP", "3"),
    *("TRAIN.NONFINITE", "skip", "TEST.BATCH_SIZE", "2", "DIST.TIMEOUT", "900", "TRAIN.CHECKPOINT_FORMAT", "sharded"),
]


def test_a_run_that_goes_on_with_other_values_names_them(photo_folder, tmp_path):
    """Once, with what they were; not those that change nothing, nor the same data elsewhere."""
    keys, elsewhere = list(QUIET), tmp_path / "elsewhere"
    shutil.copytree(photo_folder, elsewhere)
    assert main(tiny_config("pretrain", photo_folder, tmp_path, *keys, "TRAIN.STOP_STEP", 1)) == 0
    harmless = [*keys, *HARMLESS, "MONITOR.PERIOD", "1"]
    assert main(tiny_config("pretrain", elsewhere, tmp_path, *harmless, "TRAIN.STOP_STEP", 2)) == 0
    assert not warnings_of(tmp_path)
    for _ in range(2):
        assert main(tiny_config("pretrain", photo_folder, tmp_path, *keys, *OTHER, "TRAIN.STOP_STEP", 3)) == 0
    (warning,) = warnings_of(tmp_path)
    ratio = f"AUG.MASK_RATIO {tiny_config('pretrain', photo_folder, tmp_path).AUG.MASK_RATIO}, here 0.8"
    assert ratio in warning and warning.count(", here") == 3
    (elsewhere / "train" / "cat" / "0.JPEG").rename(elsewhere / "train" / "cat" / "zero.JPEG")
    assert main(tiny_config("pretrain", elsewhere, tmp_path, *keys, *OTHER)) == 0
    _, files = warnings_of(tmp_path)
    assert f"DATA.PATH_TO_DATA_DIR {photo_folder}, here {elsewhere}, other files" in files


def test_a_finished_run_is_not_taken_for_another(photo_folder, tmp_path, error_of):
    """One of other values is refused; what is only looked at is warned of, the rest is as good as the same command."""
    assert main(tiny_config("pretrain", photo_folder, tmp_path, *QUIET)) == 0
    before = (tmp_path / "log.jsonl").read_bytes()
    error = error_of(tiny_config("pretrain", photo_folder, tmp_path, *QUIET, *OTHER))
    assert "has finished with other values" in error and "TRAIN.AUTO_RESUME False or another OUTPUT_DIR" in error
    assert all(f"{key} " in error for key in OTHER[::2]) and (tmp_path / "log.jsonl").read_bytes() == before
    assert main(tiny_config("pretrain", photo_folder, tmp_path, *QUIET, *HARMLESS)) == 0
    assert not warnings_of(tmp_path)
    assert main(tiny_config("pretrain", photo_folder, tmp_path, *QUIET, "MONITOR.NUM_IMAGES", "3")) == 0
    assert "was looked at with other values (MONITOR.NUM_IMAGES 256, here 3)" in warnings_of(tmp_path)[0]


def test_a_finished_run_is_not_taken_for_one_from_other_weights(photo_folder, tmp_path, error_of):
    """Whose file is somewhere else, or no longer there, is the same."""
    weights = {}
    for name in ("one", "two"):
        output = tmp_path / name
        assert main(tiny_config("pretrain", photo_folder, output, *QUIET, "RNG_SEED", len(weights))) == 0
        weights[name] = output / "checkpoints" / "checkpoint_epoch_00002.pyth"

    def finetuning(path, *overrides):
        start = ["TRAIN.CHECKPOINT_FILE_PATH", path] if path else []
        return tiny_config("finetune", photo_folder, tmp_path / "tuned", *QUIET[:6], *start, *overrides)

    assert main(finetuning(weights["one"], "TRAIN.STOP_STEP", 4)) == 0
    assert main(finetuning(weights["two"], "TRAIN.STOP_STEP", 5)) == 0
    (warning,) = warnings_of(tmp_path / "tuned")
    assert f"TRAIN.CHECKPOINT_FILE_PATH {weights['one']}, here {weights['two']}" in warning
    assert main(finetuning(weights["one"])) == 0
    for other in (weights["two"], tmp_path / "absent.pyth", None):
        error = error_of(finetuning(other))
        assert f"TRAIN.CHECKPOINT_FILE_PATH {weights['one']}, here {other or repr('')}" in error
    moved = weights["one"].rename(tmp_path / "moved.pyth")
    for same in (weights["one"], moved, os.path.relpath(moved)):
        assert main(finetuning(same)) == 0
    assert len(warnings_of(tmp_path / "tuned")) == 1


def test_continuing_another_folder_with_other_values(photo_folder, tmp_path, error_of):
    """TRAIN.CHECKPOINT_FILE_PATH of the same task: named where the run goes on, refused where nothing is left."""
    keys = [*QUIET, "TRAIN.CHECKPOINT_PERIOD", "1"]
    assert main(tiny_config("pretrain", photo_folder, tmp_path / "one", *keys)) == 0
    first, last = (tmp_path / "one" / "checkpoints" / f"checkpoint_epoch_0000{i}.pyth" for i in (1, 2))
    new = tiny_config("pretrain", photo_folder, tmp_path / "two", *keys, *OTHER, "TRAIN.CHECKPOINT_FILE_PATH", first)
    for _ in range(2):
        assert main(new) == 0
    (warning,) = warnings_of(tmp_path / "two")
    assert warning.count(", here") == 3 and "TRAIN.CHECKPOINT_EPOCH_RESET" in warning
    new = tiny_config("pretrain", photo_folder, tmp_path / "three", *keys, *OTHER, "TRAIN.CHECKPOINT_FILE_PATH", last)
    assert "TRAIN.CHECKPOINT_EPOCH_RESET True" in error_of(new)


def test_checkpoints_from_before_these_facts_go_on(photo_folder, tmp_path):
    """Of what they do not say, nothing is said."""
    keys = [*QUIET, "TRAIN.STOP_STEP", 3]
    assert main(tiny_config("pretrain", photo_folder, tmp_path, *keys)) == 0
    (path,) = (tmp_path / "checkpoints").iterdir()
    content = torch.load(path, weights_only=True)
    del content["held"]
    content["cfg"] = content["cfg"].replace("  NONFINITE: stop\n", "") + "GONE: 1\n"
    torch.save(content, path)
    assert main(tiny_config("pretrain", photo_folder, tmp_path, *QUIET)) == 0
    assert not warnings_of(tmp_path)


def test_what_begins_anew_shows_nothing_of_the_run_before(photo_folder, tmp_path):
    """Neither its pictures nor its warnings, files and tables."""
    photos = tmp_path / "photos"
    shutil.copytree(photo_folder, photos)
    broken = photos / "train" / "cat" / "0.JPEG"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:100])
    keys, output = ["MONITOR.PICTURE_PERIOD", "1", "KNN.PERIOD", "1"], tmp_path / "out"
    assert main(tiny_config("pretrain", photos, output, *keys)) == 0
    old = {path.name for path in (output / "pictures").iterdir()}
    broken.write_bytes(whole)
    assert (
        main(tiny_config("pretrain", photos, output, *keys, "SOLVER.MAX_EPOCH", 1, "TRAIN.AUTO_RESUME", "False")) == 0
    )
    run = read_run(output)
    assert {picture.epoch for picture in run.pictures} == {0, 1} and run.starts == 1 and not run.bad_files
    assert {path.name for path in (output / "pictures" / "before_1").iterdir()} == old
    undone = (output / "log_undone.jsonl").read_text()
    assert '"bad_file"' in undone and '"run"' in undone and "_00002.png" in undone


@pytest.mark.parametrize("seed", [0, 1])
def test_what_begins_anew_is_continued_and_not_what_was_there(seed, photo_folder, tmp_path, capsys):
    """The finished run of an earlier day, with the same seed or another, has checkpoints of later steps."""
    output, new = tmp_path / "run", ["RNG_SEED", seed, *QUIET]
    assert main(tiny_config("pretrain", photo_folder, output, *QUIET)) == 0
    old = last_state(output)
    first = [*new, "TRAIN.AUTO_RESUME", "False", "TRAIN.STOP_STEP", 2]
    assert main(tiny_config("pretrain", photo_folder, output, *first)) == 0
    aside = output / "checkpoints" / "before_1"
    assert str(aside) in capsys.readouterr().out
    assert [path.name for path in aside.iterdir()] == ["checkpoint_epoch_00002.pyth"]
    assert_same(torch.load(aside / "checkpoint_epoch_00002.pyth", weights_only=True), old)
    assert main(tiny_config("pretrain", photo_folder, output, *new)) == 0
    assert "(step 2 of 6)" in capsys.readouterr().out
    assert main(tiny_config("pretrain", photo_folder, tmp_path / "whole", *new)) == 0
    assert_same(last_state(output), last_state(tmp_path / "whole"))
    assert [line["step"] for line in log_of(output, "step")] == [
        line["step"] for line in log_of(tmp_path / "whole", "step")
    ]
    assert main(tiny_config("pretrain", photo_folder, output, *first)) == 0
    names = {path.name for path in (output / "checkpoints" / "before_2").iterdir()}
    assert names == {"checkpoint_step_00000002.pyth", "checkpoint_epoch_00002.pyth"}


def test_a_run_that_continues_nothing_has_numbers_of_its_own(photo_folder, tmp_path):
    """What an earlier one logged and never saved is not its own: neither the untrained model's numbers nor others."""
    quiet = [*QUIET, "MONITOR.PERIOD", "1", "TRAIN.STOP_STEP", 3]
    assert main(tiny_config("pretrain", photo_folder, tmp_path / "used", *quiet)) == 0
    (tmp_path / "used" / "checkpoints" / "checkpoint_epoch_00001.pyth").unlink()
    for folder in ("used", "fresh"):
        assert main(tiny_config("pretrain", photo_folder, tmp_path / folder, *quiet, "RNG_SEED", 1)) == 0
    used, fresh = ([line["val_loss"] for line in log_of(tmp_path / name, "epoch")] for name in ("used", "fresh"))
    assert used == fresh and len(used) == 2
    assert len(log_of(tmp_path / "used", "run")) == 1


def test_torchrun_starts_again_what_was_to_begin_anew(photo_folder, tmp_path, monkeypatch):
    """Its restarts continue; and where one process is left, it trains by itself, whatever the strategy was."""
    keys = [*QUIET, "TRAIN.AUTO_RESUME", "False"]
    assert main(tiny_config("pretrain", photo_folder, tmp_path, *keys, "TRAIN.STOP_STEP", 2)) == 0
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "some")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert main(tiny_config("pretrain", photo_folder, tmp_path, *keys, "DIST.STRATEGY", "ddp")) == 0
    assert [line["step"] for line in log_of(tmp_path, "step")] == list(range(1, 7))
    assert not list(tmp_path.glob("checkpoints/before_*")) and "continuing from" in (tmp_path / "log.txt").read_text()


def test_going_back_to_an_earlier_checkpoint_of_the_folder(photo_folder, tmp_path):
    """It stays where it is, and the later ones no longer count."""
    keys = [*QUIET, "TRAIN.CHECKPOINT_PERIOD", "1"]
    assert main(tiny_config("pretrain", photo_folder, tmp_path, *keys)) == 0
    middle = tmp_path / "checkpoints" / "checkpoint_epoch_00001.pyth"
    back = ["TRAIN.CHECKPOINT_FILE_PATH", middle, "TRAIN.AUTO_RESUME", "False", "TRAIN.STOP_STEP", 4]
    for _ in range(2):
        assert main(tiny_config("pretrain", photo_folder, tmp_path, *keys, *back)) == 0
        assert last_state(tmp_path)["step"] == 4 and middle.is_file()


def test_weights_of_the_folder_that_would_move_them_away_are_refused(photo_folder, tmp_path, capsys):
    """The same command would begin with others of that name the next time."""
    assert main(tiny_config("pretrain", photo_folder, tmp_path, *QUIET, "SOLVER.MAX_EPOCH", "1")) == 0
    weights = tmp_path / "checkpoints" / "checkpoint_epoch_00001.pyth"
    before = weights.read_bytes()
    tune = ["SOLVER.MAX_EPOCH", "1", "TRAIN.CHECKPOINT_FILE_PATH", weights]
    assert main(tiny_config("finetune", photo_folder, tmp_path, *tune)) == 2
    said = capsys.readouterr().err
    assert "task: pretrain there, finetune here" in said and "OUTPUT_DIR" in said and "AUTO_RESUME" not in said
    anew = [*tune, "TRAIN.AUTO_RESUME", "False"]
    for kind, key in (("finetune", []), ("pretrain", ["TRAIN.CHECKPOINT_EPOCH_RESET", "True"])):
        assert main(tiny_config(kind, photo_folder, tmp_path, *anew, *key)) == 2
        said = capsys.readouterr().err
        assert f"{weights} lies in OUTPUT_DIR" in said and said.count("\n") == 1
        assert weights.read_bytes() == before
    assert main(tiny_config("finetune", photo_folder, tmp_path / "other", *anew)) == 0
    old = tmp_path / "checkpoints" / "before_1"
    old.mkdir()
    tune[-1] = weights.rename(old / weights.name)
    assert main(tiny_config("finetune", photo_folder, tmp_path, *tune)) == 0
    assert tune[-1].read_bytes() == before and last_state(tmp_path)["identity"]["task"] == "finetune"


def test_the_newest_is_that_of_the_latest_step(tmp_path):
    """Whatever the units in its name, and whenever it was written."""
    contents = {"epoch_00002": 8, "step_00000007": 7, "epoch_00001": 4, "step_00000003": 3}
    for name, step in contents.items():
        facts = {"step": step, "machines": step, "identity": {"TRAIN.BATCH_SIZE over all machines": 16}}
        torch.save(facts, tmp_path / f"checkpoint_{name}.pyth")
    names = [f"checkpoint_{name}.pyth" for name in contents]
    assert [path.name for path in list_checkpoints(tmp_path)] == names
    assert newest_checkpoint(tmp_path).name == names[0] and machines_of(tmp_path, 8) == 8
    for name in names[:2]:
        (tmp_path / name).write_bytes(b"torn")
    assert [path.name for path in list_checkpoints(tmp_path)] == names
    assert machines_of(tmp_path, 8) == 4 and machines_of(tmp_path, 16) is None
