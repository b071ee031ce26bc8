"""A store of frames that say which clip, frame and pixel they are."""

from collections.abc import Collection, Sequence

import numpy as np

from grw_keras.data.clips import Clip, ClipSet
from grw_keras.data.video import BadVideoError

LABELS = ("bow", "wave", "run", "jump")


class ArrayStore:
    """Clips of so many frames, whose pixels are (clip, frame, 16 row + column).

    Args:
        lengths: M of each clip.
        size: of the frames, px; above 16 several pixels are alike.
        bad: clips whose video can't be decoded.
    """

    def __init__(self, lengths: Sequence[int], size: int = 8, bad: Collection[int] = ()):
        self.lengths, self.size, self.bad, self.fps = list(lengths), size, set(bad), 5.0
        clips = [Clip(f"{i}.mp4", LABELS[i * i % 4], name=f"v{i}") for i in range(len(lengths))]
        self.clips = ClipSet(tuple(clips), LABELS)

    def available(self, index: int) -> int:
        return self.lengths[index]

    def read(self, index: int, frames: np.ndarray) -> np.ndarray:
        if index in self.bad:
            raise BadVideoError(f"{index}.mp4", "it is torn")
        assert 0 <= min(frames) <= max(frames) < self.lengths[index]
        return np.stack([picture(index, frame, self.size) for frame in frames])


def picture(clip: int, frame: int, size: int) -> np.ndarray:
    place = 16 * np.arange(size)[:, None] + np.arange(size)
    return np.stack([np.full_like(place, clip), np.full_like(place, frame), place], -1).astype(
        np.uint8
    )
