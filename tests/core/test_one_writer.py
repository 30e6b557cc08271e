"""One run at a time writes to a folder; a process that is gone holds nothing, whatever it started lives on or not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from mfm_core.engine import one_writer
from mfm_core.engine.one_writer import NAME, only_writer
from mfm_core.errors import UserError
from mfm_core.parallel.world import World

HOLDER = """
import os, sys, time
from pathlib import Path
from mfm_core.engine.one_writer import only_writer
from mfm_core.parallel.world import World
with only_writer(Path(sys.argv[1]), World(), 60.0):
    child = os.fork()
    if child == 0:
        time.sleep(600)
    print(child, flush=True)
    sys.stdin.readline()
print("left", flush=True)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder, and has forked one of its own as loader workers are."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    child = int(process.stdout.readline())
    yield process
    process.kill()
    os.kill(child, signal.SIGKILL)
    process.communicate()


def test_a_second_run_is_told_of_the_first(holder, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(one_writer, "PATIENCE", 0.5)
    said = rf"Another run writes to OUTPUT_DIR .* \(process {holder.pid} on .* since "
    with pytest.raises(UserError, match=said), only_writer(tmp_path, World(), 60.0):
        raise AssertionError("two at once")
    assert "Waiting up to 0 s" in capfd.readouterr().err
    assert f"process {holder.pid} " in (tmp_path / NAME).read_text()
    with only_writer(tmp_path.parent, World(), 60.0):  # another folder is free
        pass


def test_a_killed_run_holds_nothing_though_its_workers_live(holder, tmp_path, capfd):
    holder.kill()
    holder.wait()
    with only_writer(tmp_path, World(), 60.0):
        assert f"process {os.getpid()} " in (tmp_path / NAME).read_text()
    assert capfd.readouterr().err == ""


def test_a_run_that_ends_in_time_is_waited_for(holder, tmp_path, capfd):
    end = threading.Timer(0.5, lambda: (holder.stdin.write("\n"), holder.stdin.flush()))
    end.start()
    with only_writer(tmp_path, World(), 60.0):
        assert f"process {os.getpid()} " in (tmp_path / NAME).read_text()
    assert "Waiting up to 5 s for the run in" in capfd.readouterr().err


@pytest.mark.parametrize("alive", [False, True])
def test_a_lock_of_another_machine_counts_while_its_run_writes(holder, tmp_path, monkeypatch, capfd, alive):
    """A machine that died may never give a network file system its lock back."""
    monkeypatch.setattr(one_writer, "LEASE", 1.0)
    monkeypatch.setattr(one_writer.socket, "gethostname", lambda: "here")
    log = tmp_path / "log.jsonl"
    log.write_text("{}\n")
    if alive:
        threading.Timer(0.3, log.write_text, ["{}\n{}\n"]).start()
        with pytest.raises(UserError, match="Another run writes"), only_writer(tmp_path, World(), 60.0):
            pass
    else:
        with only_writer(tmp_path, World(), 60.0):
            assert f"process {os.getpid()} on here " in (tmp_path / NAME).read_text()
        assert "has written nothing for 1 s" in capfd.readouterr().err


def test_the_other_processes_do_not_give_up_while_the_main_one_waits(holder, tmp_path, capfd):
    with pytest.raises(UserError), only_writer(tmp_path, World(), 2.0):
        pass
    assert "Waiting up to 1 s" in capfd.readouterr().err


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capfd):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(one_writer.fcntl, "lockf", refuse)
    with only_writer(tmp_path, World(), 60.0):
        pass
    assert "cannot be locked (No locks available)" in capfd.readouterr().err
    (tmp_path / NAME).unlink()
    (tmp_path / NAME).mkdir()
    with only_writer(tmp_path, World(), 60.0):
        pass
    assert "cannot be locked (Is a directory)" in capfd.readouterr().err


def test_a_full_disk_takes_no_text(tmp_path):
    (tmp_path / NAME).symlink_to("/dev/full")
    with only_writer(tmp_path, World(), 60.0):
        pass
