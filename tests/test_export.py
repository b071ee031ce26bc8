"""Exported files: their form, their answers, the gate, and what others' clients make of them."""

import csv
import json
import types
import zipfile
from collections import Counter

import numpy as np
import pytest
import tf_keras
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from grw_keras import export
from grw_keras.export import clips as clips_of
from grw_keras.export import conversion, description, quantize, rounding, verify
from grw_keras.export.graphs import LeanModel
from grw_keras.export.layers import Affine
from grw_keras.lite import StreamSession
from grw_keras.models.classifier import VideoClassifier
from grw_keras.zoo import registry
from tests.test_lean_graphs import streamed
from tests.zoo_helpers import random_clips, randomize

SIZE, LABELS = 36, tuple("abcdef")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("export")]  # they share dear files
dear = pytest.mark.exhaustive  # another conversion


def small(name, **changes):
    spec = {"resolution": SIZE, "num_classes": 6, "frames": 8, "head_window": 4, **changes}
    model = randomize(VideoClassifier(registry.get(name).replace(spec)))
    model.labels = LABELS
    return model


@pytest.fixture(scope="module")
def model():
    return small("movinet_a0_stream_grw")


@pytest.fixture(scope="module")
def clip():
    return random_clips(1, 8, size=SIZE)


@pytest.fixture(scope="module")
def float_file(model, tmp_path_factory):
    return export.to_tflite(model, tmp_path_factory.mktemp("float") / "a0s.tflite")


def answers(path, clip):
    return verify.streamed_by_file(path, [clip[0].numpy()])[0]


def test_file_answers_as_the_model(model, float_file, clip):
    expected = streamed(model, clip)
    assert np.abs(answers(float_file.path, clip) - expected).max() < 1e-4 * np.ptp(expected)
    assert float_file.report.top1_agreement == 1.0


def test_file_holds_builtin_operations_alone(float_file):
    found = conversion.operations(float_file.path.read_bytes())
    assert found["CONV_2D"] > 50
    assert not [name for name in found if name.startswith("CUSTOM") or "FLEX" in name.upper()]


def test_description_is_inside_and_beside_the_file(model, float_file):
    path, spec = float_file.path, model.spec
    with zipfile.ZipFile(path) as archive:
        inside = json.loads(archive.read("grw_keras.json"))
        assert archive.read("labels.txt").decode().split("\n")[:-1] == list(LABELS)
    assert inside == json.loads(path.with_suffix(".json").read_text())
    assert (inside["kind"], inside["name"]) == ("stream", "movinet_a0_stream_grw")
    assert (inside["fps"], inside["crop_px"], inside["resize_px"]) == (5.0, SIZE, spec.resize)
    assert (inside["labels"], inside["window_frames"]) == (list(LABELS), 4)
    assert inside["head"] == "bidirectional"


@dear
def test_the_same_model_gives_the_same_bytes(model, float_file, tmp_path):
    again = export.to_tflite(model, tmp_path / "again.tflite")
    assert again.path.read_bytes() == float_file.path.read_bytes()


def test_googles_raspberry_pi_client_runs_the_file(model, float_file, clip):
    """Its logic, by its description: the only signature; all inputs but `image` are states, zeros
    of their dtype at first; H and W of `image` without its dimensions of 1; every output but
    `logits` is fed back under its name; softmax; a line of the label file for each class."""
    interpreter = Interpreter(str(float_file.path))
    (signature,) = interpreter.get_signature_list()
    runner = interpreter.get_signature_runner(signature)
    details = runner.get_input_details()
    height, width, _ = np.squeeze(np.empty(details["image"]["shape"])).shape
    assert (height, width) == (SIZE, SIZE)
    states = {
        name: np.zeros(detail["shape"], detail["dtype"])
        for name, detail in details.items()
        if name != "image"
    }
    with zipfile.ZipFile(float_file.path) as archive:
        labels = archive.read("labels.txt").decode().splitlines()
    said = []
    for frame in clip[0].numpy():
        outputs = runner(**states, image=frame[None, None].astype(np.float32))
        logits = outputs.pop("logits")[0]
        assert outputs.keys() == states.keys()
        states = outputs
        probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        said.append(labels[int(np.argmax(probabilities))])
    assert said == [LABELS[i] for i in streamed(model, clip).argmax(-1)]


def test_googles_android_client_finds_what_it_needs(float_file):
    """Signature `serving_default`, static shapes, H and W from shape[2] and shape[3], float32
    logits, each state as many bytes out as in."""
    interpreter = Interpreter(str(float_file.path))
    assert list(interpreter.get_signature_list()) == ["serving_default"]
    runner = interpreter.get_signature_runner("serving_default")
    inputs, outputs = runner.get_input_details(), runner.get_output_details()
    assert inputs["image"]["shape"].tolist() == [1, 1, SIZE, SIZE, 3]
    assert outputs["logits"]["dtype"] == np.float32
    for name, detail in inputs.items():
        assert detail["dtype"] == np.float32
        assert (detail["shape_signature"] > 0).all()
        if name != "image":
            assert outputs[name]["shape"].prod() == detail["shape"].prod()


@dear
@pytest.mark.parametrize(
    ("quantization", "share", "least_snr_db"), [("float16", 0.55, 40), ("dynamic", 0.45, 10)]
)
def test_small_files_answer_nearly_as_the_model(
    model, float_file, tmp_path, clip, quantization, share, least_snr_db
):
    made = export.to_tflite(model, tmp_path / "m.tflite", quantization=quantization)
    assert made.path.stat().st_size < share * float_file.path.stat().st_size
    expected = streamed(model, clip)
    difference = answers(made.path, clip) - expected
    assert verify.signal_to_noise_db(expected, difference) > least_snr_db
    assert np.abs(difference).max() > 0


@pytest.fixture(scope="module")
def int8_export(model, tmp_path_factory):
    """An int8 file, and the rounded weights that went into it."""
    path = tmp_path_factory.mktemp("int8") / "m.tflite"
    calibration, kept, make = random_clips(4, 8, seed=3, size=SIZE), {}, rounding.rounded_weights
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounding, "rounded_weights", lambda *a: kept.setdefault("made", make(*a)))
        patch.setattr(quantize, "SENSITIVITY_FRAMES", 8)
        made = export.to_tflite(model, path, quantization="int8", calibration=calibration)
    return made, kept["made"]


@pytest.fixture(scope="module")
def int8_file(int8_export):
    return int8_export[0]


def types_of_kernels(path):
    """The type of each kernel in a file, by layer."""
    return {
        conversion._layer(operator, graph): (
            graph.Tensors(operator.Inputs(1)).Type() == schema.TensorType.INT8
        )
        for name, operator, graph in conversion._operators(conversion._read(path.read_bytes()))
        if name in conversion.WITH_KERNEL
    }


def test_int8_report_tells_what_is_in_the_file(int8_file):
    with int8_file.path.with_name("m_sensitivity.csv").open() as file:
        kept = {row["layer"]: row["kept"] for row in csv.DictReader(file)}
    assert {layer: "int8" in how for layer, how in kept.items()} == types_of_kernels(int8_file.path)
    assert set(kept.values()) == {"int8 weights", "float32"}
    in_float = {layer for layer, how in kept.items() if how == "float32"}
    assert in_float >= {layer for layer in kept if "/feature" in layer or early(layer)}


@dear
def test_int8_is_better_than_rounding_to_nearest(model, int8_file, clip, tmp_path):
    nearest = export.to_tflite(model, tmp_path / "n.tflite", quantization="dynamic", force=True)
    expected = streamed(model, clip)
    ours, theirs = (
        verify.signal_to_noise_db(expected, answers(path, clip) - expected)
        for path in (int8_file.path, nearest.path)
    )
    assert ours > theirs + 3


def early(layer):
    return layer.startswith(("stem", "block0_", "block1_"))


@dear
def test_bounded_models_are_int8_after_their_first_stages(tmp_path, monkeypatch):
    monkeypatch.setattr(quantize, "LEAST_SNR_DB", -100.0)  # random weights keep less
    model = small("movinet_a0_stream_relu6")
    calibration = random_clips(4, 8, seed=3, size=SIZE)
    made = export.to_tflite(
        model, tmp_path / "m.tflite", quantization="int8", calibration=calibration, force=True
    )
    kept = {row.layer: row.kept for row in made.sensitivity}
    assert kept.pop("classifier") == kept.pop("logits") == "int8 weights"
    assert kept == {layer: "float32" if early(layer) else "int8" for layer in kept}
    types = types_of_kernels(made.path)
    assert types == {layer: not early(layer) for layer in types}
    weights = Counter()
    for row in made.sensitivity:
        weights[early(row.layer)] += row.weights
    assert weights[True] < 0.03 * weights[False]


@dear
def test_split_files_answer_as_the_model(model, clip, tmp_path):
    made = export.to_tflite(model, tmp_path / "m.tflite", split_head=True)
    assert [path.name for path in made.files] == ["m_embed.tflite", "m_classify.tflite"]
    expected = streamed(model, clip)
    assert np.abs(answers(made.path, clip) - expected).max() < 1e-4 * np.ptp(expected)
    session = StreamSession(made.path, head_stride=3)
    logits = []
    for frame in clip[0].numpy():
        session.step(frame)
        logits.append(session.logits)
    np.testing.assert_allclose(logits[3], expected[3], atol=1e-4 * np.ptp(expected))
    np.testing.assert_array_equal(logits[4], logits[3])


@dear
def test_whole_clips(model, clip, tmp_path):
    made = export.to_tflite(model, tmp_path / "clip.tflite", whole_clip=True)
    run = Interpreter(str(made.path)).get_signature_runner()
    np.testing.assert_allclose(run(clip=clip.numpy())["logits"], model(clip), atol=1e-4)
    with pytest.raises(ValueError, match="whole clips"):
        StreamSession(made.path)


def test_the_gate_refuses_a_file_that_answers_otherwise(model, tmp_path, monkeypatch, caplog):
    lean = LeanModel(model)
    stem = lean.layers.weights["stem"]
    changed = {"stem": Affine(1.3 * stem.kernel, stem.bias)}
    broken = conversion.with_weights(conversion.to_flatbuffer(lean.stream()), changed)
    monkeypatch.setattr(conversion, "to_flatbuffer", lambda *_, **__: broken)
    with pytest.raises(export.VerificationError, match="60 dB") as refused:
        export.to_tflite(model, tmp_path / "m.tflite")
    assert refused.value.report.snr_db < 60
    assert list(tmp_path.iterdir()) == []
    caplog.set_level("INFO", "grw_keras")
    export.to_tflite(model, tmp_path / "m.tflite", force=True)
    assert (tmp_path / "m.tflite").is_file()
    assert [record.getMessage().split()[0] for record in caplog.records] == [
        *("Converting", "Streaming")
    ]


CLIP = np.zeros([8, SIZE, SIZE, 3], np.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"path": "m.bin"}, ValueError, "must end in .tflite"),
        ({"quantization": "int4"}, ValueError, "must be one of None, 'float16'"),
        ({"quantization": "int8"}, ValueError, "'int8' needs `calibration`"),
        (
            {"quantization": "int8", "calibration": [CLIP], "whole_clip": True},
            ValueError,
            "for streams",
        ),
        ({"split_head": True, "whole_clip": True}, ValueError, "don't go together"),
        ({"calibration": []}, ValueError, "at least one clip"),
        ({"calibration": [CLIP[:, 1:]]}, ValueError, "must have shape"),
        ({"calibration": [CLIP.astype(np.int32)]}, TypeError, "uint8 or float"),
        ({"calibration": [CLIP + 2]}, ValueError, "divide by 255"),
        ({"calibration": [CLIP * np.nan]}, ValueError, "Pixels of float clips .* from nan to nan"),
        ({"calibration": [CLIP - 1]}, ValueError, "Pixels of float clips .* from -1.0"),
    ],
)
def test_bad_arguments_are_named(model, tmp_path, arguments, error, message):
    path = tmp_path / arguments.pop("path", "m.tflite")
    with pytest.raises(error, match=message):
        export.to_tflite(model, path, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_other_models_are_refused(tmp_path):
    with pytest.raises(TypeError, match="Received: Sequential"):
        export.to_tflite(tf_keras.Sequential(), tmp_path / "m.tflite")


def test_clips_come_in_every_form_that_data_gives():
    spec = registry.get("movinet_a0_stream").replace({"resolution": SIZE})
    video = (random_clips(2, 5, size=SIZE).numpy() * 255).astype(np.uint8)
    expected = video.astype(np.float32) / 255
    for source in (video, [video], [(video, [0, 1])], [({"video": video, "mask": None}, [0])]):
        taken = clips_of.take(source, spec, 8)
        np.testing.assert_array_equal(taken, expected[:, :4])


def test_second_moments_are_of_the_layers_inputs(model, clip):
    lean = LeanModel(model)
    seen = rounding.second_moments(lean.stream(), lean.layers, [clip[0].numpy()])
    patches = []
    padded = np.pad(clip[0].numpy(), [(0, 0), (0, 1), (0, 1), (0, 0)])  # SAME, stride 2, even size
    for frame in padded:
        for y in range(0, SIZE, 2):
            for x in range(0, SIZE, 2):
                patches.append([*frame[y : y + 3, x : x + 3].reshape(-1), 1.0])
    patches = np.array(patches, np.float64)
    np.testing.assert_allclose(seen["stem"], patches.T @ patches, rtol=1e-4)
    features = model.backbone(clip, training=False)["features"][0].numpy()
    rows = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    np.testing.assert_allclose(seen["affine"], rows.T @ rows, rtol=1e-3, atol=1e-3)


def test_int8_kernels_of_the_file_are_the_rounded_ones(int8_export):
    made, expected = int8_export
    content = made.path.read_bytes()
    read = conversion._read(content)
    compared = 0
    for name, operator, graph in conversion._operators(read):
        if name not in conversion.WITH_KERNEL:
            continue
        tensor = graph.Tensors(operator.Inputs(1))
        if tensor.Type() != schema.TensorType.INT8:
            continue
        scale = tensor.Quantization().ScaleAsNumpy()
        buffer = read.Buffers(tensor.Buffer())  # behind the flatbuffer, or inside
        inside = buffer.DataLength()
        data = buffer.DataAsNumpy() if inside else content[buffer.Offset() :][: buffer.Size()]
        points = np.frombuffer(data, np.int8).reshape(tensor.ShapeAsNumpy())
        kernel = np.moveaxis(expected[conversion._layer(operator, graph)].kernel, -1, 0)
        received = points * scale.reshape(-1, *[1] * (points.ndim - 1))
        np.testing.assert_allclose(received.ravel(), kernel.ravel(), atol=1e-3 * scale.max())
        compared += 1
    assert compared > 50


@pytest.mark.parametrize(
    ("kind", "name", "classify_file", "expected"),
    [
        ("stream", "movinet_a0_stream", None, ("classifier", None, None, None)),
        ("stream", "movinet_a0_stream_grw", None, ("bidirectional", 50, None, None)),
        ("embed", "movinet_a0_stream_grw", "c.tflite", ("bidirectional", 50, 480, None)),
        ("classify", "movinet_a0_stream_grw", None, ("bidirectional", 50, 480, None)),
        ("clip", "mobilenet_v3_small", None, ("classifier", None, None, 50)),
    ],
)
def test_description_keeps_to_the_contract(kind, name, classify_file, expected, tmp_path):
    model = types.SimpleNamespace(spec=registry.get(name), labels=None)
    about = description.describe(model, kind, "float16", classify_file)
    keys = ("head", "window_frames", "embed_dim", "frames")
    assert tuple(about[key] for key in keys) == expected
    assert (about["kind"], about["quantization"]) == (kind, "float16")
    assert (about["classify_file"], about["labels"]) == (classify_file, None)
    description.write(tmp_path / "m.tflite", b"....TFL3", about)
    with zipfile.ZipFile(tmp_path / "m.tflite") as archive:
        assert archive.namelist() == ["grw_keras.json"]


def test_noise_is_clips_of_the_models_size():
    spec = registry.get("movinet_a0_stream").replace({"resolution": SIZE})
    made = clips_of.noise(spec, 3, 5)
    assert [clip.shape for clip in made] == [(5, SIZE, SIZE, 3)] * 3
    for clip, taken in zip(made, clips_of.take(made, spec, 15), strict=True):
        np.testing.assert_array_equal(clip, taken)
        assert all(np.abs(clip[t + 1] - clip[t]).max() > 0.01 for t in range(4))
    assert np.ptp([clip.mean() for clip in made]) > 0.01


@pytest.mark.parametrize("quantization", verify.LEAST_SNR_DB)
def test_answers_that_are_no_numbers_do_not_pass_the_gate(quantization):
    expected = [np.array([[0.0, 1.0], [1.0, 0.0]])]
    verify.require(verify.compare(expected, expected), quantization)
    with pytest.raises(export.VerificationError):
        verify.require(verify.compare(expected, [expected[0] * np.nan]), quantization)
