"""Runs that start from, or test, what other projects saved: by path alone, with what was taken in the log."""

from __future__ import annotations

import argparse
import json

import pytest
import timm
import torch
from tiny_runs import tiny_config

from mfm_image.entry import main

PLAIN = ["MONITOR.PICTURE_PERIOD", "0", "SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_EPOCHS", "0"]


def vit(side: int = 32, **options) -> torch.nn.Module:
    """timm's ViT of the size of `tiny_config`."""
    torch.manual_seed(1)
    sizes = {"img_size": side, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_base_patch16_224", **sizes, **options)


@pytest.fixture
def mae_file(tmp_path):
    """A pre-training checkpoint as MAE saves it, arguments and decoder included."""
    state = vit(num_classes=0).state_dict()
    state |= {"mask_token": torch.zeros(1, 1, 16), "decoder_embed.weight": torch.zeros(16, 24)}
    path = tmp_path / "mae.pth"
    arguments = argparse.Namespace(model="mae_vit", lr=1e-3)
    torch.save({"model": state, "args": arguments, "epoch": 399, "optimizer": {}, "scaler": {}}, path)
    return path


def test_fine_tuning_says_what_it_took(mae_file, photo_folder, tmp_path):
    cfg = tiny_config("finetune", photo_folder, tmp_path / "out", *PLAIN, "TRAIN.CHECKPOINT_FILE_PATH", mae_file)
    assert cfg.MVIT.PATCH_STRIDE == [8, 8] and cfg.MVIT.USE_MEAN_POOLING
    assert main(cfg) == 0
    log = (tmp_path / "out" / "log.txt").read_text()
    assert f"weights from {mae_file}" in log and "(MAE layout)" in log
    fresh = [line for line in log.splitlines() if "freshly initialised" in line]
    unused = [line for line in log.splitlines() if "of no use here" in line]
    assert len(fresh) == 1 and "head.norm.weight" in fresh[0] and "backbone" not in fresh[0]
    assert len(unused) == 1 and all(n in unused[0] for n in ("norm.weight", "mask_token", "decoder_embed.weight"))


@pytest.mark.parametrize("side", [32, 48])
def test_a_timm_classifier_is_tested(side, photo_folder, tmp_path):
    """At its own image size and at another, where the positions are resampled."""
    path = tmp_path / "timm.pth"
    torch.save(vit(num_classes=3, global_pool="avg").state_dict(), path)
    sizes = ["DATA.TRAIN_CROP_SIZE", side, "DATA.TEST_CROP_SIZE", side]
    options = ["TRAIN.ENABLE", "False", "TEST.CHECKPOINT_FILE_PATH", path, *sizes]
    assert main(tiny_config("finetune", photo_folder, tmp_path / "out", *options)) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert any("top1" in line for line in lines)
    log = (tmp_path / "out" / "log.txt").read_text()
    assert ("resampled from 4 x 4 to 6 x 6" in log) is (side == 48)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"class_token": False, "global_pool": "avg"}, ["MVIT.CLS_EMBED_ON"]),
        ({"embed_dim": 48}, ["MVIT.EMBED_DIM"]),
        ({"depth": 3}, ["MVIT.DEPTH", "3 blocks"]),
    ],
    ids=str,
)
def test_files_that_do_not_fit(options, parts, photo_folder, tmp_path, capsys):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2} | options
    path = tmp_path / "timm.pth"
    torch.save({"state_dict": timm.create_model("vit_base_patch16_224", **sizes).state_dict()}, path)
    cfg = tiny_config("finetune", photo_folder, tmp_path / "out", "TRAIN.CHECKPOINT_FILE_PATH", path)
    capsys.readouterr()
    assert main(cfg) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and str(path) in error
    assert all(part in error for part in parts), error


def test_a_resnet_for_a_vit(photo_folder, tmp_path, capsys):
    path = tmp_path / "resnet.pth"
    torch.save(timm.create_model("resnet18").state_dict(), path)
    cfg = tiny_config("finetune", photo_folder, tmp_path / "out", "TRAIN.CHECKPOINT_FILE_PATH", path)
    capsys.readouterr()
    assert main(cfg) == 2
    error = capsys.readouterr().err
    assert "ResNet" in error and "MODEL.ARCH" in error and str(path) in error and error.count("\n") == 1
