"""The tf_keras layer: its loss, metrics, masks, warm-up, files and refusals."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from grw_keras import GRWRegularizer, grw_loss
from grw_keras.layer import NORMALIZATIONS
from grw_keras.normalization import EPSILON
from tests.helpers import literal_loss, literal_terms

Z = np.random.default_rng(0).normal(size=(4, 11, 6)).astype(np.float32)


def loss_of(layer, z, **kwargs) -> float:
    layer(z, training=True, **kwargs)
    (loss,) = layer.losses
    return float(loss)


def test_adds_the_weighted_loss_in_training_only_and_passes_its_input_through():
    layer = GRWRegularizer(window=5, alpha=0.3, weight=0.25)
    np.testing.assert_array_equal(layer(Z, training=False), Z)
    assert layer.losses == []
    np.testing.assert_array_equal(layer(Z), Z)
    assert layer.losses == []
    np.testing.assert_array_equal(layer(Z, training=True), Z)
    assert float(layer.losses[0]) == pytest.approx(0.25 * literal_loss(Z, 5, 0.3), rel=1e-5)


@pytest.mark.usefixtures("policy_restored")
def test_passes_dtype_through_under_mixed_precision():
    tf_keras.mixed_precision.set_global_policy("mixed_float16")
    layer = GRWRegularizer(window=5)
    assert layer(tf.constant(Z), training=True).dtype == tf.float32
    assert layer(tf.cast(Z, tf.float16), training=True).dtype == tf.float16
    assert layer.losses[0].dtype == tf.float32


def test_options_reach_the_loss():
    options = {"window": 4, "stride": 2, "orderings": "sampled", "num_orderings": 3, "seed": 5}
    expected = float(grw_loss(Z, alpha=0.5, **options))
    assert loss_of(GRWRegularizer(weight=1, **options), Z) == pytest.approx(expected, rel=1e-6)
    assert expected != pytest.approx(float(grw_loss(Z, window=4)), rel=1e-3)


def test_features_with_space_are_averaged_over_it():
    features = np.random.default_rng(2).normal(size=(2, 5, 3, 4, 6)).astype(np.float32)
    layer = GRWRegularizer(window=5, weight=1.0)
    assert layer(features).shape == features.shape
    expected = literal_loss(features.mean(axis=(2, 3)), 5, 0.5)
    assert loss_of(layer, features) == pytest.approx(expected, rel=1e-5)


def test_batch_normalization_is_figure_3():
    frames = Z.reshape(-1, 6)
    z = (Z - frames.mean(0)) / np.sqrt(frames.var(0) + EPSILON) / np.sqrt(6)
    layer = GRWRegularizer(window=5, weight=1.0, normalization="batch")
    assert loss_of(layer, 1000 * Z + 7) == pytest.approx(literal_loss(z, 5, 0.5), rel=1e-4)
    assert layer.weights == []


def test_affine_normalization_starts_as_the_identity_and_learns():
    layer = GRWRegularizer(window=5, weight=1.0, normalization="affine")
    with tf.GradientTape() as tape:
        out = layer(Z, training=True)
        loss = tf.add_n(layer.losses)
    np.testing.assert_array_equal(out, Z)
    assert float(loss) == pytest.approx(literal_loss(Z, 5, 0.5), rel=1e-5)
    kernel, bias = layer.trainable_weights
    gradients = tape.gradient(loss, [kernel, bias])
    assert float(tf.norm(gradients[0])) > 0
    kernel.assign(2 * kernel)
    assert loss_of(layer, Z) == pytest.approx(literal_loss(2 * Z, 5, 0.5), rel=1e-5)


def test_keras_masks_of_ragged_clips_are_respected_and_passed_on():
    clips = Z.copy()
    clips[1:, 6:] = 0.0  # what Masking takes for padding
    inputs = tf_keras.Input((None, 6))
    masked = tf_keras.layers.Masking()(inputs)
    outputs = GRWRegularizer(window=5, weight=1.0)(masked)
    assert outputs._keras_mask is not None
    model = tf_keras.Model(inputs, outputs)
    model(clips, training=True)
    windows = [Z[:1, :5], Z[:1, 5:10], *(Z[i : i + 1, :5] for i in (1, 2, 3))]
    expected = np.mean([literal_loss(window, 5, 0.5) for window in windows])
    assert float(model.losses[0]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_masked_rubbish_reaches_neither_loss_nor_gradients(normalization):
    mask = np.arange(11)[None] < np.array([[11], [5], [6], [9]])
    layer = GRWRegularizer(window=5, weight=1.0, normalization=normalization)
    expected = loss_of(layer, np.where(mask[..., None], Z, 0).astype(np.float32), mask=mask)
    rubbish = tf.constant(np.where(mask[..., None], Z, np.nan))
    with tf.GradientTape() as tape:
        tape.watch(rubbish)
        layer(rubbish, mask=mask.astype(np.int32) * 255, training=True)
        (loss,) = layer.losses
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    for gradient in tape.gradient(loss, [rubbish, *layer.trainable_weights]):
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_a_mask_of_the_wrong_shape_is_refused(normalization):
    with pytest.raises(ValueError, match=r"`mask` must be \[B, N\].*\(4, 7\)"):
        GRWRegularizer(normalization=normalization)(Z, mask=np.ones((4, 7)), training=True)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_float64_stays_float64(normalization):
    layer = GRWRegularizer(window=5, weight=1.0, warmup_steps=2, normalization=normalization)
    layer = type(layer).from_config({**layer.get_config(), "dtype": "float64"})
    z = tf.constant(Z, tf.float64)
    layer(z, training=True)
    layer(z, training=True)
    assert layer.losses[0].dtype == tf.float64


def test_an_empty_batch_adds_nothing():
    for orderings in ("all", "exact"):
        assert loss_of(GRWRegularizer(window=5, orderings=orderings), Z[:0]) == 0


def test_the_name_none_is_kerass_own_and_the_metrics_follow():
    layer = GRWRegularizer(name=None)
    assert {metric.name for metric in layer.metrics} >= {f"{layer.name}_speed"}


def test_warm_up_raises_the_weight_linearly():
    layer = GRWRegularizer(window=5, weight=0.2, warmup_steps=4)
    full = 0.2 * literal_loss(Z, 5, 0.5)
    shares = [loss_of(layer, Z) / full for _ in range(6)]
    np.testing.assert_allclose(shares, [0, 0.25, 0.5, 0.75, 1, 1], rtol=1e-5)
    layer(Z, training=False)
    assert int(layer.step) == 6


def test_metrics_are_the_means_over_the_windows_of_training_calls():
    line = np.arange(5.0, dtype=np.float32)[:, None]
    clips = np.stack([line, 2 * line, line[[0, 2, 1, 3, 4]]])
    layer = GRWRegularizer(window=5)
    layer(clips[:2], training=True)
    layer(clips[2:], training=True)
    layer(100 * clips, training=False)
    terms = [literal_terms(clip) for clip in clips]
    found = {metric.name: float(metric.result()) for metric in layer.metrics}
    assert found["grw_ordering"] == pytest.approx(np.mean([o for o, _ in terms]), rel=1e-4)
    assert found["grw_speed"] == pytest.approx(np.mean([s for _, s in terms]), rel=1e-5)
    assert found["grw_order_accuracy"] == pytest.approx(2 / 3)
    assert found["grw_acceleration"] == pytest.approx((0 + 0 + (3 + 3 + 1) / 3) / 3, rel=1e-5)
    for metric in layer.metrics:
        metric.reset_state()
    assert all(np.isnan(float(metric.result())) for metric in layer.metrics)
    layer.update_metrics(clips[:1])
    assert layer.losses == []
    (speed,) = (metric for metric in layer.metrics if metric.name == "grw_speed")
    assert float(speed.result()) == pytest.approx(terms[0][1])


def test_config_round_trip_through_a_saved_model(tmp_path):
    options = {
        "window": 4,
        "alpha": 0.3,
        "weight": 0.7,
        "warmup_steps": 2,
        "stride": 3,
        "orderings": [[0, 1, 2, 3], [0, 3, 2, 1]],
        "num_orderings": 7,
        "seed": 9,
        "normalization": "batch",
        "synchronized": True,
        "debug": True,
        "name": "smooth",
    }
    config = GRWRegularizer(**options).get_config()
    assert {**config, **options} == config
    assert GRWRegularizer.from_config(config).get_config() == config

    inputs = tf_keras.Input((None, 6))
    model = tf_keras.Model(inputs, GRWRegularizer(window=5, weight=0.5)(inputs))
    model.save(tmp_path / "model.keras")
    loaded = tf_keras.models.load_model(tmp_path / "model.keras")
    loaded(Z, training=True)
    assert float(loaded.losses[0]) == pytest.approx(0.5 * literal_loss(Z, 5, 0.5), rel=1e-5)


@pytest.mark.parametrize("warmup_steps", [0, 5])
def test_weight_files_of_the_model_without_the_layer_can_be_loaded(tmp_path, warmup_steps):
    def model(with_layer):
        inputs = tf_keras.Input((None, 6))
        z = tf_keras.layers.Dense(4)(inputs)
        if with_layer:
            z = GRWRegularizer(window=5, warmup_steps=warmup_steps)(z)
        return tf_keras.Model(inputs, tf_keras.layers.Dense(3)(z))

    pretrained, with_layer = model(False), model(True)
    pretrained.save_weights(tmp_path / "pretrained.weights.h5")
    with_layer.load_weights(tmp_path / "pretrained.weights.h5")
    np.testing.assert_allclose(with_layer(Z), pretrained(Z), rtol=1e-6)

    with_layer(Z, training=True)
    with_layer.save_weights(tmp_path / "with.weights.h5")
    again = model(True)
    again.load_weights(tmp_path / "with.weights.h5")
    np.testing.assert_allclose(again(Z), pretrained(Z), rtol=1e-6)
    if warmup_steps:
        assert int(again.get_layer("grw").step) == 1


def test_a_keras_3_tensor_is_refused_rather_than_dropped():
    with pytest.raises(TypeError, match=r"use grw_keras\.keras3\.GRWRegularizer"):
        GRWRegularizer()(keras.Input((None, 6)))


def test_terms_can_be_asked_of_a_layer_that_was_never_called():
    layer = GRWRegularizer(window=5, normalization="affine")
    terms = layer.terms(Z)
    assert float(terms.mean(terms.ordering + 0.5 * terms.speed)) == pytest.approx(
        literal_loss(Z, 5, 0.5), rel=1e-5
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 2}, r"window=2"),
        ({"alpha": -1}, r"`alpha`.*alpha=-1"),
        ({"weight": -0.1}, r"`weight`.*weight=-0\.1"),
        ({"weight": "big"}, r"weight='big'"),
        ({"warmup_steps": -1}, r"`warmup_steps`.*warmup_steps=-1"),
        ({"warmup_steps": True}, r"warmup_steps=True"),
        ({"seed": 2.7}, r"seed=2\.7"),
        ({"stride": 0}, r"stride=0"),
        ({"orderings": "any"}, r"orderings='any'"),
        ({"orderings": [[0, 1, 1, 2, 3]]}, r"permutation"),
        ({"normalization": "group"}, r"None, 'batch', 'layer', 'affine'.*normalization='group'"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GRWRegularizer(**options)


def test_bad_inputs_are_refused():
    with pytest.raises(ValueError, match=r"\[B, N, D\].*\(2, 3\)"):
        GRWRegularizer()(np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="D, must be known"):
        GRWRegularizer()(tf_keras.Input((None, None)))
    with pytest.raises(ValueError, match="N=4 frames, window=5"):
        GRWRegularizer()(tf_keras.Input((4, 8)))
    with pytest.raises(ValueError, match="N=4 frames, window=5"):
        GRWRegularizer()(Z[:, :4], training=True)
    rubbish = np.where(Z > 2, np.nan, Z)
    with pytest.raises(ValueError, match="must be finite"):
        GRWRegularizer(debug=True)(rubbish, training=True)


@pytest.mark.slow
def test_another_keras_backend_is_refused_with_the_way_out():
    code = "from grw_keras import GRWRegularizer; GRWRegularizer()"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0
    assert "grw_keras.keras3.GRWRegularizer. Received: KERAS_BACKEND=jax" in run.stderr
