"""A folder of generated data that is made in one step, left alone where it is complete, and never anybody else's."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

MARKER = "demo.json"


def make(out: Path, parameters: dict[str, int], write: Callable[[Path], None], what: str) -> str:
    """Lets `write` fill the folder that becomes `out`, unless `out` was made with these parameters; says so in a line.

    what: the content in words, for that line.

    Raises:
        SystemExit: where `out` holds something that was not made here.
    """
    marker = out / MARKER
    if marker.is_file() and json.loads(marker.read_text()) == parameters:
        return f"{out} is complete"
    if out.exists() and not marker.is_file() and any(out.iterdir()):
        sys.exit(f"{out} was not made by this script; name another folder with --out, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as work:
        made = Path(work) / "made"
        made.mkdir()
        write(made)
        (made / MARKER).write_text(json.dumps(parameters, sort_keys=True) + "\n")
        if out.exists():
            shutil.rmtree(out)
        os.replace(made, out)
    return f"{out}: {what}"
