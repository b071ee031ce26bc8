"""An open video file: its packets and decoded frames with their times, whatever its damage."""

import itertools
import math
import os
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av

# FFmpeg's names of the formats that are opened. The list keeps out still images, text (which
# FFmpeg would draw), and playlists, which could name other files and addresses.
FORMATS = (
    *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "gif"),
    *("mpeg", "mpegts", "asf", "flv", "ogg", "ivf", "nut"),
)
# Formats whose every packet says when it is presented.
_TIMED = ("mov", "matroska")
_SEEK_EARLY_S = 0.5  # indices may go by decoding time, which B-frames put ahead of presentation
_READ_ATTEMPTS = 100  # failures to read on in a damaged file before it counts as ended
_LOOK_AHEAD = 32  # packets; B-frames put at most 16 between neighbours (H.264 and HEVC, DPB size)
Frame = tuple[int, av.VideoFrame]


class BadVideoError(ValueError):
    """A file that no frame can be had from.

    Args:
        path: of the file.
        reason: what is wrong with it, as the end of a sentence.
    """

    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(str(path), reason)
        self.path = str(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class VideoFile:
    """An open file and its video stream; a context manager.

    FFmpeg's errors in opening are BadVideoErrors; those in decoding are passed over.

    Args:
        path: of the file.
        threads: of the decoder.

    Attributes:
        damaged: whether a packet that was decoded so far turned out bad.
    """

    def __init__(self, path: str | os.PathLike, threads: int = 1):
        self.path = path
        self.damaged = False
        self.container = _opened(path)
        try:
            self.stream = _video_stream(self.container, path)
            self.context = self.stream.codec_context
            self.context.thread_count = threads
        except BaseException:
            self.container.close()
            raise
        self.format = self.container.format.name.split(",")[0]
        self.tick_s = self.stream.time_base or Fraction(1, av.time_base)
        rate = self.stream.average_rate
        self.usual_ticks = round(1 / (rate * self.tick_s)) if rate else 0
        self.seekable = self.format in _TIMED
        # Whether a frame's time is known before it is decoded: MPEG-4 holds no B-frame back.
        self.foreseeable = threads == 1 and (
            self.seekable or (self.format == "avi" and self.context.name == "mpeg4")
        )

    def __enter__(self) -> "VideoFile":
        return self

    def __exit__(self, *_) -> None:
        self.container.close()

    def stamp(self, item: av.Packet | av.VideoFrame) -> int | None:
        """When a packet or frame is presented, in ticks. AVI doesn't say, and what FFmpeg makes up
        is out of order with B-frames, so there it is when the decoder brings the frame out."""
        return item.dts if self.format == "avi" or item.pts is None else item.pts

    def packets(self) -> Iterator[av.Packet | None]:
        """The stream's packets, then None; goes on behind places that can't be read."""
        for _ in range(_READ_ATTEMPTS):
            try:
                for packet in self.container.demux(self.stream):
                    if packet.size:  # an empty one would end the decoder's work
                        yield packet
                break
            except av.FFmpegError:
                self.damaged = True
        yield None

    def decode(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        """The frames that a packet completes, None being the end of the file; those that FFmpeg
        had to patch up are left out."""
        try:
            frames = self.stream.decode(packet)
        except av.FFmpegError:
            self.damaged = True
            return []
        whole = [frame for frame in frames if not frame.is_corrupt]
        self.damaged |= len(whole) < len(frames)
        return whole

    def frames(self, packets: Iterable[av.Packet | None]) -> Iterator[Frame]:
        """The good frames in the order of display, each with its time in ticks."""
        expected = 0
        for packet in packets:
            for frame in self.decode(packet):
                time = self.stamp(frame)
                time = expected if time is None else time
                expected = time + (frame.duration or self.usual_ticks)
                yield time, frame
            if packet is not None and self.format == "avi" and packet.dts is not None:
                expected = packet.dts + self.usual_ticks

    def packets_from_keyframe(self, tick: int) -> Iterator[av.Packet | None] | None:
        """The packets from a keyframe at or before the tick; None where the file's index doesn't
        lead to one, so that it must be decoded from its beginning."""
        try:
            early = round(_SEEK_EARLY_S / self.tick_s)
            self.container.seek(tick - early, stream=self.stream)
        except av.FFmpegError:
            return None
        packets = self.packets()
        key = next((packet for packet in packets if packet is None or packet.is_keyframe), None)
        if key is None or key.pts is None or key.pts > tick:
            return None
        # What precedes the keyframe in presentation refers to frames that won't be decoded.
        rest = (packet for packet in packets if packet is None or (packet.pts or 0) >= key.pts)
        return itertools.chain([key], rest)


class Selection:
    """Spares the decoder the frames that are neither wanted nor needed by other frames.

    Which frame is on display at a tick is known from the packets' times, so before decoding. The
    frames that come out are checked against it: `missed` tells that one that was foreseen didn't
    come, and that all must be decoded to know what is on display instead.

    Args:
        file: whose frames are `foreseeable`.
    """

    def __init__(self, file: VideoFile):
        self.file = file
        self.ticks: Sequence[int] | None = None  # None: not known yet, so all are wanted
        self._foreseen: set[int] = set()
        self._skipping = False

    def packets(self, packets: Iterable[av.Packet | None]) -> Iterator[av.Packet | None]:
        """The packets, with the decoder told before each whether it can be skipped."""
        ahead: deque[av.Packet | None] = deque()
        times: list[int] = []
        for packet in packets:
            ahead.append(packet)
            time = None if packet is None else self.file.stamp(packet)
            if time is not None:
                insort(times, time)
            if len(ahead) > _LOOK_AHEAD:
                yield self._told(ahead.popleft(), times)
        while ahead:
            yield self._told(ahead.popleft(), times)

    def _told(self, packet: av.Packet | None, times: list[int]) -> av.Packet | None:
        time = None if packet is None else self.file.stamp(packet)
        needed = True
        if time is not None and self.ticks is not None:
            until = _after(times, time)
            needed = self._any_in(time, until)
            if needed:
                self._foreseen.add(time)
            elif self.file.format == "avi":  # a packed bitstream has the next frame in this packet
                needed = self._any_in(until, _after(times, until))
        if needed == self._skipping:
            self.file.context.skip_frame = "DEFAULT" if needed else "NONREF"
            self._skipping = not needed
        return packet

    def _any_in(self, begin: float, end: float) -> bool:
        """Whether a tick lies in [begin, end)."""
        ticks = self.ticks or ()
        first = bisect_left(ticks, begin)
        return first < len(ticks) and ticks[first] < end

    def frames(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """The frames, ticked off."""
        for time, frame in frames:
            self._foreseen.discard(time)
            yield time, frame

    @property
    def missed(self) -> bool:
        """Whether, now that no more frames are needed, one didn't come or came out bad."""
        return bool(self._foreseen) or self.file.damaged


def _after(times: list[int], time: float) -> float:
    """The next of the sorted times."""
    following = bisect_right(times, time)
    return times[following] if following < len(times) else math.inf


def _opened(path: str | os.PathLike) -> av.container.InputContainer:
    file = Path(path)
    if not file.exists():
        raise BadVideoError(path, "there is no such file")
    if not file.is_file():
        raise BadVideoError(path, "it is not a file")
    if file.stat().st_size == 0:
        raise BadVideoError(path, "it is empty")
    try:
        # Tags in other encodings than UTF-8 are common and of no concern here.
        return av.open(
            f"file:{file}",
            container_options={"format_whitelist": ",".join(FORMATS)},
            metadata_errors="replace",
        )
    except (av.error.InvalidDataError, av.error.ArgumentError) as error:
        raise BadVideoError(path, "it is not a video, or of a format that is not read") from error
    except av.FFmpegError as error:
        raise BadVideoError(path, f"it can't be opened ({error.strerror})") from error


def _video_stream(
    container: av.container.InputContainer, path: str | os.PathLike
) -> av.VideoStream:
    """The first stream of moving pictures: covers of music files don't count."""
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        raise BadVideoError(path, "it has no video stream")
    if streams[0].codec_context is None:
        raise BadVideoError(path, f"there is no decoder for its codec, {streams[0].codec_tag!r}")
    return streams[0]
