"""Sessions on TFLite files, against TensorFlow and the golden numbers of the contract."""

import base64
import importlib.util
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from grw_keras import lite
from grw_keras.lite import FrameClock, StreamSession, prepare_frame
from grw_keras.models import streaming
from tests import lite_files, tflite_edits, video_files

TFLITE = Path(__file__).parents[1] / "tflite"
GOLDEN = json.loads((TFLITE / "golden/golden.json").read_text())
SIZES = [(1, 1), (1, 50), (7, 5), (8, 8), (9, 8), (81, 50), (333, 77), (479, 641), (1080, 1920)]
TARGETS = [(10, 8), (11, 8), (8, 8), (200, 172), (320, 290)]  # odd margins, none, the paper's


@pytest.fixture(scope="session")
def models():
    return lite_files.models()


@pytest.fixture(scope="session")
def files(models, tmp_path_factory):
    """A folder with tiny_stream.tflite, tiny_embed.tflite and tiny_classify.tflite."""
    folder = tmp_path_factory.mktemp("lite")
    for kind, model in models.items():
        lite_files.write(folder / f"tiny_{kind}.tflite", model, lite_files.description(kind))
    return folder


@pytest.fixture
def changed(models, tmp_path):
    """Writes the file of a kind with a changed description; gives its path."""

    def write(kind="stream", /, **changes):
        about = lite_files.description(kind, **changes)
        return lite_files.write(tmp_path / f"tiny_{kind}.tflite", models[kind], about)

    return write


def edited(files, path, change) -> Path:
    tflite_edits.write_edited(files / "tiny_stream.tflite", path, change)
    return lite_files.write(path, path.read_bytes(), lite_files.description("stream"))


def video(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 12, 17, 3), np.uint8)


def script(path: str):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, TFLITE / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def images(frames):
    return [streaming.prepare_frame(frame, lite_files.CROP, lite_files.RESIZE) for frame in frames]


def reference_stream(frames) -> np.ndarray:
    """Probabilities of the tiny stream model, in TensorFlow."""
    states = {name: tf.zeros(spec.shape) for name, spec in lite_files.STATES.items()}
    answers = []
    for image in images(frames):
        states = lite_files.stream(image, **states)
        answers.append(tf.nn.softmax(states.pop("logits")[0]).numpy())
    return np.array(answers)


def reference_split(frames) -> np.ndarray:
    """Probabilities of the tiny split model on every frame, in TensorFlow."""
    states = {name: tf.zeros(spec.shape) for name, spec in lite_files.STATES.items()}
    seen: list[tf.Tensor] = []
    answers = []
    for image in images(frames):
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
    expected = streaming.prepare_frame(frame, crop, resize).numpy()
    prepared = prepare_frame(frame, resize, crop)
    assert (prepared.dtype, prepared.shape) == (np.float32, expected.shape)
    np.testing.assert_allclose(prepared, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_frames_in_any_memory_order(dtype):
    frame = (video(1)[0] / 255).astype(dtype)[::-1, :, ::-1]
    expected = streaming.prepare_frame(frame.astype(np.float32), 8, 10)
    np.testing.assert_allclose(prepare_frame(frame, 10, 8), expected, atol=1e-5)


@pytest.mark.parametrize("golden", GOLDEN["frames"], ids=lambda f: f"{f['width']}x{f['height']}")
def test_golden_frames(golden):
    pixels = np.frombuffer(base64.b64decode(golden["rgb_base64"]), np.uint8)
    frame = pixels.reshape(golden["height"], golden["width"], 3)
    prepared = prepare_frame(frame, golden["resize_px"], golden["crop_px"])
    np.testing.assert_allclose(prepared.ravel(), golden["tensor"], atol=2e-6)


@pytest.mark.parametrize("kind", ["probabilities", "smoothed"])
def test_golden_smoothing(files, kind, monkeypatch):
    golden = GOLDEN["smoothing"]
    session = StreamSession(
        files / "tiny_stream.tflite", smoothing=golden["s"] if kind == "smoothed" else 0.0
    )
    logits = iter(np.array(golden["logits"], np.float32))
    monkeypatch.setattr(session._graph, "logits", lambda: next(logits))
    answers = [session.step(frame) for frame in video(len(golden["logits"]))]
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


def test_golden_top(files, monkeypatch):
    golden = GOLDEN["top"]
    session = StreamSession(files / "tiny_stream.tflite")
    session.labels = tuple(golden["labels"])
    monkeypatch.setattr(session, "_probabilities", np.array(golden["probabilities"]))
    assert session.top(golden["k"]) == [tuple(pair) for pair in golden["top"]]
    assert len(session.top(99)) == len(golden["labels"])
    session.labels, session.num_classes = None, 600
    monkeypatch.setattr(session, "_probabilities", np.tile([0.1, 0.2], 300))
    assert [label for label, _ in session.top(4)] == ["1", "3", "5", "7"]


def test_golden_numbers_are_what_the_script_makes():
    made = script("golden/make_golden.py").golden()

    def split(golden):
        tensors = np.concatenate([frame["tensor"] for frame in golden["frames"]])
        frames = [{**frame, "tensor": len(frame["tensor"])} for frame in golden["frames"]]
        return tensors, {**golden, "frames": frames}

    (tensors, rest), (committed, committed_rest) = split(made), split(GOLDEN)
    np.testing.assert_allclose(tensors, committed, atol=2e-6)  # the last digit may round otherwise
    assert rest == committed_rest


def test_a_stream_equals_tensorflow_and_starts_anew_after_reset(files):
    frames = video(6)
    session = StreamSession(files / "tiny_stream.tflite", threads=2)
    for _ in range(2):
        answers = [session.step(frame) for frame in frames]
        assert session.frames_seen == len(frames)
        assert answers[0].dtype == np.float32
        np.testing.assert_allclose(answers, reference_stream(frames), atol=1e-5)
        session.reset()
        assert session.frames_seen == 0


def test_sessions_in_one_process_do_not_disturb_each_other(files):
    videos = [video(4, seed) for seed in range(3)]
    sessions = [StreamSession(files / "tiny_stream.tflite") for _ in videos]
    for index in range(4):
        for session, frames in zip(sessions, videos, strict=True):
            expected = reference_stream(frames[: index + 1])[-1]
            np.testing.assert_allclose(session.step(frames[index]), expected, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 3])
def test_the_head_of_a_split_export_answers_every_stride_frames(files, stride):
    frames = video(3 * lite_files.WINDOW)
    session = StreamSession(files / "tiny_embed.tflite", head_stride=stride)
    held = np.arange(len(frames)) // stride * stride
    for _ in range(2):
        answers = [session.step(frame) for frame in frames]
        np.testing.assert_allclose(answers, reference_split(frames)[held], atol=1e-5)
        session.reset()


def test_smoothing_counts_answers_not_frames(files):
    frames = video(5)
    session = StreamSession(files / "tiny_embed.tflite", head_stride=2, smoothing=0.75)
    answers = [session.step(frame) for frame in frames]
    raw = reference_split(frames)
    second = 0.75 * raw[0] + 0.25 * raw[2]
    expected = [raw[0], raw[0], second, second, 0.75 * second + 0.25 * raw[4]]
    np.testing.assert_allclose(answers, expected, atol=1e-5)


def test_an_answer_is_the_callers_own(files):
    session = StreamSession(files / "tiny_embed.tflite", head_stride=9)
    first = session.step(video(1)[0])
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(session.step(video(1)[0]), kept)


def test_attributes_and_labels(files, changed):
    session = StreamSession(files / "tiny_stream.tflite")
    assert session.labels == tuple(lite_files.LABELS)
    sizes = (session.fps, session.resize_px, session.crop_px, session.num_classes)
    assert sizes == (5.0, lite_files.RESIZE, lite_files.CROP, lite_files.CLASSES)
    assert session.description.name == "tiny"
    nameless = StreamSession(changed(labels=None, a_later_key=1))
    answer = nameless.step(video(1)[0])
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
def test_arguments_out_of_range(files, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        StreamSession(files / "tiny_stream.tflite", **arguments)


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
def test_a_bad_frame_is_refused_and_leaves_the_session_as_it_was(files, frame, error, message):
    session = StreamSession(files / "tiny_stream.tflite")
    good = video(2)
    session.step(good[0])
    with pytest.raises(error, match=re.escape(message)):
        session.step(frame)
    np.testing.assert_allclose(session.step(good[1]), reference_stream(good)[1], atol=1e-5)
    assert session.frames_seen == 2


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("classify", {}, "the head of a split export: open the embed file"),
        ("stream", {"kind": "clip"}, "whole clips: export the model without whole_clip=True"),
        ("stream", {"kind": "film"}, "kind must be one of"),
        ("stream", {"format_version": 2}, "format_version must be 1"),
        ("stream", {"fps": 0}, "fps must be > 0. Received: 0"),
        ("stream", {"fps": "5"}, "grw_keras.json of"),
        ("stream", {"crop_px": 11}, "crop_px must be in [1, resize_px]. Received: 11"),
        ("stream", {"crop_px": 7}, "input 'image' must be float32 [1, 1, 7, 7, 3]"),
        ("stream", {"value_range": [-1, 1]}, "value_range must be [0, 1]"),
        ("stream", {"labels": ["one"]}, "labels must be 3 names or null. Received: 1"),
        ("stream", {"labels": None, "num_classes": 4}, "output 'logits' must be float32 [1, 4]"),
        ("embed", {"embed_dim": 6}, "input 'window' must be float32 [1, 4, 6]"),
        ("embed", {"window_frames": 5}, "input 'window' must be float32 [1, 5, 5]"),
        ("embed", {"labels": list("abc")}, "have its labels"),
        ("embed", {"classify_file": "tiny_embed.tflite"}, "must be of kind 'classify'"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(changed, kind, changes, message):
    changed("classify")
    with pytest.raises(ValueError, match=re.escape(message)):
        StreamSession(changed(kind, **changes))


def test_a_missing_classify_file_is_named(changed):
    with pytest.raises(FileNotFoundError, match=r"tiny_classify\.tflite"):
        StreamSession(changed("embed"))


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (lambda model, tail: model, "which was cut off or is another program's"),
        (lambda model, tail: model[:100], "a whole file of grw_keras.export"),
        (lambda model, tail: model + tail[: len(tail) // 2], "a whole file of grw_keras.export"),
        (lambda model, tail: b"GIF89a" + model + tail, "must be a TFLite file"),
        (lambda model, tail: b"", "must be a TFLite file"),
    ],
)
def test_cut_files_and_others_are_refused(changed, models, cut, message):
    path = changed()
    whole = path.read_bytes()
    size = len(models["stream"])
    path.write_bytes(cut(whole[:size], whole[size:]))
    with pytest.raises(ValueError, match=message):
        StreamSession(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "grw_keras.json of"),
        ("[]", "format_version must be 1"),
        ('{"format_version": 1}', "the contract's keys. Received: none for ['kind', "),
    ],
)
def test_a_description_that_is_none_is_refused(models, tmp_path, text, message):
    path = lite_files.write(tmp_path / "a.tflite", models["stream"], text)
    with pytest.raises(ValueError, match=re.escape(message)):
        StreamSession(path)


def test_no_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.tflite"):
        with pytest.raises(FileNotFoundError, match="which is no file"):
            StreamSession(path)


def test_other_peoples_files_are_refused(shared, models, tmp_path):
    with pytest.raises(ValueError, match="cut off or is another program's"):
        StreamSession(shared / "weights/movinet_a0_stream_k600_int8.tflite")
    path = lite_files.write(tmp_path / "a.tflite", models["stream"], "{}")
    path.write_bytes(path.read_bytes().replace(b"grw_keras.json", b"labels_txt.txt"))
    with pytest.raises(ValueError, match=r"of grw_keras\.export\. .*, without grw_keras\.json"):
        StreamSession(path)


def drop_state(model):
    outputs = model.signatureDefs[0].outputs
    model.signatureDefs[0].outputs = [o for o in outputs if o.name != b"state_last"]


def exchange_outputs(model):
    logits, state = (
        next(o for o in model.signatureDefs[0].outputs if o.name == name)
        for name in (b"logits", b"state_last")
    )
    logits.tensorIndex, state.tensorIndex = state.tensorIndex, logits.tensorIndex


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_state, "output 'state_last' must be float32 [1, 5]; export it again. Received: None"),
        (exchange_outputs, "output 'logits' must be float32 [1, 3]"),
    ],
)
def test_states_that_do_not_come_out_as_they_go_in_are_refused(files, tmp_path, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        StreamSession(edited(files, tmp_path / "a.tflite", change))


def test_an_operator_that_the_runtime_lacks_is_named_with_the_runtime(files, tmp_path):
    def to_the_future(model):
        for code in model.operatorCodes:
            code.version = 99

    path = edited(files, tmp_path / "a.tflite", to_the_future)
    with pytest.raises(RuntimeError, match=r"(?s)ai-edge-litert \d.* can't run .*a newer.*99"):
        StreamSession(path)


def test_without_a_runtime_both_packages_are_named(files, monkeypatch):
    for package in lite._RUNTIMES.values():
        monkeypatch.setitem(sys.modules, f"{package}.interpreter", None)
    with pytest.raises(ImportError, match="ai-edge-litert and tflite-runtime: pip install"):
        StreamSession(files / "tiny_stream.tflite")


def test_no_answer_before_the_first_frame_and_no_top_0(files):
    session = StreamSession(files / "tiny_stream.tflite")
    with pytest.raises(RuntimeError, match="call step first"):
        session.top()
    session.step(video(1)[0])
    with pytest.raises(ValueError, match=r"k must be at least 1\. Received: 0"):
        session.top(0)
    for fps in (0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="fps must be finite and > 0"):
            FrameClock(fps)


def test_a_session_imports_no_framework(files):
    code = f"""
import sys
from grw_keras.lite import StreamSession
frameworks = {{"tensorflow", "tf_keras", "keras", "jax"}}
assert not frameworks & set(sys.modules)
import numpy as np
StreamSession({str(files / "tiny_stream.tflite")!r}).step(np.zeros((9, 9, 3), np.uint8))
assert not frameworks & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def classify():
    """The script of tflite/raspberry_pi."""
    return script("raspberry_pi/classify.py")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return video_files.write(tmp_path_factory.mktemp("pi") / "clip.mp4", frames=45, fps=30)


def test_pi_frames_come_thinned_by_the_videos_timestamps_and_as_rgb(classify, tmp_path):
    red = [np.full((48, 64, 3), (8 * i, 0, 0), np.uint8) for i in range(24)]
    path = video_files.write(tmp_path / "red.mp4", frames=red, fps=10)
    times, pictures = zip(*classify.frames(str(path), FrameClock(2.5)), strict=True)
    np.testing.assert_allclose(times, [0.0, 0.4, 0.8, 1.2, 1.6, 2.0], atol=1e-3)
    for time, picture in zip(times, pictures, strict=True):
        np.testing.assert_allclose(picture.mean((0, 1)), [80 * time, 0, 0], atol=6)


def test_pi_headless_lines_hold_what_a_session_answers(classify, clip, files, capsys):
    model = files / "tiny_embed.tflite"
    options = ["--headless", "--top", "2", "--head-stride", "2", "--smoothing", "0.5"]
    classify.main([str(model), "--source", str(clip), *options])
    lines = capsys.readouterr().out.splitlines()
    session = StreamSession(model, head_stride=2, smoothing=0.5)
    assert len(lines) == 8
    for line, index in zip(lines, itertools.count(0, 6)):
        session.step(video_files.numbered(index))
        (label, probability), _ = session.top(2)
        found = re.fullmatch(
            r"(\d+\.\d\d) s: (\w+) (\d+\.\d)%, \w+ \d+\.\d% \(\d+\.\d ms, \d+\.\d fps\)", line
        )
        assert found, line
        assert (float(found[1]), found[2]) == (index / 30, label)
        assert float(found[3]) == pytest.approx(100 * probability, abs=0.5)


def test_a_pi_label_is_drawn_into_a_copy(classify):
    frame = np.full((120, 160, 3), 128, np.uint8)
    drawn = classify.labelled(frame, [("hugging", 0.5)], "1 ms")
    assert (frame == 128).all()
    assert (drawn[:60] != 128).any()
    assert (drawn[60:] == 128).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.tflite"], "which is no file"),
        (["MODEL", "--source", "none.mp4", "--headless"], "Received: none.mp4"),
        (["MODEL", "--head-stride", "2"], "export with split_head=True"),
        (["MODEL", "--source", "picamera2", "--headless"], "apt install python3-picamera2"),
    ],
)
def test_pi_errors_are_a_sentence(classify, files, arguments, message):
    model = str(files / "tiny_stream.tflite")
    with pytest.raises(SystemExit, match=re.escape(message)):
        classify.main([model if word == "MODEL" else word for word in arguments])


def test_a_gap_starts_the_pi_session_anew(classify, files, monkeypatch):
    frames = video(3)
    timed = list(zip((0.0, 0.2, 9.0), frames, strict=True))
    monkeypatch.setattr(classify, "frames", lambda *_: timed)
    likeliest = []

    def keep(time_s, frame, top, speed):
        likeliest.append(top[0][1])
        return True

    monkeypatch.setattr(classify, "show_line", keep)
    model = str(files / "tiny_stream.tflite")
    classify.main([model, "--headless", "--smoothing", "0"])
    expected = [*reference_stream(frames[:2]), *reference_stream(frames[2:])]
    np.testing.assert_allclose(likeliest, np.max(expected, axis=1), atol=1e-5)
