"""Video files as samples: everything random about one follows from the run's seed and its key, nothing is carried."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mfm_core.data.files import FileDataset
from mfm_core.data.seeding import derive_seed, seeded
from mfm_core.interfaces import BadFile, MaskGenerator, Sample, SampleKey
from mfm_video.data.decode import Video, open_video
from mfm_video.data.lists import VideoList
from mfm_video.data.sampling import ClipSpec, clip_indices, even_start, random_start
from mfm_video.data.transforms import ClipTransform
from mfm_video.data.unreadable import UnreadableVideo

Opener = Callable[[str], Video]


class VideoDataset(FileDataset):
    """Training clips, and the one in the middle for evaluation: `dataset[SampleKey(epoch, index)]`.

    A sample has `clips` times `num_samples` views: several stretches of the video, each with several augmentations,
    in this order; all are decoded in one go. Their beginnings, crops, augmentations and masks are functions of (seed,
    epoch, index, replacement, repetition, clip or view), so that the number of loader workers never matters.

    What becomes of videos that cannot be used, `FileDataset` says.

    Args:
        listing: paths and labels.
        spec: what a clip is.
        transform: what is done with the frames.
        seed: of the run.
        clips: stretches of each video (`DATA.TRAIN_CROP_NUM_TEMPORAL`).
        num_samples: views of each stretch (`AUG.NUM_SAMPLE`).
        mask_generator: draws what corrupts a view; None where nothing is to be hidden.
        train: False gives the same clip in every epoch, the one in the middle.
        first_view: what is done with the frames of each stretch's first view instead (`AUG.RE_SPLIT`).
        opener: opens a path.
    """

    def __init__(
        self,
        listing: VideoList,
        spec: ClipSpec,
        transform: ClipTransform,
        seed: int = 0,
        clips: int = 1,
        num_samples: int = 1,
        mask_generator: MaskGenerator | None = None,
        train: bool = True,
        first_view: ClipTransform | None = None,
        opener: Opener = open_video,
    ) -> None:
        super().__init__(listing, seed, train)
        self.spec, self.transform = spec, transform
        self.clips, self.num_samples, self.mask_generator = clips, num_samples, mask_generator
        self.first_view, self.opener = first_view or transform, opener

    def _views(self, index: int, key: SampleKey) -> tuple[list[Tensor], list[Tensor]]:
        """Decodes the clips of video `index` and makes the views, and as many masks if any are made."""
        name = (self.seed, "sample", *key.stream)
        views, masks = [], []
        for number, clip in enumerate(self._decode(index, name)):
            for sample in range(self.num_samples):
                stream = (*name, number * self.num_samples + sample)
                transform = self.transform if sample else self.first_view
                crop = transform.plan(*clip.shape[2:], random.Random(derive_seed(*stream, "crop")))
                with seeded(derive_seed(*stream, "augment")):
                    views.append(transform.apply(clip, crop))
                if self.mask_generator is not None:
                    generator = torch.Generator().manual_seed(derive_seed(*stream, "mask"))
                    masks.append(self.mask_generator(generator, views[-1]))
        return views, masks

    def _decode(self, index: int, name: tuple[int | str, ...]) -> list[Tensor]:
        """The frames of each clip, (T, 3, h, w) uint8; the file is opened and read once."""
        draws = [random.Random(derive_seed(*name, "clip", clip)) for clip in range(self.clips)]

        def choose(video: Video) -> list[list[int]]:
            length = self.spec.length(video.fps)
            starts = (
                [random_start(video.frames, length, draw) for draw in draws]
                if self.train
                else [even_start(video.frames, length, 0, 1, use_offset=True)]
            )
            return [clip_indices(self.spec, start, video.frames, video.fps) for start in starts]

        return read_clips(self.listing, index, self.opener, choose, self.transform.short_side)


class MultiViewDataset(Dataset):
    """Test clips: item i is view `i % num_views` of video `i // num_views`, the same in every epoch.

    View v lies at place `v // len(transforms)` of `num_clips` in time, cropped by `transforms[v % len(transforms)]`.
    Items of one video follow each other; the frames last decoded are kept for the crops of the same clip.

    Args:
        listing: paths and labels.
        spec: what a clip is.
        transforms: one for each spatial crop.
        num_clips: places in time (`TEST.NUM_ENSEMBLE_VIEWS`).
        use_offset: how they are spread (`DATA.USE_OFFSET_SAMPLING`).
        opener: opens a path.
    """

    def __init__(
        self,
        listing: VideoList,
        spec: ClipSpec,
        transforms: Sequence[ClipTransform],
        num_clips: int,
        use_offset: bool,
        opener: Opener = open_video,
    ) -> None:
        self.listing, self.spec, self.transforms = listing, spec, tuple(transforms)
        self.num_clips, self.use_offset, self.opener = num_clips, use_offset, opener
        self.num_views = num_clips * len(self.transforms)
        self._kept: tuple[tuple[int, int], Tensor | UnreadableVideo] | None = None

    def __len__(self) -> int:
        return len(self.listing) * self.num_views

    def __getitem__(self, key: SampleKey) -> Sample:
        """A sample of one view; of none, and with the bad file, where the video cannot be used."""
        video, view = divmod(key.index, self.num_views)
        clip, crop = divmod(view, len(self.transforms))
        label = int(self.listing.labels[video])
        try:
            frames = self._frames(video, clip)
        except UnreadableVideo as error:
            return Sample(key.index, [], label, bad=[BadFile(error.path, error.reason)])
        transform = self.transforms[crop]
        plan = transform.plan(*frames.shape[2:], random.Random(0))
        return Sample(key.index, [transform.apply(frames, plan)], label)

    def _frames(self, video: int, clip: int) -> Tensor:
        """(T, 3, h, w) uint8, perhaps kept from the call before."""
        if self._kept is None or self._kept[0] != (video, clip):
            self._kept = None
            choose = partial(self._choose, clip=clip)
            self._kept = (video, clip), read_clips(self.listing, video, self.opener, choose)[0]
        return self._kept[1]

    def _choose(self, video: Video, clip: int) -> list[list[int]]:
        start = even_start(video.frames, self.spec.length(video.fps), clip, self.num_clips, self.use_offset)
        return [clip_indices(self.spec, start, video.frames, video.fps)]


def read_clips(
    listing: VideoList,
    index: int,
    opener: Opener,
    choose: Callable[[Video], list[list[int]]],
    short_side: int = 0,
) -> list[Tensor]:
    """The clips of a video that `choose` names by their frames, each (T, 3, h, w) uint8; every frame is decoded once.

    Raises:
        UnreadableVideo: where the video cannot be used, with its line in the list.
    """
    path = listing.paths[index]
    if index in listing.problems:
        raise UnreadableVideo(path, listing.problems[index] + listing.where(index))
    try:
        with opener(path) as video:
            clips = choose(video)
            needed = sorted({frame for clip in clips for frame in clip})
            frames = video.read(needed, short_side)
    except UnreadableVideo as error:
        raise UnreadableVideo(error.path, error.reason + listing.where(index)) from error
    place = {frame: i for i, frame in enumerate(needed)}
    return [_pick(frames, [place[frame] for frame in clip]) for clip in clips]


def _pick(frames: Tensor, places: list[int]) -> Tensor:
    """frames[places], without a copy where they are all of them in order; stays stored channels-last."""
    if places == list(range(len(frames))):
        return frames
    return frames.permute(0, 2, 3, 1)[torch.tensor(places)].permute(0, 3, 1, 2)
