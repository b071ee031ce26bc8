"""From what a user names as data to one store of frames for each split."""

import collections
import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from grw_keras.checked import Checked
from grw_keras.data import record_files, scan, sources, splits, tfds_source
from grw_keras.data.clips import SPLITS, ClipSet
from grw_keras.data.record_store import RecordStore
from grw_keras.data.scan import BadVideo
from grw_keras.data.stores import (
    DiskStore,
    FrameStore,
    JoinedStore,
    MemoryStore,
    VideoStore,
    memory_bytes,
)
from grw_keras.data.video import BadVideoError
from grw_keras.data.workers import default_workers
from grw_keras.hints import did_you_mean

log = logging.getLogger("grw_keras")

# Ours: `cache="auto"` holds frames in memory while they take no more of what is free.
MEMORY_SHARE = 0.25
# Before the name or the folder of a TFDS data set.
TFDS_PREFIX = "tfds:"
CACHES = ("auto", "memory", "disk", "none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice(Checked):
    """Which clips to use, and how to get at their frames.

    Args:
        annotations: Kinetics annotation files; then `data` is the folder of their clips.
        labels: the classes in a model's order, the data's among them; None: the data's own.
        num_classes: that the data must have; None: any number.
        holdout, group_regex, test_regex, seed: as of `splits.assign`.
        known: an earlier run's split of each clip's name, to be kept: then the clips are split as
            by `splits.reassign`, and the four above play no part.
        cache: `"memory"`, `"disk"`, `"none"`, or `"auto"`: memory if there is room, else none.
        workers: processes that decode; None: one for each CPU that `sharing` leaves; 0: this one.
        sharing: processes that do the same on this machine, >= 1. Each takes its part of the CPUs
            and of the memory for `cache="auto"`.
        max_bad_share: share of the opened splits' clips that may be lost to bad videos, in [0, 1].
        source_fps: frames a second of a TFDS data set that doesn't say.

    Raises:
        ValueError: `cache`, `workers`, `sharing` or `max_bad_share` isn't as above.
    """

    annotations: Sequence[str | os.PathLike] = ()
    labels: Sequence[str] | None = None
    num_classes: int | None = None
    holdout: float | None = None
    group_regex: str | None = None
    test_regex: str | None = None
    seed: int = 0
    known: Mapping[str, str] | None = None
    cache: str = "auto"
    workers: int | None = None
    sharing: int = 1
    max_bad_share: float = 0.05
    source_fps: float | None = None

    def __post_init__(self):
        self._require("cache", self.cache in CACHES, f"one of {', '.join(map(repr, CACHES))}")
        self._require("workers", self.workers is None or self.workers >= 0, "None or >= 0")
        self._require("sharing", self.sharing >= 1, ">= 1")
        self._require("max_bad_share", 0 <= self.max_bad_share <= 1, "in [0, 1]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """Data ready to be read.

    Attributes:
        clips: all clips, with their splits; of the splits that were opened, the usable ones.
        stores: of each opened split that has usable clips.
        bad: videos that were left out, by opened split; one that several splits had parts of is
            in each. Those of records, which don't tell their splits, are under "".
    """

    clips: ClipSet
    stores: Mapping[str, FrameStore]
    bad: Mapping[str, tuple[BadVideo, ...]]

    def bad_of(self, split: str) -> tuple[BadVideo, ...]:
        """What was left out of a split, and what may have been."""
        return (*self.bad.get(split, ()), *self.bad.get("", ()))


Progress = Callable[[str, int, int], None]


def decoders(workers: int | None, sharing: int = 1) -> int:
    """Processes that decode, for each of `sharing` that do the same on this machine.

    Args:
        workers: as asked for; None: all CPUs, shared, at least one each.
        sharing: >= 1.
    """
    return max(1, default_workers() // sharing) if workers is None else workers


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
    """Reads and splits the data; scans the splits to be opened, and decodes what is to be cached.

    Args:
        data: a folder of class folders, a CSV list, a folder of prepared records, "tfds:" and
            the name or folder of a TFDS data set that is on disk, or, with `choice.annotations`,
            a folder of Kinetics clips.
        choice: what of it, and how.
        fps: of the model, frames a second.
        size: that the model's evaluation resizes frames to, pixels.
        folder: takes `bad_videos.csv`, `scan.json`, with `cache="disk"` `frames/`, and `records/`
            of a TFDS data set.
        only: the splits to open; the others' videos are not looked at.
        progress: called with (what is done, done, total).

    Raises:
        TooManyBadVideosError: more bad videos than `choice.max_bad_share`; all that were found
            are in `bad_videos.csv`.
        ValueError: data that can't be understood, or records of another `fps` or `size`.
        FileNotFoundError: no such data.
    """
    _check_splits(only)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if str(data).startswith(TFDS_PREFIX):
        name = str(data).removeprefix(TFDS_PREFIX)
        source = tfds_source.open_tfds(name, fps=choice.source_fps)
        _check_classes(choice.labels or source.labels, choice)
        told = _named(progress, "preparing records")
        data = tfds_source.prepare_tfds(
            source, folder / "records", fps=fps, size=size, progress=told
        ).folder
    if (Path(data) / "dataset_info.json").is_file():
        return _open_records(Path(data), choice, fps=fps, size=size, only=only)
    return _open_videos(data, choice, fps=fps, size=size, folder=folder, only=only, told=progress)


def _open_videos(
    data: str | os.PathLike,
    choice: Choice,
    *,
    fps: float,
    size: int,
    folder: Path,
    only: Sequence[str],
    told: Progress | None,
) -> Opened:
    clips = sources.read(data, annotations=choice.annotations, labels=choice.labels)
    _check_classes(clips.labels, choice)
    clips = _assign(clips, choice)
    wanted = clips.subset(i for i, clip in enumerate(clips.clips) if clip.split in only)
    workers = decoders(choice.workers, choice.sharing)
    found = scan.scan(
        wanted, workers, cache=folder / "scan.json", progress=_named(told, "opening videos")
    )
    report = folder / "bad_videos.csv"
    _check(found, choice, report)
    good = found.good(wanted)
    bad = _bad_by_split(found, wanted)
    torn: list[BadVideoError] = []
    stores: dict[str, FrameStore] = {}
    for split in good.splits():
        store: FrameStore = VideoStore(good.split(split), found.infos, fps=fps, size=size)
        store = _cached(store, choice, folder, workers, _named(told, f"decoding {split}"))
        errors = getattr(store, "bad", ())
        torn += errors
        bad[split] += _summary(errors)
        stores[split] = store
    found = dataclasses.replace(found, bad=(*found.bad, *_summary(torn)))
    _check(found, choice, report)
    if found.bad:
        log.warning("Bad videos, left out: %d; see %s", len(found.bad), report)
    for split in wanted.splits():
        if split not in stores or not stores[split].clips.clips:
            log.warning("No clip of %s is left: all its videos are bad", split)
            stores.pop(split, None)
    usable = {clip.name for store in stores.values() for clip in store.clips.clips}
    kept = (
        i for i, clip in enumerate(clips.clips) if clip.split not in only or clip.name in usable
    )
    return Opened(clips=clips.subset(kept), stores=stores, bad=bad)


def check_exists(data: str | os.PathLike) -> None:
    """A first look at data of `open_data`, at no cost; what TFDS has is seen when it is opened.

    Raises:
        FileNotFoundError: no such file or folder.
    """
    if not str(data).startswith(TFDS_PREFIX):
        sources.check_exists(Path(data))


def _check_splits(only: Sequence[str]) -> None:
    for split in only:
        if split not in SPLITS:
            hint = did_you_mean(split, SPLITS)
            raise ValueError(
                f"`only` must name splits: {', '.join(map(repr, SPLITS))}. {hint}"
                f"Received: {split!r}"
            )


def _check_classes(labels: Sequence[str], choice: Choice) -> None:
    if choice.num_classes not in (None, len(labels)):
        raise ValueError(
            f"`model.num_classes` must be the data's {len(labels)}, or null (--set "
            f"model.num_classes=null). Received: {choice.num_classes}"
        )


def _assign(clips: ClipSet, choice: Choice) -> ClipSet:
    if choice.known is not None:
        return splits.reassign(clips, choice.known)
    return splits.assign(
        clips,
        holdout=choice.holdout,
        group_regex=choice.group_regex,
        test_regex=choice.test_regex,
        seed=choice.seed,
    )


def _check(found: scan.Scan, choice: Choice, report: Path) -> None:
    """Writes the report, and stops the run where too many are bad."""
    found.write_report(report)
    found.check_share(choice.max_bad_share, report)


def _bad_by_split(found: scan.Scan, clips: ClipSet) -> dict[str, tuple[BadVideo, ...]]:
    """What each split of the scanned clips loses; the scan counts over all of them."""
    good = {clip.name for clip in found.good(clips).clips}
    reasons = {bad.path: bad.reason for bad in found.bad}
    # A bad part of a good video has its own entry, in the clips' order.
    parts = (bad.reason for bad in found.bad if bad.path in found.infos)
    lost: dict[str, list[BadVideoError]] = {split: [] for split in clips.splits()}
    for clip in clips.clips:
        if clip.name not in good:
            reason = next(parts) if clip.path in found.infos else reasons[clip.path]
            lost[clip.split].append(BadVideoError(clip.path, reason))
    return {split: _summary(errors) for split, errors in lost.items()}


def _summary(errors: Iterable[BadVideoError]) -> tuple[BadVideo, ...]:
    """Each video once, with how many clips are lost by it."""
    counts = collections.Counter((error.path, error.reason) for error in errors)
    return tuple(BadVideo(path, reason, clips) for (path, reason), clips in counts.items())


def _cached(store: FrameStore, choice: Choice, folder: Path, workers: int, progress) -> FrameStore:
    cache = choice.cache
    if cache == "auto":
        room = MEMORY_SHARE * _free_bytes() / choice.sharing
        cache = "memory" if memory_bytes(store) <= room else "none"
    if cache == "memory":
        return MemoryStore(store, workers, progress)
    if cache == "disk":
        return DiskStore(store, folder / "frames", workers, progress)
    return store


def _free_bytes(root: Path = Path("/")) -> int:
    """Memory that may still be taken: the machine's, and no more than its container's."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    known = root / "proc/meminfo"
    if known.exists():
        lines = (line.split() for line in known.read_text().splitlines())
        free = next(int(line[1]) * 1024 for line in lines if line[0] == "MemAvailable:")
    limit, used = (root / f"sys/fs/cgroup/memory.{name}" for name in ("max", "current"))
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        free = min(free, int(most) - int(used.read_text()))
    return free


def _named(progress: Progress | None, what: str):
    return None if progress is None else lambda done, total: progress(what, done, total)


def _open_records(
    data: Path, choice: Choice, *, fps: float, size: int, only: Sequence[str]
) -> Opened:
    written = record_files.read_settings(data)
    if (written.fps, written.size) != (fps, size):
        raise ValueError(
            f"The records must hold what the model sees: {fps:g} fps, {size} px. Prepare them "
            f"with --fps {fps:g} --size {size}. Received: {written.fps:g} fps, {written.size} px"
        )
    parts: list[FrameStore] = [RecordStore(data, split) for split in record_files.shards(data)]
    labels = parts[0].clips.labels if choice.labels is None else choice.labels
    _check_classes(labels, choice)
    clips = ClipSet(tuple(clip for part in parts for clip in part.clips.clips), tuple(labels))
    clips = _assign(clips, choice)
    stores = {
        split: JoinedStore(parts, clips.split(split)) for split in clips.splits() if split in only
    }
    return Opened(clips=clips, stores=stores, bad={"": record_files.read_bad(data)})
