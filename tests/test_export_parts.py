"""Parts of the exporter by themselves: clips, rounding, a file's weights, signal to noise."""

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from grw_keras.export import clips as clips_of
from grw_keras.export import conversion, rounding, verify
from grw_keras.export.graphs import Graph
from grw_keras.export.layers import Affine, Layers
from grw_keras.export.running import Runner


@pytest.mark.parametrize("frames", [3, 10, 50])
def test_clips_from_all_over_are_used_however_long(frames):
    clips = [np.full([frames, 1, 1, 3], i) for i in range(24)]
    chosen = clips_of.spread(clips, 60)
    assert len(chosen) >= 6
    assert sum(map(len, chosen)) <= 60
    assert (chosen[0][0, 0, 0, 0], chosen[-1][0, 0, 0, 0]) == (0, 23)


def test_rounded_kernels_lie_on_their_grids_and_harm_less():
    rng = np.random.default_rng(1)
    inputs = rng.normal(3.0, 1.0, (500, 20)) @ rng.normal(size=(20, 20))
    layer = Affine(rng.normal(size=(20, 100)).astype(np.float32), np.zeros(100, np.float32))
    rows = np.concatenate([inputs, np.ones((500, 1))], axis=1)
    ours = rounding.rounded(layer, rows.T @ rows)
    step = np.abs(layer.kernel).max(0) / 127
    points = ours.kernel / step
    np.testing.assert_allclose(points, np.round(points), atol=1e-3)
    # Whoever finds the grid by the largest weight finds this one: some would be a step smaller.
    np.testing.assert_allclose(np.abs(ours.kernel).max(0), np.abs(layer.kernel).max(0), rtol=1e-6)
    exact = inputs @ layer.kernel
    nearest = np.abs(inputs @ (np.round(layer.kernel / step) * step) - exact)
    made_up = np.abs(inputs @ ours.kernel + ours.bias - exact)
    assert np.mean(made_up**2) < 0.5 * np.mean(nearest**2)


def test_inputs_without_correlation_leave_nothing_to_make_up_for():
    rng = np.random.default_rng(0)
    layer = Affine(rng.normal(size=(9, 4)).astype(np.float32), rng.normal(size=4))
    ours = rounding.rounded(layer, np.eye(10))
    step = np.abs(layer.kernel).max(0) / 127
    np.testing.assert_allclose(ours.kernel, np.round(layer.kernel / step) * step, atol=1e-6)
    np.testing.assert_allclose(ours.bias, layer.bias, atol=1e-6)


def test_signal_to_noise_is_by_its_formula():
    signal = np.array([[1.0, 10.0], [3.0, 10.0]])
    noise = np.array([[0.1, 0.0], [0.0, -0.1]])
    power = np.mean([1.0, 0.0])  # variances of the channels
    expected = 10 * np.log10(power / np.mean([0.01, 0, 0, 0.01]))
    assert verify.signal_to_noise_db(signal, noise) == pytest.approx(expected)
    assert verify.signal_to_noise_db(signal, 0 * noise) == np.inf


@pytest.mark.slow
def test_new_weights_leave_layers_of_equal_weights_alone():
    """The converter keeps equal constants once, so one layer's must not be written into."""
    rng = np.random.default_rng(0)
    shared = Affine(rng.normal(size=(1, 1, 3, 3)).astype(np.float32), np.ones(3, np.float32))
    layers = Layers()
    layers.weights = {"one": shared, "other": shared}

    def compute(inputs):
        frame = tf.reshape(inputs["image"], [1, 4, 4, 3])
        x = layers.conv("other", layers.conv("one", frame, 1, tf.nn.relu))
        return {"logits": tf.reduce_mean(x, [1, 2])}

    def answer(flatbuffer):
        return Runner(flatbuffer).answers([frame[None]])[0]

    frame = rng.random((4, 4, 3)).astype(np.float32)
    flatbuffer = conversion.to_flatbuffer(Graph({"image": (1, 1, 4, 4, 3)}, compute))
    new = Affine(2 * shared.kernel, shared.bias - 3)
    changed = conversion.with_weights(flatbuffer, {"other": new})
    hidden = np.maximum(frame @ shared.kernel[0, 0] + shared.bias, 0).mean((0, 1))
    np.testing.assert_allclose(
        answer(flatbuffer), hidden @ shared.kernel[0, 0] + shared.bias, atol=1e-5
    )
    np.testing.assert_allclose(answer(changed), hidden @ new.kernel[0, 0] + new.bias, atol=1e-5)


@pytest.mark.slow
def test_products_without_a_bias_that_share_a_matrix_stay_without():
    matrix = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    x = np.random.default_rng(1).normal(size=(1, 4)).astype(np.float32)

    def compute(inputs):
        return {"logits": tf.matmul(tf.nn.relu(tf.matmul(inputs["x"], matrix)), matrix)}

    flatbuffer = conversion.to_flatbuffer(Graph({"x": (1, 4)}, compute))
    assert conversion.operations(flatbuffer)["FULLY_CONNECTED"] == 2
    received = Interpreter(model_content=flatbuffer).get_signature_runner()(x=x)["logits"]
    np.testing.assert_allclose(received, np.maximum(x @ matrix, 0) @ matrix, atol=1e-5)
