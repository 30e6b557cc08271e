"""Tiny videos whose frames show their own number: eight bars across, one for each bit, white where it is set."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image
from torch import Tensor

BITS = 8


def numbered(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """(height, width, 3) uint8: the frame that shows `number`, modulo 256."""
    frame = np.zeros((height, width, 3), np.uint8)
    for bit in range(BITS):
        frame[:, bit * width // BITS : (bit + 1) * width // BITS] = 255 * (number >> bit & 1)
    return frame


def numbers(frames: Tensor) -> list[int]:
    """What (n, 3, h, w) frames show."""
    height, width = frames.shape[2:]
    centres = [(2 * bit + 1) * width // (2 * BITS) for bit in range(BITS)]
    bars = frames[:, :, height // 2, centres].float().mean(1) > 127
    return [sum(int(on) << bit for bit, on in enumerate(row)) for row in bars.tolist()]


def write_clip(
    path: Path | str,
    frames: Sequence[np.ndarray] | int = 48,
    fps: int = 24,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    gop: int = 12,
    b_frames: int = 2,
    start: int = 0,
    times: Sequence[int] | None = None,
    codec_options: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Encodes frames, or so many numbered ones; `times` and `start` in tenths of a frame."""
    pictures = [numbered(i) for i in range(frames)] if isinstance(frames, int) else frames
    unit = Fraction(1, fps * 10)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=codec_options or {})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = unit
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, b_frames
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = start + (times[i] if times else 10 * i), unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return Path(path)


def moving(label: int, seed: int, width: int = 32, height: int = 32, frames: int = 16) -> list[np.ndarray]:
    """Frames in which a random pattern moves by two pixels each: to the right, downwards or to the left, by label."""
    cells = np.random.default_rng(seed).integers(0, 256, (10, 10, 3), np.uint8)
    pattern = np.asarray(Image.fromarray(cells).resize((64, 64), Image.Resampling.BICUBIC))
    x, y = ((2, 0), (0, 2), (-2, 0))[label]
    return [np.ascontiguousarray(np.roll(pattern, (y * t, x * t), (0, 1))[:height, :width]) for t in range(frames)]


def write_lists(root: Path, counts: dict[str, int], sizes: dict[str, tuple[int, int]] | None = None) -> Path:
    """<split>.csv and its clips in three classes, `counts[split]` of them, each `sizes[split]` (width, height)."""
    for number, (split, count) in enumerate(counts.items()):
        lines = []
        for i in range(count):
            size = (sizes or {}).get(split, (32, 32))
            write_clip(root / f"{split}_{i}.mp4", moving(i % 3, 1000 * number + i, *size))
            lines.append(f"{split}_{i}.mp4 {i % 3}\n")
        (root / f"{split}.csv").write_text("".join(lines))
    return root


def write_sound(path: Path | str) -> Path:
    """A second of silence, and no video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        for i in range(40):
            frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = 44100, 1024 * i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return Path(path)


def write_frames(folder: Path, count: int, name: str = "img_{}.png") -> Path:
    """A folder of numbered images, their names without leading zeros."""
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(numbered(i)).save(folder / name.format(i))
    return folder


def truncate(source: Path, path: Path, share: float) -> Path:
    """The first `share` of the bytes of `source`."""
    content = source.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def damage(source: Path, path: Path, seed: int = 0) -> Path:
    """`source` with a fifth of its picture data, in the middle, replaced by noise."""
    content = bytearray(source.read_bytes())
    begin = content.find(b"mdat") + 8
    rng, length = random.Random(seed), len(content) - begin
    for place in range(begin + 2 * length // 5, begin + 3 * length // 5):
        content[place] = rng.randrange(256)
    path.write_bytes(content)
    return path


def enlarge_frame(source: Path, path: Path, frame: int, size: int) -> Path:
    """`source`, an mp4, whose table of sizes says that packet number `frame` has `size` bytes."""
    content = bytearray(source.read_bytes())
    table = content.find(b"stsz") + 4 + 12
    content[table + 4 * frame : table + 4 * frame + 4] = struct.pack(">I", size)
    path.write_bytes(content)
    return path


def claim_frames(source: Path, path: Path, count: int) -> Path:
    """`source`, an mp4 with frames of one duration, whose table of times says that there are `count` of them."""
    content = bytearray(source.read_bytes())
    table = content.find(b"stts") + 4 + 8
    content[table : table + 4] = struct.pack(">I", count)
    path.write_bytes(content)
    return path


def claim_duration(source: Path, path: Path, milliseconds: float) -> Path:
    """`source`, an mkv, whose header says that it has this duration."""
    content = bytearray(source.read_bytes())
    place = content.find(bytes.fromhex("448988")) + 3  # EBML: the element Duration, of eight bytes
    content[place : place + 8] = struct.pack(">d", milliseconds)
    path.write_bytes(content)
    return path


def rotate(source: Path, path: Path) -> Path:
    """`source`, an mp4, with a header that asks to show it turned by 90 degrees clockwise."""
    content = bytearray(source.read_bytes())
    matrix = content.find(b"tkhd") + 4 + 40
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path
