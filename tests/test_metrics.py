"""Metrics against scikit-learn, literal loops, and numbers known by construction."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics as sklearn_metrics
from sklearn.decomposition import PCA

from grw_keras.evaluation import metrics


def random_answers(seed, clips=200, classes=7, decimals=None):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((clips, classes))
    return (logits if decimals is None else logits.round(decimals)), rng.integers(
        classes, size=clips
    )


def test_top_k_equals_scikit_learn_without_ties():
    logits, labels = random_answers(0)
    for k in range(1, 7):
        expected = sklearn_metrics.top_k_accuracy_score(labels, logits, k=k)
        assert metrics.top_k(logits, labels, k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("row", "label", "rank"),
    [
        ([3.0, 1.0, 2.0], 0, 0),
        ([3.0, 1.0, 2.0], 1, 2),
        ([1.0, 1.0, 1.0], 0, 2),
        ([2.0, 2.0, 1.0], 0, 1),
        ([0.0, 0.0, 1.0], 2, 0),
        ([math.nan, 0.0, 1.0], 2, 3),
        ([math.nan, 0.0, 1.0], 0, 3),
        ([math.inf, 0.0, 1.0], 0, 0),
    ],
)
def test_ties_and_nan_go_against_the_model(row, label, rank):
    assert metrics.ranks(np.array([row]), np.array([label])).tolist() == [rank]
    for k in (1, 2, 3):
        assert metrics.top_k(np.array([row]), np.array([label]), k) == float(rank < k)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(2, 9))
def test_accuracy_is_consistent_even_with_ties(seed, clips, classes):
    logits, labels = random_answers(seed, clips, classes, decimals=0)
    shares = [metrics.top_k(logits, labels, k) for k in range(1, classes + 1)]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    confusion = metrics.confusion_matrix(logits, labels)
    assert confusion.trace() == round(shares[0] * clips)
    np.testing.assert_array_equal(confusion.sum(axis=1), np.bincount(labels, minlength=classes))
    table = metrics.calibration(logits, labels)
    assert table.counts.sum() == clips
    assert 0 <= table.error <= 1
    order = np.random.default_rng(seed).permutation(clips)
    assert metrics.calibration(logits[order], labels[order]).error == pytest.approx(table.error)


@pytest.mark.parametrize(("right", "clips"), [(0, 1), (10, 12), (12, 12), (433, 600)])
def test_intervals_of_shares_equal_scipy(right, clips):
    expected = binomtest(right, clips).proportion_ci(0.95, "wilson")
    assert metrics.share_interval(right / clips, clips) == pytest.approx(tuple(expected))


def test_confusion_and_scores_equal_scikit_learn_also_for_absent_classes():
    logits, labels = random_answers(1, clips=60, classes=8)
    labels[labels == 3] = 4  # a class without clips, but told by the model
    logits[:, 6] = -9.0  # a class never told
    told = logits.argmax(axis=1)
    assert {3, 6} & set(told) == {3}
    confusion = metrics.confusion_matrix(logits, labels)
    expected = sklearn_metrics.confusion_matrix(labels, told, labels=range(8))
    np.testing.assert_array_equal(confusion, expected)
    scores = metrics.class_scores(confusion)
    precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(
        labels, told, labels=range(8), zero_division=np.nan
    )
    np.testing.assert_allclose(scores.precision, precision)
    np.testing.assert_allclose(scores.recall, recall)
    np.testing.assert_allclose(scores.f1, f1)
    np.testing.assert_array_equal(scores.support, support)
    present = np.unique(labels)
    expected = sklearn_metrics.f1_score(labels, told, labels=present, average="macro")
    assert scores.macro_f1 == pytest.approx(expected)


def test_macro_f1_takes_no_notice_of_a_class_neither_present_nor_told():
    confusion = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    scores = metrics.class_scores(confusion)
    assert np.isnan([scores.recall[2], scores.precision[2], scores.f1[2]]).all()
    assert scores.macro_f1 == pytest.approx((6 / 7 + 8 / 9) / 2)


def literal_calibration_error(logits, labels, bins):
    """Guo et al.'s sum, bin by bin and clip by clip."""
    error = 0.0
    for b in range(bins):
        inside = []
        for row, label in zip(logits, labels, strict=True):
            probabilities = np.exp(row) / np.exp(row).sum()
            if b / bins < probabilities.max() <= (b + 1) / bins:
                inside.append((probabilities.max(), probabilities.argmax() == label))
        if inside:
            confidence, right = np.mean(inside, axis=0)
            error += len(inside) / len(labels) * abs(right - confidence)
    return error


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_equals_the_literal_sum(bins):
    logits, labels = random_answers(2)
    table = metrics.calibration(logits, labels, bins)
    assert table.error == pytest.approx(literal_calibration_error(logits, labels, bins), abs=1e-12)


def test_calibration_table_of_known_confidences():
    logits = np.array([[0.0, 0.0], np.log([0.8, 0.2]), np.log([0.95, 0.05])])
    table = metrics.calibration(logits, np.array([0, 1, 0]), bins=4)
    assert table.counts.tolist() == [0, 1, 0, 2]  # 0.5 belongs to the bin that ends there
    np.testing.assert_allclose(table.confidence[[1, 3]], [0.5, 0.875])
    np.testing.assert_allclose(table.accuracy[[1, 3]], [0.0, 0.5])
    assert np.isnan(table.accuracy[[0, 2]]).all()
    assert table.error == pytest.approx((0.5 + 2 * 0.375) / 3)


def test_negative_log_likelihood_equals_scikit_learn_and_bears_large_logits():
    logits, labels = random_answers(3)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = sklearn_metrics.log_loss(labels, probabilities, labels=range(7))
    assert metrics.negative_log_likelihood(logits, labels) == pytest.approx(expected)
    huge = metrics.negative_log_likelihood(np.array([[1e4, 0.0]]), np.array([1]))
    assert huge == pytest.approx(1e4)
    nothing = metrics.negative_log_likelihood(np.zeros((2, 5)), np.array([0, 3]))
    assert nothing == pytest.approx(math.log(5))


def literal_smoothness(z, mask):
    speeds, accelerations = [], []
    for path, real in zip(z, mask, strict=True):
        for t in range(len(path) - 1):
            if real[t] and real[t + 1]:
                speeds.append(np.sqrt(sum((path[t + 1] - path[t]) ** 2)))
        for t in range(len(path) - 2):
            if real[t] and real[t + 1] and real[t + 2]:
                change = path[t + 2] - 2 * path[t + 1] + path[t]
                accelerations.append(np.sqrt(sum(change**2)))
    return np.mean(speeds), np.mean(accelerations)


def test_smoothness_equals_loops_over_the_frames_that_count():
    rng = np.random.default_rng(4)
    z = rng.standard_normal((5, 8, 3))
    mask = np.arange(8) < np.array([8, 5, 2, 1, 3])[:, None]
    z[~mask] = np.nan  # what only pads may be anything
    found = metrics.smoothness(z, mask)
    speed, acceleration = literal_smoothness(z, mask)
    assert found.speed == pytest.approx(speed)
    assert found.acceleration == pytest.approx(acceleration)
    assert found.ratio == pytest.approx(acceleration / speed)
    expected = PCA(2).fit(z[mask]).explained_variance_ratio_.sum()
    assert found.variance_2d == pytest.approx(expected)


def test_smoothness_of_known_paths():
    t = np.arange(6.0)
    to_and_fro = np.stack([t % 2, 0 * t], axis=-1)[None]
    assert metrics.smoothness(to_and_fro) == metrics.Smoothness(1.0, 2.0, 2.0, 1.0)
    still = metrics.smoothness(np.ones((2, 4, 3)))
    assert still == metrics.Smoothness(0.0, 0.0, None, None)
    two_frames = metrics.smoothness(np.eye(2)[None])
    assert (two_frames.acceleration, two_frames.ratio) == (None, None)
    assert metrics.smoothness(np.ones((3, 1, 2))).speed is None


def test_principal_components_equal_scikit_learn_up_to_sign():
    z = np.random.default_rng(5).standard_normal((6, 7, 4)) * [1, 5, 2, 3]
    mean, axes, shares = metrics.principal_components(z)
    expected = PCA(2).fit(z.reshape(-1, 4))
    np.testing.assert_allclose(mean, expected.mean_)
    np.testing.assert_allclose(shares, expected.explained_variance_ratio_)
    np.testing.assert_allclose(np.abs((axes * expected.components_).sum(axis=1)), 1)
    assert (axes[[0, 1], np.abs(axes).argmax(axis=1)] > 0).all()


def test_embeddings_of_width_one_have_one_component():
    _, axes, shares = metrics.principal_components(np.arange(4.0).reshape(1, 4, 1))
    assert axes.tolist() == [[1.0], [0.0]]
    assert shares.tolist() == [1.0, 0.0]


GOOD = np.array([[0.0, 1.0], [1.0, 0.0]])


@pytest.mark.parametrize(
    ("logits", "labels", "error", "message"),
    [
        (GOOD[0], [0], ValueError, r"shape \[clips, classes\].*Received: \(2,\)"),
        (GOOD[:0], [], ValueError, r"at least one clip.*Received: \(0, 2\)"),
        (GOOD[:, :1], [0, 0], ValueError, r"two classes.*Received: \(2, 1\)"),
        (GOOD, [0], ValueError, r"one entry per row of `logits`, \(2,\)"),
        (GOOD, np.eye(2, dtype=int), ValueError, r"not one-hot.*Received: shape \(2, 2\)"),
        (GOOD, [0.0, 1.0], TypeError, "must be integers.*Received: float64"),
        (GOOD, [0, 2], ValueError, r"must be in \[0, 2\).*Received: from 0 to 2"),
        (GOOD, [-1, 1], ValueError, "Received: from -1 to 1"),
    ],
)
def test_bad_answers_are_refused_by_every_metric(logits, labels, error, message):
    for metric in (
        metrics.ranks,
        metrics.top_k,
        metrics.confusion_matrix,
        metrics.calibration,
        metrics.negative_log_likelihood,
    ):
        with pytest.raises(error, match=message):
            metric(logits, np.array(labels))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused_where_they_have_no_meaning(value):
    logits, labels = random_answers(6, clips=4)
    logits[2, 1] = value
    for metric in (
        metrics.confusion_matrix,
        metrics.calibration,
        metrics.negative_log_likelihood,
    ):
        with pytest.raises(ValueError, match="infinity in 1 of 4 rows, first in row 2"):
            metric(logits, labels)


def test_metrics_leave_their_arguments_as_they_are():
    logits, labels = np.zeros((3, 2)), np.array([0, 1, 0])
    metrics.confusion_matrix(logits, labels)
    assert not logits.any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.top_k(GOOD, np.array([0, 1]), 0), r"`k` must be in \[1, 2\]"),
        (lambda: metrics.top_k(GOOD, np.array([0, 1]), 3), "Received: 3"),
        (lambda: metrics.share_interval(math.nan, 5), r"`share` must be in \[0, 1\].*nan"),
        (lambda: metrics.share_interval(83.0, 5), "Received: 83"),
        (lambda: metrics.share_interval(0.5, 0), "`count` must be at least 1. Received: 0"),
        (lambda: metrics.calibration(GOOD, np.array([0, 1]), 0), "`bins` must be >= 1"),
        (lambda: metrics.class_scores(np.ones((2, 3))), r"square.*Received: shape \(2, 3\)"),
        (lambda: metrics.class_scores(np.zeros((2, 2), int)), "at least one clip.*sum 0"),
        (lambda: metrics.smoothness(np.ones((2, 3))), r"Received: \(2, 3\)"),
        (lambda: metrics.smoothness(np.ones((2, 0, 3))), "all >= 1"),
        (lambda: metrics.smoothness(np.full((1, 2, 1), np.nan)), "`z` must be finite"),
        (lambda: metrics.smoothness(np.ones((2, 3, 1)), np.ones((2, 2), bool)), r"\(2, 3\)"),
        (lambda: metrics.smoothness(np.ones((2, 3, 1)), np.ones((2, 3))), "bool.*float64"),
        (lambda: metrics.smoothness(np.ones((1, 2, 1)), np.zeros((1, 2), bool)), "all False"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
