"""Batches: the same from any step, with any number of processes, workers and replicas."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from grw_keras.data.clips import Clip, ClipSet
from grw_keras.data.pipeline import (
    evaluation_batches,
    numbered_batches,
    to_unit_range,
    training_batches,
)
from grw_keras.data.samples import Loader, Plan, Sampling
from grw_keras.data.scan import scan
from grw_keras.data.stores import DiskStore, MemoryStore, VideoStore
from grw_keras.data.transforms import Augmentation
from tests import video_files
from tests.store_helpers import ArrayStore

TRAINING = Sampling(frames=4, resolution=6, training=True, seed=3)
AUGMENTED = Sampling(
    frames=4, resolution=6, training=True, seed=3, augmentation=Augmentation(scale=(0.5, 1.0))
)
EVALUATION = Sampling(frames=4, resolution=6)


def taken(data, count=None):
    """Elements as numpy arrays."""
    return list(itertools.islice(data.as_numpy_iterator(), count))


def clips_of(batch) -> list[int]:
    """The clips' numbers, by their red pixels."""
    return np.rint(255 * batch[0][:, 0, 0, 0, 0]).astype(int).tolist()


def assert_same(first, second):
    tf.nest.map_structure(np.testing.assert_array_equal, first, second)
    assert len(first) == len(second)


def test_a_batch_is_the_samples_of_its_step_in_the_unit_range():
    store, plan = ArrayStore([9, 3, 20, 4, 7]), Plan(clips=5, batch_size=3, seed=3)
    load = Loader(store, AUGMENTED)
    for step, (clips, labels) in enumerate(
        taken(training_batches(store, AUGMENTED, 3, processes=0), 7)
    ):
        samples = [load(place) for place in plan.step(step)]
        wanted = np.stack([sample.video for sample in samples]).astype(np.float32) / 255
        assert clips.dtype == np.float32
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(clips, wanted)
        assert labels.tolist() == [sample.label for sample in samples]


@pytest.mark.parametrize("processes", [1, 2])
def test_batches_from_a_later_step_and_from_processes_are_those_of_the_whole_run(processes):
    store = ArrayStore([9, 3, 20, 4, 7])
    whole = taken(training_batches(store, AUGMENTED, 4, processes=0), 9)
    assert_same(
        taken(training_batches(store, AUGMENTED, 4, start_step=5, processes=processes), 4),
        whole[5:],
    )


@pytest.mark.parametrize(("workers", "replicas"), [(1, 3), (2, 1), (3, 2), (6, 1)])
def test_workers_and_replicas_together_read_the_global_batches(workers, replicas):
    store = ArrayStore([9, 3, 20, 4, 7])
    whole = taken(training_batches(store, AUGMENTED, 6, start_step=2, processes=0), 4)
    parts = [
        taken(
            training_batches(
                store,
                AUGMENTED,
                6,
                start_step=2,
                worker=worker,
                workers=workers,
                replicas=replicas,
                processes=0,
            ),
            4 * replicas,
        )
        for worker in range(workers)
    ]
    for step in range(4):
        shares = [p for part in parts for p in part[step * replicas : (step + 1) * replicas]]
        for element in range(2):
            together = np.concatenate([share[element] for share in shares])
            np.testing.assert_array_equal(together, whole[step][element])


@pytest.mark.parametrize("batch_size", [3, 7])
def test_each_clip_is_seen_once_an_epoch_and_batches_are_full(batch_size):
    data = training_batches(ArrayStore([5] * 5), TRAINING, batch_size, processes=0)
    assert data.cardinality() == tf.data.INFINITE_CARDINALITY
    seen = [clip for batch in taken(data, 15) for clip in clips_of(batch)]
    assert len(seen) == 15 * batch_size
    for epoch in range(3 * batch_size):
        assert sorted(seen[5 * epoch : 5 * epoch + 5]) == [0, 1, 2, 3, 4]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    paths = [
        video_files.write(folder / f"{n}.avi", "mjpeg", n, fps=10, pix_fmt="yuvj420p")
        for n in (8, 14, 20)
    ]
    clips = ClipSet(tuple(Clip(str(path), "bow") for path in paths), ("bow",))
    return VideoStore(clips, scan(clips).infos, fps=5, size=8)


def test_videos_memory_and_disk_give_the_same_batches_bit_for_bit(videos, tmp_path):
    stores = [videos, MemoryStore(videos, 0), DiskStore(videos, tmp_path, 0)]
    first, *others = (
        taken(training_batches(store, AUGMENTED, 2, processes=0), 6) for store in stores
    )
    assert np.ptp(first[0][0]) > 0.5
    for other in others:
        assert_same(first, other)


def test_the_mask_of_padding_reaches_the_batch():
    store = ArrayStore([2, 6])
    padded = Sampling(frames=4, resolution=6, short="pad")
    [(clips, _)] = taken(evaluation_batches(store, padded, 2, processes=0))
    assert clips.keys() == {"video", "mask"}
    assert clips["mask"].astype(int).tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    frames = np.rint(255 * clips["video"][:, :, 0, 0, 1]).astype(int)
    assert frames.tolist() == [[0, 1, 1, 1], [1, 2, 3, 4]]
    [(clips, _)] = taken(evaluation_batches(store, EVALUATION, 2, processes=0))
    frames = np.rint(255 * clips[:, :, 0, 0, 1]).astype(int)
    assert frames.tolist() == [[0, 1, 0, 1], [1, 2, 3, 4]]


@pytest.mark.parametrize("processes", [0, 2])
def test_evaluation_has_each_clip_once_in_order(processes):
    store = ArrayStore([5] * 5)
    batches = taken(evaluation_batches(store, EVALUATION, 2, processes=processes))
    assert [clips_of(batch) for batch in batches] == [[0, 1], [2, 3], [4]]
    batches = taken(evaluation_batches(store, EVALUATION, 2, padded=True, processes=0))
    assert [clips_of(batch) for batch in batches] == [[0, 1], [2, 3], [4, 4]]


@pytest.mark.parametrize(("workers", "replicas"), [(1, 1), (1, 2), (2, 2)])
def test_numbers_say_which_clips_count(workers, replicas):
    store = ArrayStore([5] * 6, bad=[1, 4])
    parts = [
        taken(
            numbered_batches(
                store,
                EVALUATION,
                4,
                worker=worker,
                workers=workers,
                replicas=replicas,
                processes=0,
            )
        )
        for worker in range(workers)
    ]
    steps = [
        [
            pair
            for part in parts
            for batch in part[step * replicas : (step + 1) * replicas]
            for pair in zip(clips_of(batch), batch[2].tolist(), strict=True)
        ]
        for step in range(2)
    ]
    assert steps == [
        [(0, 0), (2, -1), (2, 2), (3, 3)],
        [(5, -1), (5, 5), (5, -1), (5, -1)],
    ]


def test_a_bad_video_is_replaced_alike_each_time_and_told_once():
    store = ArrayStore([9] * 5, bad=[1, 3])
    told = []
    data = training_batches(
        store, TRAINING, 5, processes=0, on_bad=lambda error: told.append(error.path)
    )
    first = taken(data, 4)
    for batch in first:
        assert sorted(clips_of(batch)) == [0, 2, 2, 4, 4]
    assert sorted(told) == ["1.mp4", "3.mp4"]
    assert_same(taken(training_batches(store, TRAINING, 5, processes=2), 4), first)


@pytest.mark.parametrize("processes", [0, 1])
def test_a_set_without_a_good_video_is_an_error(processes):
    data = evaluation_batches(ArrayStore([9] * 3, bad=range(3)), EVALUATION, 2, processes=processes)
    with pytest.raises(tf.errors.OpError, match=r"3 of 3 clips in a row can't be decoded"):
        taken(data)


def test_frames_in_memory_are_not_sent_to_processes(monkeypatch):
    store = MemoryStore(ArrayStore([5] * 3), 0)
    monkeypatch.setattr("grw_keras.data.workers.loky", None)
    assert len(taken(training_batches(store, TRAINING, 2, processes=4), 2)) == 2


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("dtype", [tf.float64, tf.float32, tf.float16, tf.bfloat16])
def test_floats_in_the_unit_range_pass(dtype, graph):
    function = tf.function(to_unit_range) if graph else to_unit_range
    found = function(tf.constant([0.0, 0.5, 1.0], dtype))
    assert found.dtype == tf.float32
    assert found.numpy().tolist() == [0, 0.5, 1]


@pytest.mark.parametrize("graph", [False, True])
def test_bytes_are_divided_by_255(graph):
    function = tf.function(to_unit_range) if graph else to_unit_range
    found = function(np.arange(256, dtype=np.uint8))
    # In graphs TensorFlow multiplies by 1 / 255.
    np.testing.assert_array_max_ulp(found.numpy(), np.arange(256, dtype=np.float32) / 255, 1)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("bad", [-0.01, 1.01, 255.0, float("nan")])
def test_other_floats_are_refused(bad, graph):
    function = tf.function(to_unit_range) if graph else to_unit_range
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"must be in \[0, 1\]: divide by 255"):
        function(tf.constant([0.5, bad]))


def test_other_integers_are_refused():
    with pytest.raises(TypeError, match=r"must be uint8 or floats\. Received: int32"):
        to_unit_range([0, 255])


@pytest.mark.parametrize(
    ("make", "sampling", "arguments", "message"),
    [
        (training_batches, TRAINING, {"workers": 2}, "multiple of the 2 replicas. Received: 3"),
        (training_batches, TRAINING, {"replicas": 4}, "multiple of the 4 replicas. Received: 3"),
        (training_batches, TRAINING, {"worker": 1}, r"`worker` must be in \[0, 1\)"),
        (training_batches, EVALUATION, {}, "`sampling.training` must be True"),
        (evaluation_batches, TRAINING, {}, "`sampling.training` must be False"),
        (evaluation_batches, EVALUATION, {"replicas": 3}, "`padded` must be True"),
    ],
)
def test_what_does_not_fit_is_refused(make, sampling, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(ArrayStore([5] * 5), sampling, 3, **arguments)
