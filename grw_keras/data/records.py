"""Preparing records: every clip decoded once, onto its grid, and written as JPEGs in shards.

Each shard is written where its clips are decoded, by one process of this machine or by a Beam
worker, so no example ever travels or is sorted (TFDS's own builders do both). No TensorFlow at
the top, for worker processes import this.
"""

import dataclasses
import functools
import itertools
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from grw_keras.data import record_files, tf_example
from grw_keras.data.clips import SPLITS, Clip, ClipSet
from grw_keras.data.record_files import Example, Prepared, Row, Settings, Shard
from grw_keras.data.sampling import grid_size
from grw_keras.data.scan import BadVideo
from grw_keras.data.video import BadVideoError, probe, read_frames
from grw_keras.data.workers import default_workers, in_order

# Ours: 50 frames of 200 px at quality 95 make shards of about 200 MB, 120 of 300 px of 900 MB;
# TFDS aims at 64 MiB to 1 GiB.
CLIPS_PER_SHARD = 256


def prepare(
    clip_set: ClipSet,
    out: str | os.PathLike[str],
    *,
    fps: float,
    size: int,
    quality: int = 95,
    num_shards: int | None = None,
    workers: int | None = None,
    beam_runner: str | None = None,
    beam_options: Sequence[str] = (),
    max_bad_share: float = 0.05,
    progress: Callable[[int, int], Any] | None = None,
) -> Prepared:
    """Writes a clip set as a TFDS data set of JPEG frames, with random access.

    The same clips and settings give the same files, with Beam or without. A folder that already
    holds them is kept. What is interrupted leaves no folder that could pass for finished records.

    Args:
        clip_set: the clips; those without a split are written as `"train"`.
        out: folder to make. For a distributed runner, all its workers must see `out` and the
            videos under the same paths (NFS, Lustre, a mounted bucket).
        fps: frames a second of the grid, positive.
        size: height and width of the frames, pixels; aspect not kept.
        quality: of the JPEGs, in [1, 100].
        num_shards: of each split, at most one for each clip; default: one for 256 clips.
        workers: decoding processes; default: one for each CPU; 0: decode in this process.
        beam_runner: name of an Apache Beam runner ("DirectRunner", "FlinkRunner"); None: no Beam.
        beam_options: for Beam, as on its command line: `["--flink_master=host:8081"]`.
        max_bad_share: of videos that can't be decoded, in [0, 1]; more of them stop the run.
        progress: called with (clips done, clips in all); not with Beam.

    Raises:
        ImportError: TFDS or Beam is not installed.
        ValueError: a value out of range, or `out` holds something else; says what differs.
        TooManyBadVideosError: says which; the whole list is `out`/bad_videos.csv.
    """
    from grw_keras.data import record_builder

    plan = plan_shards(clip_set, num_shards)
    settings = Settings(fps, size, quality, clip_set.labels, _digest(clip_set), len(clip_set))
    workers = default_workers() if workers is None else workers
    if workers < 0:
        raise ValueError(f"`workers` must be >= 0. Received: {workers}")

    def write(folder: Path, watch: record_builder.Watch) -> None:
        shards = [(dataclasses.replace(shard, folder=folder), clips) for shard, clips in plan]
        if beam_runner is None:
            _write_here(shards, settings, workers, watch)
        else:
            _write_with_beam(shards, settings, beam_runner, beam_options)

    shards = [shard for shard, _ in plan]
    return record_builder.build(out, settings, shards, write, max_bad_share, progress)


def plan_shards(clip_set: ClipSet, num_shards: int | None) -> list[tuple[Shard, tuple[Clip, ...]]]:
    """Which clips lie in which shard: each split in its own order, evenly divided."""
    plan = []
    for split in SPLITS:
        clips = [clip for clip in clip_set.clips if (clip.split or "train") == split]
        bounds = shard_bounds(len(clips), num_shards)
        for index, (first, last) in enumerate(itertools.pairwise(bounds)):
            shard = Shard(Path(), split, index, len(bounds) - 1)
            plan.append((shard, tuple(clips[first:last])))
    return plan


def shard_bounds(count: int, num_shards: int | None) -> list[int]:
    """Where each shard of `count` examples begins, and where the last one ends.

    Example:
        >>> shard_bounds(10, 4)
        [0, 2, 5, 7, 10]
    """
    if num_shards is not None and num_shards < 1:
        raise ValueError(f"`num_shards` must be >= 1 or None. Received: {num_shards}")
    parts = min(num_shards or math.ceil(count / CLIPS_PER_SHARD), count)
    return [count * part // parts for part in range(parts + 1)] if parts else [0]


def encode_clip(clip: Clip, settings: Settings) -> Example | BadVideo:
    """Decodes a clip's whole grid and makes an example of it."""
    try:
        times, end_s = grid_times(clip, probe(clip.path).duration_s, settings.fps)
        frames = read_frames(clip.path, times, settings.size)
    except BadVideoError as error:
        return BadVideo(clip.path, error.reason)
    except OSError as error:
        return BadVideo(clip.path, str(error))
    row = Row(clip.name, clip.label, clip.group, clip.path, clip.start_s, end_s, len(frames))
    return encode(frames, row, settings)


def grid_times(clip: Clip, duration_s: float, fps: float) -> tuple[np.ndarray, float]:
    """The times of a clip's grid, seconds [M] float64, and where the clip ends.

    Raises:
        BadVideoError: the clip would begin after the video's end, or ends before it begins.
    """
    end_s = duration_s if clip.end_s is None else min(clip.end_s, duration_s)
    if not clip.start_s < end_s:
        raise BadVideoError(
            clip.path, f"the clip from {clip.start_s} s has no length: it ends at {end_s} s"
        )
    return clip.start_s + np.arange(grid_size(end_s - clip.start_s, fps)) / fps, end_s


def encode(frames: np.ndarray, row: Row, settings: Settings) -> Example:
    """An example of frames, uint8 RGB [M, size, size, 3], as JPEGs."""
    features: dict[str, list] = {
        "frames": [_jpeg(frame, settings.quality) for frame in frames],
        "label": [settings.labels.index(row.label)],
        "start_s": [float(row.start_s)],
        "end_s": [float(row.end_s)],
    }
    for name in ("name", "group", "path"):
        features[name] = [getattr(row, name).encode()]
    return Example(tf_example.encode(features), row)


def _jpeg(frame: np.ndarray, quality: int) -> bytes:
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality]
    written, data = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), flags)
    if not written:
        raise RuntimeError(f"OpenCV could not write a JPEG of {frame.shape[:2]} pixels.")
    return data.tobytes()


def _digest(clip_set: ClipSet) -> str:
    fields = ("name", "label", "start_s", "end_s", "split", "group")
    return record_files.digest(
        [*(getattr(clip, field) for field in fields), _bytes_of(clip.path)]
        for clip in clip_set.clips
    )


def _bytes_of(path: str) -> int | None:
    """So that videos that were replaced are told from those that the records were made of."""
    try:
        return os.stat(path).st_size
    except OSError:
        return None


# On this machine


def _write_here(shards, settings: Settings, workers: int, watch) -> None:
    clips = itertools.chain.from_iterable(clips for _, clips in shards)
    work = functools.partial(encode_clip, settings=settings)
    examples = watch(in_order(work, clips, workers))
    for shard, clips in shards:
        shard.write(itertools.islice(examples, len(clips)))


# On Beam's workers


def _write_with_beam(shards, settings: Settings, runner: str, options: Sequence[str]) -> None:
    """One element for each shard; its clips lie beside it, for runners limit a pipeline's size."""
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    for shard, clips in shards:
        _plan_file(shard).write_text(json.dumps([dataclasses.asdict(clip) for clip in clips]))
    work = functools.partial(write_planned, settings=settings)
    with beam.Pipeline(runner=runner, options=PipelineOptions(list(options))) as pipeline:
        _ = (
            pipeline
            | "Shards" >> beam.Create([shard for shard, _ in shards])
            | "Spread" >> beam.Reshuffle()
            | "Write" >> beam.Map(work)
        )


def write_planned(shard: Shard, settings: Settings) -> None:
    """Decodes and writes the shard whose clips were written beside it."""
    clips = [Clip(**clip) for clip in json.loads(_plan_file(shard).read_text())]
    shard.write(encode_clip(clip, settings) for clip in clips)


def _plan_file(shard: Shard) -> Path:
    return shard.path.with_name(f"plan-{shard.path.name}.json")
