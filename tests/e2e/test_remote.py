"""Whole runs whose configuration, weights and lists come by address."""

from __future__ import annotations

import pytest
import torch
from paths import CONFIGS
from tiny_runs import QUIET, TINY, assert_same, last_state, tiny_clip_config, tiny_config

from mfm_image.entry import main
from mfm_video.entry import main as video_main

ONE_EPOCH = ["SOLVER.MAX_EPOCH", "1", *QUIET]


@pytest.fixture(scope="module")
def weights(photo_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("first")
    assert main(tiny_config("pretrain", photo_folder, output, *ONE_EPOCH)) == 0
    return output / "checkpoints" / "checkpoint_epoch_00001.pyth"


def test_weights_from_the_web_are_those_of_the_file(weights, site, photo_folder, tmp_path):
    (site.folder / "weights.pyth").write_bytes(weights.read_bytes())
    for name, path in (("here", weights), ("there", f"{site.address}/weights.pyth")):
        cfg = tiny_config("finetune", photo_folder, tmp_path / name, *ONE_EPOCH, "TRAIN.CHECKPOINT_FILE_PATH", path)
        assert main(cfg) == 0
    assert_same(last_state(tmp_path / "here"), last_state(tmp_path / "there"))
    fresh = tiny_config("finetune", photo_folder, tmp_path / "fresh", *ONE_EPOCH)
    assert main(fresh) == 0
    with pytest.raises(AssertionError):
        assert_same(last_state(tmp_path / "here"), last_state(tmp_path / "fresh"))
    assert site.served == [("/weights.pyth", 200)]


@pytest.mark.parametrize("task", ["continue", "test"])
def test_other_doors(task, weights, site, photo_folder, tmp_path):
    (site.folder / "weights.pyth").write_bytes(weights.read_bytes())
    address = f"{site.address}/weights.pyth"
    key = "TRAIN.CHECKPOINT_FILE_PATH" if task == "continue" else "TEST.CHECKPOINT_FILE_PATH"
    more = [] if task == "continue" else ["TRAIN.ENABLE", "False"]
    assert main(tiny_config("pretrain", photo_folder, tmp_path, *ONE_EPOCH, key, address, *more)) == 0
    assert address in (tmp_path / "log.txt").read_text()


def test_a_configuration_from_the_web(site, photo_folder, tmp_path, error_of, capsys):
    """Its `_BASE_` files lie beside it."""
    for file in (CONFIGS / "demo").glob("*.yaml"):
        (site.folder / file.name).write_text(file.read_text())
    from entry_point import run_net

    command = ["--cfg", f"{site.address}/pretrain.yaml", *TINY, *ONE_EPOCH, "MASK.PRETRAIN_DEPTH", "[1]"]
    command += ["DATA.PATH_TO_DATA_DIR", str(photo_folder), "OUTPUT_DIR", str(tmp_path)]
    assert run_net.main(command) == 0
    assert last_state(tmp_path)["step"] == 3
    assert "404" in error_of(["--cfg", f"{site.address}/absent.yaml"])


def test_what_has_to_lie_here(photo_folder, tmp_path, error_of):
    for kind, key, address in (
        ("pretrain", "OUTPUT_DIR", "s3://bucket/run"),
        ("pretrain", "DATA.PATH_TO_DATA_DIR", "http://host/photos"),
        ("finetune", "TRAIN.CHECKPOINT_FILE_PATH", "manifold://bucket/x.pyth"),
    ):
        error = error_of(tiny_config(kind, photo_folder, tmp_path, *ONE_EPOCH, key, address))
        assert key in error and address in error, error
    assert not torch.distributed.is_initialized() and not list(tmp_path.glob("s3*"))


def test_lists_of_videos_from_the_web(site, clip_folder, tmp_path):
    """The videos lie where DATA.PATH_PREFIX says; the run is that of the lists beside them."""
    for name in ("train", "val"):
        lines = (clip_folder / f"{name}.csv").read_text().splitlines()
        inside = [line.replace(f"{clip_folder}/", "") for line in lines]
        assert not any(line.startswith("/") for line in inside)
        (site.folder / f"{name}.csv").write_text("\n".join(inside))
    prefix = ["DATA.PATH_PREFIX", str(clip_folder)]
    for name, root, more in (("here", clip_folder, []), ("there", site.address, prefix)):
        cfg = tiny_clip_config("maskfeat", root, tmp_path / name, *ONE_EPOCH, "TEST.ENABLE", "False", *more)
        assert video_main(cfg) == 0
    assert_same(last_state(tmp_path / "here"), last_state(tmp_path / "there"))
