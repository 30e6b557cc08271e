"""Reads the scores of a test from their file, as whoever joins them with another model's would."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open

from mfm_core.engine.multiview import VideoScores


def load_scores(path: Path) -> tuple[VideoScores, list[str]]:
    """The scores, and what the videos are called."""
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
        tensors = [file.get_tensor(name) for name in ("scores", "labels", "views")]
    return VideoScores(*tensors, int(about["views_per_video"])), json.loads(about["videos"])
