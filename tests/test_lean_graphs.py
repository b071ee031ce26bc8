"""Lean graphs answer as the models that they are made of."""

import types

import numpy as np
import pytest
import tensorflow as tf
from official.modeling import tf_utils

from grw_keras.export.folding import convolution, dense
from grw_keras.export.graphs import LeanModel
from grw_keras.export.lean_movinet import _GATES, ACTIVATIONS
from grw_keras.models import pretrained
from grw_keras.models.classifier import VideoClassifier
from grw_keras.zoo import registry
from tests.zoo_helpers import random_clips, randomize

FRAMES = 7
SMALL = {"resolution": 36, "num_classes": 6, "head_window": 4}
CAUSAL = {"head_attention": "causal"}
# Forms of every part: (name, changes of the spec).
FORMS = {
    "official classifier": ("movinet_a0_stream", {}),
    "relu6": ("movinet_a0_stream_relu6_attention", {}),
    "bidirectional head": ("movinet_a0_stream_grw", {}),
    "causal head": ("mobilenet_v3_small_grw", CAUSAL),
    "the authors' gate": ("movinet_a0_stream", {"gating_activation": "hard_sigmoid_keras2"}),
    "sigmoid gate, swish": (
        "movinet_a0_stream",
        {"gating_activation": "sigmoid", "activation": "swish"},
    ),
    "squeeze-excite over time": ("movinet_a0_stream", {"se_type": "3d"}),
    "squeeze-excite over space": ("movinet_a0_stream", {"se_type": "2d"}),
    "3-D convolutions": ("movinet_a0_stream", {"conv_type": "3d_2plus1d"}),
    "intermediate smoothing": ("movinet_a0_stream_intermediate", {}),
    "MobileNetV3": ("mobilenet_v3_small", {}),
    "temporal shifts": ("mobilenet_v3_small_tsm", {}),
    "pairs of frames": ("mobilenet_v3_small_grw", {"window": 3}),
}
COMMON = ("official classifier", "causal head", "temporal shifts")
HEAD_WINDOWS = {name for name, (model, _) in FORMS.items() if "_grw" in model or "_att" in model}


def built(form):
    name, changes = FORMS[form]
    small = SMALL if form in HEAD_WINDOWS else SMALL | {"head_window": 50}
    model = randomize(VideoClassifier(registry.get(name).replace({**small, **changes})))
    rng = np.random.default_rng(5)
    for name, variable in model.named_weights().items():
        if name.endswith("distance_bias"):
            variable.assign(rng.normal(size=variable.shape))
    return model


def streamed(model, clip):
    step, states, answers = tf.function(model.step), model.initial_states(), []
    for t in range(clip.shape[1]):
        logits, states = step(clip[:, t : t + 1], states)
        answers.append(logits.numpy()[0])
    return np.stack(answers)


def run(graph, clip):
    """The answers of a lean graph over a clip, its states fed back; each keeps its shape, and no
    tensor but the image has more than four dimensions."""
    compute = tf.function(graph.compute, autograph=False)
    traced = compute.get_concrete_function({n: tf.TensorSpec(s) for n, s in graph.inputs.items()})
    tensors = [t for op in traced.graph.get_operations() for t in op.outputs]
    assert len(tensors) > 100
    assert {t.op.name for t in tensors if (t.shape.rank or 0) > 4} == {"inputs"}
    states = {n: tf.zeros(s) for n, s in graph.inputs.items() if n != "image"}
    answers = []
    for t in range(clip.shape[1]):
        outputs = compute({"image": clip[:, t : t + 1], **states})
        (name,) = outputs.keys() - states.keys()
        answers.append(outputs.pop(name).numpy()[0])
        assert outputs.keys() == states.keys()
        assert {n: tuple(o.shape) for n, o in outputs.items()} == {
            n: s for n, s in graph.inputs.items() if n != "image"
        }
        states = outputs
    return np.stack(answers)


@pytest.mark.slow
@pytest.mark.parametrize(
    "form",
    [pytest.param(form, marks=[] if form in COMMON else pytest.mark.exhaustive) for form in FORMS],
)
def test_lean_stream_equals_the_model(form):
    model, clip = built(form), random_clips(1, FRAMES, size=36)
    expected = streamed(model, clip)
    received = run(LeanModel(model).stream(), clip)
    assert np.abs(received - expected).max() < 1e-5 * np.ptp(expected)


@pytest.fixture(scope="module")
def bidirectional():
    return built("bidirectional head")


@pytest.mark.slow
def test_embed_and_classify_make_the_stream(bidirectional):
    clip = random_clips(1, FRAMES, size=36)
    lean = LeanModel(bidirectional)
    embeddings = run(lean.embed(), clip)
    np.testing.assert_allclose(
        embeddings, bidirectional.embeddings(clip)[0], atol=1e-5 * np.ptp(embeddings)
    )
    expected, classify = streamed(bidirectional, clip), lean.classify()
    assert np.abs(run(lean.stream(), clip) - expected).max() < 1e-5 * np.ptp(expected)
    for seen in range(1, FRAMES + 1):
        window = np.zeros(classify.inputs["window"], np.float32)
        last = embeddings[max(seen - 4, 0) : seen]
        window[0, : len(last)] = last
        count = tf.constant([float(len(last))])
        logits = classify.compute({"window": tf.constant(window), "frame_count": count})["logits"]
        assert np.abs(logits[0] - expected[seen - 1]).max() < 1e-5 * np.ptp(expected)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("movinet_a0", {}, "need AvgPool3D, which TFLite lacks: use a '…_stream'"),
        ("movinet_a0_stream", {"conv_type": "3d"}, "conv_type='2plus1d'.*Received: '3d'"),
    ],
)
def test_forms_without_lean_graphs_are_refused(name, changes, message):
    model = types.SimpleNamespace(spec=registry.get(name).replace(changes))
    with pytest.raises(ValueError, match=message):
        LeanModel(model)


@pytest.mark.slow
@pytest.mark.parametrize("form", [("mobilenet_v3_small", {}), ("mobilenet_v3_small_grw", CAUSAL)])
def test_heads_that_cost_little_are_not_split(form):
    name, changes = form
    spec = registry.get(name).replace({"resolution": 32, **changes})
    lean = LeanModel(VideoClassifier(spec))
    for graph in (lean.embed, lean.classify):
        with pytest.raises(ValueError, match="split_head"):
            graph()


def test_gates_and_activations_are_the_official_ones():
    x = tf.linspace(-5.0, 5.0, 101)
    official = {
        "hard_swish": tf_utils.get_activation("hard_swish"),
        "relu6": tf.nn.relu6,
        "swish": tf.nn.swish,
        "hard_sigmoid": tf_utils.get_activation("hard_sigmoid"),
        "hard_sigmoid_keras2": lambda x: tf.clip_by_value(0.2 * x + 0.5, 0, 1),
        "sigmoid": tf.nn.sigmoid,
    }
    ours = {**ACTIVATIONS}
    for name, gate in _GATES.items():
        ours[name] = lambda x, g=gate: g.factor * g.function(g.scale * x + g.offset)
    assert ours.keys() == official.keys()
    for name, function in ours.items():
        np.testing.assert_allclose(function(x), official[name](x), atol=2e-6, err_msg=name)


def over_time(x, kernel):
    """Depthwise over the rows, as `conv_temporal` is over frames."""
    taps = len(kernel)
    return sum(x[:, i : x.shape[1] - taps + 1 + i] * kernel[i, 0, :, 0] for i in range(taps))


CONVOLUTIONS = {
    "dense": ("p", "", (3, 3, 4, 5), lambda x, k: tf.nn.conv2d(x, k, 1, "SAME")),
    "depthwise": (
        "p/feature",
        "",
        (3, 3, 4, 1),
        lambda x, k: tf.nn.depthwise_conv2d(x, k, [1] * 4, "SAME"),
    ),
    "over time": ("p/feature", "_temporal", (3, 1, 4, 1), over_time),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("normed", [True, False], ids=["batch norm", "bias"])
def test_folded_convolution_is_convolution_then_batch_norm_then_scale(kind, normed):
    prefix, part, shape, apply = CONVOLUTIONS[kind]
    rng = np.random.default_rng(0)
    channels = max(shape[-1], 4)
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    bn = {name: rng.uniform(0.5, 1.5, channels).astype(np.float32) for name in names}
    kernel = rng.normal(size=shape).astype(np.float32)
    bias = rng.normal(size=channels).astype(np.float32)
    tensors = {f"{prefix}/conv{part}/kernel": kernel}
    x = rng.normal(size=(1, 7, 7, 4)).astype(np.float32)
    y = np.asarray(apply(x, kernel))
    if normed:
        tensors |= {f"{prefix}/bn{part}/{name}": value for name, value in bn.items()}
        y = (y - bn["moving_mean"]) / np.sqrt(bn["moving_variance"] + 1e-3)
        y = y * bn["gamma"] + bn["beta"]
    else:
        tensors[f"{prefix}/conv{part}/bias"] = bias
        y = y + bias
    folded = convolution(tensors, prefix, part, scale=-0.3)
    np.testing.assert_allclose(apply(x, folded.kernel) + folded.bias, -0.3 * y, atol=1e-5)


def test_folded_norm_is_norm_then_matrix_product():
    rng = np.random.default_rng(0)
    tensors = {
        "d/kernel": rng.normal(size=(6, 2, 3)),
        "d/bias": rng.normal(size=(2, 3)),
        "n/gamma": rng.normal(size=6),
        "n/beta": rng.normal(size=6),
    }
    standard = rng.normal(size=(4, 6))
    normed = standard * tensors["n/gamma"] + tensors["n/beta"]
    expected = np.einsum("ni,ihk->nhk", normed, tensors["d/kernel"]) + tensors["d/bias"]
    kernel, bias = dense(tensors, "d", norm="n", outputs=2, scale=0.5)
    np.testing.assert_allclose(standard @ kernel + bias, 0.5 * expected.reshape(4, 6), atol=1e-5)


@pytest.mark.slow
def test_every_layer_of_a_lean_model_is_a_weight_of_the_model(bidirectional):
    lean = LeanModel(bidirectional)
    kernels = [n for n in pretrained.weights_of(bidirectional) if n.endswith("/kernel")]
    assert len(lean.layers.weights) == len(kernels)
