"""StreamSession on TFLite files, and FrameClock: for small machines, without TensorFlow.

Needs NumPy (1.x or 2.x) and one of the runtimes ai-edge-litert and tflite-runtime. The files are
those of `grw_keras.export`; their contract is tflite/README.md of the repository.
"""

import dataclasses
import functools
import importlib
import importlib.metadata
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FORMAT_VERSION = 1
DESCRIPTION = "grw_keras.json"
_RUNTIMES = {"ai-edge-litert": "ai_edge_litert", "tflite-runtime": "tflite_runtime"}
_NOT_A_STREAM = {
    "classify": "this is the head of a split export: open the embed file beside it",
    "clip": "this takes whole clips: export the model without whole_clip=True",
}
_EARLY_S = 1e-3  # timestamps are often rounded to thousandths
_BAND = 4  # output rows at once: fastest from 480p to 1080p; more multiply too many zeros
_Shape = tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class Description:
    """What a file says of itself; the keys are the contract's."""

    format_version: int
    kind: str
    name: str
    grw_keras: str
    quantization: str | None
    fps: float
    resize_px: int
    crop_px: int
    value_range: tuple[float, float]
    num_classes: int
    labels: tuple[str, ...] | None
    head: str
    window_frames: int | None
    embed_dim: int | None
    classify_file: str | None
    frames: int | None


class StreamSession:
    """Runs an exported model over one stream of frames.

    Sessions share nothing: each has its own interpreter and states.

    Args:
        path: a file of kind `stream`, or of kind `embed` with its `classify_file` beside it.
        threads: that the runtime may use, >= 1.
        head_stride: an `embed` file's head answers on every so many frames, the first included;
            between them the last answer stays. >= 1.
        smoothing: s in [0, 1) of p ← s p + (1 − s) softmax(logits), applied to each new answer,
            the first taken as it is.

    Attributes:
        description: what the file says of itself; `labels`, `fps` (frames a second that it is to
            be fed), `resize_px`, `crop_px` and `num_classes` are taken from it.
        frames_seen: since the start or the last `reset`.
        logits: the head's last answer before softmax, [num_classes], float32; None before it.

    Raises:
        FileNotFoundError: there is no such file, or no `classify_file` beside it.
        ImportError: neither runtime is installed.
        RuntimeError: the runtime can't run the file.
        ValueError: an argument is out of range, or the file is no whole stream file of ours.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int = 1,
        head_stride: int = 1,
        smoothing: float = 0.0,
    ):
        _check_at_least_one("threads", threads)
        _check_at_least_one("head_stride", head_stride)
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1). Received: {smoothing}")
        path = Path(path)
        self.description = about = read_description(path)
        if about.kind not in ("stream", "embed"):
            raise ValueError(
                f"path must be a file of kind 'stream' or 'embed'; {_NOT_A_STREAM[about.kind]}. "
                f"Received: {path}, of kind {about.kind!r}"
            )
        if about.kind == "stream" and head_stride > 1:
            raise ValueError(
                "head_stride must be 1 for a stream file, whose head runs inside on every frame; "
                f"export with split_head=True. Received: {head_stride}"
            )
        self.labels, self.fps, self.num_classes = about.labels, about.fps, about.num_classes
        self.resize_px, self.crop_px = about.resize_px, about.crop_px
        self._head_stride, self._smoothing = head_stride, smoothing
        self._graph = _Graph(path, threads)
        self._head = _Head(path, about, threads) if about.kind == "embed" else None
        states = {name: shape for name, shape in self._graph.inputs.items() if name != "image"}
        image: _Shape = (1, 1, about.crop_px, about.crop_px, 3)
        self._graph.require("input", {"image": image, **states})
        answer: dict[str, _Shape] = {"logits": (1, about.num_classes)}
        if self._head:
            answer = {"embedding": (1, about.embed_dim)}
        self._graph.require("output", {**answer, **states})
        self._states = {name: np.zeros(shape, np.float32) for name, shape in states.items()}
        self.reset()

    def reset(self) -> None:
        """Forgets all frames: what follows is another scene."""
        self.frames_seen = 0
        self.logits: np.ndarray | None = None
        self._probabilities: np.ndarray | None = None
        for state in self._states.values():
            state.fill(0)
        if self._head:
            self._head.reset()

    def step(self, frame: np.ndarray) -> np.ndarray:
        """Probabilities [num_classes], float32, after one more frame.

        Args:
            frame: as `prepare_frame` takes it, at `fps` frames a second.

        Raises:
            TypeError, ValueError: not such a frame; the session is as before.
        """
        image = prepare_frame(frame, self.resize_px, self.crop_px)
        self._graph.run({"image": image, **self._states})
        # A state's output may lie in the memory of another's input: all are read, then fed.
        for name, state in self._states.items():
            self._graph.read(name, state)
        if self._head:
            self._head.add(self._graph)
        if self.frames_seen % self._head_stride == 0:
            self._take(self._head.logits() if self._head else self._graph.logits())
        self.frames_seen += 1
        return self._answer().copy()

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The k likeliest classes of the last answer, by label or number, with probabilities.

        Raises:
            RuntimeError: there is no answer yet.
            ValueError: k < 1.
        """
        _check_at_least_one("k", k)
        probabilities = self._answer()
        order = np.argsort(-probabilities, kind="stable")[:k]
        names = self.labels or [str(index) for index in range(self.num_classes)]
        return [(names[index], float(probabilities[index])) for index in order]

    def _take(self, logits: np.ndarray) -> None:
        self.logits = logits
        exponentials = np.exp(logits - logits.max())
        new = exponentials / exponentials.sum()
        if self._probabilities is not None:
            new = self._smoothing * self._probabilities + (1 - self._smoothing) * new
        self._probabilities = new.astype(np.float32)

    def _answer(self) -> np.ndarray:
        if self._probabilities is None:
            raise RuntimeError("There is no answer before the first frame: call step first.")
        return self._probabilities


class FrameClock:
    """Thins a camera's frames to a rate by their timestamps.

    A frame is wanted when it is the first at or past a tick of 1 / fps; ticks count from the first
    frame. A millisecond early counts as on the tick.

    Args:
        fps: frames a second that are wanted, > 0. A camera that gives fewer keeps all of its.

    Example:
        >>> clock = FrameClock(5.0)
        >>> [clock.wants(t) for t in (0.0, 0.1, 0.2, 0.3, 0.45, 0.6)]
        [True, False, True, False, True, True]
    """

    def __init__(self, fps: float):
        if not 0 < fps < math.inf:
            raise ValueError(f"fps must be finite and > 0. Received: {fps}")
        self.fps = fps
        self._start_s: float | None = None
        self._last_tick = -1

    def wants(self, timestamp_s: float) -> bool:
        """Whether to feed the frame of this time, seconds; times never run backwards."""
        if self._start_s is None:
            self._start_s = timestamp_s
        tick = math.floor((timestamp_s - self._start_s + _EARLY_S) * self.fps)
        if tick <= self._last_tick:
            return False
        self._last_tick = tick
        return True


def prepare_frame(frame: np.ndarray, resize_px: int, crop_px: int) -> np.ndarray:
    """[1, 1, crop_px, crop_px, 3], float32, of a frame of any size.

    Equal to `tf.image.resize(antialias=True)` to a square and its centre, to 1e-5.

    Args:
        frame: [H, W, 3], RGB (OpenCV's are BGR: `frame[..., ::-1]`), uint8, or float with pixels
            in [0, 1]. One of crop_px × crop_px stays as it is.
        resize_px: side of the square, pixels, the aspect not kept.
        crop_px: side of the centre that is cut out, pixels.

    Raises:
        TypeError: None, or neither uint8 nor float.
        ValueError: another shape, or floats that aren't in [0, 1].
    """
    if frame is None:
        raise TypeError("frame must be an array: did the camera give none? Received: None")
    frame = np.asarray(frame)
    if frame.ndim != 3 or frame.shape[-1] != 3 or 0 in frame.shape:
        raise ValueError(f"frame must have shape [H, W, 3]. Received: {frame.shape}")
    if np.issubdtype(frame.dtype, np.floating):
        low, high = frame.min(), frame.max()
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise ValueError(
                "frame's floats must be finite and in [0, 1]: divide by 255. "
                f"Received: pixels from {low} to {high}"
            )
    elif frame.dtype != np.uint8:
        raise TypeError(f"frame must be uint8 or float. Received: {frame.dtype}")
    image, (height, width, _) = frame, frame.shape
    if (height, width) != (crop_px, crop_px):
        needed = _bands(width, resize_px, crop_px)
        image = image[:, needed[0].pixels.start : needed[-1].pixels.stop]
        image = _resize_rows(image, _bands(height, resize_px, crop_px)).swapaxes(0, 1)
        image = _resize_rows(image, needed, needed[0].pixels.start).swapaxes(0, 1)
    image = image.astype(np.float32, copy=False)
    return (image / np.float32(255) if frame.dtype == np.uint8 else image)[None, None]


class _Band(NamedTuple):
    """A few rows of the output: the rows of the input that they need, and their weights."""

    rows: slice
    pixels: slice
    weights: np.ndarray


@functools.lru_cache(maxsize=16)  # a camera keeps its size; a few cameras have a few
def _bands(size_px: int, resize_px: int, crop_px: int) -> list[_Band]:
    """The centre `crop_px` of resizing one axis, by an antialiased triangle filter."""
    # Rounded as TensorFlow rounds it: exact places would differ by up to 2e-5 in the pixels.
    scale = np.float32(1) / np.float32(resize_px / size_px)
    reach = max(scale, np.float32(1))
    first_centre = (resize_px - crop_px) // 2 + 0.5
    centres = np.arange(first_centre, first_centre + crop_px, dtype=np.float32) * scale
    bands = []
    for start in range(0, crop_px, _BAND):
        own = centres[start : start + _BAND]
        first = max(math.floor(own[0] - reach), 0)
        stop = min(math.ceil(own[-1] + reach), size_px)
        pixels = np.arange(first, stop, dtype=np.float32) + np.float32(0.5)
        weights = np.maximum(np.float32(0), 1 - np.abs(pixels - own[:, None]) / reach)
        weights /= weights.sum(axis=1, keepdims=True)
        bands.append(_Band(slice(start, start + len(own)), slice(first, stop), weights))
    return bands


def _resize_rows(image: np.ndarray, bands: list[_Band], first_px: int = 0) -> np.ndarray:
    """[rows, X, 3], float32, of [Y, X, 3], whose first row is pixel `first_px` of the axis."""
    resized = np.empty((bands[-1].rows.stop, *image.shape[1:]), np.float32)
    for rows, pixels, weights in bands:
        part = image[pixels.start - first_px : pixels.stop - first_px].astype(np.float32)
        product = weights @ part.reshape(len(part), -1)
        resized[rows] = product.reshape(-1, *image.shape[1:])
    return resized


class _Graph:
    """One interpreter, and its tensors by the names of the signature."""

    def __init__(self, path: Path, threads: int):
        self.path = path
        interpreter_class, runtime = _runtime()
        try:
            self._interpreter = interpreter_class(model_path=str(path), num_threads=threads)
            self._interpreter.allocate_tensors()
            # Not kept: a runner holds the interpreter, which then takes it for a view in use.
            runner = self._interpreter.get_signature_runner("serving_default")
        except (RuntimeError, ValueError) as error:
            raise RuntimeError(
                f"{runtime} can't run {path}: install a newer runtime (pip install -U "
                f"ai-edge-litert), or export the file again if it was damaged. Received: {error}"
            ) from error
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
        self._details = {"input": inputs, "output": outputs}
        self.inputs = {name: tuple(detail["shape"].tolist()) for name, detail in inputs.items()}

    def require(self, side: str, tensors: Mapping[str, _Shape]) -> None:
        """Raises a ValueError unless there are float32 tensors of these names and shapes."""
        for name, shape in tensors.items():
            detail = self._details[side].get(name)
            found = detail and f"{np.dtype(detail['dtype'])} {detail['shape'].tolist()}"
            if found != f"float32 {list(shape)}":
                raise ValueError(
                    f"{self.path} contradicts its description or itself: {side} {name!r} must be "
                    f"float32 {list(shape)}; export it again. Received: {found}"
                )

    def run(self, feeds: dict[str, np.ndarray]) -> None:
        for name, value in feeds.items():
            self._interpreter.set_tensor(self._details["input"][name]["index"], value)
        self._interpreter.invoke()

    def read(self, name: str, into: np.ndarray) -> None:
        """Copies an output; half the time of the runtime's get_tensor, which allocates."""
        # The view must not outlive this line: while there is one, the graph refuses to run.
        np.copyto(into, self._interpreter.tensor(self._details["output"][name]["index"])())

    def logits(self) -> np.ndarray:
        return self._interpreter.get_tensor(self._details["output"]["logits"]["index"])[0]


class _Head:
    """The `classify` file beside an `embed` file, and the window of embeddings that it sees."""

    def __init__(self, embed_path: Path, embed: Description, threads: int):
        path = embed_path.with_name(str(embed.classify_file))
        about = read_description(path)
        if (about.kind, about.labels) != ("classify", embed.labels):
            raise ValueError(
                f"classify_file of {embed_path} must be of kind 'classify' and have its labels. "
                f"Received: {path}, of kind {about.kind!r}"
            )
        self._graph = _Graph(path, threads)
        window = (1, embed.window_frames, embed.embed_dim)
        self._graph.require("input", {"window": window, "frame_count": (1,)})
        self._graph.require("output", {"logits": (1, embed.num_classes)})
        self._window = np.zeros(self._graph.inputs["window"], np.float32)
        self._frame_count = np.zeros(1, np.float32)

    def reset(self) -> None:
        self._window.fill(0)
        self._frame_count.fill(0)

    def add(self, graph: _Graph) -> None:
        """Takes the embedding that the graph gave."""
        count = int(self._frame_count[0])
        if count == self._window.shape[1]:
            self._window[:, :-1] = self._window[:, 1:]
            count -= 1
        graph.read("embedding", self._window[:, count])
        self._frame_count[0] = count + 1

    def logits(self) -> np.ndarray:
        self._graph.run({"window": self._window, "frame_count": self._frame_count})
        return self._graph.logits()


def read_description(path: str | Path) -> Description:
    """What a TFLite file of `grw_keras.export` says of itself.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no whole TFLite file of `grw_keras.export`, or of a version unknown here.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path must be a TFLite file. Received: {path}, which is no file")
    with path.open("rb") as file:
        if file.read(8)[4:] != b"TFL3":  # the schema's file identifier
            raise ValueError(f"path must be a TFLite file. Received: {path}, which is none")
    try:
        with zipfile.ZipFile(path) as archive:
            raw = json.loads(archive.read(DESCRIPTION))
        return _description(raw)
    except zipfile.BadZipFile as error:
        raise ValueError(
            "path must be a whole file of grw_keras.export: copy or export it again. "
            f"Received: {path}, which was cut off or is another program's"
        ) from error
    except KeyError as error:
        raise ValueError(
            f"path must be a file of grw_keras.export. Received: {path}, without {DESCRIPTION}"
        ) from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{DESCRIPTION} of {path}: {error}") from error


def _description(raw: Any) -> Description:
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"format_version must be {FORMAT_VERSION}, the one that this grw_keras knows: install "
            f"a newer one, or export again. Received: {version}"
        )
    names = [field.name for field in dataclasses.fields(Description)]
    missing = [name for name in names if name not in raw]
    if missing:
        raise ValueError(f"it must have the contract's keys. Received: none for {missing}")
    values: dict[str, Any] = {
        name: tuple(raw[name]) if isinstance(raw[name], list) else raw[name] for name in names
    }
    about = Description(**values)
    kinds = ("stream", "embed", *_NOT_A_STREAM)
    count = about.num_classes if about.labels is None else len(about.labels)
    for rule, holds, received in (
        (f"kind must be one of {kinds}", about.kind in kinds, about.kind),
        ("fps must be > 0", about.fps > 0, about.fps),
        ("crop_px must be in [1, resize_px]", 0 < about.crop_px <= about.resize_px, about.crop_px),
        ("value_range must be [0, 1]", about.value_range == (0, 1), about.value_range),
        (f"labels must be {about.num_classes} names or null", count == about.num_classes, count),
    ):
        if not holds:
            raise ValueError(f"{rule}. Received: {received}")
    return about


def _runtime() -> tuple[Any, str]:
    """The Interpreter class of the runtime that is installed, and the runtime's name."""
    for pip_name, package in _RUNTIMES.items():
        try:
            found = importlib.import_module(f"{package}.interpreter").Interpreter
        except ModuleNotFoundError:
            continue
        try:
            return found, f"{pip_name} {importlib.metadata.version(pip_name)}"
        except importlib.metadata.PackageNotFoundError:  # not from pip, or a nightly
            return found, pip_name
    raise ImportError(
        f"StreamSession needs one of the packages {' and '.join(_RUNTIMES)}: "
        "pip install ai-edge-litert"
    )


def _check_at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1. Received: {value}")
