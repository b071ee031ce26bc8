"""Lean graphs answer as the models that they are made of."""

import numpy as np
import pytest
import tensorflow as tf

from grw_keras.export.folding import convolution, dense
from grw_keras.export.graphs import LeanModel
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
    "causal head": ("movinet_a0_stream_grw", CAUSAL),
    "the authors' gate": ("movinet_a0_stream", {"gating_activation": "hard_sigmoid_keras2"}),
    "sigmoid gate, swish": (
        "movinet_a0_stream",
        {"gating_activation": "sigmoid", "activation": "swish"},
    ),
    "squeeze-excite over time": ("movinet_a0_stream", {"se_type": "3d"}),
    "squeeze-excite over space": ("movinet_a0_stream", {"se_type": "2d"}),
    "3-D convolutions": ("movinet_a0_stream", {"conv_type": "3d_2plus1d"}),
    "MobileNetV3": ("mobilenet_v3_small", {}),
    "temporal shifts": ("mobilenet_v3_small_tsm", {}),
    "pairs of frames": ("mobilenet_v3_small_grw", {"window": 3}),
}
COMMON = ("official classifier", "relu6", "causal head", "pairs of frames")
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
    """The answers of a lean graph over a clip, its states fed back; each keeps its shape."""
    compute = tf.function(graph.compute, autograph=False)
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


@pytest.mark.slow
def test_no_tensor_but_the_image_has_more_than_four_dimensions(bidirectional):
    graph = LeanModel(bidirectional).stream()
    signature = [{n: tf.TensorSpec(s, name=n) for n, s in graph.inputs.items()}]
    traced = tf.function(graph.compute, signature, autograph=False).get_concrete_function().graph
    tensors = [t for op in traced.get_operations() for t in op.outputs]
    assert len(tensors) > 300
    assert {t.op.name for t in tensors if len(t.shape) > 4} == {"image"}


def test_base_models_do_not_stream():
    model = VideoClassifier(registry.get("movinet_a0").replace({"resolution": 36}))
    with pytest.raises(ValueError, match="whole_clip=True"):
        LeanModel(model)


def test_heads_that_cost_little_are_not_split():
    spec = registry.get("mobilenet_v3_small").replace({"resolution": 32})
    with pytest.raises(ValueError, match="split_head"):
        LeanModel(VideoClassifier(spec)).embed()


def test_folded_convolution_is_convolution_then_batch_norm_then_scale():
    rng = np.random.default_rng(0)
    tensors = {
        "p/conv/kernel": rng.normal(size=(3, 3, 4, 5)).astype(np.float32),
        **{f"p/bn/{n}": rng.uniform(0.5, 1.5, 5).astype(np.float32) for n in ("gamma", "beta")},
        **{
            f"p/bn/moving_{n}": rng.uniform(0.5, 1.5, 5).astype(np.float32)
            for n in ("mean", "variance")
        },
    }
    x = rng.normal(size=(1, 7, 7, 4)).astype(np.float32)
    y = tf.nn.conv2d(x, tensors["p/conv/kernel"], 1, "SAME").numpy()
    mean, variance = tensors["p/bn/moving_mean"], tensors["p/bn/moving_variance"]
    y = (y - mean) / np.sqrt(variance + 1e-3) * tensors["p/bn/gamma"] + tensors["p/bn/beta"]
    kernel, bias = convolution(tensors, "p", scale=-0.3)
    np.testing.assert_allclose(tf.nn.conv2d(x, kernel, 1, "SAME") + bias, -0.3 * y, atol=1e-5)


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
