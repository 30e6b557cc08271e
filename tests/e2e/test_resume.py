"""A run that was stopped and resumed ends bit for bit where an undisturbed one does."""

from __future__ import annotations

import pytest
import torch
from tiny_runs import QUIET, assert_same, last_state, log_of, tiny_config

from mfm_core.checkpoint.resume import list_checkpoints, machines_of, newest_checkpoint
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
