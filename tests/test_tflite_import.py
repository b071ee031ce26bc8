"""Weights out of TFLite files, against the files themselves and the models they came from."""

import functools
import itertools
import zipfile

import cv2
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from official.projects.movinet.modeling.movinet import Movinet
from official.projects.movinet.modeling.movinet_model import MovinetClassifier

from grw_keras.models.movinet import hard_sigmoid_keras2
from grw_keras.models.names import canonical_name
from grw_keras.models.spec import ModelSpec
from grw_keras.zoo.importers.tflite import read
from tests import tflite_edits as edits
from tests.lite_files import streamed
from tests.tflite_edits import write_edited

INT8 = "movinet_a0_stream_k600_int8.tflite"
DYNAMIC = "movinet_a0_stream_cattle7_dynamic.tflite"
STREAM = {
    "se_type": "2plus3d",
    "activation": "hard_swish",
    "classifier_activation": "swish",
    "gating_activation": "hard_sigmoid",
}
MOBILE = {"se_type": "none", "activation": "relu6", "classifier_activation": "relu6"}


@pytest.fixture(scope="session")
def weights(shared):
    return shared / "weights"


@pytest.fixture(scope="session")
def dynamic_import(weights):
    return read(weights / DYNAMIC)


@pytest.fixture
def edited(weights, tmp_path):
    """Writes a copy of the dynamic-range file after a change to its graph; gives the path."""
    return functools.partial(write_edited, weights / DYNAMIC, tmp_path / "edited.tflite")


# ---- the official model, rebuilt


def official(model_id, spec, **backbone):
    gate = spec.get("gating_activation", "hard_sigmoid")
    movinet = Movinet(
        model_id,
        causal=True,
        conv_type="2plus1d",
        se_type=spec["se_type"],
        activation=spec["activation"],
        gating_activation=hard_sigmoid_keras2 if gate == "hard_sigmoid_keras2" else gate,
        use_sync_bn=False,
        **backbone,
    )
    inputs = {"input_specs": {"image": backbone["input_specs"]}} if backbone else {}
    return MovinetClassifier(
        movinet,
        num_classes=spec["num_classes"],
        activation=spec["classifier_activation"],
        output_states=bool(backbone),
        **inputs,
    )


def full_name(variable):
    name = canonical_name(variable.name)
    return name if name.startswith(("classifier/", "logits/")) else f"backbone/{name}"


def rebuilt(imported):
    """The official float model with the imported tensors: all of them, and no others."""
    model = official(imported.spec["backbone"].removeprefix("movinet_"), imported.spec)
    assert {full_name(v) for v in model.weights} == set(imported.tensors)
    for variable in model.weights:
        variable.assign(imported.tensors[full_name(variable)])
    return model


def moving_clip(frames, size, seed=0):
    """A bright square that crosses coloured noise."""
    clip = np.random.default_rng(seed).uniform(0, 0.6, [1, size, size, 3])
    clip = np.repeat(clip, frames, 0).astype(np.float32)
    for frame, image in enumerate(clip):
        start = frame * (size - size // 4) // max(frames - 1, 1)
        image[start : start + size // 4, start : start + size // 4] = 1, 0.9, 0.5
    return clip[None]


def real_clip(shared, frames, size=172, fps=5):
    capture = cv2.VideoCapture(str(shared / "videos/clips/arm_wrestling.mp4"))
    step = capture.get(cv2.CAP_PROP_FPS) / fps
    images = []
    for index in itertools.count():
        read_one, image = capture.read()
        if not read_one or len(images) == frames:
            break
        if index >= len(images) * step:
            images.append(cv2.resize(image[..., ::-1], (size, size)) / np.float32(255))
    return np.array(images, np.float32)[None]


# ---- the real files


@pytest.mark.parametrize(
    ("file", "expected", "count"),
    [(INT8, {**MOBILE, "num_classes": 600}, 329), (DYNAMIC, {**STREAM, "num_classes": 7}, 389)],
)
def test_spec_is_read_from_the_graph(weights, file, expected, count):
    imported = read(weights / file)
    build = {"backbone": "movinet_a0", "streaming": True, "conv_type": "2plus1d"}
    head = {"head": "classifier", "placement": "none", "resolution": 172}
    assert imported.spec == {**build, **head, **expected}
    ModelSpec(resize=200, frames=50, fps=5, **imported.spec)
    assert len(imported.tensors) == count
    assert imported.labels is None
    assert any("int8" in note for note in imported.notes)
    assert any("batch norms were folded" in note for note in imported.notes)


def test_folded_batch_norm_is_exactly_an_added_bias(dynamic_import):
    x = np.random.default_rng(0).normal(0, 50, [2, 8]).astype(np.float32)
    layer = tf_keras.layers.BatchNormalization(epsilon=1e-3)
    layer.build(x.shape)
    prefix = "backbone/stem/bn/"
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    layer.set_weights([dynamic_import.tensors[prefix + name] for name in names])
    beta = dynamic_import.tensors[prefix + "beta"]
    assert np.any(beta)
    np.testing.assert_allclose(layer(x), x + beta, rtol=1e-6, atol=1e-5)


@pytest.mark.slow
def test_int8_weights_recognise_a_real_clip_in_float(shared, weights):
    clip = real_clip(shared, frames=10)
    labels = (weights / "kinetics600_labels.txt").read_text().split("\n")
    imported = read(weights / INT8)
    probabilities = tf.nn.softmax(rebuilt(imported)(clip)[0]).numpy()
    by_file = streamed(weights / INT8, clip[0])[-1]
    assert labels[probabilities.argmax()] == "arm wrestling"
    assert probabilities.max() > 0.9
    assert by_file.argmax() == probabilities.argmax()


def clips(shared):
    return np.concatenate([moving_clip(6, 172), real_clip(shared, 6)])


def prefix_logits(model, clip):
    """Logits after each frame: the causal model on every beginning of the clip."""
    return np.array([model(clip[:, : n + 1])[0] for n in range(clip.shape[1])])


@pytest.mark.slow
def test_dynamic_range_weights_compute_what_the_file_computes(
    shared, weights, edited, dynamic_import
):
    """The file rounds activations to 8 bits too; with its kernels in float it must not differ."""
    model = rebuilt(dynamic_import)
    float_file = edited(edits.kernels_in_float)
    for clip in clips(shared):
        logits = prefix_logits(model, clip[None])
        exact = streamed(float_file, clip)
        rounded = streamed(weights / DYNAMIC, clip)
        np.testing.assert_allclose(logits, exact, atol=1e-3 * exact.std())
        assert np.sqrt(np.mean((logits - rounded) ** 2)) < 0.12 * rounded.std()  # measured: 0.09
        assert np.corrcoef(logits.ravel(), rounded.ravel())[0, 1] > 0.99


# ---- converted from known weights


def random_model(model_id, size, spec):
    """A one-frame official model with batch-norm statistics and ReZero scales of both signs."""
    shape = tf_keras.layers.InputSpec(shape=[1, 1, size, size, 3])
    model = official(model_id, spec, use_external_states=True, input_specs=shape)
    rng = np.random.default_rng(1)
    for variable in model.weights:
        name = canonical_name(variable.name)
        if name.endswith("scale"):
            variable.assign(rng.uniform(0.3, 1) * rng.choice([-1, 1]))
        elif name.endswith(("gamma", "moving_variance")):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif variable.shape.rank == 1:
            variable.assign(rng.normal(0, 0.3, variable.shape))
    return model


def convert(model, size, folder, stored):
    backbone = model._backbone
    states = backbone.initial_state_specs([1, 1, size, size, 3])
    signature = {name: tf.TensorSpec(s.shape, s.dtype, name) for name, s in states.items()}
    signature["image"] = tf.TensorSpec([1, 1, size, size, 3], name="image")

    @tf.function(input_signature=[signature])
    def step(inputs):
        logits, states = model(inputs)
        return {**states, "logits": logits}

    module = tf.Module()
    # The variables alone: of a Keras model every layer would be traced again, for minutes and GBs.
    module.tracked, module.step = model.weights, step
    tf.saved_model.save(module, str(folder), signatures={"serving_default": step})
    converter = tf.lite.TFLiteConverter.from_saved_model(
        str(folder), signature_keys=["serving_default"]
    )
    if stored != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if stored == "float16":
        converter.target_spec.supported_types = [tf.float16]
    path = folder / "model.tflite"
    path.write_bytes(converter.convert())
    return path


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("model_id", "fields", "stored", "tolerance"),
    [
        ("a0", STREAM, "float32", 1e-4),
        ("a0", STREAM, "float16", 0.01),
        ("a0", STREAM, "int8", 0.1),
        ("a0", {**STREAM, "gating_activation": "hard_sigmoid_keras2"}, "float32", 1e-4),
        ("a0", {**STREAM, "gating_activation": "sigmoid"}, "float32", 1e-4),
        ("a0", MOBILE, "float32", 1e-4),
        ("a1", STREAM, "float32", 1e-4),
        ("a1", MOBILE, "float32", 1e-4),
        ("a2", STREAM, "float32", 1e-4),
        ("a2", MOBILE, "float32", 1e-4),
    ],
)
def test_converted_model_comes_back(tmp_path, model_id, fields, stored, tolerance):
    size = 44
    spec = {**fields, "num_classes": 5}
    source = random_model(model_id, size, spec)
    imported = read(convert(source, size, tmp_path, stored))
    assert {name: imported.spec[name] for name in spec} == spec
    assert imported.spec["backbone"] == f"movinet_{model_id}"
    assert imported.spec["resolution"] == size
    assert any(stored in note for note in imported.notes) == (stored != "float32")
    clip = moving_clip(5, size)
    states = source._backbone.init_states([1, 1, size, size, 3])
    for frame in range(5):
        expected, states = source({**states, "image": clip[:, frame : frame + 1]})
    logits = rebuilt(imported)(clip)
    scale = np.abs(expected).max()
    assert scale > 1e-3
    np.testing.assert_allclose(logits / scale, expected / scale, atol=tolerance)
    for variable in source.weights:  # what no batch norm was folded into is itself again
        if (name := full_name(variable)).endswith("scale"):
            np.testing.assert_allclose(imported.tensors[name], variable, rtol=1e-3)


# ---- the same weights in other graphs


@pytest.mark.parametrize(
    "change",
    [
        edits.scramble_names,
        edits.reverse_tensors,
        edits.swap_operands,
        edits.unfold_hard_sigmoid,
        edits.unfold_biases,
        edits.unfold_scales,
        edits.unfuse_hard_swish,
    ],
)
def test_same_function_in_another_graph_gives_the_same_tensors(edited, dynamic_import, change):
    imported = read(edited(change))
    assert imported.spec == dynamic_import.spec
    assert list(imported.tensors) == list(dynamic_import.tensors)
    for name, tensor in dynamic_import.tensors.items():
        np.testing.assert_allclose(
            imported.tensors[name], tensor, rtol=1e-5, atol=1e-5, err_msg=name
        )


def test_rezero_folded_into_projections_is_one(edited, dynamic_import):
    imported = read(edited(edits.fold_rezero_away))
    scales = [t for name, t in imported.tensors.items() if name.endswith("rezero/scale")]
    assert len(scales) == 15
    assert all(scale.shape == () and scale == 1 for scale in scales)
    assert any("ReZero" in note for note in imported.notes)
    name = "backbone/block1_layer1/projection/conv/kernel"
    np.testing.assert_array_equal(imported.tensors[name], dynamic_import.tensors[name])


def test_keras2_gate_is_told_apart_and_undone(edited, dynamic_import):
    imported = read(edited(edits.clip_gates_to_one))
    assert imported.spec["gating_activation"] == "hard_sigmoid_keras2"
    prefix = "backbone/block2_layer1/se_expand/conv/"
    kernel, bias = (dynamic_import.tensors[prefix + part] for part in ("kernel", "bias"))
    np.testing.assert_allclose(imported.tensors[prefix + "kernel"], kernel / 0.2, rtol=1e-5)
    np.testing.assert_allclose(imported.tensors[prefix + "bias"], (bias + 3 - 0.5) / 0.2, rtol=1e-4)


@pytest.mark.parametrize(("count", "found"), [(7, True), (6, False)])
def test_labels_come_from_the_appended_archive(weights, tmp_path, count, found):
    names = tuple(f"class {i}" for i in range(count))
    path = tmp_path / "labelled.tflite"
    path.write_bytes((weights / DYNAMIC).read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.txt", "\n".join(names) + "\n")
    assert read(path).labels == (names if found else None)


# ---- files that are something else


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edits.flex, r"operator 2 is 'FlexConv3D', from outside TFLite's own set"),
        (edits.replace("HARD_SWISH", "TANH"), r"stem.* Received: operator 2 \(TANH\)"),
        (edits.replace("DIV", "POW", -1), r"head's mean .* Received: operator 497 \(POW\)"),
        (edits.feed_a_kernel, r"weights that the graph computes, not constants"),
        (edits.eight_frames, r"graph for whole clips.*\(1, 8, 172, 172, 3\) and 43 states"),
        (edits.cut_kernel, r"a constant of shape .* has \d+ bytes"),
        (
            edits.set_options("DEPTHWISE_CONV_2D", strideH=1, strideW=1),
            r"no known model: movinet_a0 \(15 blocks\).*Closest is movinet_a0.*8->24->8 1x5x5 "
            r"stride 1, skip pool, 8->8 where it has 8->24->8 1x5x5 stride 2",
        ),
        (edits.drop_block, r"Received: 14 blocks"),
        (
            edits.set_options("CONV_2D", 1, fusedActivationFunction=edits.RELU6),
            r"another, was expected",
        ),
        (edits.set_options("AVERAGE_POOL_2D", strideH=1), r"pools 3x3, stride 2, SAME"),
        (edits.replace("CONV_2D", "TRANSPOSE_CONV", -1), r"one output must be the logits"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_another_graph_is_refused_with_what_was_found(edited, change, message):
    path = edited(change)
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("content", [b"", b"not a flatbuffer at all", b"\x1c\0\0\0TFL2" * 20])
def test_no_tflite_file_is_refused(tmp_path, content):
    path = tmp_path / "no.tflite"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"no\.tflite is no TFLite file.*Received: b"):
        read(path)


@pytest.mark.parametrize("kept", [0.0001, 0.01, 0.5, 0.99, 0.99999])
def test_truncated_file_is_refused(weights, tmp_path, kept):
    content = (weights / DYNAMIC).read_bytes()
    path = tmp_path / "cut.tflite"
    path.write_bytes(content[: max(8, int(kept * len(content)))])
    with pytest.raises(ValueError, match=r"cut\.tflite.*(truncated|damaged)"):
        read(path)


def test_damaged_bytes_raise_no_other_error(weights, tmp_path):
    content = np.frombuffer((weights / DYNAMIC).read_bytes(), np.uint8)
    tables = np.r_[0:60_000, content.size - 120_000 : content.size]
    path = tmp_path / "damaged.tflite"
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        damaged = content.copy()
        damaged[rng.choice(tables, 30)] = rng.integers(0, 256, 30)
        damaged[4:8] = content[4:8]
        path.write_bytes(damaged.tobytes())
        try:
            read(path)
        except ValueError as error:
            refused += str(path) in str(error)
    assert refused > 20
