"""Tables that grow by rows, as CSV files with a header."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from grw_keras import atomic


def read(path: Path) -> list[dict[str, str]]:
    """The rows, each by its columns' names; none where there is no file yet."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def text_of(path: Path, columns: Sequence[str]) -> str:
    """The text of a table that rows can be appended to; empty where there is none yet.

    Raises:
        ValueError: the file has other columns.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    header = next(csv.reader(io.StringIO(text)), list(columns))
    if list(header) != list(columns):
        raise ValueError(
            f"{path} has other columns than this version writes: move it away, and a new one is "
            f"begun. Expected: {','.join(columns)}. Received: {','.join(header)}"
        )
    return text if text.endswith("\n") or not text else f"{text}\n"


def append(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Adds rows below all others; the file and its folder are made if absent.

    Atomic, also between processes: a reader sees the file with all the rows or without them.

    Raises:
        ValueError: the file has other columns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_name(f".{path.name}.lock")):
        before = text_of(path, columns)
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        if not before:
            writer.writeheader()
        writer.writerows(rows)
        atomic.write_text(path, before + text.getvalue())
