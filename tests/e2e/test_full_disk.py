"""A disk that fills up while a run goes on costs what could not be written then, and nothing else."""

from __future__ import annotations

import builtins
import errno
import os
from pathlib import Path

import pytest
from tiny_runs import assert_same, last_state, log_of, tiny_config

from mfm_core.checkpoint.io import save_atomic
from mfm_core.checkpoint.resume import list_checkpoints
from mfm_core.config.plan import plan_run
from mfm_core.engine.log import RunLog
from mfm_core.engine.trainer import Trainer
from mfm_core.monitor.writers import JsonLines
from mfm_core.report.atomic import write_bytes
from mfm_image.entry import main

EACH_EPOCH = ["SOLVER.MAX_EPOCH", "4", "TRAIN.CHECKPOINT_PERIOD", "1", "MONITOR.PICTURE_PERIOD", "1"]


class Disk:
    """Takes nothing while `full`: whatever opens a file below the folder to write, or writes to one that is open."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self.full, self.refused, self.folder = False, [], str(folder)
        self.patch(monkeypatch)

    def refuse(self, path: object) -> None:
        if self.full and str(path).startswith(self.folder):
            self.refused.append(os.path.relpath(str(path), self.folder))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def patch(self, monkeypatch) -> None:
        real_open, real_mkstemp = builtins.open, write_bytes.__globals__["tempfile"].mkstemp

        def open_(path, mode="r", *arguments, **keywords):
            if set(mode) & set("wax+"):
                self.refuse(path)
            return real_open(path, mode, *arguments, **keywords)

        def mkstemp(*arguments, dir=None, **keywords):
            self.refuse(f"{dir}/temporary")
            return real_mkstemp(*arguments, dir=dir, **keywords)

        monkeypatch.setattr(builtins, "open", open_)
        monkeypatch.setattr(write_bytes.__globals__["tempfile"], "mkstemp", mkstemp)
        write = JsonLines.write

        class Short:
            """A file that is open: one that has room for a few bytes yet, as a full disk mostly has."""

            def __init__(self, file) -> None:
                self.file = file

            def __getattr__(self, name):
                return getattr(self.file, name)

            def write(this, data):
                return this.file.write(data[:5]) if self.full else this.file.write(data)

        def short(lines, record):
            if not isinstance(lines._file, Short):
                lines._file = Short(lines._file)
            if self.full:
                self.refused.append("log.jsonl")
            return write(lines, record)

        monkeypatch.setattr(JsonLines, "write", short)
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = RecordWriter.write

        def event(writer, data):
            self.refuse(f"{self.folder}/tensorboard")
            return record(writer, data)

        monkeypatch.setattr(RecordWriter, "write", event)


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_full_during_an_epoch(photo_folder, tmp_path, monkeypatch, capsys):
    """In steps 4 to 7, the end of epoch 2 and its checkpoint, pictures and report among them. All lines of the log
    come later, the weights are those of a run with room, and every kind of output was among what was refused."""
    assert main(tiny_config("pretrain", photo_folder, tmp_path / "whole", *EACH_EPOCH)) == 0
    disk, step = Disk(monkeypatch, tmp_path / "run"), Trainer.train_step

    def watched(trainer, batch):
        disk.full = 4 <= trainer.state.step < 8
        return step(trainer, batch)

    monkeypatch.setattr(Trainer, "train_step", watched)
    capsys.readouterr()
    assert main(tiny_config("pretrain", photo_folder, tmp_path / "run", *EACH_EPOCH)) == 0
    refused = {name.split("/")[0] for name in disk.refused}
    assert {"log.jsonl", "tensorboard", "checkpoints", "pictures", "temporary"} <= refused, refused
    assert_same(last_state(tmp_path / "whole"), last_state(tmp_path / "run"))
    for kind in ("step", "epoch"):
        logs = [log_of(tmp_path / name, kind) for name in ("whole", "run")]
        assert [(line["step"], line["epoch"]) for line in logs[0]] == [
            (line["step"], line["epoch"]) for line in logs[1]
        ]
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == [f"checkpoint_epoch_0000{i}.pyth" for i in (1, 3, 4)]
    said = capsys.readouterr()
    for what in ("log.jsonl", "TensorBoard", "pictures", "report.html", "checkpoint_epoch_00002.pyth"):
        line = [line for line in said.out.splitlines() if what in line and "No space left" in line]
        assert len(line) == 1 and "raining goes on" in line[0], (what, said.out)
    assert "Traceback" not in said.out + said.err
    assert any("checkpoint_epoch_00002" in line["message"] for line in log_of(tmp_path / "run", "warning"))
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 2
    assert "Reconstruction" in (tmp_path / "run" / "report.html").read_text()


def test_folders_that_cannot_be_changed(photo_folder, tmp_path, monkeypatch, capsys):
    """An old checkpoint that cannot be removed, say of a file system that turned read-only, stops nothing."""
    overrides = [*EACH_EPOCH, "TRAIN.CHECKPOINT_KEEP", "1", "MONITOR.PICTURE_PERIOD", "0"]
    unlink = Path.unlink

    def refuse(path, missing_ok=False):
        if path.name == "checkpoint_epoch_00001.pyth":
            raise PermissionError(errno.EROFS, "Read-only file system")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    assert main(tiny_config("pretrain", photo_folder, tmp_path, *overrides)) == 0
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["checkpoint_epoch_00001.pyth", "checkpoint_epoch_00004.pyth"]
    assert "checkpoint_epoch_00001.pyth cannot be removed (Read-only" in capsys.readouterr().out


@pytest.mark.parametrize("keep", [1, 2])
def test_torn_files_do_not_push_out_the_last_good_one(keep, photo_folder, tmp_path, capsys):
    """The two newest are damaged in the middle, which torch does not notice: the third is continued, and stays until
    a newer good one is there; the end is that of an undisturbed run."""
    overrides = ["SOLVER.MAX_EPOCH", "4", "TRAIN.CHECKPOINT_PERIOD", "1", "MONITOR.PICTURE_PERIOD", "0"]
    run, folder = tmp_path / "run", tmp_path / "run" / "checkpoints"
    assert main(tiny_config("pretrain", photo_folder, run, *overrides)) == 0
    expected = last_state(run)
    newest = list_checkpoints(folder, plan_run(tiny_config("pretrain", photo_folder, run, *overrides), 24, 1))
    assert [path.name[-6] for path in newest] == list("4321")
    for path in newest[:2]:
        data = bytearray(path.read_bytes())
        middle = len(data) // 2
        data[middle : middle + 4096] = bytes(4096)  # what a power cut leaves of blocks that never reached the disk
        path.write_bytes(data)
    capsys.readouterr()
    stop = [*overrides, "TRAIN.CHECKPOINT_KEEP", keep]
    assert main(tiny_config("pretrain", photo_folder, run, *stop, "TRAIN.STOP_STEP", "7")) == 0
    said = capsys.readouterr().out
    for path in newest[:2]:
        line = next(line for line in said.splitlines() if path.name in line)
        assert "corrupt" in line and "Taking the checkpoint before it" in line
    assert f"continuing from {newest[2]}" in said
    assert (folder / "checkpoint_step_00000007.pyth").exists() and newest[2].exists() == (keep == 2)
    assert main(tiny_config("pretrain", photo_folder, run, *overrides)) == 0
    assert_same(last_state(run), expected)
    assert [line["step"] for line in log_of(run, "step")] == list(range(1, 13))
    assert [line["epoch"] for line in log_of(run, "epoch")] == list(range(5))


def test_the_name_of_a_checkpoint_is_forced_to_disk(tmp_path, monkeypatch):
    """File, then name, then folder: only in this order does a power cut leave the old or the new one."""
    done, force, replace = [], os.fsync, os.replace

    def forced(handle):
        done.append(os.readlink(f"/proc/self/fd/{handle}"))
        force(handle)

    def renamed(source, target):
        done.append(f"{source} -> {target}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", forced)
    monkeypatch.setattr(os, "replace", renamed)
    path, temporary = tmp_path / "x.pyth", tmp_path / ".x.pyth.tmp"
    save_atomic({"a": 1}, path)
    assert done == [str(temporary), f"{temporary} -> {path}", str(tmp_path)]


def test_what_is_undone_leaves_the_log(tmp_path):
    """And goes to a file of its own; other lines stay, torn and foreign ones too."""
    log = tmp_path / "log.jsonl"
    lines = [
        '{"kind": "run", "name": "x"}',
        '{"kind": "epoch", "epoch": 0, "step": 0}',
        '{"kind": "step", "step": 1}',
        '{"kind": "step", "step": 2}',
        '{"kind": "epoch", "epoch": 1, "step": 2}',
        '{"kind": "step", "step": 3}',
        "not a line of ours",
        '{"kind": "warning", "message": "step 4"}',
        '{"kind": "epoch", "epoch": 2, "step": 4}',
    ]
    log.write_text("\n".join(lines) + '\n{"kind": "ste')
    run = RunLog(tmp_path, first_step=2, rewind=True)
    assert run.last_epoch == 1
    run.end("stopped")
    assert log.read_text().splitlines()[:-1] == [lines[i] for i in (0, 1, 2, 3, 4, 6, 7)]
    assert (tmp_path / "log_undone.jsonl").read_text().splitlines() == [lines[5], lines[8]]


def test_damaged_lines_of_the_log_say_nothing(tmp_path):
    """A power cut, or an editor, left them; the run is continued."""
    lines = b'{"kind": "epoch", "epoch": 1, "step": 3}\n{"kind": "epoch", "epoch": 2, "step" 3}\ncaf\xe9 "epoch"}\n7\n'
    (tmp_path / "log.jsonl").write_bytes(lines)
    run = RunLog(tmp_path, first_step=3, rewind=True)
    assert run.last_epoch == 1
    run.end("stopped")
    assert (tmp_path / "log.jsonl").read_bytes().startswith(lines)
