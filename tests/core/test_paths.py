"""Addresses in place of paths: what is fetched, how often, to where, and what is said where nobody can fetch it."""

from __future__ import annotations

import logging
import multiprocessing
from pathlib import Path

import pytest
import torch
from iopath.common.file_io import PathHandler
from web import Handler, Site, ask_anew

from mfm_core import paths
from mfm_core.checkpoint.io import load_file_state
from mfm_core.config import load_config
from mfm_core.engine.log import prepare_folder
from mfm_core.errors import UserError
from mfm_core.paths import AbsentFile, cached_name, is_remote, local_path, require_local


def message_of(function, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_an_address():
    assert all(map(is_remote, ("http://h/x", "s3://b/x", "manifold://b", "file:///x")))
    assert not any(map(is_remote, ("/a/b", "a/b", "C:\\x", "a b://", "", "./x://y")))
    assert local_path("/a/../b", "KEY") == "/a/../b"


def test_a_checkpoint_is_fetched_once_and_again_when_it_changes(site):
    file = site.folder / "x.pyth"
    torch.save({"a": torch.arange(3)}, file)
    for _ in range(2):
        assert load_file_state(f"{site.address}/x.pyth")["a"].tolist() == [0, 1, 2]
    assert site.served == [("/x.pyth", 200)]
    ask_anew()
    load_file_state(f"{site.address}/x.pyth")
    assert site.served[1:] == [("/x.pyth", 304)]
    torch.save({"a": torch.arange(4)}, file)
    later = file.stat().st_mtime + 10
    paths.os.utime(file, (later, later))
    ask_anew()
    assert len(load_file_state(f"{site.address}/x.pyth")["a"]) == 4


def test_hosts_and_queries_do_not_share_a_file(site, tmp_path):
    (site.folder / "x.txt").write_text("one")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.txt").write_text("other")
    other = Site(tmp_path / "other")
    found = [Path(local_path(f"{s.address}/x.txt{q}", "KEY")) for s in (site, other) for q in ("", "?a=1")]
    other.shutdown()
    assert [path.read_text() for path in found] == ["one", "one", "other", "other"] and len(set(found)) == 4
    assert all(path.suffix == ".txt" for path in found)


@pytest.mark.parametrize("route", ["/../../../x", "/a/../../..", "/..", "", "/%2e%2e/x", "/x?y=/../z", "/a/b\\..\\c"])
def test_nothing_is_written_above_the_cache(route, tmp_path):
    """iopath's own handler would put the first of these three folders above its cache."""
    for host in ("h", "h:80", "user:word@h", "..", "../.."):
        place = Path(cached_name(f"http://{host}{route}", str(tmp_path)))
        assert place.resolve().is_relative_to(tmp_path) and len(place.relative_to(tmp_path).parts) == 3
        assert ".." not in place.parts


def test_a_broken_off_download_leaves_nothing(site, tmp_path):
    (site.folder / "x.bin").write_bytes(b"x" * 100)

    def cut(handler, source, target):
        target.write(source.read(10))
        handler.close_connection = True

    Handler.copyfile, original = cut, Handler.copyfile
    try:
        message = message_of(local_path, f"{site.address}/x.bin", "KEY")
    finally:
        Handler.copyfile = original
    assert message.startswith("KEY: ") and "10 of 100" in message
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.suffix != ".lock"]
    assert Path(local_path(f"{site.address}/x.bin", "KEY")).read_bytes() == b"x" * 100


def test_the_copy_serves_where_nobody_answers(site, caplog):
    (site.folder / "x.txt").write_text("one")
    address = f"{site.address}/x.txt"
    local_path(address, "KEY")
    site.shutdown()
    site.server_close()
    ask_anew()
    with caplog.at_level(logging.WARNING):
        assert Path(local_path(address, "KEY")).read_text() == "one"
    assert address in caplog.text
    assert "cannot be fetched" in message_of(local_path, f"{site.address}/y.txt", "KEY")


def test_what_is_not_there(site):
    message = message_of(load_file_state, f"{site.address}/absent.pyth")
    assert message.startswith("TRAIN.CHECKPOINT_FILE_PATH: ") and "404" in message
    with pytest.raises(AbsentFile):
        local_path(f"{site.address}/absent.csv", "KEY")


def _fetch(address: str, barrier, answers) -> None:
    barrier.wait()
    answers.put(Path(local_path(address, "KEY")).read_bytes())


def test_several_processes_fetch_once(site):
    (site.folder / "large.bin").write_bytes(b"ab" * 500_000)
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(3), context.Queue()
    address = f"{site.address}/large.bin"
    ranks = [context.Process(target=_fetch, args=(address, barrier, answers)) for _ in range(3)]
    for rank in ranks:
        rank.start()
    assert {answers.get(timeout=60) for _ in ranks} == {b"ab" * 500_000}
    for rank in ranks:
        rank.join(60)
    assert sorted(code for _, code in site.served) == [200, 304, 304]


@pytest.mark.parametrize("scheme", ["s3", "gs", "manifold", "file"])
def test_no_handler_is_one_clear_line(scheme, monkeypatch):
    monkeypatch.setattr(paths, "find_spec", lambda name: None)
    message = message_of(load_file_state, f"{scheme}://bucket/x.pyth")
    assert "TRAIN.CHECKPOINT_FILE_PATH" in message and f"no handler for {scheme}://" in message
    assert ("boto3" in message) == (scheme == "s3")


class Memory(PathHandler):
    """memory://x is the file x of a folder."""

    folder = ""

    def _get_supported_prefixes(self):
        return ["memory://"]

    def _get_local_path(self, path, force=False, **kwargs):
        return f"{Memory.folder}/{path.removeprefix('memory://')}"


def test_handlers_of_installed_packages(site, tmp_path, monkeypatch):
    Memory.folder = str(tmp_path)
    torch.save({"a": 1}, tmp_path / "x.pyth")
    assert "no handler" in message_of(load_file_state, "memory://x.pyth")

    class Point:
        @staticmethod
        def load():
            return Memory

    monkeypatch.setattr(paths, "entry_points", lambda group: [Point] if group == paths.HANDLERS else [])
    assert load_file_state("memory://x.pyth") == {"a": 1}


def test_configurations_and_their_bases(site, tmp_path):
    """A remote one inherits from beside it, and one here from there."""
    (site.folder / "deep").mkdir()
    (site.folder / "base.yaml").write_text("RNG_SEED: 7\n")
    (site.folder / "deep" / "run.yaml").write_text("_BASE_: ../base.yaml\nLOG_PERIOD: 3\n")
    cfg = load_config(f"{site.address}/deep/run.yaml")
    assert (cfg.RNG_SEED, cfg.LOG_PERIOD) == (7, 3)
    (tmp_path / "here.yaml").write_text(f"_BASE_: {site.address}/deep/run.yaml\n")
    assert load_config(str(tmp_path / "here.yaml")).RNG_SEED == 7
    assert "404" in message_of(load_config, f"{site.address}/absent.yaml")
    (tmp_path / "other.yaml").write_text("_BASE_: manifold://x/y.yaml\n")
    assert "no handler for manifold://" in message_of(load_config, str(tmp_path / "other.yaml"))


def test_what_is_not_trained_writes_here(tmp_path):
    for address in ("s3://bucket/run", "http://h/run"):
        message = message_of(prepare_folder, address)
        assert message.startswith(f"OUTPUT_DIR is {address}") and "mounts" in message
    assert require_local("/x", "OUTPUT_DIR", "") == "/x"
