"""Clips per second and core: frames of 16x4 clips read by us, and by others.

Others are PyAV that decodes the whole file, pytorchvideo's reader that does so, PyAV that seeks, a bare decord, and a
decoder that does nothing but decode the pictures that a clip depends on, which no exact reader can beat. Then whole
training samples beside seeking with PySlowFast's transforms.

All decode on one thread and take the same clips, spread over each video; the times are processor times.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from benchmark_timing import Row, threads_of
from torch import Tensor
from torch.nn.functional import interpolate

from mfm_core.data.seeding import seeded
from mfm_core.errors import UserError
from mfm_video.data.decode import open_video
from mfm_video.data.lists import VIDEOS
from mfm_video.data.read_av import AvVideo
from mfm_video.data.read_decord import import_decord
from mfm_video.data.sampling import ClipSpec, clip_indices
from mfm_video.data.transforms import TrainClipTransform

SPEC = ClipSpec(num_frames=16, sampling_rate=4)
CLIPS = 5
"""Taken of each video."""
SIZE, MEAN, STD, SCALE, RATIO = 224, (0.45,) * 3, (0.225,) * 3, (0.5, 1.0), (0.75, 1.3333)


def benchmark_decode(args: argparse.Namespace) -> Iterator[Row]:
    """Rows for each video of `--videos`, or of one that is made here. Raises UserError where that is no folder."""
    if args.videos and not Path(args.videos).is_dir():
        raise UserError(f"--videos: there is no folder {args.videos}.")
    with tempfile.TemporaryDirectory() as folder, threads_of(1):
        paths = sorted(p for p in Path(args.videos).iterdir() if p.suffix.lower() in VIDEOS) if args.videos else []
        for path in paths or [make_video(Path(folder) / "made.mp4", args.frames)]:
            yield from rows(str(path), args.repeats)


def rows(path: str, repeats: int) -> Iterator[Row]:
    """The rows of one video."""
    with open_video(path) as video:
        frames, fps = video.frames, video.fps
    slack = max(0.0, frames - SPEC.length(fps))
    clips = [clip_indices(SPEC, slack * i / (CLIPS - 1), frames, fps) for i in range(CLIPS)]
    name = f"{Path(path).name}, {frames} frames"
    sides = {
        "the whole file": read_whole,
        "pytorchvideo": read_by_pytorchvideo,
        "seeking": read_seeking,
        "bare decord": read_by_decord,
        "decoding alone": decode_alone,
    }
    same = all(np.array_equal(read_whole(path, clip), read_ours(path, clip)) for clip in clips)
    readers = {**sides, "ours": read_ours}
    times = seconds_per_clip({side: _over(clips, path, read) for side, read in readers.items()}, repeats)
    speeds = f"{1 / times['ours']:.1f} clips/s per core; frames {'equal' if same else 'NOT EQUAL'}"
    for side in sides:
        yield Row("decode", f"{name}, beside {side}", 1, times[side], times["ours"], speeds)
    both = {"seek": _over(clips, path, sample_plainly), "ours": _over(clips, path, sample_ours)}
    times = seconds_per_clip(both, repeats)
    speeds = f"{1 / times['ours']:.1f} clips/s per core"
    yield Row("decode", f"{name}, with transforms", 1, times["seek"], times["ours"], speeds)


def read_whole(path: str, clip: Sequence[int]) -> np.ndarray:
    """(T, H, W, 3): decodes and converts every frame, then takes those of the clip."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    return np.stack(frames)[list(clip)]


def read_seeking(path: str, clip: Sequence[int]) -> np.ndarray:
    """(T, H, W, 3): seeks to the key frame before the clip, decodes to its end, converts the frames that it needs.

    Which time stamps these have is listed first, as ours does; without time stamps (AVI) it counts from the beginning.
    """
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        times = sorted(packet.pts for packet in container.demux(stream) if packet.size)
        counts = "avi" in container.format.name
        wanted = set(clip) if counts else {times[index] for index in clip}
        container.seek(times[0 if counts else clip[0]], stream=stream)
        found: dict[int, np.ndarray] = {}
        for number, frame in enumerate(container.decode(stream)):
            key = number if counts else frame.pts
            if key in wanted:
                found[key] = frame.to_ndarray(format="rgb24")
            if len(found) == len(wanted):
                break
    return np.stack([found[index if counts else times[index]] for index in clip])


def read_by_pytorchvideo(path: str, clip: Sequence[int]) -> Tensor:
    """(3, frames, H, W) float32: its reader decodes the whole file with PyAV and hands out floats."""
    from pytorchvideo.data.encoded_video import EncodedVideo

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        video = EncodedVideo.from_path(path, decode_audio=False)
        frames = video.get_clip(0, video.duration)["video"]
        video.close()
    return frames


def read_by_decord(path: str, clip: Sequence[int]) -> np.ndarray:
    """(T, H, W, 3): what decord holds for these frames; it is not asked whether they are (`read_decord.py`)."""
    return import_decord().VideoReader(path, num_threads=1).get_batch(list(clip)).asnumpy()


def decode_alone(path: str, clip: Sequence[int]) -> int:
    """Decodes what the clip depends on and converts nothing; how many frames of the clip came of it."""
    with AvVideo(path) as video:
        return sum(1 for _ in video.decode(sorted(set(clip))))


def read_ours(path: str, clip: Sequence[int]) -> np.ndarray:
    """(T, H, W, 3) by our reader."""
    return _read(path, clip).permute(0, 2, 3, 1).numpy()


def _read(path: str, clip: Sequence[int], short_side: int = 0) -> Tensor:
    with open_video(path) as video:
        return video.read(clip, short_side)


def sample_plainly(path: str, clip: Sequence[int]) -> Tensor:
    """Seeking, then PySlowFast's pre-training transforms: whole frames in floating point, normalised, then cropped."""
    frames = torch.from_numpy(read_seeking(path, clip)).float() / 255
    frames = ((frames - torch.tensor(MEAN)) / torch.tensor(STD)).permute(3, 0, 1, 2)
    crop = TrainClipTransform(SIZE, MEAN, STD, scale=SCALE, ratio=RATIO).plan(*frames.shape[2:], random.Random(clip[0]))
    box = frames[:, :, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    clip = interpolate(box, size=(SIZE, SIZE), mode="bilinear")
    return clip.flip(-1) if crop.flip else clip


def sample_ours(path: str, clip: Sequence[int]) -> Tensor:
    """Our reader, frames reduced to a short side of 320 where they are larger, and our pre-training transforms."""
    transform = TrainClipTransform(SIZE, MEAN, STD, scale=SCALE, ratio=RATIO, short_side=320)
    frames = _read(path, clip, transform.short_side)
    with seeded(0):
        return transform.apply(frames, transform.plan(*frames.shape[2:], random.Random(clip[0])))


def _over(clips: Sequence[Sequence[int]], path: str, read: Callable) -> Callable[[], None]:
    def run() -> None:
        for clip in clips:
            read(path, clip)

    return run


def seconds_per_clip(sides: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Processor time of this process for a clip: medians of `repeats` rounds over all clips, the sides in turns."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, run in sides.items():
            start = time.process_time()
            run()
            if turn:
                times[name].append((time.process_time() - start) / CLIPS)
    return {name: statistics.median(values) for name, values in times.items()}


def make_video(path: Path, count: int, width: int = 340, height: int = 256, fps: int = 30) -> Path:
    """An H.264 video of `count` frames: a smooth texture that moves over another, with grain."""
    rng = np.random.default_rng(0)
    shape = (1, 3, height // 16, width // 16)
    ground, figure = (
        interpolate(torch.from_numpy(rng.uniform(0, 255, shape)), size=(height, width), mode="bicubic")
        .clamp(0, 255)[0]
        .permute(1, 2, 0)
        .numpy()
        for _ in range(2)
    )
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        for i in range(count):
            picture = np.roll(ground, 2 * i, axis=1)
            picture[60:180, 80:220] = np.roll(figure, 3 * i, axis=0)[60:180, 80:220]
            grain = rng.normal(0, 3, (height, width, 1))
            frame = av.VideoFrame.from_ndarray((picture + grain).clip(0, 255).astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
