"""Video, as the tasks that are shared with images see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode
from torch import Tensor

from mfm_core.config.plan import KINETICS_TRAIN_VIDEOS
from mfm_core.data.listing import PathTable
from mfm_core.interfaces import BadFile, PretrainOutput, SampleKey
from mfm_core.objective import Classifier, Pretraining
from mfm_core.report.pixels import Pixels
from mfm_core.tasks.modality import ClassifierTask, Modality
from mfm_core.tasks.shown import Drawn
from mfm_video.data.build import (
    check_data,
    clip_spec,
    clips_of,
    eval_dataset,
    has_split,
    train_dataset,
    train_transform,
    videos_of,
    view_transforms,
)
from mfm_video.data.lists import VideoList, is_frame_folder
from mfm_video.models import build_model, example_input
from mfm_video.pictures.reconstruction import reconstruction
from mfm_video.views import judge_views, test_listing


def classes(cfg: CfgNode) -> tuple[str, ...]:
    """The classes of the training videos."""
    return videos_of(cfg, "train").classes


def has_val(cfg: CfgNode) -> bool:
    """Whether there are validation videos."""
    return has_split(cfg, "val")


def count_files(cfg: CfgNode, fraction: float) -> int:
    """Training videos, of a share of the labels."""
    videos = videos_of(cfg, "train")
    return len(videos.subset(fraction, cfg.RNG_SEED) if fraction < 1 else videos)


def check_transforms(cfg: CfgNode) -> None:
    """Builds them."""
    train_transform(cfg), view_transforms(cfg, cfg.TEST.NUM_SPATIAL_CROPS)


def seen_as(cfg: CfgNode) -> dict[str, Any]:
    """What a clip is, and how evaluation crops it."""
    spec = clip_spec(cfg)
    return {"clip": [spec.num_frames, spec.sampling_rate, spec.target_fps], "crop": _crop(cfg)}


def _crop(cfg: CfgNode) -> list[int]:
    return [cfg.DATA.TEST_CROP_SIZE, *cfg.DATA.TRAIN_JITTER_SCALES]


def read(cfg: CfgNode, path: str) -> Tensor | BadFile:
    """The clip in the middle of the file, as evaluation crops it."""
    video = VideoList(PathTable("", [path]), np.zeros(1, dtype=np.int64), [""], path)
    sample = clips_of(cfg, video)[SampleKey(0, 0)]
    return sample.bad[0] if sample.bad else sample.views[0]


def stills(cfg: CfgNode, clips: Tensor) -> list[np.ndarray]:
    """(B, 3, T, H, W) to the frame in the middle of each, (H, W, 3) uint8."""
    return Pixels(cfg.DATA.MEAN, cfg.DATA.STD)(clips[:, :, clips.shape[2] // 2])


def reconstruct(
    cfg: CfgNode, model: Pretraining, clips: Tensor, output: PretrainOutput, names: Sequence[str]
) -> list[Drawn]:
    """Frames, hidden cubes, target and prediction, standing and moving."""
    pixels = Pixels(cfg.DATA.MEAN, cfg.DATA.STD)
    drawn = reconstruction(model.target, model.backbone.grid, clips.cpu(), _on_cpu(output), pixels, names)
    return [("reconstruction", drawn.still, drawn.remarks), ("reconstruction_moving", drawn.moving, drawn.remarks)]


def _on_cpu(output: PretrainOutput) -> PretrainOutput:
    return PretrainOutput(*(part.cpu() for part in (output.loss, output.prediction, output.target, output.mask)))


def explain(task: ClassifierTask, model: Classifier) -> list[Drawn]:
    """Nothing of single videos: `judge_views` shows what is taken for what."""
    return []


VIDEOS = Modality(
    noun="videos",
    build_model=build_model,
    example_input=example_input,
    train_set=train_dataset,
    eval_set=eval_dataset,
    classes=classes,
    has_val=has_val,
    stills=stills,
    reconstruct=reconstruct,
    explain=explain,
    draw={},
    finish=judge_views,
    test_listing=test_listing,
    tests_itself=True,
    seen_as=seen_as,
    read=read,
    is_one=is_frame_folder,
    published=("Kinetics-400", KINETICS_TRAIN_VIDEOS),
    count_files=count_files,
    check_transforms=check_transforms,
    check_data=check_data,
)
