"""Frozen features in a file beside a run, with what they are the features of: written once, read while that holds."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mfm_core.errors import UserError
from mfm_core.interfaces import BadFile

logger = logging.getLogger(__name__)


class SavedFeatures(NamedTuple):
    """features (N, D) and labels (N,), and the files that could not be read and are not among them."""

    features: Tensor
    labels: Tensor
    bad: list[BadFile]


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """A short name for the content of a model's tensors: equal weights, wherever they lie, have equal names."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def save_features(path: Path, found: SavedFeatures, identity: Mapping[str, Any]) -> None:
    """Writes features with what identifies them, whole or not at all.

    Raises UserError where the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        tensors = {"features": found.features.contiguous(), "labels": found.labels.contiguous()}
        bad = json.dumps([[file.path, file.reason] for file in found.bad])
        save_file(tensors, temporary, metadata={"identity": _text(identity), "bad": bad})
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        line = " ".join(str(error).split())[:200]
        raise UserError(f"Cannot write {path}: {line}. Free the disk or change OUTPUT_DIR.") from None


def load_features(path: Path, identity: Mapping[str, Any]) -> SavedFeatures | None:
    """What was saved at `path`; None where there is nothing, or what is of something else, or a damaged file."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("identity") != _text(identity):
                return None
            bad = [BadFile(*pair) for pair in json.loads(metadata["bad"])]
            return SavedFeatures(file.get_tensor("features"), file.get_tensor("labels"), bad)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        logger.warning("warning: %s cannot be read (%s); its features are taken anew.", path, error)
        return None


def _text(identity: Mapping[str, Any]) -> str:
    return json.dumps(identity, sort_keys=True)
