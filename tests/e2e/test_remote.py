"""Whole runs whose configuration, weights and lists come by address."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from paths import CONFIGS, TOOLS
from store import FOLDER, install, registered
from tiny_runs import QUIET, TINY, assert_same, last_state, log_of, tiny_clip_config, tiny_config

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
        ("pretrain", "OUTPUT_DIR", "manifold://bucket/run"),
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


class TestOutputs:
    """OUTPUT_DIR is an address."""

    def test_a_run_moves_to_another_machine(self, photo_folder, tmp_path, monkeypatch):
        """Stopped in mid-epoch, it continues where nothing of it is but the address, and ends as one that never was."""
        store = registered(tmp_path / "store", monkeypatch)
        kept = tmp_path / "store" / "runs" / "a"
        run = [photo_folder, "store://runs/a", *QUIET]
        monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "one"))
        assert main(tiny_config("pretrain", *run, "TRAIN.STOP_STEP", "4")) == 0
        assert last_state(kept)["step"] == 4 and log_of(kept, "end")[-1]["status"] == "stopped"
        monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "other"))
        assert main(tiny_config("pretrain", *run)) == 0
        assert main(tiny_config("pretrain", photo_folder, tmp_path / "undisturbed", *QUIET)) == 0
        assert_same(last_state(kept), last_state(tmp_path / "undisturbed"))
        steps = [line["step"] for line in log_of(kept, "step")]
        assert steps == [line["step"] for line in log_of(tmp_path / "undisturbed", "step")]
        assert (kept / "report.html").stat().st_size > 10_000 and any((kept / "tensorboard").iterdir())
        before = len(store.written)
        assert main(tiny_config("pretrain", *run, "TRAIN.ENABLE", "False")) == 0, "tests what it left there"
        assert not any("checkpoints" in name for name in store.written[before:])
        monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "third"))
        assert main(tiny_config("pretrain", *run, "TASK", "visualise", "PICTURE.KIND", "reconstruction")) == 0
        assert (kept / "pictures" / "reconstruction.png").is_file() and (kept / "pictures.html").is_file()

    def test_weights_that_the_run_would_move_away(self, weights, photo_folder, tmp_path, monkeypatch, error_of):
        """They are named by the address, and lie in the folder that stands for it."""
        registered(tmp_path / "store", monkeypatch)
        monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
        kept = tmp_path / "store" / "runs" / "a" / "checkpoints" / weights.name
        assert main(tiny_config("pretrain", photo_folder, "store://runs/a", *ONE_EPOCH)) == 0
        before = kept.read_bytes()
        address = f"store://runs/a/checkpoints/{weights.name}"
        anew = [*ONE_EPOCH, "TRAIN.AUTO_RESUME", "False", "TRAIN.CHECKPOINT_FILE_PATH", address]
        assert "lies in OUTPUT_DIR" in error_of(tiny_config("finetune", photo_folder, "store://runs/a", *anew))
        assert kept.read_bytes() == before

    def test_a_store_that_closes_costs_the_copy_only(self, photo_folder, tmp_path, monkeypatch, error_of):
        store = registered(tmp_path / "store", monkeypatch)
        monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
        cfg = tiny_config("pretrain", photo_folder, "store://runs/a", *ONE_EPOCH)
        store.full = True
        assert "the store is closed" in error_of(cfg)
        assert not list(tmp_path.glob("runs/*/a/log.jsonl")), "said before it trains"
        store.full = False
        opened = type(store)._open

        def closes(self, path, mode="r", *rest, **more):
            self.full = self.full or "w" in mode and "checkpoints" in path
            return opened(self, path, mode, *rest, **more)

        monkeypatch.setattr(type(store), "_open", closes)
        error = error_of(cfg)
        (here,) = tmp_path.glob("runs/*/a")
        assert str(here) in error and last_state(here)["step"] == 3
        monkeypatch.setattr(type(store), "_open", opened)
        store.full = False
        assert main(cfg) == 0
        assert_same(last_state(tmp_path / "store" / "runs" / "a"), last_state(here))

    def test_two_processes_with_a_handler_of_a_package(self, photo_folder, tmp_path):
        """The main process alone writes; both continue from what was fetched."""
        install_folder = tmp_path / "installed"
        install_folder.mkdir()
        install(install_folder)
        command = [sys.executable, TOOLS / "run_net.py", "--cfg", CONFIGS / "demo" / "pretrain.yaml", *TINY, *QUIET]
        command += ["MASK.PRETRAIN_DEPTH", "[1]", "DATA.PATH_TO_DATA_DIR", photo_folder, "NUM_GPUS", "2"]
        command += ["OUTPUT_DIR", "store://runs/two", "SOLVER.MAX_EPOCH", "1"]
        path = os.pathsep.join(filter(None, (str(install_folder), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path, FOLDER: str(tmp_path / "store"), "OMP_NUM_THREADS": "1"}
        for machine, more in (("one", ["TRAIN.STOP_STEP", "2"]), ("other", [])):
            environment["FVCORE_CACHE"] = str(tmp_path / machine)
            done = subprocess.run([*map(str, command), *more], env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        assert "continuing from" in done.stdout and "copied to store://runs/two" in done.stdout
        assert last_state(tmp_path / "store" / "runs" / "two")["step"] == 3

    def test_parts_of_several_machines_need_one_folder(self, photo_folder, tmp_path):
        from mfm_core.engine.run import _fetched
        from mfm_core.errors import UserError
        from mfm_core.parallel.world import World

        cfg = tiny_config("pretrain", photo_folder, "store://runs/a", "TRAIN.CHECKPOINT_FORMAT", "sharded")
        with pytest.raises(UserError, match="one folder that all share"):
            _fetched(cfg, World(num_shards=2))
