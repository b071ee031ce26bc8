"""Any TFDS video data set as a source of clips: found features, frames, and records of them."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from grw_keras.data.clips import SPLITS
from grw_keras.data.record_files import Example, Prepared, Row, Settings, Shard
from grw_keras.data.records import encode, shard_bounds
from grw_keras.data.sampling import grid_size
from grw_keras.hints import did_you_mean


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """A prepared TFDS data set with videos and classes.

    Args:
        builder: TFDS's.
        video_key: feature that holds the frames.
        label_key: feature that holds the class.
        fps: frames a second of the videos.
        labels: the classes.
        splits: TFDS's split (or part of one, `"train[:80%]"`) for each of ours.
    """

    builder: Any
    video_key: str
    label_key: str
    fps: float
    labels: tuple[str, ...]
    splits: Mapping[str, str]

    def count(self, split: str) -> int:
        """How many examples a split has."""
        return self.builder.info.splits[self.splits[split]].num_examples

    def read(self, split: str) -> Iterator[tuple[np.ndarray, str, str]]:
        """(frames uint8 [M, H, W, 3], label, name) of each example, always in the same order."""
        for index, example in enumerate(_examples(self.builder, self.splits[split])):
            label = _label_text(self.builder.info.features[self.label_key], example[self.label_key])
            yield np.asarray(example[self.video_key]), label, f"{split}/{index:07d}"


def open_tfds(
    name_or_folder: str | os.PathLike[str],
    *,
    fps: float | None = None,
    splits: Mapping[str, str] | None = None,
    video_key: str | None = None,
    label_key: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> TfdsSource:
    """Opens a TFDS data set that is on disk already.

    Frames may be a `Video`, a `Sequence` of `Image`, or a uint8 tensor [T, H, W, 3]; classes a
    `ClassLabel`, or texts or integers under `label_key`, which are gone through once for their
    names.

    Args:
        name_or_folder: name in TFDS (`"ucf101/ucf101_1"`), or the folder of a prepared data set.
        fps: frames a second of its videos, for TFDS does not keep it.
        splits: TFDS's split for `"train"`, `"validation"`, `"test"`; default: those that it calls
            so.
        video_key: which feature holds the frames; default: the only one that can.
        label_key: which holds the class; default: the only ClassLabel, or `"label"`.
        data_dir: where TFDS keeps its data sets.

    Raises:
        FileNotFoundError: the data set is not prepared; says how to do so.
        ImportError: TFDS is not installed.
        ValueError: no feature, or more than one, fits; no `fps`; no split.
    """
    builder = _builder(name_or_folder, data_dir)
    features = builder.info.features
    video_key = _key("video_key", video_key, features, _is_video, "frames (uint8 [T, H, W, 3])")
    if label_key is None and not any(map(_is_class, features.values())) and "label" in features:
        label_key = "label"
    label_key = _key("label_key", label_key, features, _is_class, "the class (ClassLabel)")
    if fps is None:
        fps = (builder.info.metadata or {}).get("fps")
    if fps is None or not 0 < fps < float("inf"):
        raise ValueError(
            f"`fps` must be the frames a second of the videos of {builder.info.full_name}: a "
            f"positive number, which TFDS does not keep. Received: {fps!r}"
        )
    splits = _splits(builder, splits)
    labels = _labels(builder, label_key, splits)
    return TfdsSource(builder, video_key, label_key, float(fps), labels, splits)


def prepare_tfds(
    source: TfdsSource,
    out: str | os.PathLike[str],
    *,
    fps: float,
    size: int,
    quality: int = 95,
    num_shards: int | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> Prepared:
    """Writes the same records from a TFDS data set as `prepare` from videos.

    Args:
        source: from `open_tfds`.
        out: folder to make.
        fps: frames a second of the grid, positive.
        size: height and width of the frames, pixels; aspect not kept.
        quality: of the JPEGs, in [1, 100].
        num_shards: of each split; default: one for 256 clips.
        progress: called with (clips done, clips in all).

    Raises:
        ValueError: a value out of range, or `out` holds something else; says what differs.
    """
    from grw_keras.data import record_builder

    name = f"tfds:{source.builder.info.full_name} {dict(sorted(source.splits.items()))}"
    name += f" {source.video_key} {source.label_key} {source.fps:g} fps"
    counts = {split: source.count(split) for split in source.splits}
    settings = Settings(fps, size, quality, source.labels, name, sum(counts.values()))
    bounds = {split: shard_bounds(count, num_shards) for split, count in counts.items()}
    shards = [
        Shard(Path(), split, index, len(bounds[split]) - 1)
        for split in bounds
        for index in range(len(bounds[split]) - 1)
    ]

    def examples() -> Iterator[Example]:
        for split in source.splits:
            for frames, label, clip in source.read(split):
                taken = grid_frames(frames, source.fps, fps, size)
                row = Row(clip, label, "", clip, 0.0, len(frames) / source.fps, len(taken))
                yield encode(taken, row, settings)

    def write(folder: Path, watch: record_builder.Watch) -> None:
        stream = watch(examples())
        for shard in shards:
            first, last = bounds[shard.split][shard.index : shard.index + 2]
            mine = (next(stream) for _ in range(last - first))
            dataclasses.replace(shard, folder=folder).write(mine)

    return record_builder.build(out, settings, shards, write, 0.0, progress)


def grid_frames(frames: np.ndarray, source_fps: float, fps: float, size: int) -> np.ndarray:
    """Frames on display at the grid's times, resized: uint8 [T, H, W, 3] → [M, size, size, 3]."""
    if not len(frames):
        raise ValueError("A clip must have frames. Received: one without any")
    count = grid_size(len(frames) / source_fps, fps)
    # On display at j/fps is the last frame with i/source_fps <= j/fps, but for rounding.
    shown = np.floor(np.arange(count) / fps * source_fps + 1e-6).astype(np.int64)
    return np.stack([_resized(frames[i], size) for i in np.minimum(shown, len(frames) - 1)])


def _resized(frame: np.ndarray, size: int) -> np.ndarray:
    """As videos are: by area averaging along an axis that shrinks, else by linear interpolation."""
    for axis, length in enumerate(frame.shape[:2]):
        target = (frame.shape[1], size) if axis == 0 else (size, size)
        method = cv2.INTER_AREA if length > size else cv2.INTER_LINEAR
        if length != size:
            frame = cv2.resize(frame, target, interpolation=method)
    return frame


def _builder(name_or_folder, data_dir):
    import tensorflow_datasets as tfds

    if (Path(name_or_folder) / "dataset_info.json").is_file():
        return tfds.builder_from_directory(os.fspath(name_or_folder))
    try:
        builder = tfds.builder(os.fspath(name_or_folder), data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise FileNotFoundError(
            "`name_or_folder` must be a data set that TFDS knows, or the folder of one (the one "
            f"that holds dataset_info.json). Received: {str(name_or_folder)!r}"
        ) from error
    if not builder.is_prepared():
        raise FileNotFoundError(
            f"{builder.info.full_name} is not in {builder.data_dir}. Prepare it by "
            f"`tfds build {name_or_folder}`, or name the folder that holds it."
        )
    return builder


def _is_video(feature) -> bool:
    import tensorflow_datasets as tfds

    shape = feature.shape
    if isinstance(feature, tfds.features.Sequence) and not isinstance(
        feature.feature, tfds.features.Image
    ):
        return False
    is_frames = isinstance(shape, tuple) and len(shape) == 4 and shape[-1] == 3
    return is_frames and feature.np_dtype == np.uint8


def _is_class(feature) -> bool:
    import tensorflow_datasets as tfds

    return isinstance(feature, tfds.features.ClassLabel)


def _key(parameter: str, given: str | None, features, fits: Callable, what: str) -> str:
    fitting = [key for key, feature in features.items() if fits(feature)]
    kinds = {key: type(features[key]).__name__ for key in sorted(features)}
    known = ", ".join(f"{key!r} ({kind})" for key, kind in kinds.items())
    if given is None:
        if len(fitting) == 1:
            return fitting[0]
        number = "more than one feature" if fitting else "no feature"
        raise ValueError(f"{number} holds {what}: give `{parameter}`. The features are {known}")
    scalar = parameter == "label_key" and given in features and features[given].shape == ()
    if given not in fitting and not scalar:
        hint = did_you_mean(given, [key for key in features if key != given])
        raise ValueError(
            f"`{parameter}` must name a feature with {what}. {hint}The features are {known}. "
            f"Received: {given!r}"
        )
    return given


def _splits(builder, given: Mapping[str, str] | None) -> dict[str, str]:
    available = list(builder.info.splits)
    if given is None:
        given = {split: split for split in SPLITS if split in available}
    strangers = [split for split in given if split not in SPLITS]
    if strangers or not given:
        raise ValueError(
            f"`splits` must name TFDS's split for some of {', '.join(map(repr, SPLITS))}, as in "
            f"{{'validation': 'train[80%:]'}}. The data set has {available}. "
            f"Received: {dict(given)}"
        )
    return dict(given)


def _labels(builder, label_key: str, splits: Mapping[str, str]) -> tuple[str, ...]:
    feature = builder.info.features[label_key]
    if _is_class(feature):
        return tuple(feature.names)
    found = {
        example[label_key]
        for split in splits.values()
        for example in _examples(builder, split, {label_key})
    }
    return tuple(_label_text(feature, value) for value in sorted(found))


def _label_text(feature, value) -> str:
    if _is_class(feature):
        return feature.int2str(int(value))
    return value.decode() if isinstance(value, bytes) else str(value)


def _examples(builder, split: str, only: set[str] | None = None) -> Iterator[dict[str, Any]]:
    """Examples as NumPy arrays, in their order on disk."""
    import tensorflow_datasets as tfds

    decoders = tfds.decode.PartialDecoding(dict.fromkeys(only, True)) if only else None
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        yield from builder.as_data_source(split, decoders=decoders)
    else:
        yield from tfds.as_numpy(builder.as_dataset(split, decoders=decoders, shuffle_files=False))
