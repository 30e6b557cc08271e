"""Reading videos: the frames that were asked for, from every kind of file; what cannot be read says why, at once."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from importlib.util import find_spec

import av
import numpy as np
import pytest
import torch
from clips import (
    claim_duration,
    claim_frames,
    damage,
    enlarge_frame,
    numbered,
    numbers,
    rotate,
    truncate,
    write_clip,
    write_frames,
    write_sound,
)
from PIL import Image

from mfm_core.errors import UserError
from mfm_video.data.decode import open_video
from mfm_video.data.read_av import AvVideo
from mfm_video.data.unreadable import UnreadableVideo, readable

BACKENDS = ["pyav", pytest.param("decord", marks=pytest.mark.skipif(not find_spec("decord"), reason="no decord"))]
UNEVEN = [10 * i + 25 * (i // 7) for i in range(48)]
OPEN_GROUPS = "open-gop=1:bframes=3:b-pyramid=normal:keyint=12:scenecut=0"
"""Without scenecut=0, x264 closes its groups where the numbers jump."""
FILES = {
    "b_frames.mp4": {},
    "b_frames.mkv": {},
    "no_b_frames.mp4": {"b_frames": 0},
    "open_gop.mp4": {"codec_options": {"x264-params": OPEN_GROUPS}},
    "open_gop.mkv": {"codec_options": {"x264-params": OPEN_GROUPS}},
    "late_start.mp4": {"start": 500},
    "late_start.mkv": {"start": 500},
    "uneven.mp4": {"times": UNEVEN},
    "uneven.mkv": {"times": UNEVEN},
    "stream.ts": {"fps": 25},
    "b_frames.avi": {"codec": "mpeg4", "fps": 25},
    "plain.avi": {"codec": "mpeg4", "b_frames": 0},
    "hevc.mp4": {"codec": "libx265", "codec_options": {"x265-params": "log-level=none"}},
    "vp8.webm": {"codec": "libvpx", "codec_options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    "vp9.webm": {"codec": "libvpx-vp9"},
}
SOME = [37, 5, 20, 21, 5, 47, 0, 40]


def encoder(name: str) -> bool:
    return name in av.codecs_available


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", FILES)
def test_frames_are_those_asked_for(name, backend, tmp_path):
    """In any order and repeated, across key frames, with B-frames, late starts, uneven times, open groups."""
    if not encoder(FILES[name].get("codec", "libx264")):
        pytest.skip("PyAV has no such encoder")
    with open_video(str(write_clip(tmp_path / name, **FILES[name])), backend) as video:
        assert video.frames == 48
        assert numbers(video.read(SOME)) == SOME
        assert numbers(video.read([3])) == [3]
        assert numbers(video.read(range(48))) == list(range(48))
        assert numbers(video.read(range(0, 48, 3))) == list(range(0, 48, 3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_frames_that_an_edit_list_hides_do_not_count(backend, tmp_path):
    """They start before time 0, and later frames depend on them."""
    options = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    path = write_clip(tmp_path / "cut.mp4", 60, start=-95, options=options)
    with av.open(str(path)) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(shown) < 60
    with open_video(str(path), backend) as video:
        assert video.frames == len(shown)
        places = [len(shown) - 1, 0, 20, 21]
        assert torch.equal(video.read(places), torch.from_numpy(np.stack(shown)[places]).permute(0, 3, 1, 2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_pixels_are_ffmpegs(backend, tmp_path):
    """Leaving out pictures on the way changes nothing in those that are kept."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (60, 8, 12, 3), np.uint8)
    moving = [np.roll(np.kron(noise[i // 4], np.ones((8, 8, 1), np.uint8)), 2 * i, axis=1) for i in range(60)]
    path = write_clip(tmp_path / "a.mp4", moving, gop=30, b_frames=3)
    with av.open(str(path)) as container:
        all_frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with open_video(str(path), backend) as video:
        places = list(range(5, 60, 4))
        read = video.read(places)
    assert torch.equal(read, torch.from_numpy(all_frames[places]).permute(0, 3, 1, 2))
    assert read.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["a:b.mp4", "file:c.mp4", "-d.mp4"])
def test_names_that_look_like_protocols(name, backend, tmp_path, monkeypatch):
    write_clip(tmp_path / "a.mp4").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    with open_video(name, backend) as video:
        assert numbers(video.read(SOME)) == SOME


def test_frame_rates(tmp_path):
    """Of the file, unless it says something else than its time stamps."""
    rates = {}
    for name, options in {"a.mp4": {}, "b.ts": {"fps": 25}, "c.avi": {"codec": "mpeg4", "fps": 25}}.items():
        with open_video(str(write_clip(tmp_path / name, **options))) as video:
            rates[name] = video.fps
    assert rates == pytest.approx({"a.mp4": 24, "b.ts": 25, "c.avi": 25})
    with open_video(str(write_clip(tmp_path / "d.mp4", times=UNEVEN))) as video:
        assert video.fps == pytest.approx(48 / (UNEVEN[-1] + 10) * 240, rel=0.02)


@pytest.mark.parametrize("name", ["open_gop.mp4", "open_gop.mkv", "b_frames.mp4", "no_b_frames.mp4", "late_start.mkv"])
def test_open_groups_of_pictures_are_known(name, tmp_path):
    """Else a test that takes the encoder's word for them would test nothing."""
    with AvVideo(str(write_clip(tmp_path / name, **FILES[name]))) as video:
        assert video._index.closed is video.plain is not name.startswith("open")


def test_far_apart_frames_are_reached_from_key_frames_near_them(tmp_path):
    path = write_clip(tmp_path / "long.mp4", 250, gop=25)
    with AvVideo(str(path)) as video:
        assert list(video._index.runs([3, 5, 30, 120, 121, 249])) == [[3, 5], [30], [120, 121], [249]]
        assert numbers(video.read([249, 3, 120, 121, 30, 5])) == [249, 3, 120, 121, 30, 5]


def test_a_seek_that_goes_too_far_is_noticed(tmp_path):
    """Some containers' seeks land behind the time asked for."""
    with AvVideo(str(write_clip(tmp_path / "a.mp4", 100))) as video:

        class Overshooting:
            def __init__(self, container, stream):
                self.container, self.stream = container, stream

            def seek(self, time, stream):
                self.container.seek(video._index.times[80], stream=stream)

            def __getattr__(self, name):
                return getattr(self.container, name)

        video._container = Overshooting(video._container, video._stream)
        assert numbers(video.read([13, 14])) == [13, 14]


@pytest.mark.parametrize("backend", BACKENDS)
def test_larger_videos_are_reduced_and_smaller_ones_stay(backend, tmp_path):
    path = str(write_clip(tmp_path / "a.mp4", [numbered(i, 256, 128) for i in range(20)]))
    with open_video(path, backend) as video:
        assert video.read([1, 7], 64).shape == (2, 3, 64, 128)
        assert numbers(video.read([1, 7], 64)) == [1, 7]
        assert video.read([1, 7], 500).shape == video.read([1, 7]).shape == (2, 3, 128, 256)
        assert video.read([1], 30).shape == (1, 3, 30, 60)


@pytest.mark.parametrize("short_side", [0, 32])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rotation_of_the_header_is_applied(backend, short_side, tmp_path):
    frame = np.zeros((64, 96, 3), np.uint8)
    frame[:32, :48] = 255
    path = rotate(write_clip(tmp_path / "a.mp4", [frame] * 10), tmp_path / "b.mp4")
    with open_video(str(path), backend) as video:
        turned = video.read([2, 4], short_side)
    height, width = turned.shape[2:]
    assert (height, width) == ((48, 32) if short_side else (96, 64))
    corners = turned[:, 0, [3, 3, -4, -4], [3, -4, 3, -4]]
    assert (corners > 127).tolist() == [[False, True, False, False]] * 2  # its upper left lies at the upper right


@pytest.mark.parametrize("backend", BACKENDS)
def test_odd_sizes(backend, tmp_path):
    frames = [numbered(i, 67, 51) for i in range(20)]
    path = write_clip(tmp_path / "a.mp4", frames, pix_fmt="yuv444p", codec_options={"profile": "high444"})
    with open_video(str(path), backend) as video:
        assert video.read([3, 9]).shape == (2, 3, 51, 67)
        assert numbers(video.read([3, 9, 19])) == [3, 9, 19]
        assert video.read([3], 33).shape == (1, 3, 33, 43)


def test_a_folder_of_images_in_the_order_of_its_numbers(tmp_path):
    path = write_frames(tmp_path / "clip", 25)
    (path / "notes.txt").write_text("no frame")
    with open_video(str(path), folder_fps=12) as video:
        assert (video.frames, video.fps) == (25, 12)
        assert numbers(video.read([24, 3, 3, 10, 2])) == [24, 3, 3, 10, 2]
        assert video.read([1], 24).shape == (1, 3, 24, 32)


@pytest.mark.parametrize("short_side", [0, 24])
def test_frames_of_16_bits_are_scaled(short_side, tmp_path):
    """Not cut off at 255; what has no fixed range is refused."""
    ramp = np.linspace(0, 65535, 48 * 64).reshape(48, 64)
    for i in range(3):
        Image.fromarray((ramp / 2**i).astype(np.uint16)).save(tmp_path / f"{i}.png")
    with open_video(str(tmp_path)) as video:
        frames = video.read([0, 2], short_side).float()
    assert frames.shape[2:] == ((24, 32) if short_side else (48, 64))
    means = [ramp.mean() / 257, ramp.mean() / 257 / 4]
    assert frames.mean((1, 2, 3)).tolist() == pytest.approx(means, abs=0.5)
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "3.tiff")
    with pytest.raises(UnreadableVideo, match="3.tiff cannot be read: floating-point"), open_video(str(tmp_path)) as v:
        v.read([3])


def test_decoders_agree(tmp_path):
    """PyAV, decord and the images themselves, to what the codec loses."""
    frames = [numbered(i) for i in range(30)]
    path = write_clip(tmp_path / "a.mp4", frames, codec_options={"crf": "1"})
    with open_video(str(path)) as video, open_video(str(write_frames(tmp_path / "f", 30))) as folder:
        one, two = video.read([4, 17]), folder.read([4, 17])
    assert (one.int() - two.int()).abs().float().mean() < 8
    if find_spec("decord"):
        with open_video(str(path), "decord") as video:
            assert torch.equal(video.read([4, 17]), one)


@pytest.fixture(scope="module")
def bad_videos(tmp_path_factory):
    """What is wrong with a path -> the path."""
    folder = tmp_path_factory.mktemp("bad")
    whole = write_clip(folder / "whole.mp4", 240)
    streamed = write_clip(folder / "streamed.mp4", 240, options={"movflags": "+faststart"})
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("hello\n" * 100)
    (folder / "no_images").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    half = write_frames(folder / "half", 5)
    truncate(half / "img_3.png", half / "img_3.png", 0.5)
    return {
        "no such file": folder / "absent.mp4",
        "empty": folder / "empty.mp4",
        "no video, or a damaged one": folder / "text.mp4",
        "damaged one": truncate(whole, folder / "headless.mp4", 0.6),
        "truncated: 4": truncate(streamed, folder / "truncated.mp4", 0.66),
        "at most sound": write_sound(folder / "sound.mp4"),
        "damaged: ": damage(streamed, folder / "damaged.mp4"),
        "Cannot allocate": enlarge_frame(whole, folder / "huge_frame.mp4", 20, 0x30000000),
        "no image": folder / "no_images",
        "there is no such": folder / "pipe.mp4",
        "img_3.png": half,
    }


REASONS = ("no such file", "empty", "no video, or a damaged one", "damaged one", "truncated: 4", "at most sound",
           "damaged: ", "Cannot allocate", "no image", "there is no such", "img_3.png")  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reason", REASONS)
def test_bad_videos_say_why_in_one_line(reason, backend, bad_videos):
    path = str(bad_videos[reason])
    with pytest.raises(UnreadableVideo, match=reason) as caught, open_video(path, backend) as video:
        video.read(range(video.frames))
    assert caught.value.path == path and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_headers_that_claim_more_frames_than_there_are(backend, name, tmp_path):
    """decord takes memory for as many, or ends the process: it is asked in another one."""
    whole, file = write_clip(tmp_path / name), tmp_path / f"claims_{name}"
    claim_frames(whole, file, 0x7FFFFFFF) if name == "a.mp4" else claim_duration(whole, file, 1e14)
    code = f"""
from mfm_video.data.decode import open_video
with open_video({str(file)!r}, {backend!r}) as video:
    print(video.frames, tuple(video.read([3, 30]).shape))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "48 (2, 3, 48, 64)\n", done.stderr


def test_errors_that_are_not_the_files_pass(tmp_path):
    """Another file would fare no better: where this process has no memory, or no more files may be open."""
    for error in (MemoryError(), OSError(errno.EMFILE, "Too many open files")):
        with pytest.raises(type(error)) as caught, readable("a.mp4", "damaged"):
            raise error
        assert caught.value is error


def test_nothing_stays_open(bad_videos, tmp_path):
    """Neither after reading nor after failing: a worker reads for days."""
    good = write_clip(tmp_path / "a.mp4", 30)
    avi = write_clip(tmp_path / "a.avi", 30, codec="mpeg4")

    def read(path):
        try:
            with open_video(str(path)) as video:
                video.read([0, 29])
        except (UnreadableVideo, IndexError):
            pass

    def pass_over():
        for path in (good, avi, *bad_videos.values()):
            read(path)
        return len(os.listdir("/proc/self/fd")), _memory()

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc")
    for _ in range(3):
        files, memory = pass_over()
    for _ in range(30):
        later = pass_over()
    assert later[0] <= files
    assert later[1] < memory + 20e6


def _memory() -> int:
    """Bytes of memory that this process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_needs_neither_decord_nor_images(tmp_path):
    """The package works where decord has no wheel; who asks for decord there is told."""
    path = write_clip(tmp_path / "a.mp4", 20)
    code = f"""
import sys
sys.modules.update(dict.fromkeys(("decord", "mfm_image")))
import mfm_video.data.build
from mfm_core.errors import UserError
from mfm_video.data.decode import open_video
with open_video({str(path)!r}) as video:
    assert video.read([3]).shape[0] == 1
try:
    open_video({str(path)!r}, "decord")
except UserError as error:
    assert "pyav" in str(error)
else:
    raise SystemExit("no error")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert issubclass(UserError, Exception)
