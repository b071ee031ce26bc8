"""A video with a model's answers drawn into it: the likeliest labels with bars, over time."""

import fractions
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import av
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from grw_keras import atomic
from grw_keras.data import video
from grw_keras.data.video_file import BadVideoError, VideoFile

log = logging.getLogger("grw_keras")

_BAR = (0, 158, 115, 255)  # the first colour of the figures
_BACKGROUND = (16, 16, 16, 176)
_EMPTY = (90, 90, 90, 200)
_TEXT = (255, 255, 255, 255)
_ROWS_PER_HEIGHT = 24  # lines of text that would fill the frame
_MIN_FONT_PX = 11
_MAX_AVI_RATE = 120


class _Kind(NamedTuple):
    """How files of one extension are written: FFmpeg's names, and ticks a second if fixed."""

    format: str
    codec: str
    pixels: str
    options: dict[str, str]
    rate: int | None = None


_H264 = {"crf": "20", "preset": "veryfast"}
KINDS = {
    ".mp4": _Kind("mp4", "libx264", "yuv420p", _H264),
    ".mkv": _Kind("matroska", "libx264", "yuv420p", _H264, 1000),
    ".webm": _Kind(
        "webm",
        "libvpx-vp9",
        "yuv420p",
        {"crf": "32", "b": "0", "deadline": "realtime", "cpu-used": "7"},
        1000,
    ),
    ".avi": _Kind("avi", "mpeg4", "yuv420p", {"qmin": "2", "qmax": "6"}),
    ".gif": _Kind("gif", "gif", "rgb8", {}, 100),
}


def write_labelled_video(
    source: str | Path,
    target: str | Path,
    times_s: Sequence[float] | np.ndarray,
    probabilities: np.ndarray,
    labels: Sequence[str],
    top: int = 5,
) -> int:
    """Writes a video again with the last answer at or before each frame drawn into it.

    Frames keep their own times, to within a tick of the target's format (AVI knows only a
    constant rate); where more come than it has ticks, some are left out. They are turned upright,
    and sizes are made even by a repeated last line.
    Sound is left out, which is logged. Memory doesn't grow with the video, and `target` appears
    only when it is complete.

    Args:
        source: any video that `data.video` reads.
        target: .mp4, .mkv (both H.264), .webm (VP9), .avi (MPEG-4) or .gif.
        times_s: [n] of the answers since the video's first frame, seconds, rising. Before the
            first one nothing is drawn.
        probabilities: [n, K] in [0, 1].
        labels: [K].
        top: labels to draw, >= 1; fewer where they don't fit into the frame.

    Returns:
        Frames written.

    Raises:
        BadVideoError: the source can't be read.
        ValueError: another extension, shapes that don't fit, the source as its own target.
        OSError: the target can't be written.
    """
    source, target = Path(source), Path(target)
    kind = _kind(target)
    times, probabilities = _checked(times_s, probabilities, labels, top)
    if target.exists() and source.exists() and target.samefile(source):
        raise ValueError(f"`target` must be another file than the source. Received: {target}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"`target` must be in a folder that exists. Received: {target}")
    with atomic.replacing(target) as temporary, VideoFile(source, threads=2) as file:
        if file.container.streams.audio:
            log.info("%s: the sound of %s is left out", target, source)
        answers = np.array([*times, np.inf])
        panels = _Panels(probabilities, labels, top)
        with _Writer(temporary, kind, file) as writer:
            for tick, frame in _upright(file):
                time_s = float(tick * file.tick_s) + video.TOLERANCE_S
                panels.draw(frame, int(np.searchsorted(answers, time_s, side="right")) - 1)
                writer.write(frame, tick)
            if not writer.frames:
                raise BadVideoError(source, "not one of its frames can be decoded")
    return writer.frames


def draw_labels(
    frame: np.ndarray, labels: Sequence[str], probabilities: np.ndarray, top: int = 5
) -> np.ndarray:
    """A copy of a frame with the likeliest labels and their bars in its lower left corner.

    Args:
        frame: RGB [H, W, 3], uint8.
        labels: [K]; letters that DejaVu Sans lacks are drawn as boxes.
        probabilities: [K] in [0, 1].
        top: labels to draw, >= 1; fewer where they don't fit into the frame.
    """
    _, rows = _checked([0.0], np.asarray(probabilities)[None], labels, top)
    drawn = frame.copy()
    _Panels(rows, labels, top).draw(drawn, 0)
    return drawn


class _Panels:
    """Draws answers; the panel of one answer is made once for all its frames."""

    def __init__(self, probabilities: np.ndarray, labels: Sequence[str], top: int):
        self.probabilities, self.labels, self.top = probabilities, labels, top
        self._key: tuple | None = None
        self._panel = np.zeros((0, 0, 4), np.float32)

    def draw(self, frame: np.ndarray, answer: int) -> None:
        """Blends an answer's panel into a frame, in place; nothing for -1."""
        if answer < 0:
            return
        height, width = frame.shape[:2]
        if self._key != (answer, height, width):
            order = np.argsort(-self.probabilities[answer], kind="stable")[: self.top]
            rows = [(str(self.labels[i]), float(self.probabilities[answer, i])) for i in order]
            font = _font(height)
            # One width for all answers, for a panel that keeps changing is hard to read.
            name = max(int(font.getlength(str(label))) + 1 for label in self.labels)
            self._panel = _panel(rows, font, name, height, width).astype(np.float32)
            self._key = (answer, height, width)
        high, wide = self._panel.shape[:2]
        corner = frame[height - high :, :wide]
        alpha = self._panel[..., 3:] / 255
        corner[:] = np.rint(alpha * self._panel[..., :3] + (1 - alpha) * corner)


def _font(height: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has more letters than OpenCV's fonts."""
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(path, max(_MIN_FONT_PX, height // _ROWS_PER_HEIGHT))


def _panel(
    rows: Sequence[tuple[str, float]],
    font: ImageFont.FreeTypeFont,
    name: int,
    height: int,
    width: int,
) -> np.ndarray:
    """RGBA of a panel that fits into a frame: label, bar and percentage in each row.

    Args:
        name: pixels of the widest label; less where the frame has no room.
    """
    size = int(font.size)
    pad, line = max(2, size // 3), round(1.35 * size)
    rows = rows[: max(1, (height - 2 * pad) // line)]
    number, bar = int(font.getlength("100 %")) + 1, 4 * size
    name = max(0, min(name, 16 * size, width - bar - number - 4 * pad))
    wide = min(width, name + bar + number + 4 * pad)
    image = Image.new("RGBA", (wide, min(height, len(rows) * line + 2 * pad)), _BACKGROUND)
    draw = ImageDraw.Draw(image)
    for index, (label, share) in enumerate(rows):
        middle = pad + index * line + line // 2
        left, half = 2 * pad + name, size * 0.36
        draw.text((pad, middle), _fitted(label, font, name), _TEXT, font, anchor="lm")
        draw.rectangle((left, middle - half, left + bar, middle + half), _EMPTY)
        draw.rectangle((left, middle - half, left + share * bar, middle + half), _BAR)
        end = left + bar + pad + number
        draw.text((end, middle), f"{100 * share:.0f} %", _TEXT, font, anchor="rm")
    return np.asarray(image)


def _fitted(label: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    """A label on one line, cut where it would be wider than there is room."""
    text = " ".join(label.split())
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(f"{text}…") > room:
        text = text[:-1]
    return f"{text.rstrip()}…"


class _Writer:
    """Encodes RGB frames at their own times; as a context, finishes the file."""

    def __init__(self, path: Path, kind: _Kind, source: VideoFile):
        self.frames = 0
        self._kind, self._source_base = kind, source.tick_s
        self._rate = source.stream.average_rate or fractions.Fraction(25)
        if kind.format == "avi":
            self._base = 1 / min(self._rate, fractions.Fraction(_MAX_AVI_RATE))
        else:
            self._base = fractions.Fraction(1, kind.rate) if kind.rate else self._source_base
        self._last = -1
        self._stream: av.VideoStream | None = None
        try:
            self._container = av.open(f"file:{path}", "w", format=kind.format)
        except av.FFmpegError as error:
            raise OSError(
                error.errno, f"can't write a video ({error.strerror})", str(path)
            ) from error

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None and self._stream is not None:
                self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()

    def write(self, image: np.ndarray, time: int) -> None:
        """One frame, at a time in ticks of the source since its first frame; unless the target's
        ticks till then have been used up."""
        image = np.pad(image, ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)), "edge")
        if self._stream is None:
            self._stream = self._begin(image.shape[1], image.shape[0])
        wanted = round(time * self._source_base / self._base)
        tick = max(wanted, self._last + 1)
        if tick > wanted + 1:  # frames would come later and later
            return
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts, frame.time_base = tick, self._base
        self._container.mux(self._stream.encode(frame))
        self._last = tick
        self.frames += 1

    def _begin(self, width: int, height: int) -> av.VideoStream:
        kind = self._kind
        stream = cast(
            av.VideoStream,
            self._container.add_stream(kind.codec, rate=self._rate, options=kind.options),
        )
        stream.width, stream.height, stream.pix_fmt = width, height, kind.pixels
        stream.codec_context.time_base = self._base
        return stream


def _upright(file: VideoFile) -> Iterator[tuple[int, np.ndarray]]:
    """Every frame as displayed, RGB, in the first one's size, with its ticks since that one."""
    first = None
    for tick, frame in file.frames(file.packets()):
        first = first or (tick, frame.width, frame.height, *video.orientation(frame))
        begin, width, height, transposed, mirrored, flipped = first
        image = frame.to_ndarray(format="rgb24", width=width, height=height)
        image = image.transpose(1, 0, 2) if transposed else image
        image = image[:: -1 if flipped else 1, :: -1 if mirrored else 1]
        yield tick - begin, np.array(image)


def _kind(target: Path) -> _Kind:
    kind = KINDS.get(target.suffix.lower())
    if kind is None:
        raise ValueError(
            f"`target` must end in one of {', '.join(KINDS)}. Received: {target.name!r}"
        )
    return kind


def _checked(
    times_s: Sequence[float] | np.ndarray,
    probabilities: np.ndarray,
    labels: Sequence[str],
    top: int,
) -> tuple[np.ndarray, np.ndarray]:
    times, probabilities = np.asarray(times_s, np.float64), np.asarray(probabilities)
    if times.ndim != 1 or not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise ValueError(f"`times_s` must be rising times in seconds. Received: {times_s}")
    if probabilities.shape != (len(times), len(labels)):
        raise ValueError(
            "`probabilities` must have one row per time and one column per label, "
            f"{(len(times), len(labels))}. Received: {probabilities.shape}"
        )
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("`probabilities` must be in [0, 1]: were these logits?")
    if top < 1:
        raise ValueError(f"`top` must be >= 1. Received: {top}")
    return times, probabilities
