"""Clip and ClipSet: which stretch of which video shows which class, before any is opened."""

import collections
import csv
import dataclasses
import difflib
import os
import unicodedata
from collections.abc import Iterable, Sequence

from grw_keras.hints import did_you_mean

SPLITS = ("train", "validation", "test")
# Kinetics calls its validation split "val" in file names and "validate" inside the files.
_OTHER_NAMES = {"val": "validation", "validate": "validation"}
COLUMNS = ("path", "label", "start", "end", "split", "group", "name")


@dataclasses.dataclass(frozen=True)
class Clip:
    """A video, or a part of one, and its class.

    Labels are kept in Unicode's composed form (NFC), for file systems differ in theirs; space
    around labels and groups is cut off.

    Args:
        path: of the video file.
        label: the class's name.
        start_s: where the part begins, seconds after the video's first frame, >= 0.
        end_s: where it ends, seconds; None: where the video does.
        split: `"train"`, `"validation"`, `"test"`, or `""`: not assigned yet.
        group: clips of one group (scene, actor) never lie on both sides of a split; `""`: none.
        name: unique within a clip set; default: the path, with `@start-end` for a part.

    Raises:
        ValueError: a value out of range, or a path that is not Unicode.
    """

    path: str
    label: str
    start_s: float = 0.0
    end_s: float | None = None
    split: str = ""
    group: str = ""
    name: str = ""

    def __post_init__(self):
        path = os.fspath(self.path)
        object.__setattr__(self, "path", path)
        object.__setattr__(self, "label", normalized(self.label))
        object.__setattr__(self, "group", self.group.strip())
        if not self.name:
            object.__setattr__(self, "name", part_name(path, self.start_s, self.end_s))
        try:
            (path + self.name).encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                "`path` must be Unicode, for lists and reports are UTF-8 files: rename the file. "
                f"Received: {path!r}"
            ) from error
        self._require("label", self.label != "", "a class's name")
        self._require("start_s", 0 <= self.start_s < float("inf"), "finite seconds, >= 0")
        end = self.end_s is None or 0 <= self.end_s < float("inf")
        self._require("end_s", end, "None or finite seconds, >= 0")
        self._require("split", self.split in ("", *SPLITS), f"'' or one of {_quoted(SPLITS)}")

    def _require(self, field: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ValueError(
                f"`{field}` must be {allowed}. Received: {getattr(self, field)!r} for {self.path!r}"
            )


@dataclasses.dataclass(frozen=True)
class ClipSet:
    """Clips and the classes that they may be of.

    Args:
        clips: in the order that examples are numbered by.
        labels: the classes' names, in the order of a model's outputs; some may have no clip.
        missing: names of the clips that a list speaks of but that are not on disk. It takes no
            part in comparisons.

    Raises:
        ValueError: a class or a clip's name twice, or a clip of none of the classes.
    """

    clips: tuple[Clip, ...]
    labels: tuple[str, ...]
    missing: tuple[str, ...] = dataclasses.field(default=(), compare=False, repr=False)

    def __post_init__(self):
        if isinstance(self.labels, str):
            raise TypeError(f"`labels` must be a list of names. Received: {self.labels!r}")
        object.__setattr__(self, "clips", tuple(self.clips))
        object.__setattr__(self, "labels", tuple(map(normalized, self.labels)))
        object.__setattr__(self, "missing", tuple(self.missing))
        for field, values in {"labels": self.labels, "clips": [c.name for c in self.clips]}.items():
            twice = [value for value, n in collections.Counter(values).items() if n > 1]
            if twice:
                raise ValueError(
                    f"`{field}` must have each name once. Received more than once: {_few(twice)}"
                )
        strangers = sorted({clip.label for clip in self.clips} - set(self.labels))
        if strangers:
            lacking = _with_closest(strangers, self.labels)
            raise ValueError(
                f"`labels` must have every class of the data. It lacks {lacking}. "
                "Rename those classes, or leave out `labels` to take the data's own. "
                f"Received: {len(self.labels)} labels"
            )

    def __len__(self) -> int:
        return len(self.clips)

    def class_counts(self) -> dict[str, int]:
        """How many clips each class has, in the order of `labels`."""
        counts = collections.Counter(clip.label for clip in self.clips)
        return {label: counts[label] for label in self.labels}

    def splits(self) -> dict[str, int]:
        """How many clips each split has; only those that have some. `""`: not assigned."""
        counts = collections.Counter(clip.split for clip in self.clips)
        return {name: counts[name] for name in (*SPLITS, "") if counts[name]}

    def split(self, name: str) -> "ClipSet":
        """The clips of one split, with all the labels.

        Raises:
            ValueError: there is no clip in it; says which splits there are.
        """
        chosen = tuple(clip for clip in self.clips if clip.split == name)
        if not chosen:
            raise ValueError(f"`name` must be a split that has clips. {self._told(name)}")
        return dataclasses.replace(self, clips=chosen)

    def subset(self, indices: Iterable[int]) -> "ClipSet":
        """The clips with these numbers, in this order, with all the labels."""
        return dataclasses.replace(self, clips=tuple(self.clips[index] for index in indices))

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the clips as a list that `from_csv(path, labels=self.labels)` reads back alike.

        Videos below the list's folder are listed relative to it, all others by their full path.
        """
        folder = os.path.dirname(os.path.abspath(path))
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for clip in self.clips:
                start = repr(clip.start_s) if clip.start_s else ""
                end = "" if clip.end_s is None else repr(clip.end_s)
                where = _from(folder, os.path.abspath(clip.path))
                writer.writerow((where, clip.label, start, end, clip.split, clip.group, clip.name))

    def _told(self, name: str) -> str:
        there = ", ".join(f"{split!r} ({n} clips)" for split, n in self.splits().items())
        hint = did_you_mean(name, self.splits())
        return f"{hint}There are: {there or 'none'}. Received: {name!r}"


def split_name(text: str) -> str:
    """The split that a word such as "Train", "val" or "validate" stands for; "" for "".

    Raises:
        ValueError: it stands for none.
    """
    word = text.strip().lower()
    word = _OTHER_NAMES.get(word, word)
    if word not in ("", *SPLITS):
        hint = did_you_mean(word, SPLITS)
        raise ValueError(f"`split` must be one of {_quoted(SPLITS)}. {hint}Received: {text!r}")
    return word


def part_name(name: str, start_s: float, end_s: float | None) -> str:
    """A name with `@start-end` in seconds, where that is not the whole video."""
    if not start_s and end_s is None:
        return name
    start, end = (("" if t is None else repr(t).removesuffix(".0")) for t in (start_s, end_s))
    return f"{name}@{start}-{end}"


def normalized(label: str) -> str:
    """A label in Unicode's composed form without space around it."""
    return unicodedata.normalize("NFC", label).strip()


def _from(folder: str, path: str) -> str:
    prefix = os.path.join(folder, "")
    return path[len(prefix) :] if path.startswith(prefix) else path


def _with_closest(strangers: Sequence[str], labels: Sequence[str]) -> str:
    told = []
    for stranger in strangers[:10]:
        close = difflib.get_close_matches(stranger, labels, n=1)
        told.append(f"{stranger!r} (closest: {close[0]!r})" if close else repr(stranger))
    more = f" and {len(strangers) - 10} more" if len(strangers) > 10 else ""
    return ", ".join(told) + more


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if names[5:] else "")


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
