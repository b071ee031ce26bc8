"""From what a user names as data to one store of frames for each split."""

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from grw_keras.data import record_files, scan, sources, splits, tfds_source
from grw_keras.data.clips import SPLITS, ClipSet
from grw_keras.data.record_store import RecordStore
from grw_keras.data.scan import BadVideo
from grw_keras.data.stores import DiskStore, FrameStore, MemoryStore, VideoStore, memory_bytes
from grw_keras.data.workers import default_workers

log = logging.getLogger("grw_keras")

# Ours: `cache="auto"` holds frames in memory while they take no more of what is free.
MEMORY_SHARE = 0.25
# Before the name or the folder of a TFDS data set.
TFDS_PREFIX = "tfds:"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """Which clips to use, and how to get at their frames.

    Args:
        annotations: Kinetics annotation files; then `data` is the folder of their clips.
        labels: the classes in a model's order; None: the data's own.
        holdout, group_regex, test_regex, seed: as of `splits.assign`.
        cache: `"memory"`, `"disk"`, `"none"`, or `"auto"`: memory if there is room, else none.
        workers: processes that decode; None: one for each CPU.
        max_bad_share: share of bad videos that is put up with.
    """

    annotations: Sequence[str | os.PathLike] = ()
    labels: Sequence[str] | None = None
    holdout: float | None = None
    group_regex: str | None = None
    test_regex: str | None = None
    seed: int = 0
    cache: str = "auto"
    workers: int | None = None
    max_bad_share: float = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """Data ready to be read.

    Attributes:
        clips: all usable clips, with their splits.
        stores: of each split that has clips.
        bad: videos that were left out.
    """

    clips: ClipSet
    stores: Mapping[str, FrameStore]
    bad: tuple[BadVideo, ...]


Progress = Callable[[str, int, int], None]


def open_data(
    data: str | os.PathLike,
    choice: Choice,
    *,
    fps: float,
    size: int,
    folder: str | os.PathLike,
    only: Sequence[str] = SPLITS,
    progress: Progress | None = None,
) -> Opened:
    """Reads, splits and scans the data, and decodes it where it is to be cached.

    Args:
        data: a folder of class folders, a CSV list, a folder of prepared records, "tfds:" and
            the name or folder of a TFDS data set that is on disk, or, with `choice.annotations`,
            a folder of Kinetics clips.
        choice: what of it, and how.
        fps: of the model, frames a second.
        size: that the model's evaluation resizes frames to, pixels.
        folder: takes `bad_videos.csv`, `scan.json`, with `cache="disk"` `frames/`, and `records/` of
            a TFDS data set.
        only: the splits to make stores of.
        progress: called with (what is done, done, total).

    Raises:
        TooManyBadVideosError: more bad videos than `choice.max_bad_share`; all are in
            `bad_videos.csv`.
        ValueError: data that can't be understood, or records of another `fps` or `size`.
        FileNotFoundError: no such data.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if str(data).startswith(TFDS_PREFIX):
        source = tfds_source.open_tfds(str(data).removeprefix(TFDS_PREFIX))
        data = tfds_source.prepare_tfds(source, folder / "records", fps=fps, size=size).folder
    if (Path(data) / "dataset_info.json").is_file():
        return _open_records(data, choice, fps=fps, size=size, only=only)
    clips = sources.read(data, annotations=choice.annotations, labels=choice.labels)
    clips = _assign(clips, choice)
    workers = default_workers() if choice.workers is None else choice.workers
    scanned = scan.scan(
        clips, workers, cache=folder / "scan.json", progress=_named(progress, "opening videos")
    )
    bad = list(scanned.bad)
    clips = scanned.good(clips)
    _check(scanned, bad, choice, folder)
    stores: dict[str, FrameStore] = {}
    for split in clips.splits():
        if split not in only:
            continue
        store: FrameStore = VideoStore(clips.split(split), scanned.infos, fps=fps, size=size)
        store = _cached(store, choice.cache, folder, workers, _named(progress, f"decoding {split}"))
        bad += [BadVideo(error.path, error.reason) for error in getattr(store, "bad", ())]
        stores[split] = store
    _check(scanned, bad, choice, folder)
    return Opened(clips=_without(clips, bad), stores=stores, bad=tuple(bad))


def _assign(clips: ClipSet, choice: Choice) -> ClipSet:
    return splits.assign(
        clips,
        holdout=choice.holdout,
        group_regex=choice.group_regex,
        test_regex=choice.test_regex,
        seed=choice.seed,
    )


def _check(scanned: scan.Scan, bad: Sequence[BadVideo], choice: Choice, folder: Path) -> None:
    """Writes the report, warns, and stops the run where too many are bad."""
    report = folder / "bad_videos.csv"
    found = dataclasses.replace(scanned, bad=tuple(bad))
    found.write_report(report)
    found.check_share(choice.max_bad_share, report)
    if bad:
        log.warning("%d bad videos are left out: %s", len(bad), report)


def _without(clips: ClipSet, bad: Sequence[BadVideo]) -> ClipSet:
    paths = {video.path for video in bad}
    return clips.subset(i for i, clip in enumerate(clips.clips) if clip.path not in paths)


def _cached(store: FrameStore, cache: str, folder: Path, workers: int, progress) -> FrameStore:
    if cache == "auto":
        cache = "memory" if memory_bytes(store) <= MEMORY_SHARE * _free_bytes() else "none"
    if cache == "memory":
        return MemoryStore(store, workers, progress)
    if cache == "disk":
        return DiskStore(store, folder / "frames", workers, progress)
    return store


def _free_bytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _named(progress: Progress | None, what: str):
    return None if progress is None else lambda done, total: progress(what, done, total)


def _open_records(data, choice: Choice, *, fps: float, size: int, only: Sequence[str]) -> Opened:
    written = record_files.read_settings(data)
    if (written.fps, written.size) != (fps, size):
        raise ValueError(
            f"The records must hold what the model sees: {fps:g} fps, {size} px. Prepare them "
            f"with --fps {fps:g} --size {size}. Received: {written.fps:g} fps, {written.size} px"
        )
    if choice.labels is not None and tuple(choice.labels) != tuple(written.labels):
        raise ValueError(
            "The records' classes must be the model's, in its order. "
            f"Received: {list(written.labels)[:5]} …, not {list(choice.labels)[:5]} …"
        )
    parts: list[FrameStore] = [RecordStore(data, split) for split in record_files.shards(data)]
    whole = SeveralStores(parts)
    clips = _assign(whole.clips, choice)
    places = {clip.name: number for number, clip in enumerate(whole.clips.clips)}
    stores = {}
    for split in clips.splits():
        if split in only:
            chosen = clips.split(split)
            stores[split] = SeveralStores(parts, [places[clip.name] for clip in chosen.clips])
    return Opened(clips=clips, stores=stores, bad=())


class SeveralStores:
    """Some clips of several stores, as one.

    Args:
        stores: of the same frame rate, size and labels.
        chosen: numbers of clips, counted through all stores; None: all.
    """

    def __init__(self, stores: Sequence[FrameStore], chosen: Sequence[int] | None = None):
        self.fps, self.size = stores[0].fps, stores[0].size
        self._stores = list(stores)
        self._places = [
            (part, index) for part, store in enumerate(stores) for index in range(len(store.clips))
        ]
        clips = dataclasses.replace(
            stores[0].clips, clips=tuple(clip for store in stores for clip in store.clips.clips)
        )
        if chosen is not None:
            self._places = [self._places[number] for number in chosen]
            clips = clips.subset(chosen)
        self.clips = clips

    def available(self, index: int) -> int:
        part, place = self._places[index]
        return self._stores[part].available(place)

    def read(self, index: int, frames: np.ndarray) -> np.ndarray:
        part, place = self._places[index]
        return self._stores[part].read(place, frames)
