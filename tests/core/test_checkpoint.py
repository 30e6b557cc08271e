"""Checkpoints: whole files or none, nothing that runs code, and what every unfit file says."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import sys
import types
import zipfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from fvcore.common.config import CfgNode
from golden_cases import cases, load_case
from pyslowfast_names import pyslowfast_name
from safetensors.torch import save_file
from torch import nn

from mfm_core.checkpoint import io
from mfm_core.checkpoint.init_from import init_from
from mfm_core.checkpoint.io import load_file_state, save_atomic
from mfm_core.checkpoint.resume import set_aside
from mfm_core.checkpoint.saver import FileSaver, Saver
from mfm_core.checkpoint.stand_ins import Forgotten
from mfm_core.checkpoint.state import FORMAT
from mfm_core.checkpoint.trained_as import compare_training
from mfm_core.config import get_cfg, plan_run
from mfm_core.errors import UserError
from mfm_core.heads.classification import ClassificationHead
from mfm_core.nn.pos_embed import resample_positions
from mfm_core.nn.vit import VisionTransformer
from mfm_core.objective import Classifier
from mfm_core.parallel.world import World


def classifier(size=16, patch=8, width=24, depth=2, classes=3, cls_token=True, seed=0) -> Classifier:
    torch.manual_seed(seed)
    backbone = VisionTransformer(
        (size, size), (patch, patch), (patch, patch), (0, 0), width, depth, num_heads=2, cls_token=cls_token
    )
    head = ClassificationHead(width, classes, backbone.num_prefix_tokens, mean_pooling=True)
    return Classifier(backbone, head)


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of the standard model."""
    path = tmp_path / "model.pyth"
    save_atomic({"model_state": classifier(seed=1).state_dict()}, path)
    return path


def message_of(function, *arguments, **keywords) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **keywords)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


class TestSaving:
    def test_new_file_replaces_the_old(self, tmp_path):
        path = tmp_path / "deep" / "x.pyth"
        for number in (1, 2):
            save_atomic({"number": number}, path)
            assert load_file_state(str(path)) == {"number": number}
        assert list(path.parent.iterdir()) == [path]

    @pytest.mark.parametrize("step", ["save", "fsync", "replace"])
    def test_killed_in_the_middle(self, step, tmp_path, monkeypatch):
        """A kill leaves the old file; the rest it leaves is gone after the next save."""
        path = tmp_path / "x.pyth"
        save_atomic({"number": 1}, path)

        class Killed(BaseException):
            pass

        def die(*arguments, **keywords):
            raise Killed

        def write_some(state, file):
            file.write(b"half of it")
            raise Killed

        owner, name = {"save": (torch, "save"), "fsync": (os, "fsync"), "replace": (os, "replace")}[step]
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(owner, name, write_some if step == "save" else die)
            save_atomic({"number": 2}, path)
        assert load_file_state(str(path)) == {"number": 1}
        save_atomic({"number": 3}, path)
        assert load_file_state(str(path)) == {"number": 3}
        assert list(tmp_path.iterdir()) == [path]

    def test_full_disk(self, tmp_path, monkeypatch):
        path = tmp_path / "x.pyth"
        save_atomic({"number": 1}, path)

        def full(fd):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(io.os, "fsync", full)
        message = message_of(save_atomic, {"number": 2}, path)
        assert str(path) in message and "No space left" in message and "OUTPUT_DIR" in message
        assert load_file_state(str(path)) == {"number": 1}
        assert list(tmp_path.iterdir()) == [path]

    def test_a_file_where_the_folder_should_be(self, tmp_path):
        (tmp_path / "file").write_text("")
        assert str(tmp_path / "file") in message_of(save_atomic, {}, tmp_path / "file" / "x.pyth")


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def write_pickle(path: Path, code: bytes) -> None:
    """A file as torch.save writes it, of a pickle that refers to no tensors."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", code)
        archive.writestr("x/version", "3\n")
        archive.writestr("x/byteorder", "little")


class TestReading:
    @pytest.mark.parametrize("zipped", [True, False])
    def test_code_is_not_run(self, zipped, tmp_path):
        path, trap = tmp_path / "trap.pyth", tmp_path / "made_by_pickle"
        torch.save({"model_state": Trap(trap)}, path, _use_new_zipfile_serialization=zipped)
        message = message_of(load_file_state, str(path))
        assert str(path) in message and "run code" in message
        assert not trap.exists()

    def test_plain_pickle_is_not_run(self, tmp_path):
        path, trap = tmp_path / "trap.pth", tmp_path / "made_by_pickle"
        path.write_bytes(pickle.dumps(Trap(trap)))
        assert str(path) in message_of(load_file_state, str(path))
        assert not trap.exists()

    @pytest.mark.parametrize("zipped", [True, False])
    def test_what_released_files_hold_beside_weights(self, zipped, tmp_path):
        """Arguments of the run, its configuration, meters: forgotten, not run, and in nobody's way."""
        path, state = tmp_path / "x.pth", classifier(seed=1).state_dict()
        arguments = argparse.Namespace(lr=1e-3, folder=Path("/data"), device=torch.device("cpu"), betas=(0.9, 0.95))
        config = CfgNode({"MODEL": {"NAME": "x"}, "LR": 0.1})
        config.freeze()
        content = {
            "model": state,
            "args": arguments,
            "config": config,
            "best": np.float64(83.6),
            "epoch": np.int64(3),
            "history": [np.arange(3.0), {"loss": np.array([1, 2])}],
            "type": np.dtype("float32"),
        }
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        read = load_file_state(str(path))
        assert isinstance(read["args"], Forgotten) and not vars(read["args"])
        assert isinstance(read["best"], Forgotten) and isinstance(read["history"][1]["loss"], Forgotten)
        model = classifier()
        report = init_from(model, str(path))
        assert not (report.missing or report.unused)
        assert torch.equal(model.state_dict()["backbone.cls_token"], state["backbone.cls_token"])
        with pytest.raises(pickle.UnpicklingError):  # only `load_file_state` knows them, and only while it reads
            torch.load(path, weights_only=True)

    @pytest.mark.parametrize("core", [b"numpy._core", b"numpy.core"])
    def test_meters_of_mmengine(self, core, tmp_path, monkeypatch):
        """Read where mmengine is not installed, by the names of numpy of before and since version 2."""
        module, path = types.ModuleType("mmengine.logging.history_buffer"), tmp_path / "x.pth"
        module.HistoryBuffer = type("HistoryBuffer", (), {"__module__": module.__name__})
        with monkeypatch.context() as patch:
            for name in ("mmengine", "mmengine.logging", module.__name__):
                patch.setitem(sys.modules, name, module)
            meter = module.HistoryBuffer()
            meter.history, meter.last = np.arange(4.0), np.float32(1.5)
            code = pickle.dumps({"message_hub": {"loss": meter}, "epoch": 3}, protocol=2)
        write_pickle(path, re.sub(rb"numpy\._?core", core, code))
        assert load_file_state(str(path))["epoch"] == 3

    @pytest.mark.parametrize("function", ["os.mkdir", "posix.mkdir", "builtins.eval"])
    def test_arguments_that_are_a_trap(self, function, tmp_path):
        """A call inside an innocent Namespace, which plain pickle runs, is refused by name."""
        path, trap = tmp_path / "trap.pth", tmp_path / "made_by_pickle"
        module, name = function.split(".")
        argument = (f"__import__('os').mkdir({str(trap)!r})" if name == "eval" else str(trap)).encode()
        call = f"c{module}\n{name}\nX".encode() + len(argument).to_bytes(4, "little") + argument + b"\x85R"
        code = b"\x80\x02cargparse\nNamespace\n)\x81}X\x01\x00\x00\x00a" + call + b"sb."
        pickle.loads(code)
        trap.rmdir()
        write_pickle(path, code)
        message = message_of(load_file_state, str(path))
        assert str(path) in message and name in message and "run code" in message
        assert not trap.exists()

    @pytest.mark.parametrize("suffix", [".pyth", ".safetensors"])
    @pytest.mark.parametrize("kept", [0, 1, 10, 100, 0.5, 0.99])
    def test_truncated(self, suffix, kept, tmp_path, saved):
        path = tmp_path / f"cut{suffix}"
        if suffix == ".safetensors":
            save_file(classifier().state_dict(), path)
        else:
            path.write_bytes(saved.read_bytes())
        data = path.read_bytes()
        path.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
        message = message_of(load_file_state, str(path), key="TEST.CHECKPOINT_FILE_PATH")
        assert str(path) in message and message.startswith("TEST.CHECKPOINT_FILE_PATH: ")

    def test_random_bytes(self, tmp_path):
        rng = np.random.default_rng(0)
        for i in range(60):
            path = tmp_path / ("x.safetensors" if i % 3 == 0 else "x.pyth")
            start = [b"", b"\x80\x02", b"PK\x03\x04", b"\x80\x02}q\x00"][i % 4]
            path.write_bytes(start + rng.bytes(int(rng.integers(1, 400))))
            try:  # by chance, bytes may also be a valid pickle of a plain value
                content = load_file_state(str(path))
            except UserError as error:
                assert str(path) in str(error) and "\n" not in str(error)
            else:
                assert not isinstance(content, nn.Module)

    @pytest.mark.parametrize("content", [None, 3, "text", [1], {}, {1: torch.ones(2)}, torch.ones(3), {"a": {"b": 1}}])
    def test_content_of_no_known_layout(self, content, tmp_path):
        path = tmp_path / "x.pyth"
        torch.save(content, path)
        message = message_of(init_from, classifier(), str(path))
        assert str(path) in message and "layouts" in message

    def test_missing_folder_and_address(self, tmp_path):
        assert "there is no checkpoint" in message_of(load_file_state, str(tmp_path / "absent.pyth"))
        assert str(tmp_path) in message_of(load_file_state, str(tmp_path))
        assert "s3://bucket/x.pyth" in message_of(load_file_state, "s3://bucket/x.pyth")


class FailingSaver(Saver):
    """Its writing ends with `error`."""

    error: Exception

    def _prepare(self, state, path):
        def work():
            raise self.error

        return work


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("error", [MemoryError(), KeyError("x"), pickle.PicklingError("no"), OSError("disk")])
@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_save_that_failed_for_whatever_reason_is_none(tmp_path, error, background):
    cfg = get_cfg()
    saver = FailingSaver(tmp_path, plan_run(cfg, files=1000, world_size=1), cfg, World(), background)
    saver.error = error
    saver.start(types.SimpleNamespace(step=3))
    outcome = saver.outcome(wait=True)
    assert outcome.error is not None and str(outcome.path) in outcome.error
    assert ("memory" in outcome.error) == isinstance(error, MemoryError)


def test_copies_that_main_memory_has_no_room_for_cost_that_save(tmp_path, monkeypatch):
    cfg = get_cfg()
    monkeypatch.setattr("mfm_core.checkpoint.saver.whole_state", lambda *_: {})
    monkeypatch.setattr("mfm_core.checkpoint.saver.copied", Mock(side_effect=MemoryError))
    saver = FileSaver(tmp_path, plan_run(cfg, files=1000, world_size=1), cfg, World(), background=True)
    saver.start(types.SimpleNamespace(step=3))
    assert "main memory is full" in saver.outcome(wait=True).error


def test_what_is_moved_aside_leaves_folders_of_others_alone(tmp_path):
    for name in ("before_1", "before_2_good", "checkpoint_epoch_00001.pyth"):
        (tmp_path / name).mkdir()
    assert set_aside(tmp_path).name == "before_2"


class TestInitFrom:
    @pytest.mark.parametrize("form", ["ours", "bare", "state_dict", "module.", "safetensors"])
    def test_same_model_in_every_wrapping(self, form, tmp_path):
        source = classifier(seed=1)
        state, path = source.state_dict(), tmp_path / "x.pyth"
        if form == "safetensors":
            path = path.with_suffix(".safetensors")
            save_file(state, path)
        else:
            wrapped = {
                "ours": {"format": "mfm-1", "model_state": state, "ema_state": None},
                "bare": state,
                "state_dict": {"state_dict": state},
                "module.": {"model": {f"module.{name}": t for name, t in state.items()}},
            }
            torch.save(wrapped[form], path)
        model = classifier()
        report = init_from(model, str(path))
        assert not (report.missing or report.unused or report.other_shape or report.resampled)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, state[name]), name

    @pytest.mark.parametrize(
        ("other", "part"),
        [
            ({"width": 48}, "MVIT.EMBED_DIM"),
            ({"patch": 4, "size": 8}, "PATCH_KERNEL"),
            ({"depth": 1}, "MVIT.DEPTH"),
            ({"depth": 4}, "MVIT.DEPTH"),
        ],
    )
    def test_other_sizes(self, other, part, saved):
        message = message_of(init_from, classifier(**other), str(saved))
        assert str(saved) in message and part in message

    def test_other_classes_are_reported_by_name(self, saved):
        model = classifier(classes=5)
        before = {name: t.clone() for name, t in model.head.state_dict().items()}
        report = init_from(model, str(saved))
        assert report.other_shape == ["head.projection.weight", "head.projection.bias"]
        assert "head.projection.weight" in "\n".join(report.lines())
        for name in ("projection.weight", "projection.bias"):
            assert torch.equal(model.head.state_dict()[name], before[name])

    def test_another_image_size_resamples_positions(self, saved):
        source, model = classifier(seed=1), classifier(size=32)
        report = init_from(model, str(saved))
        assert report.resampled == ["backbone.pos_embed"] and not report.missing
        expected = resample_positions(source.backbone.pos_embed.detach(), (2, 2), (4, 4), prefix=1)
        assert torch.equal(model.backbone.pos_embed.detach(), expected)

    def test_class_token_of_no_use(self, saved):
        """Its row of the table goes with it, the others stay where they are."""
        source, model = classifier(seed=1), classifier(cls_token=False)
        report = init_from(model, str(saved))
        assert report.unused == ["backbone.cls_token"] and "class token's row" in "\n".join(report.lines())
        assert torch.equal(model.backbone.pos_embed, source.backbone.pos_embed[:, 1:])

    def test_positions_that_are_no_square(self, tmp_path):
        state, path = classifier(size=32).state_dict(), tmp_path / "x.pyth"
        state["backbone.pos_embed"] = state["backbone.pos_embed"][:, :13]
        torch.save(state, path)
        message = message_of(init_from, classifier(), str(path))
        assert "position table" in message and str(path) in message and "2 x 2" in message

    def test_no_class_token_for_a_model_that_has_one(self, tmp_path):
        path = tmp_path / "x.pyth"
        torch.save(classifier(cls_token=False).state_dict(), path)
        for size in (16, 32):
            message = message_of(init_from, classifier(size=size), str(path))
            assert str(path) in message and "MVIT.CLS_EMBED_ON" in message

    def test_share_below_the_floor(self, tmp_path):
        path = tmp_path / "x.pyth"
        state = {name: t for name, t in classifier().state_dict().items() if "attn" not in name}
        torch.save({"model_state": state}, path)
        assert init_from(classifier(), str(path), min_match=0.5).missing
        message = message_of(init_from, classifier(), str(path), min_match=0.9)
        assert "TRAIN.CHECKPOINT_MIN_MATCH" in message and str(path) in message

    def test_a_test_names_what_the_checkpoint_lacks(self, tmp_path):
        """A test takes no less than all: the floor of training is not its key, and 100 % is not below 100 %."""
        path = tmp_path / "x.pyth"
        state = classifier().state_dict()
        del state["backbone.cls_token"]
        torch.save({"model_state": state}, path)
        message = message_of(init_from, classifier(), str(path), min_match=1.0, key="TEST.CHECKPOINT_FILE_PATH")
        assert "lacks backbone.cls_token;" in message and "TEST.CHECKPOINT_FILE_PATH" in message
        assert "TRAIN." not in message and "%" not in message
        torch.save({"model_state": {name: t for name, t in state.items() if "attn" not in name}}, path)
        message = message_of(init_from, classifier(), str(path), min_match=1.0, key="TEST.CHECKPOINT_FILE_PATH")
        assert message.count("backbone.") == 8 and "and others" in message

    def test_moving_average_is_preferred_for_testing(self, tmp_path):
        path = tmp_path / "x.pyth"
        weights, average = classifier(seed=1).state_dict(), classifier(seed=2).state_dict()
        torch.save({"format": "mfm-1", "model_state": weights, "ema_state": average}, path)
        for wanted, state in ((False, weights), (True, average)):
            model = classifier()
            init_from(model, str(path), average=wanted)
            assert torch.equal(model.state_dict()["backbone.cls_token"], state["backbone.cls_token"])

    def test_pyslowfast_layout(self, tmp_path):
        source, path = classifier(seed=1), tmp_path / "theirs.pyth"
        state = {pyslowfast_name(name): t for name, t in source.state_dict().items()}
        assert not any(name.startswith("backbone.") for name in state)
        torch.save({"model_state": state, "epoch": 3}, path)
        model = classifier()
        report = init_from(model, str(path), min_match=1.0)
        assert report.layout == "PySlowFast classifier" and not (report.missing or report.unused)
        for name, tensor in source.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor), name


def changed(**sections):
    """All keys at their defaults but for these, by section."""
    cfg = get_cfg()
    for section, keys in sections.items():
        for key, value in keys.items():
            cfg[section][key] = value
    return cfg


class TestTrainedAs:
    """What shapes do not show of the model that a run of ours trained."""

    @staticmethod
    def compare(trained, cfg, *loaded: str) -> list[str]:
        return compare_training({"format": FORMAT, "cfg": trained.dump()}, cfg, loaded, "x.pyth")

    def test_heads(self):
        """Of the encoder, by number or by size, and of the decoder where that is taken, too."""
        three, small = changed(MVIT={"NUM_HEADS": 3}), changed(MVIT={"SIZE": "S"})
        for trained, cfg, numbers in ((three, get_cfg(), "3, and this model has 1"), (get_cfg(), small, "1, and this")):
            message = message_of(self.compare, trained, cfg, "backbone.blocks.0.attn.qkv.weight")
            assert f"x.pyth was trained with MVIT.NUM_HEADS {numbers}" in message
        assert not self.compare(small, changed(MVIT={"NUM_HEADS": 6}), "backbone.blocks.0.attn.qkv.weight")
        assert not self.compare(three, get_cfg(), "backbone.layer1.0.conv1.weight")
        sixteen = changed(MASK={"DECODER_NUM_HEADS": 16})
        assert not self.compare(sixteen, get_cfg(), "backbone.blocks.0.attn.qkv.weight")
        assert "MASK.DECODER_NUM_HEADS 16, and this model has 8" in message_of(
            self.compare, sixteen, get_cfg(), "head.blocks.0.attn.qkv.weight"
        )
        residual = changed(MVIT={"RESIDUAL_POOLING": True})
        assert not self.compare(residual, get_cfg(), "backbone.blocks.0.attn.qkv.weight")
        assert "RESIDUAL_POOLING" in message_of(self.compare, residual, get_cfg(), "backbone.blocks.0.attn.pool_k")

    def test_inputs(self):
        warning, other = self.compare(get_cfg(), changed(DATA={"MEAN": [0.1, 0.1, 0.1], "STD": [1.0, 1.0, 1.0]}))
        assert "DATA.MEAN [0.45, 0.45, 0.45], and here it is [0.1, 0.1, 0.1]" in warning and "DATA.STD" in other
        assert not self.compare(get_cfg(), get_cfg())

    def test_files_that_do_not_say(self):
        assert not compare_training({"model_state": {}, "cfg": "MVIT: {NUM_HEADS: 7}"}, get_cfg(), ["backbone."], "x")
        older = {"format": FORMAT, "cfg": "MVIT:\n  NUM_HEADS: 1\n  GONE: 2\nGONE: 3\n"}
        assert not compare_training(older, get_cfg(), ["backbone.blocks.0.attn.qkv.weight"], "x")


@pytest.mark.parametrize("folder", cases("mae/pos_embed_interp"), ids=lambda p: p.name)
def test_positions_are_resampled_as_mae_does(folder):
    case, arrays = load_case(folder)
    prefix = case["config"]["extra_tokens"]
    for pair in case["config"]["pairs"]:
        old, new = pair["from_grid"], pair["to_grid"]
        table = resample_positions(arrays[f"in_pos_embed_{old}to{new}"], (old, old), (new, new), prefix)
        torch.testing.assert_close(table, arrays[f"out_pos_embed_{old}to{new}"], **case["tolerance"])
