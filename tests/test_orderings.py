import math

import numpy as np
import pytest

from grw_keras import orderings
from grw_keras.orderings import ExactOrderings, all_orderings, exact_orderings, resolve
from tests.helpers import literal_orderings


@pytest.mark.parametrize("window", range(3, 8))
def test_all_lists_every_ordering_once_with_the_true_order_first(window):
    rows = all_orderings(window)
    np.testing.assert_array_equal(rows, literal_orderings(window))
    assert len({tuple(row) for row in rows}) == math.factorial(window - 1)


def test_all_agrees_with_the_authors_order(shared):
    with np.load(shared / "fixtures" / "grw_loss.npz") as fixture:
        for window in range(3, 8):
            np.testing.assert_array_equal(all_orderings(window), fixture[f"perm/T{window}"])


def test_sampled_is_seeded_and_starts_with_the_true_order():
    rows = resolve("sampled", 10, num_orderings=50, seed=3)
    assert rows.shape == (50, 10)
    np.testing.assert_array_equal(rows[0], np.arange(10))
    np.testing.assert_array_equal(rows[:, 0], 0)
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile(np.arange(10), (50, 1)))
    np.testing.assert_array_equal(rows, resolve("sampled", 10, num_orderings=50, seed=3))
    assert (rows != resolve("sampled", 10, num_orderings=50, seed=4)).any()


def test_sampled_draws_each_place_uniformly():
    rows = resolve("sampled", 6, num_orderings=20_001)[1:, 1:]
    counts = np.stack([np.bincount(column, minlength=6)[1:] for column in rows.T])
    expected = len(rows) / 5
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 40  # 16 degrees of freedom: 0.1 % of draws exceed 39.3


@pytest.mark.parametrize(
    ("window", "kind"),
    [(3, "all"), (7, "all"), (8, "exact"), (12, "exact"), (13, "sampled"), (40, "sampled")],
)
def test_auto_is_all_then_exact_then_sampled(window, kind):
    chosen = resolve("auto", window)
    if kind == "exact":
        assert isinstance(chosen, ExactOrderings)
    else:
        expected = math.factorial(window - 1) if kind == "all" else orderings.NUM_SAMPLED
        assert chosen.shape == (expected, window)


@pytest.mark.parametrize("window", range(3, 10))
def test_exact_tables_have_the_documented_number_of_transitions(window):
    stages = exact_orderings(window).stages
    assert sum(stage.sources.size for stage in stages) == orderings.num_transitions(window)


def test_array_is_taken_as_it_is():
    rows = [[0, 1, 2, 3], [0, 3, 2, 1], [0, 3, 2, 1]]
    np.testing.assert_array_equal(resolve(rows, 4), rows)


@pytest.mark.parametrize(
    ("choice", "window", "message"),
    [
        ("all", 2, r"`window` must be an integer of at least 3.*Received: window=2"),
        ("all", 5.0, r"window=5\.0"),
        ("all", True, r"window=True"),
        ("every", 5, r"one of 'auto', 'all', 'exact', 'sampled'.*orderings='every'"),
        ("all", 11, r"3,628,800 orderings a window.*'exact'.*window=11"),
        ("exact", 15, r"4,472,832 transitions a window at T = 15, 18 MB.*'sampled'"),
        ([[0, 1, 2], [0, 2, 2]], 3, r"permutation of 0 … 2.*orderings\[1\]=\[0, 2, 2\]"),
        ([[0, 1, 2], [1, 0, 2]], 3, r"starts with frame 0.*orderings\[1\]=\[1, 0, 2\]"),
        ([[0, 2, 1], [0, 2, 1]], 3, r"must hold the true order \[0, 1, 2\]"),
        ([[0, 1, 2]], 3, r"at least one other row"),
        ([[0, 1, 2]], 4, r"\[K, 4\].*shape=\(1, 3\)"),
        ([[0.0, 1.0, 2.0]], 3, r"dtype=float64"),
        ([[0, 1, 2], [0, 1]], 3, r"rows of one length, \[K, window\] = \[K, 3\]"),
    ],
)
def test_bad_choice_is_refused_with_what_was_received(choice, window, message):
    with pytest.raises(ValueError, match=message):
        resolve(choice, window)


@pytest.mark.parametrize(
    "options", [{"num_orderings": 1}, {"num_orderings": 2.5}, {"seed": -1}, {"seed": True}]
)
def test_bad_sampling_options_are_refused(options):
    (name,) = options
    for mode in ("sampled", "all"):
        with pytest.raises(ValueError, match=f"`{name}` must be .*{name}={options[name]}"):
            resolve(mode, 9, **options)
