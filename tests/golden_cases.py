"""The golden cases: inputs and outputs recorded from the published implementations, see golden/README.md.

The environment variable MFM_GOLDEN_DIR names another folder of cases of the same kinds.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

OWN = Path(__file__).parent / "golden"


def golden_dir() -> Path:
    """The folder of all cases."""
    return Path(os.environ.get("MFM_GOLDEN_DIR") or OWN)


def cases(kind: str) -> list[Path]:
    """The folders of a kind, "project/case"; "pyslowfast/hog" finds hog, hog_2, and what calls itself hog.

    Raises LookupError where our own folder has none: a test over no cases would pass without a word.
    """
    project, name = kind.split("/")
    found, root = [], golden_dir()
    for path in sorted(root.rglob("case.json")):
        folder = path.parent
        called = json.loads(path.read_text()).get("case")
        if project in (root.name, *folder.relative_to(root).parts) and (
            called == name or re.fullmatch(rf"{name}([-_.]?\d+)?", folder.name)
        ):
            found.append(folder)
    if not found and root == OWN:
        raise LookupError(f"{OWN} has no case {kind}")
    return found


def load_case(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """case.json, and the arrays of io.npz as tensors."""
    case = json.loads((folder / "case.json").read_text())
    arrays = folder / "io.npz"
    if not arrays.exists():
        return case, {}
    with np.load(arrays) as io:
        return case, {key: torch.from_numpy(io[key]) for key in io.files}
