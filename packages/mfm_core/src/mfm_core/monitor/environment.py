"""What a run ran on, for its log and report: versions, processor, devices, commit, command line; no variables."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torchvision", "timm", "fairscale", "fvcore", "numpy", "pillow")


def describe() -> dict[str, Any]:
    """The environment as plain values, ready for JSON. What cannot be found out is left out; nothing is raised."""
    found = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # with its build, `+cpu` or `+cu130`
        **{name: _version(name) for name in _PACKAGES},
        "os": platform.platform(),
        "cpu": _cpu_model(),
        "cores": _cores(),
        "gpus": [_gpu(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else [],
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "git_commit": git_commit(),
        "command": shlex.join(sys.argv),
    }
    return {key: value for key, value in found.items() if value not in (None, [])}


def git_commit() -> str | None:
    """The commit of this checkout, with `+changes` when tracked files differ; None outside the project's repository.

    An installed copy may lie in somebody else's repository (a `.venv` inside it), so the file itself must be tracked.
    """
    here = Path(__file__).resolve()
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    commit = _git(here.parent, "rev-parse", "HEAD")
    changed = _git(here.parent, "status", "--porcelain", "--untracked-files=no", ":/")
    return f"{commit}+changes" if commit and changed else commit


def _git(folder: Path, *arguments: str) -> str | None:
    """Standard output of a git command in `folder`; None where git or the answer is missing."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str | None:
    """The processor's name as Linux tells it, else what Python knows."""
    with suppress(OSError):  # not Linux
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine() or None


def _cores() -> int | None:
    """The cores this process may use, which in a container can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _gpu(index: int) -> str:
    device = torch.cuda.get_device_properties(index)
    return f"{device.name}, {device.total_memory / 1024**3:.0f} GB"
