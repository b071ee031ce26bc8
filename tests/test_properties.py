"""What must hold for any embeddings: searched by hypothesis."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group

from benchmarks.scale import WINDOWS as WINDOWS_OF_THEOREM_1
from benchmarks.scale import smallest_loss
from grw_keras import grw_loss
from grw_keras.losses import grw_terms
from grw_keras.orderings import resolve
from tests.helpers import literal_loss, value_and_grad

settings.register_profile("grw_keras", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("grw_keras")

WINDOWS = st.integers(3, 8)  # 8 is exact by default, the others are listed
SEEDS = st.integers(0, 2**31)
WIDTHS = st.integers(1, 6)


def walk(seed, window, width, scale=1.0):
    """A random walk with random velocities [2, T, D], so that several orderings compete."""
    rng = np.random.default_rng(seed)
    return scale * np.cumsum(rng.normal(size=(2, window, width)), axis=1)


@given(SEEDS, WINDOWS.filter(lambda window: window < 8), WIDTHS, st.floats(0, 2))
def test_equals_the_equations_written_out(seed, window, width, alpha):
    z = walk(seed, window, width, scale=0.5)
    loss = float(grw_loss(z, window=window, alpha=alpha))
    assert loss == pytest.approx(literal_loss(z, window, alpha), rel=1e-10, abs=1e-10)


@given(SEEDS, WINDOWS, WIDTHS)
def test_moving_and_turning_the_embeddings_changes_nothing(seed, window, width):
    z = walk(seed, window, width)
    turn = ortho_group.rvs(width, random_state=seed % 2**32) if width > 1 else -np.eye(1)
    shift = np.random.default_rng(seed).normal(size=width) * 100
    loss = float(grw_loss(z, window=window))
    assert float(grw_loss(z @ turn + shift, window=window)) == pytest.approx(loss, rel=1e-9)


@given(SEEDS, WINDOWS, WIDTHS, st.floats(0.05, 20))
def test_the_true_order_of_a_straight_steady_path_beats_every_other(seed, window, width, speed):
    direction = np.random.default_rng(seed).normal(size=width)
    direction *= speed / np.linalg.norm(direction)
    path = (np.arange(window)[:, None] * direction)[None]
    terms = grw_terms(path, window=window, orderings=resolve("auto", window))
    # the nearest rival swaps the last two frames: accelerations of 1 (from T = 4) and 3 steps
    energy = 0.5 * (9 + (window > 3)) * speed**2
    assert float(terms.margin[0, 0]) == pytest.approx(energy, rel=1e-6)


@pytest.mark.slow
@given(WINDOWS, WIDTHS, st.floats(-1e4, 1e4, width=32))
def test_collapsed_embeddings_give_exactly_log_of_the_number_of_orderings(window, width, value):
    z = np.full((1, window, width), value, np.float32)
    loss, gradient = value_and_grad(lambda z: grw_loss(z, window=window, alpha=1.0), z)
    assert float(loss) == pytest.approx(math.log(math.factorial(window - 1)), rel=1e-6)
    np.testing.assert_array_equal(gradient, 0)


@given(SEEDS, WINDOWS, WIDTHS, st.floats(-6, 3), st.sampled_from([0.0, 1e4]))
def test_loss_and_gradient_are_finite_and_right_at_any_scale(seed, window, width, power, offset):
    z = walk(seed, window, width)
    z = (10.0**power * z / np.abs(z).max() + offset).astype(np.float32)
    loss, gradient = value_and_grad(lambda z: grw_loss(z, window=window), z)
    assert np.isfinite(gradient).all()
    expected, right = value_and_grad(lambda z: grw_loss(z, window=window), z.astype(np.float64))
    assert float(loss) == pytest.approx(float(expected), rel=1e-5, abs=1e-5)
    assert np.abs(gradient - right).max() <= 1e-4 * np.abs(right).max() + 1e-12


@given(SEEDS, WINDOWS, st.sampled_from(["float16", "bfloat16"]), st.floats(-4, 3))
def test_half_precision_is_finite(seed, window, dtype, power):
    import tensorflow as tf

    z = walk(seed, window, 4)
    z = tf.cast(10.0**power * z / np.abs(z).max(), dtype)
    loss, gradient = value_and_grad_in(z, window)
    assert np.isfinite(loss)
    assert gradient.dtype == z.dtype
    assert np.isfinite(tf.cast(gradient, tf.float32).numpy()).all()


def value_and_grad_in(z, window):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(z)
        loss = grw_loss(z, window=window)
    return float(loss), tape.gradient(loss, z)


@given(SEEDS, st.integers(3, 6))
def test_gradient_is_the_slope_of_the_loss(seed, window):
    z = walk(seed, window, 2, scale=0.3)
    direction = np.random.default_rng(seed).normal(size=z.shape)
    _, gradient = value_and_grad(lambda z: grw_loss(z, window=window), z)
    step = 1e-5
    slope = (
        literal_loss(z + step * direction, window, 0.5)
        - literal_loss(z - step * direction, window, 0.5)
    ) / (2 * step)
    assert np.sum(gradient * direction) == pytest.approx(slope, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    "window",
    [
        pytest.param(t, marks=pytest.mark.exhaustive if t > 8 else [pytest.mark.slow] * (t > 4))
        for t in WINDOWS_OF_THEOREM_1
    ],
)
def test_optimal_radius_is_within_the_bound_of_theorem_1(window):
    result = smallest_loss(window)
    bound = math.sqrt(2 * (window - 1) * (math.log(math.factorial(window - 1)) + (window - 1) / 2))
    assert result.success
    assert 1 < result.x.sum() <= bound
    # a minimum worth the name: below the uniform configuration that proves the theorem
    uniform = np.arange(float(window))[None, :, None]
    assert result.fun < float(grw_loss(uniform, window=window, alpha=1.0, orderings="exact"))
