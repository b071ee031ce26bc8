"""Sessions on TFLite files, against TensorFlow and the golden numbers of the contract."""

import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from grw_keras.lite import FrameClock, StreamSession, prepare_frame
from tests import lite_files
from tests.helpers import script

TFLITE = Path(__file__).parents[1] / "tflite"
GOLDEN = json.loads((TFLITE / "golden/golden.json").read_text())
SIZES = [(1, 1), (1, 50), (7, 5), (8, 8), (9, 8), (81, 50), (333, 77), (479, 641), (1080, 1920)]
TARGETS = [(10, 8), (11, 8), (8, 8), (200, 172), (320, 290)]  # odd margins, none, the paper's


def reference_split(frames) -> np.ndarray:
    """Probabilities of the tiny split model on every frame, in TensorFlow."""
    states = {name: tf.zeros(spec.shape) for name, spec in lite_files.STATES.items()}
    seen: list[tf.Tensor] = []
    answers = []
    for image in lite_files.images(frames):
        states = lite_files.embed(image, **states)
        seen = [*seen, states.pop("embedding")][-lite_files.WINDOW :]
        empty = [tf.zeros([1, lite_files.WIDTH])] * (lite_files.WINDOW - len(seen))
        window = tf.stack([*seen, *empty], axis=1)
        logits = lite_files.classify(window, tf.constant([float(len(seen))]))["logits"]
        answers.append(tf.nn.softmax(logits[0]).numpy())
    return np.array(answers)


@pytest.mark.parametrize(("resize", "crop"), TARGETS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_resizing_equals_tensorflows(size, resize, crop):
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    expected = lite_files.prepared(frame, resize, crop).numpy()
    prepared = prepare_frame(frame, resize, crop)
    assert (prepared.dtype, prepared.shape) == (np.float32, expected.shape)
    np.testing.assert_allclose(prepared, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_frames_in_any_memory_order(dtype):
    frame = (lite_files.video(1)[0] / 255).astype(dtype)[::-1, :, ::-1]
    expected = lite_files.prepared(frame.astype(np.float32), 10, 8)
    np.testing.assert_allclose(prepare_frame(frame, 10, 8), expected, atol=1e-5)


@pytest.mark.parametrize("golden", GOLDEN["frames"], ids=lambda f: f"{f['width']}x{f['height']}")
def test_golden_frames(golden):
    pixels = np.frombuffer(base64.b64decode(golden["rgb_base64"]), np.uint8)
    frame = pixels.reshape(golden["height"], golden["width"], 3)
    prepared = prepare_frame(frame, golden["resize_px"], golden["crop_px"])
    np.testing.assert_allclose(prepared.ravel(), golden["tensor"], atol=2e-6)


@pytest.mark.parametrize("kind", ["probabilities", "smoothed"])
def test_golden_smoothing(tiny_files, kind, monkeypatch):
    golden = GOLDEN["smoothing"]
    session = StreamSession(
        tiny_files / "tiny_stream.tflite", smoothing=golden["s"] if kind == "smoothed" else 0.0
    )
    logits = iter(np.array(golden["logits"], np.float32))
    monkeypatch.setattr(session._graph, "logits", lambda: next(logits))
    answers = [session.step(frame) for frame in lite_files.video(len(golden["logits"]))]
    np.testing.assert_allclose(answers, golden[kind], atol=2e-6)


def test_golden_clock():
    golden = GOLDEN["clock"]
    clock = FrameClock(golden["fps"])
    wanted = [clock.wants(time) for time in golden["timestamps_s"]]
    assert np.flatnonzero(wanted).tolist() == golden["kept"]


def test_a_clock_does_not_drift_over_an_hour_of_float_times():
    clock = FrameClock(5.0)
    step = np.float64(1) / 30
    kept = sum(clock.wants(1e5 + index * step) for index in range(30 * 3600))
    assert kept == 5 * 3600


def test_golden_top(tiny_files, monkeypatch):
    golden = GOLDEN["top"]
    session = StreamSession(tiny_files / "tiny_stream.tflite")
    session.labels = tuple(golden["labels"])
    monkeypatch.setattr(session, "_probabilities", np.array(golden["probabilities"]))
    assert session.top(golden["k"]) == [tuple(pair) for pair in golden["top"]]
    assert len(session.top(99)) == len(golden["labels"])
    session.labels, session.num_classes = None, 600
    monkeypatch.setattr(session, "_probabilities", np.tile([0.1, 0.2], 300))
    assert [label for label, _ in session.top(4)] == ["1", "3", "5", "7"]


@pytest.mark.slow
def test_golden_numbers_are_what_the_script_makes():
    made = script(TFLITE / "golden/make_golden.py").golden()

    def split(golden):
        tensors = np.concatenate([frame["tensor"] for frame in golden["frames"]])
        frames = [{**frame, "tensor": len(frame["tensor"])} for frame in golden["frames"]]
        return tensors, {**golden, "frames": frames}

    (tensors, rest), (committed, committed_rest) = split(made), split(GOLDEN)
    np.testing.assert_allclose(tensors, committed, atol=2e-6)  # the last digit may round otherwise
    assert rest == committed_rest


def test_a_stream_equals_tensorflow_and_starts_anew_after_reset(tiny_files):
    frames = lite_files.video(6)
    session = StreamSession(tiny_files / "tiny_stream.tflite", threads=2)
    for _ in range(2):
        answers = [session.step(frame) for frame in frames]
        assert session.frames_seen == len(frames)
        assert answers[0].dtype == np.float32
        np.testing.assert_allclose(answers, lite_files.reference_stream(frames), atol=1e-5)
        session.reset()
        assert session.frames_seen == 0


def test_sessions_in_one_process_do_not_disturb_each_other(tiny_files):
    videos = [lite_files.video(4, seed) for seed in range(3)]
    sessions = [StreamSession(tiny_files / "tiny_stream.tflite") for _ in videos]
    for index in range(4):
        for session, frames in zip(sessions, videos, strict=True):
            expected = lite_files.reference_stream(frames[: index + 1])[-1]
            np.testing.assert_allclose(session.step(frames[index]), expected, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 3])
def test_the_head_of_a_split_export_answers_every_stride_frames(tiny_files, stride):
    frames = lite_files.video(3 * lite_files.WINDOW)
    session = StreamSession(tiny_files / "tiny_embed.tflite", head_stride=stride)
    held = np.arange(len(frames)) // stride * stride
    for _ in range(2):
        answers = [session.step(frame) for frame in frames]
        np.testing.assert_allclose(answers, reference_split(frames)[held], atol=1e-5)
        session.reset()


def test_smoothing_counts_answers_not_frames(tiny_files):
    frames = lite_files.video(5)
    session = StreamSession(tiny_files / "tiny_embed.tflite", head_stride=2, smoothing=0.75)
    answers = [session.step(frame) for frame in frames]
    raw = reference_split(frames)
    second = 0.75 * raw[0] + 0.25 * raw[2]
    expected = [raw[0], raw[0], second, second, 0.75 * second + 0.25 * raw[4]]
    np.testing.assert_allclose(answers, expected, atol=1e-5)


def test_an_answer_is_the_callers_own(tiny_files):
    session = StreamSession(tiny_files / "tiny_embed.tflite", head_stride=9)
    first = session.step(lite_files.video(1)[0])
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(session.step(lite_files.video(1)[0]), kept)


def test_attributes_and_labels(tiny_files, tiny_changed):
    session = StreamSession(tiny_files / "tiny_stream.tflite")
    assert session.labels == tuple(lite_files.LABELS)
    sizes = (session.fps, session.resize_px, session.crop_px, session.num_classes)
    assert sizes == (5.0, lite_files.RESIZE, lite_files.CROP, lite_files.CLASSES)
    assert session.description.name == "tiny"
    nameless = StreamSession(tiny_changed(labels=None, a_later_key=1))
    answer = nameless.step(lite_files.video(1)[0])
    assert nameless.top(1) == [(str(answer.argmax()), float(answer.max()))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threads": 0}, "threads must be at least 1. Received: 0"),
        ({"head_stride": 0}, "head_stride must be at least 1. Received: 0"),
        ({"head_stride": 2}, "export with split_head=True. Received: 2"),
        ({"smoothing": 1.0}, "smoothing must be in [0, 1). Received: 1.0"),
        ({"smoothing": float("nan")}, "smoothing must be in [0, 1). Received: nan"),
    ],
)
def test_arguments_out_of_range(tiny_files, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        StreamSession(tiny_files / "tiny_stream.tflite", **arguments)


@pytest.mark.parametrize(
    ("frame", "error", "message"),
    [
        (None, TypeError, "did the camera give none? Received: None"),
        (np.zeros((4, 4), np.uint8), ValueError, "[H, W, 3]. Received: (4, 4)"),
        (np.zeros((4, 4, 4), np.uint8), ValueError, "Received: (4, 4, 4)"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, "Received: (0, 4, 3)"),
        (np.zeros((4, 4, 3), np.int32), TypeError, "uint8 or float. Received: int32"),
        (np.full((4, 4, 3), 255.0), ValueError, "Received: pixels from 255.0 to 255.0"),
        (np.full((4, 4, 3), -0.1), ValueError, "divide by 255"),
        (np.full((4, 4, 3), np.nan), ValueError, "pixels from nan to nan"),
    ],
)
def test_a_bad_frame_is_refused_and_leaves_the_session_as_it_was(tiny_files, frame, error, message):
    session = StreamSession(tiny_files / "tiny_stream.tflite")
    good = lite_files.video(2)
    session.step(good[0])
    with pytest.raises(error, match=re.escape(message)):
        session.step(frame)
    np.testing.assert_allclose(
        session.step(good[1]), lite_files.reference_stream(good)[1], atol=1e-5
    )
    assert session.frames_seen == 2


def test_no_answer_before_the_first_frame_and_no_top_0(tiny_files):
    session = StreamSession(tiny_files / "tiny_stream.tflite")
    with pytest.raises(RuntimeError, match="call step first"):
        session.top()
    session.step(lite_files.video(1)[0])
    with pytest.raises(ValueError, match=r"k must be at least 1\. Received: 0"):
        session.top(0)
    for fps in (0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="fps must be finite and > 0"):
            FrameClock(fps)


def test_a_session_imports_no_framework(tiny_files):
    code = f"""
import sys
from grw_keras.lite import StreamSession
import numpy as np
StreamSession({str(tiny_files / "tiny_stream.tflite")!r}).step(np.zeros((9, 9, 3), np.uint8))
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert "grw_keras.lite" in imported
    assert not {"tensorflow", "tf_keras", "keras", "jax"} & imported
