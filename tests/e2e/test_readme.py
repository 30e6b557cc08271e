"""Every command of the README and docs is understood: what runs a configuration is tried with --dry-run."""

from __future__ import annotations

import re
import shlex

import pytest
from entry_point import run_net
from paths import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
BLOCKS = [block for page in PAGES for block in re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL)]
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if "run_net.py" in line]


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    words = shlex.split(command)
    arguments = words[words.index("tools/run_net.py") + 1 :]
    if arguments[0] == "doctor":
        del arguments[0]
    if "--dry-run" not in arguments:
        arguments.append("--dry-run")
    assert run_net.main(arguments) == 0, capsys.readouterr().err
    assert "parameters" in capsys.readouterr().out


def test_make_targets_exist():
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", (REPOSITORY / "README.md").read_text(), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
