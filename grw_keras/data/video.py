"""Decoding by presentation time: the frames on display at given times, resized, as RGB."""

import itertools
import math
import numbers
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import av
import cv2
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import Interpolation, VideoReformatter

from grw_keras.data.video_file import BadVideoError, Frame, Selection, VideoFile

__all__ = ["TOLERANCE_S", "BadVideoError", "VideoInfo", "probe", "read_frames"]

# A frame counts as on display this much early: Matroska and WebM round times to 1 ms.
TOLERANCE_S = 0.6e-3
_SEEK_AFTER_S = 1.0  # how far the first wanted frame must lie for a look at the index to pay
# Area averaging when shrinking; libswscale's AREA is linear interpolation when growing. The other
# flags are for exact colour (within 0.5 of a float computation, where the fast path is 2 off) and
# the same bits with every instruction set.
_SCALING = (
    Interpolation.AREA
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
)


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds.

    Args:
        duration_s: from the first frame's appearance to the last one's end, seconds.
        frames: how many packets hold a picture. Some files have a few without one.
        width: of the frames as displayed, rotation applied, pixels.
        height: likewise.
        rotation: how far the decoded frames are turned for display, in degrees anticlockwise: 0,
            90, 180 or 270.
        codec: FFmpeg's name of it.
    """

    duration_s: float
    frames: int
    width: int
    height: int
    rotation: int
    codec: str


def probe(path: str | os.PathLike) -> VideoInfo:
    """Reads a video file through, without decoding more of it than one frame.

    The duration is that of the packets which are there, so it is right for files cut off too.

    Args:
        path: of the file.

    Raises:
        BadVideoError: there is no such file, it isn't a video, it has no video stream, not one
            frame can be decoded, or its duration is zero.
    """
    with VideoFile(path) as file:
        first, frames, begin, last, end = None, 0, math.inf, -math.inf, -math.inf
        for packet in file.packets():
            if first is None:
                first = next(iter(file.decode(packet)), None)
            if packet is None or packet.is_corrupt or packet.is_discard:
                continue
            frames += 1
            time = file.stamp(packet)
            if time is not None:
                begin, last = min(begin, time), max(last, time)
                end = max(end, time + (packet.duration or file.usual_ticks))
        if first is None:
            raise BadVideoError(path, "not one of its frames can be decoded")
        if end <= begin or (frames > 1 and last == begin):
            raise BadVideoError(path, "its duration is zero")
        transposed, _, _ = orientation(first)
        width, height = first.width, first.height
        return VideoInfo(
            duration_s=float((end - begin) * file.tick_s),
            frames=frames,
            width=height if transposed else width,
            height=width if transposed else height,
            rotation=round(first.rotation / 90) * 90 % 360,
            codec=file.context.codec.canonical_name,
        )


def read_frames(
    path: str | os.PathLike,
    times_s: Sequence[float] | np.ndarray,
    size: int | None = None,
    *,
    threads: int = 1,
) -> np.ndarray:
    """The frames on display at given times.

    The frame on display at t is the last one whose presentation time is ≤ t (to within 0.6 ms,
    for formats that round to 1 ms); after the end that is the last frame. What can't be decoded
    is passed over, so the last good frame stays on display. Frames are turned upright as the
    file asks; an alpha channel is left out, not blended. Each frame is converted and resized once
    however often it is asked for, by area averaging along an axis that shrinks and linear
    interpolation along one that grows.

    Args:
        path: of the file.
        times_s: n ≥ 1 times since the video's first frame in seconds, ≥ 0, ascending; equal ones
            allowed.
        size: height and width to resize to, pixels; the aspect isn't kept. None: as displayed.
        threads: of FFmpeg's decoder.

    Returns:
        RGB [n, size, size, 3], uint8.

    Raises:
        BadVideoError: there is no such file, it isn't a video, it has no video stream, or not one
            frame can be decoded.
        ValueError: `times_s` or `size` isn't as above.
    """
    times = np.asarray(times_s, np.float64)
    if times.ndim != 1 or not len(times) or not np.isfinite(times).all() or times.min() < 0:
        raise ValueError(f"`times_s` must be a list of times >= 0 in seconds. Received: {times_s}")
    if (np.diff(times) < 0).any():
        raise ValueError(f"`times_s` must ascend; sort them first. Received: {times_s}")
    if size is not None and (not isinstance(size, numbers.Integral) or size < 1):
        raise ValueError(f"`size` must be a positive integer or None. Received: {size!r}")
    with VideoFile(path, threads) as file:
        images = _read_sparingly(file, times, size) if file.foreseeable else None
    if images is not None:
        return images
    with VideoFile(path, threads) as file:
        return _read(file, times, size)


def _read(file: VideoFile, times: np.ndarray, size: int | None) -> np.ndarray:
    """Decodes every frame up to the last one wanted."""
    frames = file.frames(file.packets())
    begin, first = _first(file, frames)
    frames = itertools.chain([(begin, first)], frames)
    return _on_display(first, frames, _ticks(file, begin, times), size)


def _read_sparingly(file: VideoFile, times: np.ndarray, size: int | None) -> np.ndarray | None:
    """Decodes from the keyframe before the first time, if that is far on, and no frames that it
    needn't; None if this turns out not to give what decoding all would."""
    selection = Selection(file)
    frames = selection.frames(file.frames(selection.packets(file.packets())))
    begin, first = _first(file, frames)
    ticks = _ticks(file, begin, times)
    selection.ticks = ticks.tolist()
    if times[0] > _SEEK_AFTER_S and file.seekable:
        packets = file.packets_from_keyframe(int(ticks[0]))
        if packets is None:
            return None
        frames = selection.frames(file.frames(selection.packets(packets)))
    else:
        frames = itertools.chain([(begin, first)], frames)
    images = _on_display(first, frames, ticks, size)
    return None if selection.missed else images


def _first(file: VideoFile, frames: Iterable[Frame]) -> Frame:
    for frame in frames:
        return frame
    raise BadVideoError(file.path, "not one of its frames can be decoded")


def _ticks(file: VideoFile, begin: int, times: np.ndarray) -> np.ndarray:
    """The last tick of the stream at or before each time since `begin`."""
    return begin + np.floor((times + TOLERANCE_S) / float(file.tick_s)).astype(np.int64)


def _on_display(
    first: av.VideoFrame, frames: Iterable[Frame], ticks: np.ndarray, size: int | None
) -> np.ndarray:
    """The frames on display at the ticks, in the first frame's orientation and size."""
    height, width = (first.height, first.width) if size is None else (size, size)
    transposed, mirrored, flipped = orientation(first)
    shape = (width, height) if transposed else (height, width)
    images = np.empty((len(ticks), *shape, 3), np.uint8)
    reformatter = VideoReformatter()

    upright = not (transposed or mirrored or flipped)

    def show(frame: av.VideoFrame, begin: int, end: int) -> None:
        if upright:  # straight to its place
            _rgb(reformatter, frame, width, height, images[begin])
            images[begin + 1 : end] = images[begin]
            return
        image = _rgb(reformatter, frame, width, height)
        image = image.transpose(1, 0, 2) if transposed else image
        images[begin:end] = image[:: -1 if flipped else 1, :: -1 if mirrored else 1]

    shown, done = first, 0
    for tick, frame in frames:
        if tick > ticks[done]:
            end = int(np.searchsorted(ticks, tick))
            show(shown, done, end)
            done = end
            if done == len(ticks):
                return images
        shown = frame
    show(shown, done, len(ticks))
    return images


def _rgb(
    reformatter: VideoReformatter,
    frame: av.VideoFrame,
    width: int,
    height: int,
    target: np.ndarray | None = None,
) -> np.ndarray:
    """One frame as RGB. libswscale is exact and fast to planes, exact or fast to pixels."""
    planar = reformatter.reformat(frame, width, height, "gbrp", interpolation=_SCALING, threads=1)
    green, blue, red = (
        np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)[:, :width]
        for plane in planar.planes
    )
    return cv2.merge((red, green, blue), target)


def orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Whether to transpose a frame for display, then to mirror it left to right, then to flip it
    upside down: the nearest of the eight orientations to the file's display matrix."""
    # PyAV declares these as strings in a TypedDict; they are an enum and a Mapping.
    side_data: Any = frame.side_data
    matrix = side_data.get(SideDataType.DISPLAYMATRIX)
    if matrix is None:
        return False, False, False
    # (x, y) is displayed at (a x + c y, b x + d y): AV_FRAME_DATA_DISPLAYMATRIX, display.h.
    a, b, _, c, d = np.frombuffer(memoryview(matrix), np.int32)[:5]
    if abs(int(b)) + abs(int(c)) > abs(int(a)) + abs(int(d)):
        return True, bool(c < 0), bool(b < 0)
    return False, bool(a < 0), bool(d < 0)
