"""PySlowFast's configuration files of masked pre-training, put together again from the values that they use."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from paths import REPOSITORY

KEYS = json.loads((REPOSITORY / "tests" / "recipes" / "pyslowfast_masked_ssl.json").read_text())
"""Key -> its type, default, and `used`: the value in each file that sets it."""
FILES = sorted({name for key in KEYS.values() for name in key["used"]})


def recipe(name: str, folder: Path) -> Path:
    """The YAML file of PySlowFast that used these values."""
    tree: dict = {}
    for key, about in KEYS.items():
        if name in about["used"]:
            *parents, leaf = key.split(".")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = about["used"][name]
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path
