"""Where the grid frames of a clip set are read from: videos, memory, disk."""

import dataclasses
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from grw_keras import atomic
from grw_keras.data.clips import ClipSet
from grw_keras.data.sampling import grid_size
from grw_keras.data.video import BadVideoError, VideoInfo, read_frames
from grw_keras.data.workers import in_order

Progress = Callable[[int, int], None]
_FORMAT = 1  # of what is kept on disk: raise it when decoding changes


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

    Raises:
        ValueError: a clip whose video has no info, for it is bad or was not scanned.
    """

    def __init__(self, clips: ClipSet, infos: Mapping[str, VideoInfo], *, fps: float, size: int):
        self.clips = clips
        self.fps = fps
        self.size = size
        strangers = [clip.path for clip in clips.clips if clip.path not in infos]
        if strangers:
            raise ValueError(
                "`infos` must have each clip's video: leave out the bad ones by Scan.good(clips). "
                f"Received none for {len(strangers)} of {len(clips)}, such as {strangers[0]}"
            )
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
        bad: an error for each clip that was left out, its video having turned out bad.
    """

    def __init__(self, store: FrameStore, workers: int, progress: Progress | None = None):
        self.fps, self.size = store.fps, store.size
        self._frames: list[np.ndarray] = []
        self.bad: list[BadVideoError] = []
        good = []
        everything = range(len(store.clips))
        for index, frames in _each(_WholeClip(store), store, everything, workers, progress):
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
    """All grid frames of a video store's good clips, each decoded once into a file of a folder.

    The files outlive the process: a later store of the same videos, `fps` and `size` decodes
    nothing; a video that has changed in size or time of change is decoded again. One killed while
    it wrote leaves no half file behind under a final name, and a file that was cut short or has
    another head is decoded again.

    Args:
        store: what to read.
        folder: made if missing; holds one .npy file for each clip, uncompressed.
        workers: processes that decode and write; 0: this one.
        progress: called with (done, total).

    Attributes:
        bad: an error for each clip that was left out, its video having turned out bad.

    Raises:
        OSError: a full disk, a folder that can't be written.
    """

    def __init__(
        self,
        store: FrameStore,
        folder: str | os.PathLike[str],
        workers: int,
        progress: Progress | None = None,
    ):
        self.fps, self.size = store.fps, store.size
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        files = [self._file(store, index) for index in range(len(store.clips))]
        missing = [index for index, file in enumerate(files) if not file.is_whole()]
        failed = {
            index: error
            for index, error in _each(_ToFile(store, files), store, missing, workers, progress)
            if error is not None
        }
        self.bad = list(failed.values())
        good = [index for index in range(len(files)) if index not in failed]
        self.clips = store.clips.subset(good)
        self._files = [files[index] for index in good]

    def _file(self, store: FrameStore, index: int) -> "_FrameFile":
        clip = store.clips.clips[index]
        try:
            found = os.stat(clip.path)
            stamp: tuple[int, ...] = (found.st_size, found.st_mtime_ns)
        except OSError:
            stamp = ()
        place = (os.path.abspath(clip.path), *stamp, clip.start_s, clip.end_s)
        key = repr((_FORMAT, *place, float(store.fps), int(store.size)))
        name = f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
        return _FrameFile(self.folder / name, store.available(index), store.size)

    def available(self, index: int) -> int:
        return self._files[index].count

    def read(self, index: int, frames: np.ndarray) -> np.ndarray:
        return self._files[index].open()[frames]


class JoinedStore:
    """Some clips of several stores, as one.

    Pickled, as for a worker process, it reads as before but has no `clips`: a list of hundreds of
    thousands would be sent to each worker, which goes by their numbers.

    Args:
        stores: of the same frame rate and size.
        clips: which of theirs, by name; labels, splits and groups are these clips'.

    Raises:
        ValueError: a clip that no store has.
    """

    def __init__(self, stores: Sequence[FrameStore], clips: ClipSet):
        self.fps, self.size, self.clips = stores[0].fps, stores[0].size, clips
        self._stores = list(stores)
        places = {
            clip.name: (part, index)
            for part, store in enumerate(stores)
            for index, clip in enumerate(store.clips.clips)
        }
        strangers = [clip.name for clip in clips.clips if clip.name not in places]
        if strangers:
            raise ValueError(f"`clips` must be the stores'. Received: {strangers[0]!r}")
        self._places = [places[clip.name] for clip in clips.clips]

    def __getstate__(self):
        return {key: value for key, value in vars(self).items() if key != "clips"}

    def available(self, index: int) -> int:
        part, place = self._places[index]
        return self._stores[part].available(place)

    def read(self, index: int, frames: np.ndarray) -> np.ndarray:
        part, place = self._places[index]
        return self._stores[part].read(place, frames)


def memory_bytes(store: FrameStore) -> int:
    """What a `MemoryStore` of a store would hold."""
    frames = sum(store.available(index) for index in range(len(store.clips)))
    return frames * store.size * store.size * 3


def _each(
    function: Callable[[int], Any],
    store: FrameStore,
    indices: Sequence[int],
    workers: int,
    progress: Progress | None,
) -> Iterator[tuple[int, Any]]:
    """(index, what the function makes of it), in order."""
    results = in_order(function, indices, workers, name=lambda i: store.clips.clips[i].name)
    for done, (index, result) in enumerate(zip(indices, results, strict=True), start=1):
        yield index, result
        if progress is not None:
            progress(done, len(indices))


class _WholeClip:
    """Called in the workers: all frames of a clip, or the error of its video."""

    def __init__(self, store: FrameStore):
        self.store = store

    def __call__(self, index: int) -> np.ndarray | BadVideoError:
        try:
            return self.store.read(index, np.arange(self.store.available(index)))
        except BadVideoError as error:
            return error


class _ToFile:
    """Called in the workers, which write too, so that no frames go through the parent."""

    def __init__(self, store: FrameStore, files: Sequence["_FrameFile"]):
        self.decode = _WholeClip(store)
        self.files = files

    def __call__(self, index: int) -> BadVideoError | None:
        frames = self.decode(index)
        if isinstance(frames, BadVideoError):
            return frames
        self.files[index].write(frames)
        return None


@dataclasses.dataclass(frozen=True)
class _FrameFile:
    """A .npy file of uint8 frames [count, size, size, 3]."""

    path: Path
    count: int
    size: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (self.count, self.size, self.size, 3)

    def head(self) -> bytes:
        """What the file begins with."""
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            head, {"descr": "|u1", "fortran_order": False, "shape": self.shape}
        )
        return head.getvalue()

    def is_whole(self) -> bool:
        head = self.head()
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                return file.read(len(head)) == head and size == len(head) + np.prod(self.shape)
        except FileNotFoundError:
            return False

    def open(self) -> np.ndarray:
        return np.memmap(self.path, np.uint8, "r", offset=len(self.head()), shape=self.shape)

    def write(self, frames: np.ndarray) -> None:
        with atomic.replacing(self.path) as temporary, temporary.open("wb") as file:
            file.write(self.head())
            file.write(np.ascontiguousarray(frames, np.uint8).data)
