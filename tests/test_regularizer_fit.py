"""The tf_keras layer in training by every road of tf_keras."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from grw_keras import GRWRegularizer, grw_loss
from tests.helpers import literal_loss

LABELS = np.arange(16) % 3
CLIPS = np.random.default_rng(1).normal(size=(16, 11, 6)).astype(np.float32)


def test_a_clip_shorter_than_the_window_is_named_inside_fit_too():
    model = compiled()
    with pytest.raises(ValueError, match="N=4 frames, window=5"):
        model.fit(CLIPS[:, :4], LABELS, verbose=0)
    unknown_length = tf.data.Dataset.from_generator(
        lambda: [(CLIPS[:, :4], LABELS)],
        output_signature=(tf.TensorSpec((16, None, 6)), tf.TensorSpec((16,), tf.int64)),
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match="one window of frames"):
        model.fit(unknown_length, verbose=0)


@pytest.mark.parametrize("debug", [False, True])
def test_debug_stops_fit_at_the_first_nan(debug):
    clips = np.where(CLIPS > 2, np.nan, CLIPS)
    model = compiled(debug=debug)
    stops = pytest.raises(tf.errors.InvalidArgumentError, match="`z` must be finite")
    with stops if debug else contextlib.nullcontext():
        model.fit(clips, LABELS, verbose=0)


def compiled(optimizer=None, jit_compile=False, **options):
    """A small model with the regulariser after an affine map, as in figure 4."""
    tf_keras.utils.set_random_seed(3)
    inputs = tf_keras.Input((None, 6))
    z = tf_keras.layers.Dense(8)(inputs)
    z = GRWRegularizer(**{"window": 5, "weight": 1.0, **options})(z)
    hidden = tf_keras.layers.Dense(16, activation="relu")(z)
    pooled = tf_keras.layers.GlobalAveragePooling1D()(hidden)
    logits = tf_keras.layers.Dense(3, dtype="float32")(pooled)
    model = tf_keras.Model(inputs, logits)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or tf_keras.optimizers.SGD(0.05), loss, jit_compile=jit_compile)
    return model


def smoothness(model) -> float:
    """L_smooth of what the regulariser gets for the test clips."""
    embeddings = tf_keras.Model(model.input, model.get_layer("grw").output)(CLIPS)
    return float(grw_loss(tf.cast(embeddings, tf.float32), window=5))


@pytest.mark.slow
@pytest.mark.usefixtures("policy_restored")
@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_fit_lowers_the_loss(policy, jit_compile):
    tf_keras.mixed_precision.set_global_policy(policy)
    model = compiled(jit_compile=jit_compile)
    before = smoothness(model)
    history = model.fit(CLIPS, LABELS, batch_size=8, epochs=4, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert smoothness(model) < 0.8 * before
    assert history["grw_ordering"][-1] < history["grw_ordering"][0]


def test_gradient_tape_loop_equals_fit():
    by_fit, by_hand = compiled(warmup_steps=2), compiled(warmup_steps=2)
    by_fit.fit(CLIPS, LABELS, batch_size=16, epochs=3, verbose=0)
    for _ in range(3):
        with tf.GradientTape() as tape:
            logits = by_hand(CLIPS, training=True)
            loss = by_hand.loss(LABELS, logits) + tf.add_n(by_hand.losses)
        variables = by_hand.trainable_variables
        gradients = tape.gradient(loss, variables)
        by_hand.optimizer.apply_gradients(zip(gradients, variables, strict=True))
    for one, other in zip(by_fit.get_weights(), by_hand.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_weight_zero_changes_nothing():
    without, baseline = compiled(weight=0.0), compiled(weight=1.0)
    start = without.get_weights()
    for model in (without, baseline):
        model.set_weights(start)
        model.fit(CLIPS, LABELS, batch_size=16, verbose=0)
    expected = compiled(weight=0.0)
    with tf.GradientTape() as tape:
        loss = expected.loss(LABELS, expected(CLIPS, training=False))
    gradients = tape.gradient(loss, expected.trainable_variables)
    steps = zip(expected.get_weights(), gradients, without.get_weights(), strict=True)
    for weight, gradient, after in steps:
        np.testing.assert_allclose(after, weight - 0.05 * gradient, rtol=1e-5, atol=1e-6)
    assert np.abs(without.get_weights()[0] - baseline.get_weights()[0]).max() > 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalization": "batch", "synchronized": True},
        {"normalization": "affine", "warmup_steps": 2},
    ],
)
@pytest.mark.slow
def test_two_replicas_step_equals_one_replica_step(two_replicas, options):
    weights, metrics = [], []
    for scope in (contextlib.nullcontext(), two_replicas.scope()):
        with scope:
            model = compiled(**options)
        data = tf.data.Dataset.from_tensor_slices((CLIPS, LABELS)).batch(16).repeat(3)
        metrics.append(model.fit(data, verbose=0).history)
        weights.append(model.get_weights())
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(two, one, rtol=0, atol=1e-5)
    for name, (value,) in metrics[0].items():
        assert metrics[1][name][0] == pytest.approx(value, rel=1e-4), name


@pytest.mark.slow
def test_unsynchronized_statistics_differ_between_one_and_two_replicas(two_replicas):
    weights = []
    for scope in (contextlib.nullcontext(), two_replicas.scope()):
        with scope:
            model = compiled(normalization="batch")
        data = tf.data.Dataset.from_tensor_slices((CLIPS * 5, LABELS)).batch(16)
        model.fit(data, verbose=0)
        weights.append(model.get_weights())
    assert max(np.abs(a - b).max() for a, b in zip(*weights, strict=True)) > 1e-5


def test_synchronized_masked_loss_is_the_mean_over_all_replicas_windows(two_replicas):
    clips = np.ones((4, 5, 2), np.float32) + np.arange(5, dtype=np.float32)[None, :, None]
    clips *= np.array([1, 2, 3, 4], np.float32)[:, None, None]
    clips[3] = 0.0  # the second replica has one valid window, the first two
    with two_replicas.scope():
        layer = GRWRegularizer(window=5, weight=1.0, synchronized=True)
        layer.build((None, 5, 2))

    @tf.function
    def step(z):
        def each(z):
            layer(z, training=True, mask=tf.reduce_any(z != 0, axis=-1))
            return layer.losses[0]

        return two_replicas.run(each, (z,))

    data = two_replicas.experimental_distribute_dataset(
        tf.data.Dataset.from_tensor_slices(clips).batch(4)
    )
    losses = two_replicas.experimental_local_results(step(next(iter(data))))
    expected = literal_loss(clips[:3], 5, 0.5)
    assert float(sum(losses)) / 2 == pytest.approx(expected, rel=1e-5)
    assert float(losses[0]) != pytest.approx(float(losses[1]), rel=1e-2)
