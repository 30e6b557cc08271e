"""The test of a video classifier: several clips and crops of each video, judged together (PySlowFast's protocol)."""

from __future__ import annotations

import logging
from pathlib import Path

from mfm_core.data.loader import eval_loader
from mfm_core.engine.multiview import VideoScores, evaluate_views
from mfm_core.engine.score_file import save_scores
from mfm_core.monitor.settings import setting_name
from mfm_core.objective import Classifier
from mfm_core.report.confusion import class_table, confusion_counts, confusion_picture
from mfm_core.tasks.modality import ClassifierTask, Drawn
from mfm_video.data.build import has_split, test_dataset
from mfm_video.data.lists import VideoList

logger = logging.getLogger(__name__)
MOST_NAMED = 20
"""Videos that a message names; the file of scores tells all."""


def test_views(
    task: ClassifierTask, model: Classifier, known: dict[str, float]
) -> tuple[dict[str, float], list[Drawn]]:
    """test_top1 and test_top5 in percent over test_videos; a matrix of the classes and a table of their accuracy.

    TEST.NUM_TEMPORAL_CLIPS lists numbers of clips: each gives test_top1/clips_N and test_top5/clips_N, and the last the
    numbers that count; where it is empty, TEST.NUM_ENSEMBLE_VIEWS is the only one. The scores of all videos go to
    OUTPUT_DIR/test_scores.safetensors. Nothing is done where TEST.ENABLE is off, or where a run that trains has no
    test videos.
    """
    cfg = task.cfg
    if not cfg.TEST.ENABLE or cfg.TRAIN.ENABLE and not has_split(cfg, "test"):
        return {}, []
    found, numbers = {}, list(cfg.TEST.NUM_TEMPORAL_CLIPS) or [cfg.TEST.NUM_ENSEMBLE_VIEWS]
    for clips in numbers:
        scores, videos = _scores(task, model, clips)
        at = scores.accuracy()
        if len(numbers) > 1:
            found |= {setting_name(f"test_{top}", "clips", clips): at[top] for top in ("top1", "top5")}
    if task.world.is_main:
        _report_missing(scores, videos)
        names = [videos.paths.relative(i) for i in range(len(videos))]
        save_scores(Path(cfg.OUTPUT_DIR) / "test_scores.safetensors", scores, names)
    counts = confusion_counts(scores.labels, scores.predicted, cfg.MODEL.NUM_CLASSES)
    how = f"{numbers[-1]} x {cfg.TEST.NUM_SPATIAL_CROPS} views of {at['videos']:,} test videos"
    drawn = [("confusion", confusion_picture(counts, videos.classes), how), ("classes", class_table(counts, videos.classes), how)]
    return {**{f"test_{name}": value for name, value in at.items()}, **found}, drawn


def _scores(task: ClassifierTask, model: Classifier, clips: int) -> tuple[VideoScores, VideoList]:
    dataset = test_dataset(task.cfg, clips)
    loader = eval_loader(task.cfg, dataset, task.world)
    videos = dataset.listing
    scores = evaluate_views(model, loader, len(videos), dataset.num_views, task.world, task.autocast)
    task.bad_files(loader)
    return scores, videos


def _report_missing(scores: VideoScores, videos: VideoList) -> None:
    missing = scores.missing.tolist()
    if missing:
        named = ", ".join(videos.paths.relative(i) for i in missing[:MOST_NAMED])
        more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
        logger.warning("%d of %d test videos lack views and are judged without them: %s%s", len(missing), len(videos), named, more)
