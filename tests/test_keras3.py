"""The Keras 3 layer, on whichever backend runs."""

import keras
import numpy as np
import pytest

from grw_keras.keras3 import GRWRegularizer
from tests.helpers import literal_loss, literal_terms

BACKEND = keras.backend.backend()
Z = np.random.default_rng(0).normal(size=(4, 11, 6)).astype(np.float32)
CLIPS = np.random.default_rng(1).normal(size=(16, 11, 6)).astype(np.float32)
LABELS = np.arange(16) % 3


def loss_of(layer, z, **kwargs) -> float:
    layer(keras.ops.convert_to_tensor(z), training=True, **kwargs)
    (loss,) = layer.losses
    return float(keras.ops.convert_to_numpy(loss))


def test_adds_the_weighted_loss_in_training_only_and_passes_its_input_through():
    layer = GRWRegularizer(window=5, alpha=0.3, weight=0.25)
    z = keras.ops.convert_to_tensor(Z)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer(z)), Z)
    assert layer.losses == []
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer(z, training=True)), Z)
    assert loss_of(layer, Z) == pytest.approx(0.25 * literal_loss(Z, 5, 0.3), rel=1e-5)


@pytest.mark.parametrize("normalization", [None, "batch", "affine"])
def test_normalizations_and_masks(normalization):
    mask = np.ones((4, 11), bool)
    mask[1:, 6:] = False
    frames = Z[mask].astype(np.float64)
    z = Z
    if normalization == "batch":
        z = (Z - frames.mean(0)) / np.sqrt(frames.var(0) + 1e-5) / np.sqrt(6)
    windows = [z[:1, :5], z[:1, 5:10], *(z[i : i + 1, :5] for i in (1, 2, 3))]
    layer = GRWRegularizer(window=5, weight=1.0, normalization=normalization)
    expected = np.mean([literal_loss(window, 5, 0.5) for window in windows])
    rubbish = np.where(mask[..., None], Z, 99.0).astype(np.float32)
    assert loss_of(layer, rubbish, mask=mask) == pytest.approx(expected, rel=1e-4)


def test_warm_up_raises_the_weight_linearly():
    layer = GRWRegularizer(window=5, weight=0.2, warmup_steps=2)
    full = 0.2 * literal_loss(Z, 5, 0.5)
    np.testing.assert_allclose([loss_of(layer, Z) / full for _ in range(3)], [0, 0.5, 1], rtol=1e-5)


def compiled(**options):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((None if BACKEND != "jax" else 11, 6))
    z = keras.layers.Dense(8)(inputs)
    z = GRWRegularizer(**{"window": 5, "weight": 1.0, **options})(z)
    logits = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling1D()(z))
    model = keras.Model(inputs, logits)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01), loss)
    return model


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_fit_lowers_the_loss(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = compiled(warmup_steps=1)
        history = model.fit(CLIPS, LABELS, batch_size=8, epochs=4, verbose=0).history
    finally:
        keras.config.set_dtype_policy("float32")
    assert history["loss"][-1] < 0.8 * history["loss"][1]  # in the first the weight warms up
    assert int(model.get_layer("grw").step) == 8


def test_metrics_are_those_of_the_training_calls_where_keras_carries_them():
    model = compiled()
    model.fit(CLIPS, LABELS, batch_size=16, verbose=0)
    model = compiled()
    z = keras.ops.convert_to_numpy(model.layers[1](CLIPS)).astype(np.float64)
    windows = [clip[start : start + 5] for clip in z for start in (0, 5)]
    history = model.fit(CLIPS, LABELS, batch_size=16, verbose=0).history
    if BACKEND == "jax":
        assert model.get_layer("grw").metrics == []
        return
    ordering, speed = np.mean([literal_terms(window) for window in windows], axis=0)
    assert history["grw_ordering"][0] == pytest.approx(ordering, rel=1e-4)
    assert history["grw_speed"][0] == pytest.approx(speed, rel=1e-4)


def test_config_round_trip_through_a_saved_model(tmp_path):
    model = compiled(normalization="batch", orderings="sampled", num_orderings=5, alpha=0.2)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    layers = [m.get_layer("grw") for m in (model, loaded)]
    assert layers[0].get_config() == layers[1].get_config()
    assert loss_of(layers[1], Z) == pytest.approx(loss_of(layers[0], Z), rel=1e-6)


def test_bad_arguments_and_inputs_are_refused():
    with pytest.raises(ValueError, match="window=2"):
        GRWRegularizer(window=2)
    with pytest.raises(ValueError, match="N=4 frames, window=5"):
        GRWRegularizer()(keras.ops.convert_to_tensor(Z[:, :4]), training=True)
    with pytest.raises(ValueError, match=r"\[B, N, D\]"):
        GRWRegularizer()(keras.ops.convert_to_tensor(Z[0]))


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch only")
def test_synchronized_is_refused_on_pytorch():
    with pytest.raises(ValueError, match="synchronized=True on PyTorch"):
        GRWRegularizer(synchronized=True)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf_keras needs TensorFlow")
def test_a_tf_keras_tensor_is_refused_rather_than_dropped():
    import tf_keras

    with pytest.raises(TypeError, match=r"use grw_keras\.GRWRegularizer"):
        GRWRegularizer()(tf_keras.Input((None, 6)))


def test_weight_files_of_the_model_without_the_layer_can_be_loaded(tmp_path):
    def model(with_layer):
        inputs = keras.Input((11, 6))
        z = keras.layers.Dense(4)(inputs)
        return keras.Model(inputs, GRWRegularizer(warmup_steps=3)(z) if with_layer else z)

    pretrained, with_layer = model(False), model(True)
    pretrained.save_weights(tmp_path / "pretrained.weights.h5")
    with_layer.load_weights(tmp_path / "pretrained.weights.h5")
    outputs = [keras.ops.convert_to_numpy(m(Z)) for m in (pretrained, with_layer)]
    np.testing.assert_allclose(*outputs, rtol=1e-6)
