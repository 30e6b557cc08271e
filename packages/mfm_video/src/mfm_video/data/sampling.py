"""Which frames make a clip: PySlowFast's temporal sampling (`slowfast/datasets/decoder.py`), as functions of numbers.

A clip of `num_frames` frames, `sampling_rate` apart at `target_fps`, covers a stretch of the video whose length in
frames depends on the video's own rate. Training places it at random; tests place several of them evenly.

pytorchvideo's clip samplers place clips in seconds and by other rules (their last clip ends with the video), and its
data sets carry their random state from item to item; published accuracies, and resuming, need these rules.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch

CLOCK = 90_000
"""Ticks per second of the time stamps by which PySlowFast's readers cut a clip out of a video."""


@dataclass(frozen=True)
class ClipSpec:
    """What a clip is.

    num_frames: frames in it (`DATA.NUM_FRAMES`). sampling_rate: how many frames they lie apart at `target_fps`
    (`DATA.SAMPLING_RATE`, `DATA.TARGET_FPS`).
    """

    num_frames: int
    sampling_rate: int
    target_fps: float = 30.0

    def length(self, fps: float) -> float:
        """Frames that the clip covers in a video of that rate, not rounded."""
        return max(1.0, self.num_frames * self.sampling_rate / self.target_fps * fps)


def random_start(frames: float, length: float, rng: random.Random) -> float:
    """Where a clip begins in training: anywhere from which it fits, else at the beginning."""
    return rng.uniform(0, max(frames - length, 0))


def even_start(frames: float, length: float, clip: int, num_clips: int, use_offset: bool) -> float:
    """Where clip number `clip` of `num_clips` begins.

    Without `use_offset` (`DATA.USE_OFFSET_SAMPLING`), the room for beginnings is cut into `num_clips` parts and a clip
    begins with each, so that the last one does not reach the end of the video. With it, the last one does (but for
    rounding), and a single clip lies in the middle.
    """
    slack = max(frames - length, 0)
    if not use_offset:
        return slack * clip / num_clips
    return math.floor(slack / 2) if num_clips == 1 else clip * math.floor(slack / (num_clips - 1))


def whole_indices(start: float, length: float, num_frames: int, frames: int) -> list[int]:
    """Frames of a clip by its place in the whole video; beyond the end, the last frame is repeated."""
    return _spread(start, start + length - 1, num_frames, frames)


def cut_indices(start: float, length: float, num_frames: int, frames: int, fps: float) -> list[int]:
    """Frames of a clip as PySlowFast's readers find them, which first cut it out of the video by time.

    The piece has the frames shown from `start` to the end of the clip, both in whole ticks; the clip is spread over
    its own length from the first of these on, and what it lacks at the end is its last frame, repeated.
    """
    ticks = CLOCK / fps
    begin, end = int(start * ticks), int((start + length - 1) * ticks)
    first = _first_from(begin, ticks)
    last = min(_first_from(end + 1, ticks), frames) - 1
    return [first + i for i in _spread(0, length - 1, num_frames, max(1, last - first + 1))]


def clip_indices(spec: ClipSpec, start: float, frames: int, fps: float) -> list[int]:
    """Frames of a clip that begins at `start`, rising, each in [0, frames).

    By time where the video has more frames than `num_frames` * `sampling_rate`, as PySlowFast decides it (whatever
    the video's rate), else by place.
    """
    length = spec.length(fps)
    if frames > spec.num_frames * spec.sampling_rate:
        return [min(i, frames - 1) for i in cut_indices(start, length, spec.num_frames, frames, fps)]
    return whole_indices(start, length, spec.num_frames, frames)


def _first_from(tick: int, ticks: float) -> int:
    """The first frame that is shown at `tick` or later, where frame i is shown at round(i * ticks)."""
    frame = max(0, math.floor(tick / ticks) - 1)
    while round(frame * ticks) < tick:
        frame += 1
    return frame


def _spread(start: float, end: float, count: int, frames: int) -> list[int]:
    """`count` places from `start` to `end`, rounded down and clamped to [0, frames); in float32, as PySlowFast."""
    return torch.linspace(start, end, count).clamp(0, frames - 1).long().tolist()
