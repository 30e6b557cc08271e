"""Every command of the README and docs is understood: what runs a configuration is tried with --dry-run."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from pathlib import Path

import pytest
from entry_point import run_net
from paths import REPOSITORY

from mfm_core.config import load_config

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def commands_of(page: Path) -> list[str]:
    """The lines of a page that call run_net.py."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if "run_net.py" in line]


COMMANDS = [command for page in PAGES for command in commands_of(page)]


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_two_runs_meet_in_a_folder(page, monkeypatch):
    """The second of two configurations would be refused, or would leave what it writes beside the first one's."""
    monkeypatch.chdir(REPOSITORY)
    found = defaultdict(set)
    for words in map(shlex.split, commands_of(page)):
        arguments = words[words.index("tools/run_net.py") + 1 :]
        if not {"doctor", "--dry-run", "visualise"} & set(arguments):
            options = run_net.parse(arguments)
            found[load_config(options.cfg, options.overrides).OUTPUT_DIR].add(options.cfg)
    assert all(len(files) == 1 for files in found.values()), dict(found)


def test_make_targets_exist():
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", (REPOSITORY / "README.md").read_text(), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
