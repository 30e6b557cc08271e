"""Which packet of a video file holds which frame, from time stamps alone: nothing is decoded to find out."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Packet(NamedTuple):
    """One packet in the order of decoding; times in units of the stream.

    pts: when its frame is shown. dts: when it is decoded. key: decoding can begin here. shown: an edit list may hide
    frames at the beginning that later ones depend on.
    """

    pts: int | None
    dts: int | None
    duration: int
    key: bool
    shown: bool


class PacketIndex:
    """Frames in the order in which they are shown, and where decoding has to begin for each.

    Args:
        packets: all of a stream, in the order of the file.

    Raises:
        ValueError: where the time stamps do not tell the frames apart.
    """

    def __init__(self, packets: Sequence[Packet]) -> None:
        self.packets = packets
        if not packets or any(packet.pts is None for packet in packets):
            raise ValueError("packets without time stamps")
        first = next((i for i, packet in enumerate(packets) if packet.key), 0)
        # what is shown before the first key frame depends on pictures that are not in the file
        start = packets[first].pts
        self.times = sorted(p.pts for p in packets[first:] if p.shown and p.pts >= start)
        if not self.times or any(a == b for a, b in zip(self.times, self.times[1:])):
            raise ValueError("frames with the same time stamp")
        self._place = {packet.pts: i for i, packet in enumerate(packets)}
        self._keys = sorted((packet.pts, i) for i, packet in enumerate(packets) if packet.key)

    def __len__(self) -> int:
        return len(self.times)

    @property
    def closed(self) -> bool:
        """Whether all that follows a key frame in the file is shown after it, up to the next one (closed groups)."""
        latest = self.packets[0].pts
        for packet in self.packets:
            if packet.key:
                latest = packet.pts
            elif packet.pts < latest:
                return False
        return True

    @property
    def end(self) -> int:
        """When the last frame has been shown."""
        return self.times[-1] + self.packets[self._place[self.times[-1]]].duration

    def begin(self, index: int) -> int:
        """The packet from which decoding leads to frame `index`: the last key frame that is not shown after it.

        Frames that follow a key frame in the file and are shown before it may depend on what lies before it.
        """
        found = bisect_right(self._keys, (self.times[index], len(self.packets)))
        return self._keys[found - 1][1] if found else 0

    def runs(self, indices: Sequence[int]) -> Iterator[list[int]]:
        """Cuts rising `indices` where it is shorter to go on from another key frame than to decode further."""
        run: list[int] = []
        for index in indices:
            if run and self.begin(index) > self._place[self.times[run[-1]]]:
                yield run
                run = []
            run.append(index)
        yield run
