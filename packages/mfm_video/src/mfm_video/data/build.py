"""Builds lists, transforms and data sets from the configuration."""

from __future__ import annotations

from functools import partial

from fvcore.common.config import CfgNode

from mfm_core.config import task_of
from mfm_core.data.loader import Loader, build_loader
from mfm_core.data.sampler import EvalSampler
from mfm_core.errors import UserError
from mfm_core.interfaces import MaskGenerator
from mfm_core.parallel.world import World
from mfm_video.data.dataset import MultiViewDataset, Opener, VideoDataset
from mfm_video.data.decode import open_video
from mfm_video.data.lists import VideoList, list_videos
from mfm_video.data.read_decord import import_decord
from mfm_video.data.sampling import ClipSpec
from mfm_video.data.transforms import TrainClipTransform, ViewTransform

EVAL_SEED = 0
"""Which videos and masks look after a run does not depend on its seed, so that runs can be compared."""
EVAL_WORKERS = 4
"""At most; they stay alive beside those of training."""


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


def videos_of(cfg: CfgNode, split: str) -> VideoList:
    """The list of a split. Class folders are numbered as those of the training split."""
    num_classes = 0 if task_of(cfg) == "pretrain" else cfg.MODEL.NUM_CLASSES
    listing = partial(
        list_videos,
        data_root(cfg),
        num_classes=num_classes,
        separator=cfg.DATA.PATH_LABEL_SEPARATOR,
        prefix=cfg.DATA.PATH_PREFIX,
    )
    videos = listing(split)
    if split != "train" and videos.classes:
        videos = listing(split, classes=listing("train").classes)
    if num_classes and len(videos.classes) > num_classes:
        raise UserError(
            f"MODEL.NUM_CLASSES is {num_classes}, but {videos.source} has {len(videos.classes)} class folders; set "
            f"MODEL.NUM_CLASSES {len(videos.classes)}."
        )
    return videos


def train_dataset(cfg: CfgNode, mask_generator: MaskGenerator | None = None, fraction: float = 1.0) -> VideoDataset:
    """The augmented training clips; `fraction` of the labels of each class."""
    videos = videos_of(cfg, "train")
    return VideoDataset(
        videos.subset(fraction, cfg.RNG_SEED) if fraction < 1 else videos,
        clip_spec(cfg),
        train_transform(cfg),
        cfg.RNG_SEED,
        clips=cfg.DATA.TRAIN_CROP_NUM_TEMPORAL,
        num_samples=cfg.AUG.NUM_SAMPLE,
        mask_generator=mask_generator,
        first_view=train_transform(cfg, erase=False) if cfg.AUG.RE_SPLIT and cfg.AUG.NUM_SAMPLE > 1 else None,
        opener=opener(cfg),
    )


def eval_dataset(
    cfg: CfgNode, split: str = "val", videos: int = 0, mask_generator: MaskGenerator | None = None
) -> VideoDataset:
    """The clip in the middle of each video of `split`, its middle cropped, without augmentation.

    Args:
        cfg: the configuration.
        split: train, val or test.
        videos: about how many of them, at least one of each class; 0 for all.
        mask_generator: draws what hides a part of each clip, the same in every run.
    """
    chosen = videos_of(cfg, split)
    if 0 < videos < len(chosen):
        chosen = chosen.subset(videos / len(chosen), EVAL_SEED)
    return VideoDataset(
        chosen,
        clip_spec(cfg),
        view_transforms(cfg, crops=1)[0],
        EVAL_SEED,
        mask_generator=mask_generator,
        train=False,
        opener=opener(cfg),
    )


def test_dataset(cfg: CfgNode, num_clips: int = 0, split: str = "test") -> MultiViewDataset:
    """All views of all test videos; `num_clips` of them in time, TEST.NUM_ENSEMBLE_VIEWS where that is 0."""
    return MultiViewDataset(
        videos_of(cfg, split),
        clip_spec(cfg),
        view_transforms(cfg, cfg.TEST.NUM_SPATIAL_CROPS),
        num_clips or cfg.TEST.NUM_ENSEMBLE_VIEWS,
        cfg.DATA.USE_OFFSET_SAMPLING,
        opener=opener(cfg),
    )


def eval_loader(cfg: CfgNode, dataset: VideoDataset | MultiViewDataset, world: World) -> Loader:
    """This process's share of `dataset`, each item once over all; TEST.BATCH_SIZE items per machine at a time."""
    batch_size = max(1, cfg.TEST.BATCH_SIZE * world.num_shards // world.size)
    sampler = EvalSampler(len(dataset), batch_size, world.rank, world.size)
    pin_memory = cfg.DATA_LOADER.PIN_MEMORY and world.device.type == "cuda"
    return build_loader(dataset, sampler, min(cfg.DATA_LOADER.NUM_WORKERS, EVAL_WORKERS), pin_memory)


def data_root(cfg: CfgNode) -> str:
    """The data folder; raises UserError where the configuration names none."""
    if not cfg.DATA.PATH_TO_DATA_DIR:
        raise UserError("DATA.PATH_TO_DATA_DIR is empty; name the folder that holds train.csv and val.csv.")
    return cfg.DATA.PATH_TO_DATA_DIR
