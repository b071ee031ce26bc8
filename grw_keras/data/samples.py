"""Which clips make up which step, and how one is read: functions of (seed, epoch, index) alone."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from grw_keras.data import sampling
from grw_keras.data.stores import FrameStore
from grw_keras.data.transforms import Augmentation, evaluation_clip, training_clip
from grw_keras.data.video import BadVideoError


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
        seed: of order, offsets and augmentation.
    """

    frames: int
    resolution: int
    short: str = "loop"
    training: bool = False
    augmentation: Augmentation | None = None
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Sample:
    """One clip: frames [N, R, R, 3] uint8, mask [N], label, its index, and the errors of the
    videos that it stands in for."""

    video: np.ndarray
    mask: np.ndarray
    label: int
    index: int
    bad: tuple[BadVideoError, ...] = ()


class Loader:
    """Reads samples; sent to worker processes.

    A video that turns out bad is replaced by the next clip of the set, so which clips a step is
    made of depends on the files alone, not on the run.
    """

    def __init__(self, store: FrameStore, sample: Sampling):
        if sample.resolution > store.size:
            raise ValueError(
                "The crop must not be larger than the frames it is cut from. "
                f"Received: resolution={sample.resolution}, frames of {store.size} px"
            )
        self.store = store
        self.sampling = sample
        numbers = {label: number for number, label in enumerate(store.clips.labels)}
        self._labels = [numbers[clip.label] for clip in store.clips.clips]

    def __call__(self, place: tuple[int, int]) -> Sample:
        """The sample of (epoch, index)."""
        epoch, index = place
        bad: list[BadVideoError] = []
        count = len(self._labels)
        for number in range(index, index + count):
            try:
                video, mask = self._read(epoch, number % count)
            except BadVideoError as error:
                bad.append(error)
            else:
                number %= count
                return Sample(video, mask, self._labels[number], number, tuple(bad))
        raise bad[0]

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
        seed: of the order.
    """

    clips: int
    batch_size: int
    seed: int = 0

    def steps(self, epochs: float) -> int:
        """The steps after which each clip has been seen `epochs` times."""
        return -(-int(np.ceil(epochs * self.clips)) // self.batch_size)

    def step(self, step: int) -> list[tuple[int, int]]:
        """The (epoch, index) of each clip of a step."""
        return list(self.places(step, step + 1))

    def places(
        self, start: int, stop: int | None = None, *, worker: int = 0, workers: int = 1
    ) -> Iterator[tuple[int, int]]:
        """The (epoch, index) of a worker's part of the steps from `start` to `stop` (None: on).

        Each worker has the same part of every batch.
        """
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
