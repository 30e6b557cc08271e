"""Shared by all tests: the modules beside this file (pytest imports tests by file), and folders of a few photos."""

import random
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import slurm_cluster  # noqa: E402
import torch  # noqa: E402
from iopath.common.file_io import g_pathmgr  # noqa: E402
from photos import picture  # noqa: E402
from web import Site, ask_anew  # noqa: E402


def pytest_terminal_summary(terminalreporter):
    """The numbers that tests `record_property("told", …)`: pytest keeps what passing tests print to itself."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    told = [value for report in reports for name, value in report.user_properties if name == "told"]
    if told:
        terminalreporter.section("measured")
        for line in told:
            terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def same_draws():
    """What a test draws without a generator of its own is the same in every run, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory):
    """3 classes with 8 training and 2 validation JPEG files each, of different sizes."""
    root = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 8), ("val", 2)):
        for number, name in enumerate(("apple", "bear", "cat")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                seed = 1000 * number + i + (500 if split == "val" else 0)
                picture(seed, 80 + 5 * i, 60 + 3 * number).save(folder / f"{i}.JPEG", quality=95)
    return root


@pytest.fixture(scope="module")
def cluster():
    """A Slurm of this machine alone, stopped at the end."""
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    try:
        with slurm_cluster.one_node(folder) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def on_cluster(cluster, monkeypatch):
    """The same, and what this process starts finds it."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return cluster


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A server; the cache is a folder of the test, and nothing is known of earlier fetches."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handlers = dict(g_pathmgr._path_handlers)
    ask_anew()
    (tmp_path / "site").mkdir()
    site = Site(tmp_path / "site")
    yield site
    site.shutdown()
    site.server_close()
    g_pathmgr._path_handlers.clear()
    g_pathmgr._path_handlers.update(handlers)
