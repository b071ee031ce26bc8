"""Grids, clips and random streams, against their definitions and against chance."""

from fractions import Fraction

import numpy as np
import pytest

from grw_keras.data.sampling import clip_indices, grid_size, order, sample_rng


@pytest.mark.parametrize("fps", [5, 12, 7.5, 29.97])
def test_grid_has_every_time_before_the_end(fps):
    for frames in range(1, 400):
        exact = Fraction(frames, 30) * Fraction(str(fps))
        assert grid_size(frames / 30, fps) == max(1, int(exact))


def test_grid_is_never_empty():
    assert grid_size(0, 5) == grid_size(0.001, 5) == 1


def test_a_whole_number_of_periods_survives_floating_point():
    for count in range(1, 2000):
        assert grid_size(count * 0.1, 10) == grid_size(count / 12, 12) == count


@pytest.mark.parametrize("count", [0, 1, 2, 7, 1000])
def test_order_is_a_permutation(count):
    drawn = order(3, 1, count)
    assert drawn.dtype == np.int64
    assert sorted(drawn) == list(range(count))


def test_order_is_the_same_for_ever():
    # Written down once: a change would reorder the data of a run that is resumed.
    assert order(0, 0, 8).tolist() == [4, 6, 1, 3, 2, 0, 5, 7]
    assert order(2**63, 5, 8).tolist() == [4, 0, 1, 5, 2, 7, 3, 6]
    assert sample_rng(1, 2, 3).bit_generator.random_raw(2).tolist() == [
        8522330632621749321,
        15181601834667463717,
    ]


def test_each_place_of_an_order_is_uniform():
    counts = np.zeros((5, 5))
    for epoch in range(4000):
        counts[np.arange(5), order(0, epoch, 5)] += 1
    chi_square = ((counts - 800) ** 2 / 800).sum()  # 16 degrees of freedom
    assert chi_square < 45  # p = 1e-4


@pytest.mark.parametrize("varied", ["seed", "epoch", "index"])
def test_neighbouring_streams_are_uncorrelated(varied):
    integers = {"seed": 0, "epoch": 0, "index": 0}
    draws = np.array([sample_rng(**{**integers, varied: i}).random(4) for i in range(4000)])
    bound = 4.5 / np.sqrt(len(draws))
    for lag in (1, 2, 16):
        for place in range(4):
            correlation = np.corrcoef(draws[:-lag, place], draws[lag:, place])[0, 1]
            assert abs(correlation) < bound
    histogram = np.histogram(draws, bins=16, range=(0, 1))[0]
    assert ((histogram - 1000) ** 2 / 1000).sum() < 45  # 15 degrees of freedom


def test_no_two_streams_start_alike():
    wide = [0, 1, 2, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**64 - 1]
    starts = {sample_rng(a, b, c).integers(2**63) for a in wide for b in wide for c in wide}
    assert len(starts) == len(wide) ** 3
    orders = {tuple(order(a, b, 24)) for a in wide for b in wide}
    assert len(orders) == len(wide) ** 2


def test_streams_do_not_depend_on_what_was_drawn_before():
    np.random.default_rng(0).random(10)
    first = sample_rng(1, 2, 3).random(3)
    order(1, 2, 3)
    sample_rng(1, 2, 4).random(100)
    np.testing.assert_array_equal(sample_rng(1, 2, 3).random(3), first)


@pytest.mark.parametrize(
    ("available", "frames", "short", "indices", "mask"),
    [
        (5, 5, "loop", [0, 1, 2, 3, 4], [1, 1, 1, 1, 1]),
        (8, 3, "loop", [2, 3, 4], [1, 1, 1]),
        (9, 3, "pad", [3, 4, 5], [1, 1, 1]),
        (3, 8, "loop", [0, 1, 2, 0, 1, 2, 0, 1], [1] * 8),
        (3, 5, "pad", [0, 1, 2, 2, 2], [1, 1, 1, 0, 0]),
        (1, 3, "loop", [0, 0, 0], [1, 1, 1]),
        (1, 3, "pad", [0, 0, 0], [1, 0, 0]),
    ],
)
def test_centre_clip(available, frames, short, indices, mask):
    drawn, kept = clip_indices(available, frames, short=short)
    assert (drawn.dtype, kept.dtype) == (np.int64, bool)
    assert (drawn.tolist(), kept.tolist()) == (indices, [bool(value) for value in mask])
    if available <= frames:
        again, same = clip_indices(available, frames, short=short, rng=np.random.default_rng(0))
        assert (again.tolist(), same.tolist()) == (drawn.tolist(), kept.tolist())


def test_random_clips_start_everywhere_alike():
    rng = np.random.default_rng(0)
    starts = []
    for _ in range(3000):
        indices, mask = clip_indices(9, 4, rng=rng)
        assert mask.all()
        assert np.diff(indices).tolist() == [1, 1, 1]
        starts.append(indices[0])
    counts = np.bincount(starts, minlength=6)
    assert len(counts) == 6
    assert ((counts - 500) ** 2 / 500).sum() < 26  # 5 degrees of freedom, p = 1e-4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grid_size(-1, 5), "`duration_s` must be >= 0"),
        (lambda: grid_size(float("nan"), 5), "`duration_s` must be >= 0"),
        (lambda: grid_size(1, 0), "`fps` must be positive. Received: 0"),
        (lambda: grid_size(1, float("inf")), "`fps` must be positive"),
        (lambda: order(-1, 0, 3), r"`seed` must be an integer in \[0, 2\^64\). Received: -1"),
        (lambda: order(0, 2**64, 3), "`epoch` must be an integer in"),
        (lambda: order(0, 0, -1), "`count` must be an integer >= 0"),
        (lambda: sample_rng(0, 0, 0.5), "`index` must be an integer in"),
        (lambda: sample_rng(True, 0, 0), "`seed` must be an integer in"),
        (lambda: clip_indices(0, 3), "`available` must be a positive integer. Received: 0"),
        (lambda: clip_indices(3, 0), "`frames` must be a positive integer"),
        (lambda: clip_indices(3, 2.0), "`frames` must be a positive integer"),
        (lambda: clip_indices(3, 2, short="repeat"), "`short` must be one of .*'repeat'"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
