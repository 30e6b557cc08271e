"""What a report shows of a test: the confusion matrix, the accuracy of each class, and the videos that are missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mfm_core.engine.multiview import VideoScores
from mfm_core.report.confusion import class_table, confusion_counts, confusion_picture
from mfm_core.report.exhibits import Table


def exhibits_of(
    result: VideoScores, classes: Sequence[str], name_of: Callable[[int], str], kind: str = "videos"
) -> list[tuple[str, Any, str]]:
    """(name, what to show, caption) of each, as `Task.pictures` gives them.

    classes: their names. name_of: a video's index -> its path. kind: what is tested, in words.
    """
    counts = confusion_counts(result.labels, result.predicted, len(classes))
    of = f"{int(counts.sum()):,} {kind}"
    shown = [
        ("confusion", confusion_picture(counts, classes), f"{of}, per cent of each true class"),
        ("accuracy_by_class", class_table(counts, classes), of),
    ]
    missing = result.missing.tolist()
    if missing:
        rows = [[name_of(i), f"{int(result.views[i])} of {result.views_per_video}"] for i in missing]
        lost = int((~result.seen).sum())
        caption = f"{lost} of {len(result.views):,} {kind} could not be read at all and are not counted"
        shown.append((f"missing_{kind}", Table([kind[:-1], "views that count"], rows, (1,)), caption))
    return shown
