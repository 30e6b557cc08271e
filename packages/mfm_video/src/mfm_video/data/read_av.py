"""Reads single frames of a video file with PyAV (FFmpeg): exactly those asked for, and little beside them.

The packets are listed first, without decoding. Decoding then starts at the last key frame before a wanted frame; on
the way to the next one, pictures that no other depends on (most of an H.264 file's B-frames) are left out. A frame is
recognised by its time stamp, so that neither reordering nor an imprecise seek can give its neighbour.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from torch import Tensor

from mfm_core.data.crops import short_side_size
from mfm_video.data.packets import Packet, PacketIndex
from mfm_video.data.unreadable import UnreadableVideo, readable

SKIPPABLE = ("h264", "mpeg4")
"""Codecs whose pictures say, each, whether another depends on it."""
UNTIMED = ("avi",)
"""Containers without time stamps of frames; what PyAV gives in their place is a guess."""
MEASURED = ("mov", "mp4")
"""Containers whose header knows how long the video, and not the sound, is."""
LOST = 2
"""Packets of a file without time stamps that may hold no frame of their own (packed B-frames)."""


class AvVideo:
    """A video file; see `decode.Video`. Without time stamps it is decoded from its beginning, counting frames.

    Raises:
        UnreadableVideo: where PyAV cannot open it, it holds no video (but sound), or less than its header says.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        av.logging.set_level(av.logging.PANIC)
        self._open()
        try:
            self._list_packets()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        with readable(self.path, "this is no video, or a damaged one"):
            self._container = av.open(as_file(self.path), metadata_errors="replace")
        videos = [s for s in self._container.streams.video if not s.disposition & s.disposition.attached_pic]
        if not videos:
            self.close()
            raise UnreadableVideo(self.path, "there is no video in it, at most sound")
        self._stream = videos[0]
        self._codec = self._stream.codec_context
        if self._codec is None:
            self.close()
            raise UnreadableVideo(self.path, "PyAV has no decoder for it, or it is damaged")
        self._codec.thread_type, self._codec.thread_count = "NONE", 1
        self.codec, self.container = self._codec.name, self._container.format.name
        self.height, self.width = self._codec.height, self._codec.width

    def _list_packets(self) -> None:
        with readable(self.path, "damaged"):
            packets = [
                Packet(p.pts, p.dts, p.duration or 0, p.is_keyframe, not p.is_discard)
                for p in self._container.demux(self._stream)
                if p.size
            ]
        if not packets:
            raise UnreadableVideo(self.path, "there is no frame in it")
        try:
            self._index = None if self.container.startswith(UNTIMED) else PacketIndex(packets)
        except ValueError:
            self._index = None
        self._require_complete()
        self.frames = len(packets) if self._index is None else len(self._index)
        self.plain = self._index is not None and self.frames == len(packets) and self._index.closed
        self.fps = self._frame_rate()

    def _require_complete(self) -> None:
        if self._index is None or not self.container.startswith(MEASURED) or not self._stream.duration:
            return
        start, unit = self._stream.start_time or 0, float(self._stream.time_base)
        there, promised = self._index.end - start, self._stream.duration
        if there < 0.95 * promised:
            seconds = f"{there * unit:.1f} of {promised * unit:.1f} seconds"
            raise UnreadableVideo(self.path, f"truncated: {seconds} are there")

    @property
    def claimed(self) -> int:
        """How many frames the header tells of or, where it tells of none, its duration and rate make; 0 for neither."""
        seconds = (self._container.duration or 0) / av.time_base
        return self._stream.frames or int(seconds * float(self._stream.average_rate or 0))

    def _frame_rate(self) -> float:
        """What the file says where its time stamps (rounded, with gaps) agree to a tenth, else what they say."""
        if self._index is None or self.frames < 2:
            return float(self._stream.guessed_rate or self._stream.average_rate or 30)
        said = float(self._stream.average_rate or 0)
        span = (self._index.times[-1] - self._index.times[0]) * float(self._stream.time_base)
        measured = (self.frames - 1) / span
        return said if abs(said - measured) <= 0.1 * measured else measured

    def read(self, indices: Sequence[int], short_side: int = 0) -> Tensor:
        """See `decode.Video`."""
        wanted = sorted(set(indices))
        canvas = _Canvas(len(wanted), short_side)
        with readable(self.path, "damaged"):
            for frame in self.decode(wanted):
                canvas.add(frame)
        if canvas.filled < len(wanted):
            raise UnreadableVideo(self.path, f"damaged: frame {wanted[canvas.filled]} cannot be decoded")
        place = {index: i for i, index in enumerate(wanted)}
        return canvas.upright([place[index] for index in indices])

    def decode(self, wanted: Sequence[int]) -> Iterator[VideoFrame]:
        """The frames at the rising indices `wanted` as the decoder gives them, fewer where some are lost; raises what
        PyAV raises."""
        if self._index is None:
            yield from self._decode_counting(wanted)
        else:
            for run in self._index.runs(wanted):
                yield from self._decode_run(run)

    def _decode_run(self, run: list[int]) -> Iterator[VideoFrame]:
        """Decodes from the key frame before the first of `run` until its last.

        A packet may hold a picture that is never shown (VP8); the frame after it then stands for it.
        """
        targets = deque(self._index.times[index] for index in run)
        wanted, sparse, skips = set(targets), self.codec in SKIPPABLE, None
        for packet in self._packets_from(self._index.begin(run[0])):
            skip = sparse and packet is not None and packet.pts not in wanted
            if skip is not skips:  # telling the decoder takes longer than asking
                self._codec.skip_frame, skips = "NONREF" if skip else "DEFAULT", skip
            for frame in self._codec.decode(packet):
                while targets and frame.pts is not None and targets[0] <= frame.pts:
                    yield frame
                    targets.popleft()
            if not targets:
                return

    def _packets_from(self, first: int) -> Iterator[av.Packet | None]:
        """Packets from the `first` one on, then None, at which the decoder gives what it still holds."""
        start = self._index.packets[first]
        self._container.seek(start.pts if start.dts is None else start.dts, stream=self._stream)
        self._codec.flush_buffers()
        found = False
        for packet in self._container.demux(self._stream):
            found = found or packet.pts == start.pts
            if found and packet.size:
                yield packet
        if not found:  # the seek went too far
            self._restart()
            for place, packet in enumerate(self._container.demux(self._stream)):
                if place >= first and packet.size:
                    yield packet
        yield None

    def _decode_counting(self, wanted: Sequence[int]) -> Iterator[VideoFrame]:
        """Decodes from the beginning; frames are known by their number."""
        self._restart()
        left, number, last = deque(wanted), 0, None
        for frame in self._container.decode(self._stream):
            if number == left[0]:
                yield frame
                left.popleft()
                if not left:
                    return
            number, last = number + 1, frame
        for _ in left:
            if last is not None and number + LOST >= self.frames:
                yield last

    def rotation(self) -> int:
        """By how many degrees the frames, as stored, have to be turned counter-clockwise; decodes the first one."""
        self._restart()
        with readable(self.path, "damaged"):
            return next((frame.rotation for frame in self._container.decode(self._stream)), 0)

    def _restart(self) -> None:
        self.close()
        self._open()

    def close(self) -> None:
        """Frees the decoder."""
        self._container.close()

    def __enter__(self) -> AvVideo:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


class _Canvas:
    """Takes decoded frames in their order, each as RGB of one size."""

    def __init__(self, count: int, short_side: int) -> None:
        self.count, self.short_side, self.filled = count, short_side, 0
        self._reformatter = VideoReformatter()

    def add(self, frame: VideoFrame) -> None:
        """Converts the next frame; the first one decides on the size."""
        if self.filled == 0:
            self.size = reduced_size(frame.height, frame.width, self.short_side)
            self.rotation = frame.rotation
            self._pixels = np.empty((self.count, *self.size, 3), np.uint8)
        height, width = self.size
        rgb = self._reformatter.reformat(frame, width, height, "rgb24", interpolation=Interpolation.BILINEAR)
        self._pixels[self.filled] = rgb.to_ndarray()
        self.filled += 1

    def upright(self, order: list[int]) -> Tensor:
        """(len(order), 3, h, w) uint8 stored channels-last, turned as the file's header says."""
        pixels = torch.from_numpy(self._pixels)
        if order != list(range(self.count)):
            pixels = pixels[torch.tensor(order)]
        turns = round(self.rotation / 90) % 4
        if turns:
            pixels = torch.rot90(pixels, turns, (1, 2)).contiguous()
        return pixels.permute(0, 3, 1, 2)


def as_file(path: str) -> str:
    """The path as FFmpeg takes it for one: what stands before a colon would be a protocol where no folder does."""
    return path if os.path.isabs(path) else os.path.join(os.curdir, path)


def reduced_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) with the shorter side reduced to `short_side`; a smaller video, and 0, stay as they are."""
    if not 0 < short_side < min(height, width):
        return height, width
    return short_side_size(height, width, short_side)
