"""What lies in a folder of prepared records: names, settings, shards and tables. No TensorFlow.

A folder holds shards (array_record files of tf.train.Examples), one table of clips for each split,
the table of bad videos, and what TFDS wants to know. The tables spare readers from going through
all frames for the labels.
"""

import csv
import dataclasses
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from array_record.python import array_record_module

from grw_keras.data.scan import BadVideo, Scan

NAME = "video_records"
VERSION = "1.0.0"
BAD_VIDEOS = "bad_videos.csv"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the contents of prepared records.

    Args:
        fps: frames a second of the grid, positive.
        size: height and width of the frames, pixels.
        quality: of the JPEGs, in [1, 100].
        labels: all classes, in the order of their numbers.
        source: digest of the clips (`digest`), or the name of a TFDS data set.
        count: clips asked for, the bad ones included.
    """

    fps: float
    size: int
    quality: int
    labels: tuple[str, ...]
    source: str
    count: int

    def __post_init__(self):
        checks = {
            "fps": (0 < self.fps < float("inf"), "positive"),
            "size": (self.size >= 1 and self.size == int(self.size), "a positive integer"),
            "quality": (1 <= self.quality <= 100, "in [1, 100]"),
            "labels": (len(set(self.labels)) == len(self.labels) > 0, "different names, >= 1"),
            "count": (self.count >= 1, ">= 1: there are no clips"),
        }
        for field, (holds, allowed) in checks.items():
            if not holds:
                raise ValueError(f"`{field}` must be {allowed}. Received: {getattr(self, field)!r}")
        object.__setattr__(self, "fps", float(self.fps))
        object.__setattr__(self, "labels", tuple(self.labels))

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `read_settings` finds in a folder's metadata."""
        return dataclasses.asdict(self) | {"labels": list(self.labels)}

    def differences(self, other: "Settings") -> list[str]:
        """In words, where `other` differs from these settings."""
        found = []
        for field in dataclasses.fields(self):
            mine, others = getattr(self, field.name), getattr(other, field.name)
            if mine != others and field.name in ("labels", "source"):
                found.append(f"other {'labels' if field.name == 'labels' else 'clips'}")
            elif mine != others:
                found.append(f"{field.name} {mine}, not {others}")
        return found


class Row(NamedTuple):
    """One clip in a split's table; `frames` is how many its grid has."""

    name: str
    label: str
    group: str
    path: str
    start_s: float
    end_s: float
    frames: int


@dataclasses.dataclass(frozen=True)
class Example:
    """A clip's tf.train.Example, serialized, and its row."""

    record: bytes
    row: Row


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A folder of finished records.

    Args:
        folder: where they are.
        counts: clips of each split, the bad ones left out.
        bad: videos that were skipped; also in the folder's `bad_videos.csv`.
        kept: whether they were there before.
    """

    folder: Path
    counts: dict[str, int]
    bad: tuple[BadVideo, ...]
    kept: bool = False


@dataclasses.dataclass(frozen=True)
class Shard:
    """Shard `index` of `count` of a split, in a folder."""

    folder: Path
    split: str
    index: int
    count: int

    @property
    def path(self) -> Path:
        """Its file, named as TFDS names it."""
        name = f"{NAME}-{self.split}.array_record-{self.index:05d}-of-{self.count:05d}"
        return self.folder / name

    @property
    def notes(self) -> Path:
        """What was written and what was bad; only while the records are being prepared."""
        return self.path.with_name(f"notes-{self.path.name}.json")

    def write(self, examples: Iterable[Example | BadVideo]) -> None:
        """Writes the file, then its notes; who tries again begins afresh."""
        part = self.path.with_name(f"part-{uuid.uuid4().hex}")
        rows, bad = [], []
        # One record to a chunk, as TFDS writes them: each can be read alone.
        writer = array_record_module.ArrayRecordWriter(os.fspath(part), "group_size:1")
        try:
            for example in examples:
                if isinstance(example, BadVideo):
                    bad.append(dataclasses.asdict(example))
                else:
                    writer.write(example.record)
                    rows.append(example.row)
        finally:
            writer.close()
        _check_written(part, len(rows))
        os.replace(part, self.path)
        part.write_text(json.dumps({"rows": rows, "bad": bad}), encoding="utf-8")
        os.replace(part, self.notes)

    def take_notes(self) -> tuple[list[Row], list[BadVideo]]:
        """What `write` wrote and what it found bad."""
        notes = json.loads(self.notes.read_text(encoding="utf-8"))
        return [Row(*row) for row in notes["rows"]], [BadVideo(**b) for b in notes["bad"]]


def digest(rows: Iterable[Sequence[Any]]) -> str:
    """SHA-256 of a table: changes with every value and with their order."""
    table = hashlib.sha256()
    for row in rows:
        table.update(json.dumps(list(row)).encode() + b"\n")
    return table.hexdigest()


def write_tables(folder: Path, rows: Mapping[str, Sequence[Row]], bad: Sequence[BadVideo]) -> None:
    """The table of each split's clips, and that of the bad videos."""
    for split, clips in rows.items():
        with clips_table(folder, split).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(Row._fields)
            writer.writerows(clips)
    Scan({}, tuple(bad), 0).write_report(folder / BAD_VIDEOS)


def read_clips(folder: Path, split: str) -> list[Row]:
    """The clips of a split, in the order of its records.

    Raises:
        ValueError: the table is missing or damaged.
    """
    path = clips_table(folder, split)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = csv.reader(file, strict=True)
            if next(lines, None) != list(Row._fields):
                raise ValueError(f"its columns are not {', '.join(Row._fields)}")
            return [
                Row(name, label, group, video, float(start), float(end), int(frames))
                for name, label, group, video, start, end, frames in lines
            ]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"{path} can't be read: {error}. Prepare the records again.") from error


def read_bad(folder: Path) -> tuple[BadVideo, ...]:
    """The videos that were left out."""
    with (folder / BAD_VIDEOS).open(newline="", encoding="utf-8") as file:
        return tuple(BadVideo(row["path"], row["reason"]) for row in csv.DictReader(file))


def clips_table(folder: Path, split: str) -> Path:
    """The table of a split's clips."""
    return folder / f"clips_{split}.csv"


def shards(folder: Path) -> dict[str, list[tuple[Shard, int]]]:
    """Each split's shards, with how many records each holds, from TFDS's own notes.

    Raises:
        FileNotFoundError: the folder holds no finished records.
    """
    info = _read_json(folder, "dataset_info.json")
    found = {}
    for split in info.get("splits", []):
        lengths = [int(length) for length in split.get("shardLengths", [])]
        found[split["name"]] = [
            (Shard(folder, split["name"], index, len(lengths)), length)
            for index, length in enumerate(lengths)
        ]
    return found


def read_settings(folder: Path) -> Settings:
    """The settings that a folder's records were prepared with.

    Raises:
        FileNotFoundError: the folder holds no finished records.
        ValueError: it holds another data set.
    """
    _read_json(folder, "dataset_info.json")
    # TFDS writes no metadata of a data set without any.
    metadata = {}
    if (folder / "metadata.json").exists():
        metadata = _read_json(folder, "metadata.json")
    try:
        return Settings(**metadata)
    except TypeError as error:
        raise ValueError(
            f"{folder} holds a data set that `grw-keras data prepare` has not written: give a "
            f"video data set of TFDS as tfds:{folder}"
        ) from error


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(
            f"{folder} holds no finished records: it has no {name}. "
            "Write them with `grw-keras data prepare --data DIR --out RECORDS`."
        ) from error
    except ValueError as error:
        raise ValueError(f"{folder / name} is damaged: {error}. Prepare them again.") from error


def _check_written(path: Path, count: int) -> None:
    """A full disk must not pass for a finished shard."""
    reader = array_record_module.ArrayRecordReader(os.fspath(path))
    found = reader.num_records()
    reader.close()
    if found != count:
        raise OSError(f"{path} holds {found} records, {count} were written: is the disk full?")
