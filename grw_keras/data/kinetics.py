"""Clips of Kinetics: its annotation files over a folder of downloaded clips."""

import collections
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from grw_keras.data.clips import Clip, ClipSet, normalized, split_name
from grw_keras.data.csv_rows import csv_rows
from grw_keras.data.folder_source import videos_below

log = logging.getLogger("grw_keras")

COLUMNS = ("label", "youtube_id", "time_start", "time_end")


class _Row(NamedTuple):
    label: str
    youtube_id: str
    stem: str  # of the clip's usual file name
    split: str
    where: str  # for error messages


def from_kinetics(
    root: str | os.PathLike[str],
    annotations: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    labels: Sequence[str] | None = None,
) -> ClipSet:
    """Clips of Kinetics-400, -600 or -700 that are on disk.

    A clip is `{youtube_id}_{start:06d}_{end:06d}.mp4`, as the usual downloaders name it, or
    `{youtube_id}.mp4` where that video is annotated once; with any video's extension, anywhere
    below `root`. Where several files have the name, those in the folder of the clip's class or
    split come first. Clips that are not there are counted in the log and named in `missing`.

    Args:
        root: the folder of clips.
        annotations: the annotation CSV files (columns label, youtube_id, time_start, time_end, and
            split, or else the file is named train.csv, val.csv, validate.csv or test.csv).
        labels: the classes that the data's must be among, in the order to keep; default: all that
            the annotation files have, sorted.

    Raises:
        NotADirectoryError, FileNotFoundError: no such folder or file.
        ValueError: not such a file; a clip annotated in two ways; none of the clips on disk; or a
            class that `labels` lacks.

    Reference:
        Kay et al., The Kinetics Human Action Video Dataset, https://arxiv.org/abs/1705.06950;
        https://github.com/cvdfoundation/kinetics-dataset
    """
    root = Path(os.path.abspath(root))
    if not root.is_dir():
        raise NotADirectoryError(f"`data` must be the folder of clips. Received: {root}")
    if isinstance(annotations, str | os.PathLike):
        annotations = [annotations]
    rows = [row for file in annotations for row in _rows(file)]
    if not rows:
        raise ValueError(f"`annotations` must have a clip. Received: {list(map(str, annotations))}")
    files = _files_by_stem(root)
    times = collections.Counter(youtube_id for youtube_id, _ in {row[1:3] for row in rows})
    clips: dict[str, Clip] = {}
    sources: dict[str, _Row] = {}
    missing = []
    for row in rows:
        found = files.get(row.stem, ())
        if not found and times[row.youtube_id] == 1:
            found = files.get(row.youtube_id, ())
        if not found:
            missing.append(row.stem)
            continue
        name = min(found, key=lambda name: _strangeness(name, row))
        clip = Clip(os.path.join(root, name), row.label, split=row.split, name=name)
        if clips.setdefault(name, clip) != clip:
            raise ValueError(
                f"A clip must have one label and one split. Received: {row.label!r} "
                f"({row.split}) in {row.where} and {clips[name].label!r} ({clips[name].split}) in "
                f"{sources[name].where} for {name}"
            )
        sources.setdefault(name, row)
    if not clips:
        raise ValueError(
            f"`data` must be the folder of the annotated clips, named like {rows[0].stem}.mp4. "
            f"Received: {root}, which has none of {len(rows)} clips among its {len(files)} videos"
        )
    if missing:
        log.warning(
            "%d of %d annotated clips are not in %s, the first: %s",
            *(len(missing), len(rows), root, missing[0]),
        )
    known = tuple(sorted({row.label for row in rows})) if labels is None else tuple(labels)
    ordered = sorted(clips.values(), key=lambda clip: clip.name)
    return ClipSet(tuple(ordered), known, tuple(missing))


def _rows(file: str | os.PathLike[str]) -> Iterable[_Row]:
    for line, cells in csv_rows(file, COLUMNS):
        where = f"{os.fspath(file)}, line {line}"
        youtube_id = cells["youtube_id"].strip()
        try:
            start, end = (round(float(cells[column])) for column in COLUMNS[2:])
            split = split_name(cells.get("split") or Path(file).stem)
        except (ValueError, OverflowError) as error:  # the latter of infinite times
            raise ValueError(f"{where}: {error}") from error
        if not youtube_id or not cells["label"].strip():
            raise ValueError(f"{where}: a clip must have a label and a youtube_id.")
        stem = f"{youtube_id}_{start:06d}_{end:06d}"
        yield _Row(normalized(cells["label"]), youtube_id, stem, split, where)


def _files_by_stem(root: Path) -> dict[str, list[str]]:
    files = collections.defaultdict(list)
    for path in videos_below(root):
        name = Path(path).relative_to(root)
        files[name.stem].append(name.as_posix())
    return files


def _strangeness(name: str, row: _Row) -> tuple[bool, bool, str]:
    """Sorts first what lies in the folder of the clip's class, then of its split."""
    folders = [folder.replace("_", " ") for folder in name.split("/")[:-1]]
    splits = {"validation": {"validation", "val", "validate"}}.get(row.split, {row.split})
    return row.label.replace("_", " ") not in folders, splits.isdisjoint(folders), name
