"""Clips that files are calibrated and verified with."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from grw_keras.models.spec import ModelSpec

MOST_CLIPS = 24
_NOISE_SEED, _CELLS = 0, 8
_FEWEST = 6  # clips that say something of others


def take(source: Any, spec: ModelSpec, most_frames: int) -> list[np.ndarray]:
    """Clips [N, S, S, 3], float32 in [0, 1], up to a number of frames in all.

    Args:
        source: clips [N, S, S, 3] or batches [B, N, S, S, 3], uint8 or float in [0, 1], as an
            array or one by one; batches may be pairs with labels, or dictionaries of "video" and
            "mask", as `grw_keras.data` gives them.
        spec: whose resolution they must have.
        most_frames: >= 1; the first `MOST_CLIPS` clips are cut to equal parts of it.

    Raises:
        TypeError, ValueError: not such clips, or none.
    """
    clips = [_checked(clip, spec) for clip in itertools.islice(_one_by_one(source), MOST_CLIPS)]
    if not clips:
        raise ValueError("`calibration` must hold at least one clip. Received: none")
    each = max(most_frames // len(clips), 1)
    return [clip[:each] for clip in clips]


def spread(clips: Sequence[np.ndarray], most_frames: int) -> list[np.ndarray]:
    """Clips from all over a list, the first and the last among them, `most_frames` in all at the
    most: as many whole ones as there is room for, or the beginnings of `_FEWEST`."""
    count = min(max(most_frames // max(map(len, clips)), _FEWEST), len(clips))
    chosen = np.unique(np.linspace(0, len(clips) - 1, count).round().astype(int))
    return [clips[index][: max(most_frames // count, 1)] for index in chosen]


def noise(spec: ModelSpec, clips: int, frames: int) -> list[np.ndarray]:
    """Clips [N, S, S, 3] of coarse noise that drifts, each of a colour and contrast of its own: for
    where no clips are given."""
    rng = np.random.default_rng(_NOISE_SEED)
    rows = np.arange(spec.resolution) * _CELLS // spec.resolution
    made = []
    for _ in range(clips):
        cells = rng.random((frames + _CELLS, _CELLS, 3), np.float32)
        cells = rng.random(3, np.float32) * cells ** rng.uniform(0.3, 3.0)
        clip = [cells[start : start + _CELLS][rows][:, rows] for start in range(frames)]
        made.append(np.stack(clip).astype(np.float32))
    return made


def _one_by_one(source: Any) -> Iterator[np.ndarray]:
    for item in source:
        video = item[0] if isinstance(item, tuple) else item
        video = np.asarray(video["video"] if isinstance(video, Mapping) else video)
        yield from video if video.ndim == 5 else [video]


def _checked(clip: np.ndarray, spec: ModelSpec) -> np.ndarray:
    size = spec.resolution
    if clip.ndim != 4 or clip.shape[1:] != (size, size, 3) or not len(clip):
        raise ValueError(
            f"Clips must have shape [N, {size}, {size}, 3], the model's resolution. "
            f"Received: {clip.shape}"
        )
    if clip.dtype == np.uint8:
        return clip.astype(np.float32) / 255
    if not np.issubdtype(clip.dtype, np.floating):
        raise TypeError(f"Clips must be uint8 or float. Received: {clip.dtype}")
    if not (clip.min() >= 0 and clip.max() <= 1):
        raise ValueError(
            "Pixels of float clips must be finite and in [0, 1]: divide by 255. "
            f"Received: from {clip.min()} to {clip.max()}"
        )
    return clip.astype(np.float32)
