"""docs/scaling.md has the tables that its tool prints, and its commands are understood."""

from __future__ import annotations

import re
import shlex
import sys

import pytest
from entry_point import run_net
from paths import REPOSITORY, TOOLS

sys.path.append(str(TOOLS))
import benchmark
import scaling

COMMANDS = re.findall(r"^python tools/(.*)$", scaling.PAGE.read_text(), flags=re.MULTILINE)


def test_tables_are_the_tools():
    assert scaling.made_part(scaling.PAGE.read_text()) == scaling.tables(), "run tools/scaling.py --write"


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    tool, *arguments = shlex.split(command)
    assert (TOOLS / tool).is_file()
    if tool == "run_net.py":
        assert run_net.main(arguments) == 0, capsys.readouterr().err
        assert "(fsdp2, " in capsys.readouterr().out
    if tool == "benchmark.py":
        assert arguments[-1] in benchmark.BENCHMARKS
