"""read: the clips of whatever data a user has, by what it looks like."""

import os
from collections.abc import Sequence
from pathlib import Path

from grw_keras.data.clips import Clip, ClipSet
from grw_keras.data.csv_source import from_csv
from grw_keras.data.folder_source import from_folder
from grw_keras.data.kinetics import COLUMNS as KINETICS_COLUMNS
from grw_keras.data.kinetics import from_kinetics
from grw_keras.hints import did_you_mean_path

__all__ = ["Clip", "ClipSet", "from_csv", "from_folder", "from_kinetics", "read"]


def read(
    data: str | os.PathLike[str],
    *,
    annotations: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    labels: Sequence[str] | None = None,
) -> ClipSet:
    """The clips of a folder of class folders, of a CSV list, or of Kinetics.

    Args:
        data: a folder of class folders, or with train/ and test/ (see `from_folder`); a .csv file
            (see `from_csv`); with `annotations`, the folder of Kinetics' clips (see
            `from_kinetics`).
        annotations: Kinetics' annotation files; none: the data is not Kinetics.
        labels: the classes that the data's must be among, such as a trained model's, in its order;
            default: the data's own, sorted.

    Raises:
        FileNotFoundError, NotADirectoryError: no such file or folder.
        ValueError: what is there is not as described.
    """
    path = Path(data)
    check_exists(path)
    if annotations:
        return from_kinetics(path, annotations, labels=labels)
    if path.is_dir():
        return from_folder(path, labels=labels)
    if path.suffix.lower() != ".csv":
        raise ValueError(f"`data` must be a folder or a .csv file. Received: {path}")
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        if set(KINETICS_COLUMNS) <= {column.strip(' "\n') for column in file.readline().split(",")}:
            raise ValueError(
                "`data` must be the folder of clips with Kinetics, and its annotation files "
                f"`annotations`. Received: data={str(path)!r}"
            )
    return from_csv(path, labels=labels)


def check_exists(path: Path) -> None:
    """Sees that there is something of that name.

    Raises:
        FileNotFoundError: there isn't; names the closest there is.
    """
    if not path.exists():
        raise FileNotFoundError(
            "`data` must be a folder or a .csv file that exists. "
            f"{did_you_mean_path(path)}Received: {path}"
        )
