"""The sum over time taps is the official 3-D convolution."""

import numpy as np
import pytest
import tensorflow as tf
from official.vision.modeling.layers import nn_layers

from grw_keras.models.conv3d import TapConv3D

DEPTHWISE = {"filters": 6, "groups": 6}
POINTWISE = {"filters": 5, "kernel_size": (1, 1, 1)}
STEM = {"filters": 5, "kernel_size": (1, 3, 3), "strides": (1, 2, 2)}
FULL = {"filters": 5, "kernel_size": (3, 3, 3)}
KERNELS = [(3, 3, 3), (5, 3, 3), (1, 5, 5)]
STRIDES = [(1, 1, 1), (1, 2, 2)]
CASES = [
    *(
        {**DEPTHWISE, "kernel_size": kernel, "strides": strides, "padding": padding}
        for kernel in KERNELS
        for strides in STRIDES
        for padding in ("same", "causal")
    ),
    {**DEPTHWISE, "kernel_size": (5, 3, 3), "padding": "causal", "use_buffered_input": True},
    {**DEPTHWISE, "kernel_size": (3, 3, 3), "padding": "valid"},
    {**DEPTHWISE, "kernel_size": (3, 3, 3), "padding": "same", "use_bias": True},
    *({**POINTWISE, "padding": "same", "use_bias": bias} for bias in (False, True)),
    *({**STEM, "padding": padding} for padding in ("same", "causal")),
    *({**FULL, "padding": padding, "use_bias": True} for padding in ("same", "causal")),
]
SIZES = [(9, 9), (8, 8), (9, 8)]


def pair(case):
    """Our layer and the official one with the same variables' values, on 6 channels."""
    layers = [cls(**{"use_bias": False, **case}) for cls in (TapConv3D, nn_layers.Conv3D)]
    rng = np.random.default_rng(0)
    for layer in layers:
        layer.build([None, None, None, None, 6])
    weights = [rng.normal(size=w.shape).astype(np.float32) for w in layers[0].weights]
    for layer in layers:
        layer.set_weights(weights)
    return layers


def clip(height: int, width: int) -> tf.Tensor:
    return tf.constant(np.random.default_rng(1).normal(size=(2, 7, height, width, 6)), tf.float32)


def output_and_gradients(layer, x):
    """The output, and the gradients by input and variables of its product with fixed numbers."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
        loss = tf.reduce_sum(
            y * tf.reshape(tf.cos(tf.range(tf.size(y), dtype=tf.float32)), y.shape)
        )
    return y, *tape.gradient(loss, [x, *layer.trainable_variables])


def literal_depthwise(x, kernel, strides, pads):
    """y[b, t, i, j, c] written out; `pads` (before, after) of time, height, width."""
    x = np.pad(np.asarray(x, np.float64), [(0, 0), *pads, (0, 0)])
    sizes = [
        (n - k) // s + 1 for n, k, s in zip(x.shape[1:4], kernel.shape[:3], strides, strict=True)
    ]
    y = np.zeros([x.shape[0], *sizes, x.shape[-1]])
    for t, i, j in np.ndindex(*sizes):
        for a, b, c in np.ndindex(*kernel.shape[:3]):
            pixel = x[:, t * strides[0] + a, i * strides[1] + b, j * strides[2] + c]
            y[:, t, i, j] += pixel * kernel[a, b, c, 0]
    return y


def name_of(case) -> str:
    kernel = "x".join(map(str, case["kernel_size"]))
    extras = [key for key in ("groups", "use_bias", "use_buffered_input") if case.get(key)]
    return "-".join([kernel, str(case.get("strides", (1, 1, 1))[1]), case["padding"], *extras])


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_values_and_gradients_are_the_official_layers(case):
    ours, official = pair(case)
    for size in SIZES:
        results = [output_and_gradients(layer, clip(*size)) for layer in (ours, official)]
        for a, b in zip(*results, strict=True):
            scale = max(1.0, float(np.abs(b).max()))
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(
    ("padding", "time_pad"), [("same", (1, 1)), ("causal", (2, 0))], ids=["same", "causal"]
)
@pytest.mark.parametrize(
    ("size", "height_pad", "width_pad"), [((9, 9), (1, 1), (1, 1)), ((9, 8), (1, 1), (0, 1))]
)
def test_a_strided_depthwise_layer_is_the_formula_written_out(
    padding, time_pad, size, height_pad, width_pad
):
    strides = (1, 2, 2)
    layer, _ = pair({**DEPTHWISE, "kernel_size": (3, 3, 3), "strides": strides, "padding": padding})
    x = clip(*size)
    expected = literal_depthwise(
        x, layer.kernel.numpy(), strides, [time_pad, height_pad, width_pad]
    )
    np.testing.assert_allclose(layer(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", [CASES[0], {**FULL, "padding": "same", "use_bias": True}])
def test_variables_are_the_official_layers(case):
    ours, official = pair(case)
    assert [w.shape for w in ours.weights] == [w.shape for w in official.weights]
    assert ours.count_params() == official.count_params()


@pytest.mark.parametrize(
    "case", [CASES[0], CASES[1], {**FULL, "padding": "same", "use_bias": True}]
)
def test_mixed_precision_computes_in_float16_on_float32_variables(case):
    (full, _), half = pair(case), TapConv3D(dtype="mixed_float16", **{"use_bias": False, **case})
    x = clip(9, 8)
    half(x)
    half.set_weights(full.get_weights())
    y = half(x)
    assert y.dtype == tf.float16
    assert {v.dtype for v in half.weights} == {tf.float32}
    scale = float(np.abs(full(x)).max())
    np.testing.assert_allclose(tf.cast(y, tf.float32), full(x), rtol=0, atol=5e-3 * scale)


def test_a_clip_of_unknown_size_runs_as_one_of_known_size():
    layer, _ = pair(CASES[3])
    x = clip(9, 8)
    run = tf.function(layer, input_signature=[tf.TensorSpec([None, None, None, None, 6])])
    np.testing.assert_array_equal(run(x), layer(x))
