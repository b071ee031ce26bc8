"""Clips from folders: one folder per class, or such folders below train/ and test/."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from grw_keras.data.clips import Clip, ClipSet, normalized, split_name

log = logging.getLogger("grw_keras")

VIDEO_EXTENSIONS = (
    *(".3gp", ".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"),
    *(".ogv", ".ts", ".webm", ".wmv"),
)
_LAYOUTS = (
    "`data` must be a folder of class folders, or a folder with train/ and test/ (and validation/) "
    "that have class folders"
)


def from_folder(root: str | os.PathLike[str], *, labels: Sequence[str] | None = None) -> ClipSet:
    """Clips of a folder of class folders, or of train/, validation/ (or val/), test/ with such.

    Videos in folders below a class folder count too. Links are followed; files and folders that
    begin with a dot, and files that are no videos by their extension, are left out. The order is
    that of the names.

    Args:
        root: the folder.
        labels: the classes that the data's must be among, in the order to keep; default: the
            class folders' names of all splits, sorted.

    Raises:
        NotADirectoryError: `root` is no folder.
        ValueError: another layout, no video at all, or a class that `labels` lacks.
    """
    root = _folder(root)
    classes = _classes(root)
    clips = []
    for split, folder in classes:
        paths = list(videos_below(folder))
        if not paths:
            log.warning("The class folder %s has no videos.", folder)
        clips += [
            Clip(path, folder.name, split=split, name=Path(path).relative_to(root).as_posix())
            for path in paths
        ]
    if not clips:
        raise ValueError(
            f"{_LAYOUTS}. Received: {root}, in whose folders there is no file named like a video "
            f"({', '.join(VIDEO_EXTENSIONS)})"
        )
    names = {folder.name for _, folder in classes}
    return ClipSet(tuple(clips), _labels(names) if labels is None else tuple(labels))


def videos_below(folder: Path, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Paths of all videos below a folder, through links too, each folder's names sorted."""
    real = os.path.realpath(folder)
    if real in above:  # a link to a folder that it lies in
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from videos_below(Path(entry.path), (*above, real))
        # A broken link that is named like a video counts: the scan tells what is wrong with it.
        elif os.path.splitext(entry.name)[1].lower() in VIDEO_EXTENSIONS:
            yield entry.path


def _folder(root: str | os.PathLike[str]) -> Path:
    # Not resolved: a link's own name is what the user knows the data by.
    path = Path(os.path.abspath(root))
    if not path.is_dir():
        raise NotADirectoryError(f"{_LAYOUTS}. Received: {path}, which is no folder")
    return path


def _classes(root: Path) -> list[tuple[str, Path]]:
    """(split, class folder) pairs; the split is "" in the layout without splits."""
    folders = _subfolders(root)
    splits = {folder: split for folder in folders if (split := _split_of(folder))}
    if not splits:
        _warn_of_loose_videos(root)
        return [("", folder) for folder in folders]
    others = [f for f in folders if f not in splits and any(videos_below(f))]
    if others:
        raise ValueError(
            f"{_LAYOUTS}, not both. Rename the class, or list the clips in a CSV file. "
            f"Received: {', '.join(f.name for f in splits)} beside "
            f"{', '.join(f.name for f in others[:5])} in {root}"
        )
    for folder in splits:
        _warn_of_loose_videos(folder)
    return [(split, below) for folder, split in splits.items() for below in _subfolders(folder)]


def _subfolders(folder: Path) -> list[Path]:
    below = (path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    return sorted(below, key=lambda path: path.name)


def _split_of(folder: Path) -> str:
    try:
        return split_name(folder.name)
    except ValueError:
        return ""


def _warn_of_loose_videos(folder: Path) -> None:
    loose = [
        path.name
        for path in folder.iterdir()
        if path.suffix.lower() in VIDEO_EXTENSIONS and path.name[0] != "." and not path.is_dir()
    ]
    if loose:
        log.warning(
            "%d videos lie in %s itself, not in a class folder, and are left out: %s",
            *(len(loose), folder, ", ".join(sorted(loose)[:5])),
        )


def _labels(names: set[str]) -> tuple[str, ...]:
    return tuple(sorted({normalized(name) for name in names}))
