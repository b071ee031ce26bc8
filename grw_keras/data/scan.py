"""scan: opens every video once before a run, to know their lengths and which are bad."""

import collections
import csv
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import loky
from loky.process_executor import BrokenProcessPool

from grw_keras.data.clips import Clip, ClipSet
from grw_keras.data.scan_cache import ScanCache
from grw_keras.data.video import BadVideoError, VideoInfo, probe

log = logging.getLogger("grw_keras")

# Videos handed out at once, per worker. When a worker dies, this many at most are tried again.
_BATCH = 32


class TooManyBadVideosError(ValueError):
    """More videos are bad than a run is to put up with."""


@dataclasses.dataclass(frozen=True)
class BadVideo:
    """A video, or a part of one, that can't be used.

    Args:
        path: of the video.
        reason: why.
        clips: how many clips of the set are lost by it.
    """

    path: str
    reason: str
    clips: int = 1


@dataclasses.dataclass(frozen=True)
class Scan:
    """What `scan` found.

    Args:
        infos: of the videos that can be read, by path.
        bad: videos that can't, and parts of videos that are empty.
        clips: how many clips the scanned set has.
    """

    infos: Mapping[str, VideoInfo]
    bad: tuple[BadVideo, ...]
    clips: int

    def good(self, clip_set: ClipSet) -> ClipSet:
        """The clips that can be used, of the scanned set or of one made from it."""
        kept = tuple(clip for clip in clip_set.clips if not self._fault(clip))
        return dataclasses.replace(clip_set, clips=kept)

    def _fault(self, clip: Clip) -> str:
        if clip.path in self.infos:
            return _part_fault(clip, self.infos[clip.path])
        if clip.path in self._bad_paths:
            return "bad"
        raise ValueError(
            f"`clip_set` must be of videos that were scanned. Received: one with {clip.path!r}"
        )

    @functools.cached_property
    def _bad_paths(self) -> frozenset[str]:
        return frozenset(bad.path for bad in self.bad)

    def write_report(self, path: str | os.PathLike[str]) -> None:
        """Write all bad videos as a CSV file with the columns path and reason."""
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("path", "reason"))
            writer.writerows((bad.path, bad.reason) for bad in self.bad)

    def check_share(self, max_share: float, report: str | os.PathLike[str] | None = None) -> None:
        """Stop if too many of the clips are lost.

        Args:
            max_share: share of the clips that may be lost, in [0, 1].
            report: where `write_report` has put the full list, for the message.

        Raises:
            TooManyBadVideosError: more are lost; lists up to 20 videos.
            ValueError: `max_share` is out of range.
        """
        if not 0 <= max_share <= 1:
            raise ValueError(f"`max_share` must be in [0, 1]. Received: {max_share!r}")
        lost = sum(bad.clips for bad in self.bad)
        if lost <= max_share * self.clips:
            return
        listed = "\n".join(f"  {bad.path}: {bad.reason}" for bad in self.bad[:20])
        more = f"\n  and {len(self.bad) - 20} more" if len(self.bad) > 20 else ""
        where = f"All of them: {report}. " if report is not None else ""
        raise TooManyBadVideosError(
            f"{lost} of {self.clips} clips can't be used, {lost / self.clips:.1%}; at most "
            f"{max_share:.1%} may be lost. {where}Mend or remove them, or allow a larger share "
            "(`max_bad_share`, --max-bad-share).\n"
            f"{listed}{more}"
        )


def scan(
    clip_set: ClipSet,
    workers: int = 0,
    *,
    cache: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scan:
    """Probe each video of the set once.

    A video that makes the process reading it die is a bad video too, with workers.

    Args:
        clip_set: the clips.
        workers: processes that probe; 0: this one does.
        cache: a JSON file to keep findings in, so that the next scan opens only what is new or
            has changed; made when there is none.
        progress: called with the numbers of videos done and of all.

    Raises:
        ValueError: `workers` is negative.
    """
    if workers < 0:
        raise ValueError(f"`workers` must be >= 0. Received: {workers!r}")
    paths = list(dict.fromkeys(clip.path for clip in clip_set.clips))
    kept = ScanCache(cache)
    found: dict[str, VideoInfo | Exception] = {}
    for path in paths:
        known = kept.get(path)
        if known is not None:
            found[path] = known
    try:
        new = [path for path in paths if path not in found]
        if progress and found:
            progress(len(found), len(paths))
        for path, finding in _in_workers(new, workers) if workers else map(_here, new):
            found[path] = finding
            # Other errors, such as of a disk or a dying process, may not be there next time.
            if isinstance(finding, VideoInfo | BadVideoError):
                kept.put(path, finding)
            if progress:
                progress(len(found), len(paths))
    finally:
        kept.save()
    return _summary(clip_set, found)


def _summary(clip_set: ClipSet, found: Mapping[str, VideoInfo | Exception]) -> Scan:
    infos: dict[str, VideoInfo] = {}
    bad: dict[str, BadVideo] = {}  # by video, or by name for a part
    for clip in clip_set.clips:
        finding = found[clip.path]
        if isinstance(finding, VideoInfo):
            infos[clip.path] = finding
            if reason := _part_fault(clip, finding):
                bad[f"part {clip.name}"] = BadVideo(clip.path, reason)
        else:
            clips = bad[clip.path].clips + 1 if clip.path in bad else 1
            bad[clip.path] = BadVideo(clip.path, _reason(finding), clips)
    if bad:
        log.warning("%d of %d videos, or parts of them, are bad.", len(bad), len(found))
    return Scan(infos, tuple(bad.values()), len(clip_set))


def _part_fault(clip: Clip, info: VideoInfo) -> str:
    """What is wrong with a part of a good video; "": nothing."""
    if not info.duration_s > 0:
        return "it lasts 0 s"
    if clip.end_s is not None and clip.end_s <= clip.start_s:
        return f"{clip.name} ends at {clip.end_s:g} s, not after its start at {clip.start_s:g} s"
    if clip.start_s >= info.duration_s:
        return (
            f"{clip.name} starts at {clip.start_s:g} s, but the video lasts {info.duration_s:g} s"
        )
    return ""


def _reason(error: Exception) -> str:
    if isinstance(error, BadVideoError):
        return error.reason
    if isinstance(error, BrokenProcessPool):
        return "the process that read it died"
    return str(error)


def _probe(path: str) -> VideoInfo | Exception:
    try:
        return probe(path)
    except (BadVideoError, OSError) as error:
        return error


def _here(path: str) -> tuple[str, VideoInfo | Exception]:
    return path, _probe(path)


def _in_workers(paths: Sequence[str], workers: int) -> Iterator[tuple[str, VideoInfo | Exception]]:
    """Pairs of path and finding. When a worker dies, nobody knows at which video: all that were
    handed out and not finished are tried again, one at a time."""
    size = _BATCH * workers
    batches = [paths[start : start + size] for start in range(0, len(paths), size)]
    while batches:
        suspects: list[str] = []
        with loky.ProcessPoolExecutor(max_workers=workers) as pool:
            while batches and not suspects:
                for path, finding in _findings(pool, batches.pop(0)):
                    if isinstance(finding, BrokenProcessPool):
                        suspects.append(path)
                    else:
                        yield path, finding
        yield from _one_by_one(suspects)


def _one_by_one(paths: Sequence[str]) -> Iterator[tuple[str, VideoInfo | Exception]]:
    left = collections.deque(paths)
    while left:
        with loky.ProcessPoolExecutor(max_workers=1) as pool:
            died = False
            while left and not died:
                [(path, finding)] = _findings(pool, [left.popleft()])
                died = isinstance(finding, BrokenProcessPool)
                yield path, finding


def _findings(
    pool: loky.ProcessPoolExecutor, paths: Sequence[str]
) -> Iterator[tuple[str, VideoInfo | Exception]]:
    futures = []
    for path in paths:
        try:
            futures.append(pool.submit(_probe, path))
        except BrokenProcessPool as error:  # a worker died at one of the first
            futures.append(loky.Future())
            futures[-1].set_exception(error)
    for path, future in zip(paths, futures, strict=True):
        try:
            yield path, future.result()
        except BrokenProcessPool as error:
            yield path, error
