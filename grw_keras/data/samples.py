"""Which clips make up which step, and how one is read: functions of (seed, epoch, index) alone."""

import dataclasses
import math
import numbers
from collections.abc import Iterator

import numpy as np

from grw_keras.data import sampling
from grw_keras.data.scan import TooManyBadVideosError
from grw_keras.data.stores import FrameStore
from grw_keras.data.transforms import Augmentation, evaluation_clip, training_clip
from grw_keras.data.video import BadVideoError

# Bad videos in a row that another clip stands in for. More mean that the disk is gone.
MAX_BAD_IN_A_ROW = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a clip is made of a store's frames.

    Args:
        frames: N.
        resolution: height and width of the crop, pixels; at most the store's.
        short: what fills a clip of too few frames: `"loop"`, it begins again; `"pad"`, its last
            frame, which the mask leaves out.
        training: a random offset in time, and augmentation; else the centre, in order.
        augmentation: None: the centre crop, as in most of the paper's recipes.
        seed: of order, offsets and augmentation, in [0, 2^64).

    Raises:
        ValueError: a value out of range, or augmentation without training.
    """

    frames: int
    resolution: int
    short: str = "loop"
    training: bool = False
    augmentation: Augmentation | None = None
    seed: int = 0

    def __post_init__(self):
        for field in ("frames", "resolution"):
            _require_positive(field, getattr(self, field))
        if self.short not in sampling.SHORT:
            raise ValueError(
                f"`short` must be one of {', '.join(map(repr, sampling.SHORT))}. "
                f"Received: {self.short!r}"
            )
        if self.augmentation is not None and not self.training:
            raise ValueError(
                "`augmentation` must be None with training=False, for evaluation draws nothing. "
                f"Received: {self.augmentation}"
            )


@dataclasses.dataclass(frozen=True)
class Sample:
    """One clip: frames [N, R, R, 3] uint8, mask [N], label, its number in the store, and the
    errors of the videos that it stands in for."""

    video: np.ndarray
    mask: np.ndarray
    label: int
    index: int
    bad: tuple[BadVideoError, ...] = ()


class Loader:
    """Reads samples; sent to worker processes.

    A video that turns out bad is replaced by the next clip of the set, so which clips a step is
    made of depends on the files alone, not on the run.

    Raises:
        ValueError: a crop larger than the store's frames, or a store without clips.
    """

    def __init__(self, store: FrameStore, sample: Sampling):
        if sample.resolution > store.size:
            raise ValueError(
                "The crop must not be larger than the frames it is cut from. "
                f"Received: resolution={sample.resolution}, frames of {store.size} px"
            )
        if not store.clips.clips:
            raise ValueError("`store` must have a clip. Received: an empty one")
        self.store = store
        self.sampling = sample
        numbers = {label: number for number, label in enumerate(store.clips.labels)}
        self._labels = [numbers[clip.label] for clip in store.clips.clips]

    def __call__(self, place: tuple[int, int]) -> Sample:
        """The sample of (epoch, index).

        Raises:
            TooManyBadVideosError: no good video among `MAX_BAD_IN_A_ROW` from that one on.
        """
        epoch, index = place
        bad: list[BadVideoError] = []
        count = len(self._labels)
        for step in range(min(count, MAX_BAD_IN_A_ROW)):
            number = (index + step) % count
            try:
                video, mask = self._read(epoch, number)
            except BadVideoError as error:
                bad.append(error)
            else:
                return Sample(video, mask, self._labels[number], number, tuple(bad))
        raise TooManyBadVideosError(
            f"{len(bad)} of {len(bad)} clips in a row can't be decoded: is the disk still there? "
            f"The first is {bad[0]}"
        )

    def _read(self, epoch: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        choice = self.sampling
        rng = sampling.sample_rng(choice.seed, epoch, index) if choice.training else None
        available = self.store.available(index)
        frames, mask = sampling.clip_indices(available, choice.frames, short=choice.short, rng=rng)
        video = self.store.read(index, frames)
        if rng is None:
            return evaluation_clip(video, choice.resolution), mask
        return training_clip(video, choice.resolution, choice.augmentation, rng), mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Which clips make up which step of training.

    The epochs' permutations follow each other without a seam and are cut into batches, so every
    batch is full, every clip is seen once an epoch, and (seed, step) is the whole position.

    Args:
        clips: their number.
        batch_size: clips of a step, over all replicas and workers.
        seed: of the order, in [0, 2^64).

    Raises:
        ValueError: `clips` or `batch_size` is not positive.
    """

    clips: int
    batch_size: int
    seed: int = 0

    def __post_init__(self):
        for field in ("clips", "batch_size"):
            _require_positive(field, getattr(self, field))

    def steps(self, epochs: float) -> int:
        """The steps after which each clip has been seen `epochs` times.

        Example:
            >>> Plan(clips=10, batch_size=4).steps(2), Plan(clips=10, batch_size=4).steps(1.1)
            (5, 3)
        """
        seen = math.ceil(epochs * self.clips - 1e-6)  # 1.1 * 10 is 11.000000000000002
        return -(-seen // self.batch_size)

    def step(self, step: int) -> list[tuple[int, int]]:
        """The (epoch, index) of each clip of a step."""
        return list(self.places(step, step + 1))

    def places(
        self, start: int, stop: int | None = None, *, worker: int = 0, workers: int = 1
    ) -> Iterator[tuple[int, int]]:
        """The (epoch, index) of a worker's part of the steps from `start` to `stop` (None: on).

        Each worker has the same part of every batch.

        Raises:
            ValueError: `workers` don't divide the batch, or `worker` is none of them.
        """
        if self.batch_size % workers or not 0 <= worker < workers:
            raise ValueError(
                f"`workers` must divide the batch of {self.batch_size}, and `worker` be one of "
                f"them, counted from 0. Received: worker {worker} of {workers}"
            )
        share = self.batch_size // workers
        step, current, permutation = start, -1, np.empty(0, np.int64)
        while stop is None or step < stop:
            first = step * self.batch_size + worker * share
            for number in range(first, first + share):
                epoch, place = divmod(number, self.clips)
                if epoch != current:
                    current = epoch
                    permutation = sampling.order(self.seed, epoch, self.clips)
                yield epoch, int(permutation[place])
            step += 1


def _require_positive(field: str, value: object) -> None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{field}` must be a positive integer. Received: {value!r}")
