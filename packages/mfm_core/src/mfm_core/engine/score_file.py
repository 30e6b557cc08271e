"""The scores of a test in a file (safetensors), to be joined with other models' or looked at again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save

from mfm_core.engine.multiview import VideoScores
from mfm_core.report.atomic import write_bytes


def save_scores(path: Path, result: VideoScores, names: Sequence[str]) -> None:
    """Writes `result` and what its videos are called, whole or not at all. Raises UserError where that fails.

    Tensors: scores (videos, classes), labels and views (videos,). Metadata: videos, a JSON list, and views_per_video.
    """
    tensors = {"scores": result.scores, "labels": result.labels, "views": result.views}
    about = {"videos": json.dumps(list(names)), "views_per_video": str(result.views_per_video)}
    write_bytes(Path(path), save({name: tensor.contiguous() for name, tensor in tensors.items()}, about))
