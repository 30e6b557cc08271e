"""The test of a video classifier: several clips and crops of each video, judged together (PySlowFast's protocol)."""

from __future__ import annotations

from pathlib import Path

from fvcore.common.config import CfgNode

from mfm_core.engine.multiview import VideoScores, accuracies, evaluate_views
from mfm_core.engine.result_exhibits import exhibits_of
from mfm_core.engine.score_file import save_scores
from mfm_core.errors import UserError
from mfm_core.objective import Classifier
from mfm_core.tasks.modality import ClassifierTask, Drawn
from mfm_video.data.build import has_split, test_dataset, test_videos
from mfm_video.data.lists import VideoList


def test_listing(cfg: CfgNode) -> VideoList | None:
    """The test videos; None where TEST.ENABLE is off, or where a run that trains has none.

    Raises:
        UserError: where their labels or classes cannot be known. Whether there are such files shows when they are read.
    """
    if not cfg.TEST.ENABLE or cfg.TRAIN.ENABLE and not has_split(cfg, "test"):
        return None
    try:
        return test_videos(cfg)
    except UserError as error:
        if not cfg.TRAIN.ENABLE:
            raise
        raise UserError(f"The test that follows training: {error}. Mend it, or set TEST.ENABLE False.") from error


def judge_views(
    task: ClassifierTask, model: Classifier, known: dict[str, float]
) -> tuple[dict[str, float], list[Drawn]]:
    """test_top1 and test_top5 in percent over test_videos; what is taken for what, and the videos that lack views.

    TEST.NUM_TEMPORAL_CLIPS lists numbers of clips; the first counts, and each gives test_top1/clips_N and
    test_top5/clips_N. Where it is empty, TEST.NUM_ENSEMBLE_VIEWS is the only one. The scores go to
    test_scores_N.safetensors beside the log. Nothing is done without test videos.
    """
    cfg, videos = task.cfg, task.test_listing
    if videos is None:
        return {}, []
    results = {}
    for clips in list(cfg.TEST.NUM_TEMPORAL_CLIPS) or [cfg.TEST.NUM_ENSEMBLE_VIEWS]:
        results[clips] = _scores(task, model, clips)
        if task.world.is_main:
            names = [videos.paths.relative(i) for i in range(len(videos))]
            save_scores(Path(cfg.OUTPUT_DIR) / f"test_scores_{clips}.safetensors", results[clips], names)
    values = {f"test_{name}": value for name, value in accuracies(results).items()}
    first = next(iter(results.values()))
    return values, exhibits_of(first, videos.classes, videos.paths.relative)


def _scores(task: ClassifierTask, model: Classifier, clips: int) -> VideoScores:
    """Of all test videos, by `clips` clips of each."""
    dataset, combine = test_dataset(task.cfg, clips, task.test_listing), task.cfg.DATA.ENSEMBLE_METHOD
    sizes = (len(dataset.listing), dataset.num_views)
    with task.one_pass(dataset) as loader:
        return evaluate_views(model, loader, *sizes, task.world, task.autocast, combine=combine)
