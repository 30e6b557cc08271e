"""Which frames and which boxes: equal to PySlowFast's recorded ones."""

from __future__ import annotations

import json
import random

import pytest
from golden_cases import cases

from mfm_video.data.sampling import (
    ClipSpec,
    clip_indices,
    cut_indices,
    even_start,
    random_start,
    whole_indices,
)
from mfm_video.data.transforms import ViewTransform, uniform_crop

CASES = cases("pyslowfast/temporal_sampling")


def rows(folder, name):
    return json.loads((folder / "data.json").read_text())[name]


def test_there_are_cases():
    assert CASES


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
class TestGolden:
    def test_starts_and_ends(self, folder):
        for row in rows(folder, "start_end"):
            size, length = row["video_size"], row["clip_size"]
            slack = max(size - length, 0)
            for clip, (start, end, position) in enumerate(row["start_end_position"]):
                ours = even_start(size, length, clip, row["num_clips"], row["use_offset"])
                assert (ours, ours + length - 1) == pytest.approx((start, end), rel=1e-6, abs=1e-6), row
                assert (ours / slack if slack else 0.0) == pytest.approx(position, rel=1e-6, abs=1e-6), row

    @pytest.mark.parametrize("kind", ["full", "selective"])
    def test_frames(self, folder, kind):
        """Of a video that is decoded as a whole, and as PySlowFast's readers cut a clip out."""
        for row in rows(folder, f"frame_indices_{kind}_decode"):
            spec = ClipSpec(row["num_frames"], row["sampling_rate"], row["target_fps"])
            frames, fps = row["num_video_frames"], row["fps"]
            length = spec.length(fps)
            for clip, expected in enumerate(row["frames"]):
                start = even_start(frames, length, clip, row["num_clips"], row["use_offset"])
                assert start == pytest.approx(row["start"][clip], rel=1e-6, abs=1e-6), row
                assert start + length - 1 == pytest.approx(row["end"][clip], rel=1e-6, abs=1e-6), row
                if kind == "full":
                    assert whole_indices(start, length, spec.num_frames, frames) == expected, row
                else:
                    assert clip_indices(spec, start, frames, fps) == expected, row

    def test_boxes(self, folder):
        for row in rows(folder, "uniform_crop"):
            height, width = row["resized_to"] or (row["height"], row["width"])
            top, left = uniform_crop(height, width, row["crop"], row["spatial_idx"])
            assert [top, left, top + row["crop"], left + row["crop"]] == row["box_y0x0y1x1"], row

    def test_views(self, folder):
        for row in rows(folder, "test_spatial_sampling"):
            view = ViewTransform(row["crop"], (0.5,) * 3, (0.5,) * 3, row["short_side"], row["spatial_idx"])
            plan = view.plan(row["height"], row["width"])
            assert list(plan.frame) == (row["resized_to"] or [row["height"], row["width"]]), row
            box = [plan.top, plan.left, plan.top + plan.height, plan.left + plan.width]
            assert box == row["box_y0x0y1x1"], row


def test_the_rate_of_the_video_stretches_a_clip():
    """16 frames, 4 apart at 30 per second, are 2.1 seconds: 128 frames at 60 per second, 32 at 15."""
    spec = ClipSpec(16, 4, 30)
    assert [spec.length(fps) for fps in (30, 60, 15)] == [64, 128, 32]
    assert clip_indices(spec, 0, 1000, 60)[-1] == 127
    assert clip_indices(spec, 0, 1000, 15)[-1] == 31


def test_frames_of_a_short_video_repeat_the_last():
    assert clip_indices(ClipSpec(8, 4), 0.0, 10, 30.0) == [0, 4, 8, 9, 9, 9, 9, 9]
    assert clip_indices(ClipSpec(4, 4), 0.0, 1, 30.0) == [0, 0, 0, 0]


@pytest.mark.parametrize("fps", [6.0, 23.976, 30.0, 59.94])
def test_any_random_start_gives_frames_of_the_video(fps):
    spec, rng = ClipSpec(16, 4), random.Random(0)
    starts = []
    for frames in (1, 30, 64, 65, 100, 301):
        for _ in range(50):
            start = random_start(frames, spec.length(fps), rng)
            indices = clip_indices(spec, start, frames, fps)
            assert len(indices) == 16 and indices == sorted(indices)
            assert indices[0] >= 0 and indices[-1] < frames
            if frames == 301:
                starts.append(indices[0])
    assert min(starts) < 30 and max(starts) > 301 - spec.length(fps) - 30


def test_a_cut_begins_with_the_first_frame_shown_in_it():
    """At 30 frames per second a frame takes 3000 ticks: the clip from 10.5 on begins with frame 11."""
    assert cut_indices(10.5, 8, 8, 100, 30.0) == [11, 12, 13, 14, 15, 16, 17, 17]
    assert cut_indices(10.0, 8, 8, 100, 30.0) == list(range(10, 18))
