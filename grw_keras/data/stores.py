"""Where the grid frames of a clip set are read from: videos, memory, disk."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from grw_keras.data.clips import ClipSet
from grw_keras.data.sampling import grid_size
from grw_keras.data.video import BadVideoError, VideoInfo, read_frames
from grw_keras.data.workers import in_order

Progress = Callable[[int, int], None]


class FrameStore(Protocol):
    """The frames of each clip on its grid: `fps` a second from its start on, squares of `size` px.

    Stores of one clip set, `fps` and `size` give the same frames, so what trains on them need not
    know where they come from. (Prepared records have been through JPEG.)
    """

    fps: float
    size: int

    @property
    def clips(self) -> ClipSet:
        """What the store holds, in the order of its numbers."""
        ...

    def available(self, index: int) -> int:
        """M, the number of frames on the grid of clip `index`."""
        ...

    def read(self, index: int, frames: np.ndarray) -> np.ndarray:
        """Frames `frames` [n] (integers below M, in any order) of clip `index`: uint8
        [n, size, size, 3].

        Raises:
            BadVideoError: the video can't be decoded.
        """
        ...


class VideoStore:
    """Decodes the frames that are asked for, each time.

    Args:
        clips: what to read.
        infos: of each clip's path (`grw_keras.data.scan`).
        fps: of the grid.
        size: height and width that frames are resized to, pixels.
    """

    def __init__(self, clips: ClipSet, infos: Mapping[str, VideoInfo], *, fps: float, size: int):
        self.clips = clips
        self.fps = fps
        self.size = size
        self._durations = [infos[clip.path].duration_s for clip in clips.clips]

    def available(self, index: int) -> int:
        clip, end_s = self.clips.clips[index], self._durations[index]
        if clip.end_s is not None:
            end_s = min(end_s, clip.end_s)
        return grid_size(end_s - clip.start_s, self.fps)

    def read(self, index: int, frames: np.ndarray) -> np.ndarray:
        clip = self.clips.clips[index]
        wanted, where = np.unique(frames, return_inverse=True)
        return read_frames(clip.path, clip.start_s + wanted / self.fps, self.size)[where]


class MemoryStore:
    """All grid frames of another store's good clips, decoded once and held in memory.

    Args:
        store: what to read.
        workers: processes that decode; 0: this one.
        progress: called with (done, total).

    Attributes:
        bad: errors of the videos that turned out bad and were left out.
    """

    def __init__(self, store: FrameStore, workers: int, progress: Progress | None = None):
        self.fps, self.size = store.fps, store.size
        self._frames: list[np.ndarray] = []
        self.bad: list[BadVideoError] = []
        good = []
        for index, frames in _decode(store, range(len(store.clips)), workers, progress):
            if isinstance(frames, BadVideoError):
                self.bad.append(frames)
            else:
                good.append(index)
                self._frames.append(frames)
        self.clips = store.clips.subset(good)

    def available(self, index: int) -> int:
        return len(self._frames[index])

    def read(self, index: int, frames: np.ndarray) -> np.ndarray:
        return self._frames[index][frames]


class DiskStore:
    """All grid frames of another store's good clips, each decoded once into a file of a folder.

    The files outlive the process: a later store of the same videos, `fps` and `size` decodes
    nothing. One killed while it wrote leaves no half file behind under a final name.

    Args:
        store: what to read.
        folder: made if missing; holds one .npy file for each clip, uncompressed.
        workers: processes that decode; 0: this one.
        progress: called with (done, total).

    Attributes:
        bad: errors of the videos that turned out bad and were left out.

    Raises:
        OSError: a full disk, a folder that can't be written.
    """

    def __init__(self, store: FrameStore, folder, workers: int, progress: Progress | None = None):
        self.fps, self.size = store.fps, store.size
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = [self._path(store, index) for index in range(len(store.clips))]
        missing = [index for index, path in enumerate(paths) if not path.exists()]
        failed = {}
        for index, frames in _decode(store, missing, workers, progress):
            if isinstance(frames, BadVideoError):
                failed[index] = frames
            else:
                _save(frames, paths[index])
        self.bad = list(failed.values())
        good = [index for index in range(len(paths)) if index not in failed]
        self.clips = store.clips.subset(good)
        self._paths = [paths[index] for index in good]

    def _path(self, store: FrameStore, index: int) -> Path:
        clip = store.clips.clips[index]
        file = os.stat(clip.path) if os.path.exists(clip.path) else None
        key = (
            *(os.path.abspath(clip.path), file and file.st_size, file and file.st_mtime_ns),
            *(clip.start_s, clip.end_s, store.fps, store.size),
        )
        return self.folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.npy"

    def available(self, index: int) -> int:
        return len(np.load(self._paths[index], mmap_mode="r"))

    def read(self, index: int, frames: np.ndarray) -> np.ndarray:
        return np.load(self._paths[index], mmap_mode="r")[frames]


def memory_bytes(store: FrameStore) -> int:
    """What a `MemoryStore` of a store would hold."""
    frames = sum(store.available(index) for index in range(len(store.clips)))
    return frames * store.size * store.size * 3


def _decode(store: FrameStore, indices: Iterable[int], workers: int, progress: Progress | None):
    """(index, all its grid frames or the error of its video), in order."""
    indices = list(indices)
    results = in_order(_WholeClips(store), indices, workers)
    for done, (index, frames) in enumerate(zip(indices, results, strict=True), start=1):
        yield index, frames
        if progress is not None:
            progress(done, len(indices))


class _WholeClips:
    """Called in the workers with an index."""

    def __init__(self, store: FrameStore):
        self.store = store

    def __call__(self, index: int) -> np.ndarray | BadVideoError:
        try:
            return self.store.read(index, np.arange(self.store.available(index)))
        except BadVideoError as error:
            return error


def _save(frames: np.ndarray, path: Path) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.save(file, frames)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
