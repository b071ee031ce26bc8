"""Which clips make a step, and how one is read: each clip once an epoch, whoever reads it."""

import collections
import itertools

import numpy as np
import pytest

from grw_keras.data import samples
from grw_keras.data.samples import Loader, Plan, Sampling
from grw_keras.data.scan import TooManyBadVideosError
from grw_keras.data.transforms import Augmentation
from tests.store_helpers import LABELS, ArrayStore, picture

EVALUATION = Sampling(frames=4, resolution=6)
TRAINING = Sampling(frames=4, resolution=6, training=True, seed=3)


def frames_of(sample) -> list[int]:
    return sample.video[:, 0, 0, 1].tolist()


@pytest.mark.parametrize(
    ("available", "short", "frames", "mask"),
    [
        (4, "loop", [0, 1, 2, 3], [1, 1, 1, 1]),
        (9, "loop", [2, 3, 4, 5], [1, 1, 1, 1]),
        (10, "pad", [3, 4, 5, 6], [1, 1, 1, 1]),
        (3, "loop", [0, 1, 2, 0], [1, 1, 1, 1]),
        (2, "pad", [0, 1, 1, 1], [1, 1, 0, 0]),
    ],
)
def test_evaluation_reads_the_centre_in_time_and_space(available, short, frames, mask):
    load = Loader(ArrayStore([5, available]), Sampling(frames=4, resolution=6, short=short))
    sample = load((0, 1))
    # 8 px to 6: a pixel off each side.
    wanted = np.stack([picture(1, frame, 8)[1:7, 1:7] for frame in frames])
    np.testing.assert_array_equal(sample.video, wanted)
    assert sample.mask.astype(int).tolist() == mask
    assert (sample.label, sample.index, sample.bad) == (1, 1, ())


def test_labels_are_numbered_in_the_order_of_the_store():
    store = ArrayStore([4] * 6)
    numbers = [Loader(store, EVALUATION)((0, i)).label for i in range(6)]
    assert [LABELS[n] for n in numbers] == [clip.label for clip in store.clips.clips]


def test_training_draws_offset_and_pixels_by_seed_epoch_and_clip_alone():
    store = ArrayStore([60, 60, 60])
    plain = Loader(store, TRAINING)
    places = list(itertools.product(range(12), range(3)))
    first = {place: plain(place) for place in places}
    again = {place: Loader(store, TRAINING)(place) for place in reversed(places)}
    for place in places:
        np.testing.assert_array_equal(first[place].video, again[place].video)
    starts = {place: frames_of(sample)[0] for place, sample in first.items()}
    assert all(frames_of(first[p]) == list(range(starts[p], starts[p] + 4)) for p in places)
    assert len(set(starts.values())) > 15  # of 57 offsets in 36 draws
    other = Loader(store, Sampling(frames=4, resolution=6, training=True, seed=4))
    assert sum(frames_of(other(place))[0] == starts[place] for place in places) < 6


def test_augmentation_changes_the_pixels_not_the_frames():
    store, augmentation = ArrayStore([60]), Augmentation(scale=None, flip=True)
    load = Loader(
        store,
        Sampling(frames=4, resolution=6, training=True, seed=3, augmentation=augmentation),
    )
    mirrored = 0
    for epoch in range(20):
        plain, changed = Loader(store, TRAINING)((epoch, 0)), load((epoch, 0))
        assert frames_of(plain) == frames_of(changed)
        mirrored += np.array_equal(changed.video, plain.video[:, :, ::-1])
    assert 3 <= mirrored <= 17


def test_a_bad_video_is_replaced_by_the_next_good_clip():
    load = Loader(ArrayStore([4] * 5, bad=[1, 2, 4]), EVALUATION)
    found = [load((0, i)) for i in range(5)]
    assert [sample.index for sample in found] == [0, 3, 3, 3, 0]
    assert [int(sample.video[0, 0, 0, 0]) for sample in found] == [0, 3, 3, 3, 0]
    assert [sample.label for sample in found] == [0, 1, 1, 1, 0]
    assert [[e.path for e in sample.bad] for sample in found] == [
        [],
        ["1.mp4", "2.mp4"],
        ["2.mp4"],
        [],
        ["4.mp4"],
    ]


@pytest.mark.parametrize(("count", "tried"), [(3, 3), (200, 5)])
def test_a_set_of_bad_videos_alone_stops_after_a_bounded_search(monkeypatch, count, tried):
    monkeypatch.setattr(samples, "MAX_BAD_IN_A_ROW", 5)
    load = Loader(ArrayStore([4] * count, bad=range(count)), EVALUATION)
    with pytest.raises(
        TooManyBadVideosError, match=rf"^{tried} of {tried} clips in a row.*1\.mp4: it is torn"
    ):
        load((0, 1))


@pytest.mark.parametrize("count", [1, 3, 4, 7, 12])
@pytest.mark.parametrize("batch_size", [1, 4, 10])
def test_every_clip_is_seen_once_an_epoch(count, batch_size):
    plan, epochs = Plan(clips=count, batch_size=batch_size, seed=5), 3
    steps = plan.steps(epochs)
    assert steps == -(-epochs * count // batch_size)
    places = list(plan.places(0, steps))
    assert len(places) == steps * batch_size
    whole = collections.Counter(places[: epochs * count])
    assert whole == dict.fromkeys(itertools.product(range(epochs), range(count)), 1)
    assert [epoch for epoch, _ in places] == sorted(epoch for epoch, _ in places)
    for step in range(steps):
        assert plan.step(step) == places[step * batch_size : (step + 1) * batch_size]
    assert list(itertools.islice(plan.places(2), 30)) == list(
        itertools.islice(plan.places(0), 2 * batch_size, 2 * batch_size + 30)
    )


def test_epochs_have_orders_of_their_own():
    orders = [
        tuple(place for _, place in Plan(clips=9, batch_size=9, seed=seed).step(step))
        for seed, step in itertools.product(range(3), range(3))
    ]
    assert len(set(orders)) == 9


@pytest.mark.parametrize("workers", [1, 2, 3, 6])
def test_workers_together_read_the_batches_of_one(workers):
    plan = Plan(clips=7, batch_size=6)
    parts = [list(plan.places(1, 9, worker=w, workers=workers)) for w in range(workers)]
    share = 6 // workers
    together = [
        place
        for step in range(8)
        for part in parts
        for place in part[step * share : (step + 1) * share]
    ]
    assert together == list(plan.places(1, 9))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sampling(frames=0, resolution=6), "`frames` must be a positive integer.*: 0"),
        (lambda: Sampling(frames=4, resolution=2.5), "`resolution` must be.* integer.*: 2.5"),
        (
            lambda: Sampling(frames=4, resolution=6, short="cut"),
            "`short` must be one of 'loop', 'pad'. Received: 'cut'",
        ),
        (
            lambda: Sampling(frames=4, resolution=6, augmentation=Augmentation()),
            "`augmentation` must be None with training=False",
        ),
        (lambda: Plan(clips=0, batch_size=2), "`clips` must be a positive integer. Received: 0"),
        (lambda: Plan(clips=2, batch_size=0), "`batch_size` must be a positive"),
        (
            lambda: next(Plan(clips=2, batch_size=4).places(0, workers=3)),
            "`workers` must divide the batch of 4.*Received: worker 0 of 3",
        ),
        (
            lambda: next(Plan(clips=2, batch_size=4).places(0, worker=2, workers=2)),
            "Received: worker 2 of 2",
        ),
        (
            lambda: Loader(ArrayStore([4], size=5), EVALUATION),
            "The crop must not be larger.*resolution=6, frames of 5 px",
        ),
        (lambda: Loader(ArrayStore([]), EVALUATION), "`store` must have a clip"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
