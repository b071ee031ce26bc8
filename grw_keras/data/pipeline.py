"""tf.data assembly: samples read ahead in worker processes, batched, scaled to [0, 1]."""

from collections.abc import Callable, Iterable, Iterator

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
        processes: that decode and augment; None: one for each CPU, none for frames in memory;
            0: this one.
        on_bad: called with the error of each video that turned out bad, and was replaced.

    Returns:
        An endless data set; with `sampling.short == "pad"` its clips are dictionaries of "video"
        and "mask" [b, N].

    Raises:
        ValueError: a batch that workers and replicas can't share; a crop too large.
    """
    _check_share(batch_size, workers * replicas)
    plan = Plan(clips=len(store.clips), batch_size=batch_size, seed=sampling.seed)
    loader = Loader(store, sampling)

    def samples():
        places = plan.places(start_step, worker=worker, workers=workers)
        return _read(loader, places, processes, on_bad)

    batches = _batches(samples, sampling, batch_size // (workers * replicas), drop_remainder=True)
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

    Arguments as of `training_batches`, and:

    Args:
        padded: fill the last batch by the last clip, again; else it may be smaller. Several
            replicas need it.

    Raises:
        As `training_batches`.
    """
    _check_share(batch_size, workers * replicas)
    loader = Loader(store, sampling)
    if workers * replicas > 1 and not padded:
        raise ValueError("`padded` must be True for several replicas: all get equal parts")
    count, share = len(store.clips), batch_size // workers

    def samples():
        last = -(-count // batch_size) * batch_size if padded else count
        steps = range(worker * share, last, batch_size)
        numbers = (n for start in steps for n in range(start, start + share) if n < last)
        places = ((0, min(n, count - 1)) for n in numbers)
        return _read(loader, places, processes, on_bad)

    return _batches(samples, sampling, share // replicas, drop_remainder=padded)


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
    message = "Float pixels must be in [0, 1]: divide by 255"
    with tf.control_dependencies([tf.debugging.Assert(inside, [message])]):
        return tf.cast(video, tf.float32)


def _check_share(batch_size: int, replicas: int) -> None:
    if batch_size < 1 or batch_size % replicas:
        raise ValueError(
            f"`batch_size` must be a positive multiple of the {replicas} replicas. "
            f"Received: {batch_size}"
        )


def _read(
    loader: Loader, places: Iterable[tuple[int, int]], processes: int | None, on_bad: OnBad | None
) -> Iterator[Sample]:
    if processes is None:
        processes = 0 if isinstance(loader.store, MemoryStore) else default_workers()
    for sample in in_order(loader, places, processes):
        for error in sample.bad:
            if on_bad is not None:
                on_bad(error)
        yield sample


def _batches(samples, sampling: Sampling, batch_size: int, *, drop_remainder: bool):
    frames, size = sampling.frames, sampling.resolution
    padded = sampling.short == "pad"

    def elements():
        for sample in samples():
            yield sample.video, sample.mask, sample.label

    def finish(video, mask, label):
        video = to_unit_range(video)
        return ({"video": video, "mask": mask} if padded else video), label

    signature = (
        tf.TensorSpec([frames, size, size, 3], tf.uint8),
        tf.TensorSpec([frames], tf.bool),
        tf.TensorSpec([], tf.int32),
    )
    data = tf.data.Dataset.from_generator(elements, output_signature=signature)
    data = data.batch(batch_size, drop_remainder=drop_remainder)
    return data.map(finish, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)
