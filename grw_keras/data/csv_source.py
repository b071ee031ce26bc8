"""Clips from a CSV list of videos, or of parts of videos."""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path

from grw_keras.data.clips import COLUMNS, Clip, ClipSet, part_name, split_name
from grw_keras.data.csv_rows import csv_rows


def from_csv(path: str | os.PathLike[str], *, labels: Sequence[str] | None = None) -> ClipSet:
    """Clips of a list with the columns path, label and, as needed, start, end, split, group, name.

    Paths are relative to the list's folder. `start` and `end` are seconds after the video's first
    frame; empty: where the video begins and ends. `split` is train, validation (or val), test, or
    empty. `name` is for lists that `ClipSet.to_csv` wrote; empty: the path. Blank lines don't
    count.

    Args:
        path: of the list.
        labels: the classes that the data's must be among, in the order to keep; default: the
            list's own, sorted.

    Raises:
        FileNotFoundError: no such list, or it names videos that are not there.
        ValueError: a column, a cell or a row that is not as above, with its line; no clip at all;
            or a class that `labels` lacks.
    """
    folder = os.path.dirname(os.path.abspath(path))
    lines: dict[str, int] = {}
    clips, absent = [], []
    for line, row in csv_rows(path, COLUMNS[:2], COLUMNS[2:]):
        try:
            clip = _clip(folder, row)
            if clip.name in lines:
                raise ValueError(
                    f"a clip must be listed once, and is on line {lines[clip.name]} already; parts "
                    f"of a video need different `start` or `end`. Received: {clip.name!r}"
                )
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from error
        lines[clip.name] = line
        clips.append(clip)
        if not os.path.exists(clip.path):
            absent.append((line, clip.path))
    if absent:
        line, first = absent[0]
        raise FileNotFoundError(
            f"{path}, line {line}: there is no file {first!r}. Paths are relative to {folder}. "
            f"Received: {len(absent)} paths without a file among {len(clips)} clips"
        )
    if not clips:
        raise ValueError(f"The list must have a clip. Received: {path}, a header alone")
    found = tuple(sorted({clip.label for clip in clips}))
    return ClipSet(tuple(clips), found if labels is None else tuple(labels))


def _clip(folder: str, row: dict[str, str]) -> Clip:
    if not row["path"].strip():
        raise ValueError("`path` must be a video's. Received: an empty cell")
    start_s, end_s = _seconds(row, "start"), _seconds(row, "end")
    clip = Clip(
        os.path.normpath(os.path.join(folder, row["path"])),
        row["label"],
        start_s or 0.0,
        end_s,
        split_name(row.get("split", "")),
        row.get("group", ""),
        row.get("name", ""),
    )
    if clip.name != row.get("name"):
        own = Path(os.path.normpath(row["path"])).as_posix()
        clip = dataclasses.replace(clip, name=part_name(own, clip.start_s, end_s))
    return clip


def _seconds(row: dict[str, str], column: str) -> float | None:
    cell = row.get(column, "").strip()
    if not cell:
        return None
    try:
        seconds = float(cell)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"`{column}` must be seconds, >= 0. Received: {cell!r}")
    return seconds
