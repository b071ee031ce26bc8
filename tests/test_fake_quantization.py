"""Quantisation-aware models: what they compute with, against numpy, LiteRT and int8 files."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from ai_edge_litert.interpreter import Interpreter

from grw_keras.export import conversion, quantize, rounding, verify
from grw_keras.export.fake_quantization import (
    FakeQuantized,
    on_input_grid,
    quantization_aware,
    settled,
)
from grw_keras.export.graphs import Graph, LeanModel
from grw_keras.export.layers import Affine, Layers
from grw_keras.export.running import Runner
from grw_keras.models import pretrained
from grw_keras.models.classifier import VideoClassifier
from grw_keras.training import assembly, recipe, state
from grw_keras.zoo import registry
from tests.zoo_helpers import random_clips, randomize

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("fake quantization")]  # shared models

FRAMES, LABELS = 4, tuple("abcdef")
SMALL = {"resolution": 32, "num_classes": 6, "frames": FRAMES, "head_window": FRAMES, "window": 3}
LARGEST = 127


def small(name="movinet_a0_stream_grw", **changes):
    tf_keras.utils.set_random_seed(0)
    return randomize(VideoClassifier(registry.get(name).replace({**SMALL, **changes})))


def treated(model):
    """By name of its kernel, each layer that computes as int8 files do."""
    names = {variable.ref(): name for name, variable in model.named_weights().items()}
    return {
        names[layer.variable.ref()]: layer
        for layer in model.submodules
        if isinstance(layer, FakeQuantized)
    }


def assert_on_grid(seen, kernel):
    """`seen` is `kernel`, [in, outputs], with each output's weights at the nearest of the 255
    multiples of max|w| / 127; halfway between two of them either is."""
    for ours, weights in zip(seen.T, kernel.T.astype(np.float64), strict=True):
        step = np.abs(weights).max() / LARGEST
        points = ours / step
        np.testing.assert_allclose(points, np.round(points), atol=2e-3)
        assert np.abs(points - weights / step).max() <= 0.5 + 2e-3


@pytest.fixture(scope="module")
def plain():
    return small()


@pytest.fixture(scope="module")
def aware():
    return quantization_aware(small())


@pytest.fixture(scope="module")
def once_aware():
    """A settled model, and the kernels that it computed with before, by name."""
    model = quantization_aware(small())
    seen = {name: layer.kernel.numpy() for name, layer in treated(model).items()}
    return settled(model), seen


@pytest.fixture(scope="module")
def clips():
    return random_clips(6, FRAMES)


def test_the_layers_that_the_int8_file_quantises_are_treated(plain, aware):
    of_file = {name for name in LeanModel(plain).layers.weights if not rounding.is_depthwise(name)}
    ours = {
        name.removeprefix("backbone/").removesuffix("/kernel").removesuffix("/conv")
        for name in treated(aware)
    }
    assert ours == of_file


def test_kernels_seen_are_on_the_grid_of_each_output(aware):
    for name, layer in treated(aware).items():
        if layer.int8.norm is None:
            outputs = 2 if name.endswith(("/query/kernel", "/key/kernel", "/value/kernel")) else 1
            shape = -1, np.prod(layer.kernel.shape[-outputs:])
            kernel = layer.variable.numpy().reshape(shape)
            assert_on_grid(layer.kernel.numpy().reshape(shape), kernel)
            assert np.abs(layer.kernel.numpy().reshape(shape) - kernel).max() > 0


def test_folding_a_kernel_on_the_grid_gives_the_grid_of_the_folded_kernel(plain, once_aware):
    """Batch norm, ReZero and attention scale the outputs, layer norms the inputs."""
    ours, floats = (LeanModel(m).layers.weights for m in (once_aware[0], plain))
    for name, (kernel, _) in floats.items():
        if rounding.is_depthwise(name):
            np.testing.assert_array_equal(ours[name].kernel, kernel)
        else:
            rows = -1, kernel.shape[-1]
            assert_on_grid(ours[name].kernel.reshape(rows), kernel.reshape(rows))


def weights(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("kind", ["matrix product", "pointwise", "stem"])
def test_inputs_are_quantised_as_litert_does(kind):
    rng = np.random.default_rng(0)
    layers = Layers()
    if kind == "matrix product":
        x, kernel, axes = weights(rng, 3, 1, 1, 32), weights(rng, 32, 8), (-1,)
        compute = layers.matmul
    elif kind == "pointwise":
        x, kernel, axes = weights(rng, 1, 5, 5, 32), weights(rng, 1, 1, 32, 8), (-1,)
        compute = layers.conv
    else:
        x, kernel, axes = weights(rng, 1, 8, 8, 3), weights(rng, 3, 3, 3, 8), (-3, -2, -1)
        compute = layers.conv
    x += 0.7  # not symmetric
    zeros = np.zeros(8, np.float32)
    layers.weights["layer"] = Affine(kernel, zeros)
    graph = Graph({"x": x.shape}, lambda inputs: {"y": compute("layer", inputs["x"])})
    file = quantize.dynamic(conversion.to_flatbuffer(graph))
    expected = Interpreter(model_content=file).get_signature_runner()(x=x)["y"]
    step = np.abs(kernel).reshape(-1, 8).max(0) / LARGEST
    layers.weights["layer"] = Affine((np.round(kernel / step) * step).astype(np.float32), zeros)
    ours = compute("layer", on_input_grid(tf.constant(x), axes))
    np.testing.assert_allclose(ours, expected, atol=2e-5)
    assert np.abs(compute("layer", x) - expected).max() > 1e-3


@pytest.mark.parametrize("kind", [tf_keras.layers.Conv2D, tf_keras.layers.Dense])
def test_gradients_are_those_of_the_float_layer_at_what_is_seen(aware, kind):
    for layer in [layer for layer in treated(aware).values() if isinstance(layer, kind)][-4:]:
        int8, kernel = layer.int8, layer.variable
        rows = (2, 3, 3) if kind is tf_keras.layers.Conv2D else (5,)
        x = tf.random.stateless_normal([*rows, kernel.shape[-2]], [1, 2]) + 0.5
        seen_x, seen_kernel = int8.inputs(x), int8.kernel(kernel)
        compute = tf.matmul if len(rows) == 1 else lambda x, k: tf.nn.conv2d(x, k, 1, "SAME")
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([x, seen_x, seen_kernel])
            ours = tf.reduce_sum(tf.sin(layer(x) - (0.0 if layer.bias is None else layer.bias)))
            floats = tf.reduce_sum(tf.sin(compute(seen_x, seen_kernel)))
        for own, other in ((kernel, seen_kernel), (x, seen_x)):
            expected = tape.gradient(floats, other)
            np.testing.assert_allclose(tape.gradient(ours, own), expected, rtol=1e-3, atol=1e-3)
            assert np.abs(expected).max() > 0.1
        if int8.norm is not None:
            assert tape.gradient(ours, [int8.norm.gamma, int8.norm.beta]) == [None, None]


@pytest.mark.exhaustive
def test_weights_by_name_and_variables_stay_the_same():
    model = small()
    named, variables = model.named_weights(), model.variables
    quantization_aware(quantization_aware(model))
    assert {k: id(v) for k, v in model.named_weights().items()} == {
        k: id(v) for k, v in named.items()
    }
    assert [id(v) for v in model.variables] == [id(v) for v in variables]
    values = pretrained.weights_of(model)
    for name, value in pretrained.weights_of(small()).items():
        np.testing.assert_array_equal(values[name], value)


def test_a_settled_model_is_a_plain_one_that_computed_alike(plain, aware, once_aware, clips):
    model, seen = once_aware
    assert [type(layer) for layer in model.submodules] == [type(x) for x in plain.submodules]
    values = pretrained.weights_of(model)
    for name, kernel in seen.items():
        np.testing.assert_array_equal(values[name], kernel)
    again = quantization_aware(model)(clips)
    settled(model)
    signal = aware(clips).numpy()
    assert verify.signal_to_noise_db(signal, again - signal) > 30


def test_embeddings_are_those_of_the_int8_file(plain, aware, clips):
    """But of frames where the order of sums brings a value to the other side of a half."""
    file = quantize.dynamic(conversion.to_flatbuffer(LeanModel(plain).embed()))
    expected = Runner(file).answers(clips.numpy())
    difference = aware.embeddings(clips).numpy().reshape(expected.shape) - expected
    noise = np.abs(difference).max(-1) / expected.std()
    assert np.mean(noise < 1e-3) > 0.5


@pytest.mark.exhaustive
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_answers_are_nearer_to_the_int8_files_than_a_float_models(clips, attention):
    """The last of a stream's answers is the clip graph's."""
    model = small(head_attention=attention)

    def of_file(quantise=lambda flatbuffer: flatbuffer):
        file = quantise(conversion.to_flatbuffer(LeanModel(model).stream()))
        return Runner(file).answers(clips.numpy())[FRAMES - 1 :: FRAMES]

    floats, int8 = model(clips).numpy(), of_file(quantize.dynamic)
    aware = quantization_aware(model)(clips).numpy()
    far = verify.signal_to_noise_db(int8, floats - int8)
    assert verify.signal_to_noise_db(int8, aware - int8) > far + 3
    stepped = np.stack(verify.streamed_by_keras(model, clips.numpy()))[:, -1]
    assert verify.signal_to_noise_db(aware, stepped - aware) > far + 3
    settled(model)
    floats, int8 = of_file(), of_file(quantize.dynamic)
    assert verify.signal_to_noise_db(int8, aware - int8) > far + 3
    assert verify.signal_to_noise_db(floats, int8 - floats) > far + 1


@pytest.mark.exhaustive
def test_training_lowers_the_loss_of_what_is_seen(clips):
    model = quantization_aware(small())
    model.compile_for_training()
    before = {name: layer.kernel.numpy() for name, layer in treated(model).items()}
    labels = tf.range(6)
    losses = [float(model.train_on_batch(clips, labels)[0]) for _ in range(8)]
    assert losses[-1] < 0.7 * losses[0]
    for name, layer in treated(model).items():
        assert np.abs(layer.kernel.numpy() - before[name]).max() > 0, name


@pytest.mark.exhaustive
def test_training_goes_on_to_the_same_bits_from_what_checkpoints_hold(clips):
    def started():
        model = quantization_aware(small())
        model.compile_for_training()
        state.build(model, (6, 6))
        return model, state.variables(model)

    labels, (model, named) = tf.range(6), started()
    model.train_on_batch(clips, labels)
    kept = state.capture(named)
    model.train_on_batch(clips, labels)
    other, others = started()
    state.restore(others, kept)
    other.train_on_batch(clips, labels)
    assert state.digest(state.capture(others)) == state.digest(state.capture(named))


@pytest.mark.parametrize(
    "name",
    [
        "movinet_a0_stream_relu6_grw",
        pytest.param("movinet_a0_relu6", marks=pytest.mark.exhaustive),
    ],
)
def test_relu6_models_have_depthwise_kernels_on_the_grid_of_each_channel(name, clips):
    model = quantization_aware(small(name))
    layers = [layer for name, layer in treated(model).items() if "/feature" in name]
    assert layers
    for layer in layers:
        seen = layer.int8.kernel(layer.variable).numpy()
        channels = (-1, np.prod(seen.shape[-2:]))
        assert_on_grid(seen.reshape(channels), layer.variable.numpy().reshape(channels))
        assert layer.int8.axes is None
    assert np.isfinite(model(clips)).all()


@pytest.mark.exhaustive
def test_mobilenets_are_treated_too(clips):
    model = small("mobilenet_v3_small_grw")
    floats = model(clips).numpy()
    difference = quantization_aware(model)(clips).numpy() - floats
    assert 10 < verify.signal_to_noise_db(floats, difference) < 60


def test_a_recipe_asks_for_it(tmp_path):
    model = small("mobilenet_v3_small_grw")
    model.labels = LABELS
    model.save_pretrained(tmp_path)
    changes = {"model.weights": str(tmp_path), "training.quantization_aware": True}
    wanted = recipe.override(recipe.from_dict({"model": {"name": model.spec.name}}), changes)
    assert (
        treated(assembly.make_model(wanted, LABELS)).keys()
        == treated(quantization_aware(model)).keys()
    )
    with pytest.raises(ValueError, match=r"`training.precision` must be 'float32'"):
        recipe.override(wanted, {"training.precision": "bfloat16"})


def test_models_of_less_precision_are_refused(plain, monkeypatch):
    monkeypatch.setattr(plain, "_dtype_policy", tf_keras.mixed_precision.Policy("mixed_bfloat16"))
    with pytest.raises(ValueError, match=r"must compute in float32.*Received: bfloat16"):
        quantization_aware(plain)
