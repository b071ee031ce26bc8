"""What probing found, kept by path, size and time of change, so that no video is probed twice."""

import dataclasses
import json
import logging
import os
from typing import Any

from grw_keras import atomic
from grw_keras.data.video import BadVideoError, VideoInfo

log = logging.getLogger("grw_keras")

_FORMAT = "grw_keras scan 1"


class ScanCache:
    """Findings in a JSON file; one that is damaged or can't be written costs time, not the run.

    Args:
        path: of the file; it need not exist. None: nothing is kept.
    """

    def __init__(self, path: str | os.PathLike[str] | None):
        self._path = None if path is None else os.path.abspath(path)
        self._entries: dict[str, list[Any]] = {}
        self._changed = False
        if self._path is not None and os.path.exists(self._path):
            self._entries = _read(self._path)

    def get(self, video: str) -> VideoInfo | BadVideoError | None:
        """What was found of this video, as it is on disk now; None: not known."""
        if video not in self._entries or (stamp := _stamp(video)) is None:
            return None
        size, mtime_ns, found = self._entries[video]
        if (size, mtime_ns) != stamp:
            return None
        return BadVideoError(video, found) if isinstance(found, str) else VideoInfo(**found)

    def put(self, video: str, found: VideoInfo | BadVideoError) -> None:
        """Keep what was found of a video."""
        stamp = _stamp(video)
        if self._path is None or stamp is None:
            return
        plain = found.reason if isinstance(found, BadVideoError) else dataclasses.asdict(found)
        self._entries[video] = [*stamp, plain]
        self._changed = True

    def save(self) -> None:
        """Write the file if there is something new; a reader sees the old file or all of it."""
        if self._path is None or not self._changed:
            return
        try:
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            with (
                atomic.replacing(self._path) as temporary,
                temporary.open("w", encoding="utf-8") as file,
            ):
                json.dump({"format": _FORMAT, "videos": self._entries}, file)
        except OSError as error:
            log.warning("The findings about videos can't be kept in %s: %s", self._path, error)


def _read(path: str) -> dict[str, list[Any]]:
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
        if data["format"] != _FORMAT:
            raise ValueError(f"the format is {data['format']!r}")
        for _size, _mtime_ns, found in data["videos"].values():
            if not isinstance(found, str):
                VideoInfo(**found)
        return data["videos"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("%s is no file of findings about videos and is ignored: %r", path, error)
        return {}


def _stamp(video: str) -> tuple[int, int] | None:
    try:
        status = os.stat(video)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
