"""Builds lists, transforms and data sets from the configuration."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

from fvcore.common.config import CfgNode

from mfm_core.config import task_of
from mfm_core.errors import UserError
from mfm_core.interfaces import MaskGenerator
from mfm_core.paths import AbsentFile, is_remote, local_path, require_local
from mfm_video.data.dataset import MultiViewDataset, Opener, VideoDataset
from mfm_video.data.decode import open_video
from mfm_video.data.doctor import DoctorReport, check_videos
from mfm_video.data.lists import VideoList, list_videos
from mfm_video.data.read_decord import import_decord
from mfm_video.data.sampling import ClipSpec
from mfm_video.data.transforms import TrainClipTransform, ViewTransform

EVAL_SEED = 0
"""Which videos and masks look after a run does not depend on its seed, so that runs can be compared."""


def train_transform(cfg: CfgNode, erase: bool = True) -> TrainClipTransform:
    """The training augmentation of DATA and AUG, with or without random erasing."""
    augment = cfg.AUG.ENABLE
    return TrainClipTransform(
        cfg.DATA.TRAIN_CROP_SIZE,
        cfg.DATA.MEAN,
        cfg.DATA.STD,
        jitter=cfg.DATA.TRAIN_JITTER_SCALES,
        scale=cfg.DATA.TRAIN_JITTER_SCALES_RELATIVE,
        ratio=cfg.DATA.TRAIN_JITTER_ASPECT_RELATIVE,
        short_side=cfg.DATA.DECODING_SHORT_SIZE,
        flip=0.5 if cfg.DATA.RANDOM_FLIP else 0.0,
        auto_augment=cfg.AUG.AA_TYPE if augment else "",
        policy_interpolation=cfg.AUG.INTERPOLATION,
        color_jitter=cfg.AUG.COLOR_JITTER if augment else None,
        jitter_on_top=cfg.AUG.COLOR_JITTER_ON_TOP,
        erase_prob=cfg.AUG.RE_PROB if augment and erase else 0.0,
        erase_mode=cfg.AUG.RE_MODE,
        erase_count=cfg.AUG.RE_COUNT,
    )


def view_transforms(cfg: CfgNode, crops: int) -> list[ViewTransform]:
    """The spatial views of a test: three crops of frames as small as they, or the middle of larger ones."""
    side = cfg.DATA.TEST_CROP_SIZE if crops > 1 else cfg.DATA.TRAIN_JITTER_SCALES[0]
    make = partial(ViewTransform, cfg.DATA.TEST_CROP_SIZE, cfg.DATA.MEAN, cfg.DATA.STD, side)
    return [make(position) for position in range(3)] if crops > 1 else [make(1)]


def clip_spec(cfg: CfgNode) -> ClipSpec:
    """What a clip is."""
    return ClipSpec(cfg.DATA.NUM_FRAMES, cfg.DATA.SAMPLING_RATE, cfg.DATA.TARGET_FPS)


def opener(cfg: CfgNode) -> Opener:
    """Opens videos with DATA.DECODING_BACKEND; raises UserError where that is not installed."""
    if cfg.DATA.DECODING_BACKEND == "decord":
        import_decord()
    return partial(open_video, backend=cfg.DATA.DECODING_BACKEND, folder_fps=cfg.DATA.TARGET_FPS)


def videos_of(cfg: CfgNode, split: str, classes: Sequence[str] = ()) -> VideoList:
    """The list of a split; `classes` are the training split's, which class folders have to be of.

    The labels of a list have to be below MODEL.NUM_CLASSES where a classifier is trained or tested; pre-training needs
    none.
    """
    task = task_of(cfg)
    return list_videos(
        data_root(cfg),
        split,
        num_classes=cfg.MODEL.NUM_CLASSES if task in ("finetune", "probe") else 0,
        separator=cfg.DATA.PATH_LABEL_SEPARATOR.replace("\\t", "\t"),  # a shell passes the two characters on
        prefix=require_local(cfg.DATA.PATH_PREFIX, "DATA.PATH_PREFIX", "the place of the videos"),
        classes=classes,
        needs_labels=task != "pretrain",
    )


def has_split(cfg: CfgNode, split: str) -> bool:
    """Whether there is a list or a folder of that split."""
    if is_remote(data_root(cfg)):
        try:
            local_path(f"{data_root(cfg).rstrip('/')}/{split}.csv", "DATA.PATH_TO_DATA_DIR")
        except AbsentFile:
            return False
        return True
    place = os.path.join(data_root(cfg), split)
    return os.path.isfile(f"{place}.csv") or os.path.isdir(place)


def has_list(cfg: CfgNode, split: str) -> bool:
    """Whether it is a list; there are no others at an address."""
    return is_remote(data_root(cfg)) or os.path.isfile(os.path.join(data_root(cfg), f"{split}.csv"))


def train_dataset(cfg: CfgNode, masks: MaskGenerator | None = None, fraction: float = 1.0) -> VideoDataset:
    """The augmented training clips; `fraction` of the labels of each class."""
    videos = videos_of(cfg, "train")
    return VideoDataset(
        videos.subset(fraction, cfg.RNG_SEED) if fraction < 1 else videos,
        clip_spec(cfg),
        train_transform(cfg),
        cfg.RNG_SEED,
        clips=cfg.DATA.TRAIN_CROP_NUM_TEMPORAL,
        num_samples=cfg.AUG.NUM_SAMPLE,
        mask_generator=masks,
        first_view=train_transform(cfg, erase=False) if cfg.AUG.RE_SPLIT and cfg.AUG.NUM_SAMPLE > 1 else None,
        opener=opener(cfg),
    )


def eval_dataset(
    cfg: CfgNode,
    split: str,
    classes: Sequence[str] = (),
    count: int = 0,
    masks: MaskGenerator | None = None,
) -> VideoDataset:
    """The clip in the middle of each video of `split`, its middle cropped; `count` of them, at least one of each class,
    0 for all."""
    videos = videos_of(cfg, split, classes)
    if 0 < count < len(videos):
        videos = videos.subset(count / len(videos), EVAL_SEED)
    return clips_of(cfg, videos, masks)


def clips_of(cfg: CfgNode, videos: VideoList, masks: MaskGenerator | None = None) -> VideoDataset:
    """The clip in the middle of each video, its middle cropped."""
    middle = view_transforms(cfg, crops=1)[0]
    return VideoDataset(
        videos, clip_spec(cfg), middle, EVAL_SEED, mask_generator=masks, train=False, opener=opener(cfg)
    )


def test_videos(cfg: CfgNode) -> VideoList:
    """The videos of the test; class folders have the numbers that the training split, list or folders, gives them.

    Raises:
        UserError: where nothing gives all of MODEL.NUM_CLASSES a number, beside the reasons of `list_videos`.
    """
    trained_on = () if has_list(cfg, "test") or not has_split(cfg, "train") else videos_of(cfg, "train").classes
    videos, classes = videos_of(cfg, "test", trained_on), cfg.MODEL.NUM_CLASSES
    if trained_on and len(trained_on) != classes:
        raise UserError(f"MODEL.NUM_CLASSES is {classes}, but the training videos have {len(trained_on)} classes.")
    if len(videos.classes) != classes:
        raise UserError(
            f"MODEL.NUM_CLASSES is {classes}, but {videos.origin} has {len(videos.classes)} classes, and there is no "
            "train.csv or train/ to say which of the model's classes these are; add it, or a test.csv with labels."
        )
    return videos


def test_dataset(cfg: CfgNode, num_clips: int = 0, videos: VideoList | None = None) -> MultiViewDataset:
    """All views of `videos`, or of all test videos; `num_clips` in time, TEST.NUM_ENSEMBLE_VIEWS where that is 0."""
    return MultiViewDataset(
        test_videos(cfg) if videos is None else videos,
        clip_spec(cfg),
        view_transforms(cfg, cfg.TEST.NUM_SPATIAL_CROPS),
        num_clips or cfg.TEST.NUM_ENSEMBLE_VIEWS,
        cfg.DATA.USE_OFFSET_SAMPLING,
        opener=opener(cfg),
    )


def check_data(cfg: CfgNode) -> DoctorReport:
    """What the doctor finds in the lists of all splits there are; the one that the run needs has to be."""
    only_tests = not cfg.TRAIN.ENABLE and task_of(cfg) == "finetune"
    splits: dict[str, VideoList] = {}
    for split in ("train", "val", "test"):
        if split == ("test" if only_tests else "train") or has_split(cfg, split):
            splits[split] = videos_of(cfg, split, splits["train"].classes if "train" in splits else ())
    report = check_videos(splits, clip_spec(cfg), opener(cfg), cfg.DATA_LOADER.NUM_WORKERS)
    if not only_tests and task_of(cfg) != "pretrain" and "val" not in splits:
        report.problems.append(f"{data_root(cfg)} has neither val.csv nor val/: nothing to evaluate on")
    if "test" in splits and task_of(cfg) == "finetune":
        try:
            test_videos(cfg)
        except UserError as error:
            report.problems.append(str(error))
    return report


def data_root(cfg: CfgNode) -> str:
    """The data folder; raises UserError where the configuration names none."""
    if not cfg.DATA.PATH_TO_DATA_DIR:
        raise UserError("DATA.PATH_TO_DATA_DIR is empty; name the folder that holds train.csv and val.csv.")
    return cfg.DATA.PATH_TO_DATA_DIR
