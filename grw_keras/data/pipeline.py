"""tf.data assembly: samples read ahead in worker processes, batched, scaled to [0, 1]."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import tensorflow as tf

from grw_keras.data.samples import Loader, Plan, Sample, Sampling
from grw_keras.data.stores import FrameStore, MemoryStore
from grw_keras.data.video import BadVideoError
from grw_keras.data.workers import default_workers, in_order

OnBad = Callable[[BadVideoError], None]


def training_batches(
    store: FrameStore,
    sampling: Sampling,
    batch_size: int,
    *,
    start_step: int = 0,
    worker: int = 0,
    workers: int = 1,
    replicas: int = 1,
    processes: int | None = None,
    on_bad: OnBad | None = None,
) -> tf.data.Dataset:
    """Endless batches of (clips [b, N, R, R, 3], labels [b]), for `fit` with `steps_per_epoch`.

    The batches depend on the store, `sampling` and the step alone: epochs' permutations follow
    each other without a seam (`Plan`), so none is partial, and none is lost or doubled over
    workers and replicas.

    Args:
        store: where frames are read from.
        sampling: with `training=True`.
        batch_size: clips of a step, over all workers and replicas.
        start_step: the first step to give; a resumed run's.
        worker: which of `workers` reads; each has the same part of every batch.
        workers: processes of a distributed training, each with its own data set.
        replicas: devices of this worker; each takes one element, b = batch_size / workers /
            replicas clips.
        processes: that decode and augment; None: one for each CPU; 0: this one. Frames in memory
            are always read by this one, for each process would hold them all.
        on_bad: called once for each video that turned out bad and was replaced, with its error.

    Returns:
        An endless data set; with `sampling.short == "pad"` its clips are dictionaries of "video"
        and "mask" [b, N].

    Raises:
        ValueError: a batch that workers and replicas can't share; a crop too large; a store
            without clips; `sampling` of evaluation.
    """
    _check(sampling, True, batch_size, worker, workers, replicas)
    plan = Plan(clips=len(store.clips), batch_size=batch_size, seed=sampling.seed)
    read = _reader(Loader(store, sampling), processes, on_bad)

    def samples():
        return read(plan.places(start_step, worker=worker, workers=workers))

    batches = _batches(samples, sampling, batch_size // (workers * replicas), drop_remainder=True)
    batches = batches.map(lambda clips, labels, number: (clips, labels))
    # Said, so that workers needn't ask each other at every step whether there is one more.
    return batches.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))


def evaluation_batches(
    store: FrameStore,
    sampling: Sampling,
    batch_size: int,
    *,
    worker: int = 0,
    workers: int = 1,
    replicas: int = 1,
    padded: bool = False,
    processes: int | None = None,
    on_bad: OnBad | None = None,
) -> tf.data.Dataset:
    """One clip of each video, its centre, in order: (clips [b, N, R, R, 3], labels [b]).

    A video that turns out bad is replaced by the next clip of the set (`numbered_batches` tells
    which). Arguments as of `training_batches`, with `sampling.training` False, and:

    Args:
        padded: fill the last batch by the last clip, again; else it may be smaller. Several
            replicas need it.

    Raises:
        As `training_batches`.
    """
    if workers * replicas > 1 and not padded:
        raise ValueError("`padded` must be True for several replicas: all get equal parts")
    share = (worker, workers, replicas)
    batches = _evaluation(store, sampling, batch_size, share, padded, processes, on_bad)
    return batches.map(lambda clips, labels, number: (clips, labels))


def numbered_batches(
    store: FrameStore,
    sampling: Sampling,
    batch_size: int,
    *,
    worker: int = 0,
    workers: int = 1,
    replicas: int = 1,
    processes: int | None = None,
    on_bad: OnBad | None = None,
) -> tf.data.Dataset:
    """As `evaluation_batches`, padded, with a third element: numbers [b], int32.

    They are the clips' numbers in the store, and -1 for clips that don't count: those that stand
    in for a bad video, and those that fill the last batch.
    """
    share = (worker, workers, replicas)
    return _evaluation(store, sampling, batch_size, share, True, processes, on_bad)


def to_unit_range(video) -> tf.Tensor:
    """float32 pixels in [0, 1]: uint8 divided by 255, floats checked.

    Raises:
        InvalidArgumentError: float pixels outside [0, 1], or NaN.
        TypeError: other integers.
    """
    video = tf.convert_to_tensor(video)
    if video.dtype == tf.uint8:
        return tf.cast(video, tf.float32) / 255.0
    if not video.dtype.is_floating:
        raise TypeError(f"Pixels must be uint8 or floats. Received: {video.dtype.name}")
    inside = tf.reduce_all((video >= 0) & (video <= 1))
    message = "Float pixels must be in [0, 1]: divide by 255. Received pixels from, to:"
    told = [message, tf.reduce_min(video), tf.reduce_max(video)]
    with tf.control_dependencies([tf.debugging.Assert(inside, told)]):
        return tf.cast(video, tf.float32)


def _check(
    sampling: Sampling, training: bool, batch_size: int, worker: int, workers: int, replicas: int
) -> None:
    if sampling.training is not training:
        raise ValueError(f"`sampling.training` must be {training} here. Received: {sampling}")
    total = workers * replicas
    if batch_size < 1 or batch_size % total:
        raise ValueError(
            f"`batch_size` must be a positive multiple of the {total} replicas. "
            f"Received: {batch_size}"
        )
    if not 0 <= worker < workers:
        raise ValueError(f"`worker` must be in [0, {workers}). Received: {worker}")


def _evaluation(
    store: FrameStore,
    sampling: Sampling,
    batch_size: int,
    share: tuple[int, int, int],
    padded: bool,
    processes: int | None,
    on_bad: OnBad | None,
) -> tf.data.Dataset:
    """Of clips, labels and numbers, for (worker, workers, replicas)."""
    worker, workers, replicas = share
    _check(sampling, False, batch_size, worker, workers, replicas)
    read = _reader(Loader(store, sampling), processes, on_bad)
    count, width = len(store.clips), batch_size // workers

    def samples():
        last = -(-count // batch_size) * batch_size if padded else count
        steps = range(worker * width, last, batch_size)
        places = [n for start in steps for n in range(start, start + width) if n < last]
        found = read((0, min(place, count - 1)) for place in places)
        for place, sample in zip(places, found, strict=True):
            counts = place < count and not sample.bad
            yield sample if counts else dataclasses.replace(sample, index=-1)

    return _batches(samples, sampling, width // replicas, drop_remainder=padded)


def _reader(
    loader: Loader, processes: int | None, on_bad: OnBad | None
) -> Callable[[Iterable[tuple[int, int]]], Iterator[Sample]]:
    """Reads samples of (epoch, index), and tells of each bad video once."""
    store, told = loader.store, set()
    if isinstance(store, MemoryStore):
        processes = 0
    elif processes is None:
        processes = default_workers()

    def read(places: Iterable[tuple[int, int]]) -> Iterator[Sample]:
        for sample in in_order(loader, places, processes, name=name):
            for error in sample.bad:
                if error.path not in told and on_bad is not None:
                    on_bad(error)
                told.add(error.path)
            yield sample

    def name(place: tuple[int, int]) -> str:
        return store.clips.clips[place[1]].name

    return read


def _batches(
    samples: Callable[[], Iterator[Sample]],
    sampling: Sampling,
    batch_size: int,
    *,
    drop_remainder: bool,
) -> tf.data.Dataset:
    """Of clips, labels and the clips' numbers."""
    frames, size = sampling.frames, sampling.resolution
    padded = sampling.short == "pad"

    def elements():
        # Stacked here: each element that crosses into TensorFlow costs a fixed time.
        running = samples()
        while batch := list(itertools.islice(running, batch_size)):
            if len(batch) == batch_size or not drop_remainder:
                yield (
                    np.stack([sample.video for sample in batch]),
                    np.stack([sample.mask for sample in batch]),
                    np.array([sample.label for sample in batch], np.int32),
                    np.array([sample.index for sample in batch], np.int32),
                )

    def finish(video, mask, label, number):
        video = to_unit_range(video)
        return ({"video": video, "mask": mask} if padded else video), label, number

    clips = batch_size if drop_remainder else None
    signature = (
        tf.TensorSpec([clips, frames, size, size, 3], tf.uint8),
        tf.TensorSpec([clips, frames], tf.bool),
        tf.TensorSpec([clips], tf.int32),
        tf.TensorSpec([clips], tf.int32),
    )
    data = tf.data.Dataset.from_generator(elements, output_signature=signature)
    return data.map(finish, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)
