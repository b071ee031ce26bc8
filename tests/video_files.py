"""Writes small videos whose frames carry their number, and files that are no videos."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from grw_keras.data import video
from grw_keras.data.video_file import VideoFile

BITS = 8
WIDTH, HEIGHT = 8 * BITS, 48


def numbered(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A picture of the number's bits: as many upright stripes, the highest to the left."""
    bits = [(number >> (BITS - 1 - bit)) & 1 for bit in range(BITS)]
    row = np.repeat(np.where(bits, 235, 20), -(-width // BITS))[:width]
    return np.broadcast_to(row[None, :, None], (height, width, 3)).astype(np.uint8)


def number_of(image: np.ndarray) -> int:
    """The number in a picture, whatever it was resized to."""
    columns = (2 * np.arange(BITS) + 1) * image.shape[1] // (2 * BITS)
    rows = slice(image.shape[0] // 3, -(image.shape[0] // 3))
    bits = image[rows, columns].mean(axis=(0, 2)) > 127
    return int("".join(str(int(bit)) for bit in bits), 2)


def decoded_fully(path: Path, times, size=None) -> np.ndarray:
    """What `read_frames` gives, by decoding every frame."""
    with VideoFile(path) as file:
        return video._read(file, np.asarray(times, np.float64), size)


def write(
    path: Path,
    codec: str = "libx264",
    frames: int | Sequence[np.ndarray] = 60,
    *,
    fps: int = 30,
    ticks: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    change: Callable | None = None,
) -> Path:
    """Encodes pictures, or that many numbered ones, at a rate or at given ticks of a time base.

    Args:
        change: is called with the stream before the first frame.
    """
    pictures = [numbered(i) for i in range(frames)] if isinstance(frames, int) else frames
    height, width = pictures[0].shape[:2]
    if codec == "libx265":
        options = {"x265-params": "log-level=none", **(options or {})}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.time_base = time_base or Fraction(1, fps)
        if change:
            change(stream)
        for index, picture in enumerate(pictures):
            form = {4: "rgba", 3: "rgb24"}[picture.shape[-1]]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), form)
            frame = frame.reformat(format=pix_fmt, threads=1)
            frame.pts = index if ticks is None else ticks[index]
            frame.time_base = stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_audio(path: Path) -> Path:
    """A quarter of a second of silence."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        for index in range(4):
            samples = np.zeros((1, 1024), np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 1024 * index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_zero_duration(path: Path) -> Path:
    """A file whose two frames appear at the same time and last for none."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        for _ in range(2):
            frame = av.VideoFrame.from_ndarray(numbered(1)).reformat(format="yuvj420p", threads=1)
            for packet in stream.encode(frame):
                packet.pts = packet.dts = 0
                packet.duration = 0
                container.mux(packet)
    return path


def damage(path: Path, packet_numbers: Sequence[int], kept: float = 0.0) -> Path:
    """Overwrites some packets in place, but for that share at their beginning."""
    with av.open(str(path)) as source:
        packets = [bytes(packet) for packet in source.demux(video=0) if packet.size]
    data, end = path.read_bytes(), 0
    for number, packet in enumerate(packets):
        begin = data.index(packet, end)
        end = begin + len(packet)
        if number in packet_numbers:
            begin += round(kept * len(packet))
            data = data[:begin] + b"\xa5" * (end - begin) + data[end:]
    path.write_bytes(data)
    return path


def truncate(path: Path, share: float) -> Path:
    """Keeps the beginning of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: round(len(data) * share)])
    return path
