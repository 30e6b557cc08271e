"""The scores of a test in a file (safetensors), to be joined with other models' or looked at again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from mfm_core.engine.multiview import VideoScores
from mfm_core.errors import UserError
from mfm_core.report.atomic import write_bytes


def save_scores(path: Path, result: VideoScores, names: Sequence[str]) -> None:
    """Writes `result` and what its videos are called, whole or not at all. Raises UserError where that fails."""
    tensors = {"scores": result.scores, "labels": result.labels, "views": result.views}
    about = {"videos": json.dumps(list(names)), "views_per_video": str(result.views_per_video)}
    write_bytes(Path(path), save({name: tensor.contiguous() for name, tensor in tensors.items()}, about))


def load_scores(path: Path) -> tuple[VideoScores, list[str]]:
    """What `save_scores` wrote. Raises UserError where the file is not there or is something else."""
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = [file.get_tensor(name) for name in ("scores", "labels", "views")]
            return VideoScores(*tensors, int(about["views_per_video"])), json.loads(about["videos"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(f"{path} holds no scores of a test ({line}); name the file that a test has written.") from None
