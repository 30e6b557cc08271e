"""Whole runs of several processes under each strategy: evaluation, pictures, averages and files are those of one."""

from __future__ import annotations

import pytest
from tiny_runs import QUIET, assert_same, last_state, log_of, tiny_clip_config, tiny_config

from mfm_core.parallel.launch import launch
from mfm_image.entry import main
from mfm_video.entry import main as video_main

SHARDED = ("sharded_ddp", "fsdp2")
TWELVE = ["TRAIN.BATCH_SIZE", "12", "TRAIN.EMA_DECAY", "0.9", "SOLVER.CLIP_GRAD_L2NORM", "0.05"]
# 6 validation files, 2 at a time on each of two processes: the second has one batch less.
UNEVEN = ["SOLVER.MAX_EPOCH", "2", "TEST.BATCH_SIZE", "4", "KNN.PERIOD", "1", *TWELVE]
EVALUATED = ("train_loss", "val_loss", "top1", "knn", "feature_std", "feature_rank", "clipped_share", "images")


@pytest.fixture(scope="module")
def alone(photo_folder, tmp_path_factory):
    """The folder of a run of one process."""
    output = tmp_path_factory.mktemp("alone")
    assert main(tiny_config("pretrain", photo_folder, output, *UNEVEN)) == 0
    return output


def same_log(one, other) -> None:
    ours, theirs = log_of(one, "epoch"), log_of(other, "epoch")
    assert len(ours) == len(theirs) >= 2
    for first, second in zip(ours, theirs):
        assert first.keys() == second.keys()
        for key in first.keys() & set(EVALUATED):
            assert first[key] == pytest.approx(second[key], rel=1e-4), key
    assert [line["file"] for line in log_of(one, "picture")] == [line["file"] for line in log_of(other, "picture")]


@pytest.mark.parametrize("strategy", SHARDED)
def test_a_run_looks_like_that_of_one_process(strategy, alone, photo_folder, tmp_path):
    overrides = [*UNEVEN, "DIST.STRATEGY", strategy, "NUM_GPUS", "2", "TRAIN.ACCUM_STEPS", "2"]
    assert launch(main, (tiny_config("pretrain", photo_folder, tmp_path, *overrides),), processes=2) == 0
    state = last_state(tmp_path)
    assert_same(last_state(alone), state, atol=1e-5)
    same_log(tmp_path, alone)
    for tensor in state["model_state"].values():  # under fairscale parameters lie in one buffer, which stays behind
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_a_run_goes_from_hand_to_hand(alone, photo_folder, tmp_path):
    """Three processes under FSDP2, then two under fairscale, then one, each from the middle of an epoch."""
    for processes, strategy, stop in ((3, "fsdp2", 1), (2, "auto", 3), (1, "auto", 0)):
        overrides = [*UNEVEN, "DIST.STRATEGY", strategy, "NUM_GPUS", processes, "TRAIN.STOP_STEP", stop]
        cfg = tiny_config("pretrain", photo_folder, tmp_path, *overrides)
        assert launch(main, (cfg,), processes=processes) == 0
        if stop:
            assert last_state(tmp_path)["step"] == stop
    assert_same(last_state(alone), last_state(tmp_path), atol=1e-5)
    same_log(tmp_path, alone)


def test_fine_tuning_starts_from_weights(alone, photo_folder, tmp_path):
    """`init_from` sees whole tensors; the moving average starts from the same."""
    path = alone / "checkpoints" / "checkpoint_epoch_00002.pyth"
    overrides = [*TWELVE, "SOLVER.MAX_EPOCH", "1", "TRAIN.CHECKPOINT_FILE_PATH", path]
    assert main(tiny_config("finetune", photo_folder, tmp_path / "one", *overrides)) == 0
    shared = [*overrides, "DIST.STRATEGY", "fsdp2", "NUM_GPUS", "2"]
    assert launch(main, (tiny_config("finetune", photo_folder, tmp_path / "two", *shared),), processes=2) == 0
    assert_same(last_state(tmp_path / "one"), last_state(tmp_path / "two"), atol=1e-5)
    for one, two in zip(log_of(tmp_path / "one", "epoch"), log_of(tmp_path / "two", "epoch"), strict=True):
        assert one["val_loss"] == pytest.approx(two["val_loss"], rel=1e-4) and one["top1"] == two["top1"]


def test_epochs_of_all_files(photo_folder, tmp_path):
    """21 files in batches of 10 and 11, shared unevenly: as one process, and from the middle of an epoch on."""
    shares = ["DATA_LOADER.DROP_LAST", "False", "DATA.LABEL_FRACTION", "0.9", "TEST.BATCH_SIZE", "4", *TWELVE]
    shares += ["SOLVER.MAX_EPOCH", "2"]
    one, many = tmp_path / "one", tmp_path / "many"
    assert main(tiny_config("finetune", photo_folder, one, *shares)) == 0
    run = log_of(one, "run")[-1]["plan"]
    assert (run["images"], run["steps_per_epoch"]) == (21, 2)
    for processes, strategy, parts, stop in ((3, "fsdp2", 2, 1), (2, "auto", 1, 3), (3, "ddp", 1, 0)):
        overrides = [*shares, "DIST.STRATEGY", strategy, "NUM_GPUS", processes, "TRAIN.ACCUM_STEPS", parts]
        cfg = tiny_config("finetune", photo_folder, many, *overrides, "TRAIN.STOP_STEP", stop)
        assert launch(main, (cfg,), processes=processes) == 0
        assert last_state(many)["step"] == (stop or 4)
    assert_same(last_state(one), last_state(many), atol=1e-5)
    same_log(many, one)


def test_clips(clip_folder, tmp_path):
    """MViTv2 under FSDP2 with its own test at the end, whose views are shared unevenly."""
    overrides = [*QUIET, "SOLVER.OPTIMIZING_METHOD", "sgd", "SOLVER.BASE_LR", "0.01", "SOLVER.MAX_EPOCH", "1"]
    overrides += ["MIXUP.ENABLE", "False", "MVIT.DROPPATH_RATE", "0.0", "MODEL.DROPOUT_RATE", "0.0"]
    assert video_main(tiny_clip_config("mvit", clip_folder, tmp_path / "one", *overrides)) == 0
    shared = [*overrides, "DIST.STRATEGY", "fsdp2", "NUM_GPUS", "2"]
    assert launch(video_main, (tiny_clip_config("mvit", clip_folder, tmp_path / "two", *shared),), processes=2) == 0
    one, two = last_state(tmp_path / "one"), last_state(tmp_path / "two")
    assert_same(one, two, atol=1e-5)
    (first,), (second,) = (log_of(tmp_path / name, "epoch")[-1:] for name in ("one", "two"))
    for key in first.keys() & {"val_loss", "top1", "top5", "videos"}:
        assert first[key] == pytest.approx(second[key], rel=1e-4), key


def test_what_cannot_be(photo_folder, tmp_path, error_of):
    error = error_of(tiny_config("pretrain", photo_folder, tmp_path, "DIST.STRATEGY", "fsdp2"))
    assert "DIST.STRATEGY fsdp2" in error and "auto" in error
    error = error_of(tiny_config("pretrain", photo_folder, tmp_path, "DIST.STRATEGY", "single", "NUM_SHARDS", "2"))
    assert "DIST.STRATEGY single" in error and "NUM_SHARDS" in error
