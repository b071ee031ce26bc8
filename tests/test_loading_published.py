"""`load` with the authors' reference numbers and real Kinetics weights."""

import logging

import cv2
import numpy as np
import pytest
import tensorflow as tf

from grw_keras import zoo
from grw_keras.zoo import matching
from grw_keras.zoo.matching import WeightsMismatchError
from tests.hub_server import File, HubServer
from tests.lite_files import streamed
from tests.zoo_helpers import random_clips

pytestmark = pytest.mark.xdist_group("loading published")  # they share what is dear to make

K600 = "movinet_a0_stream_k600_int8.tflite"


def reference(shared, file):
    """Reference runs of a file: (clip, embeddings, logits) by (size, weights)."""
    arrays = np.load(shared / "fixtures" / file)
    runs = {}
    for key in arrays.files:
        *prefix, what = key.split("/")
        if what == "Z":
            size = prefix[:1]
            video = arrays["/".join([*size, "video_u8"])].astype(np.float32) / np.float32(255)
            runs[tuple(prefix)] = (video, arrays[key], arrays["/".join([*prefix, "logits"])])
    return {key: run for key, run in runs.items() if "first_clip_only" not in key}


def assert_reproduces(model, run):
    video, embeddings, logits = run
    z = model.embeddings(video)
    np.testing.assert_allclose(z, embeddings, atol=2e-4)
    np.testing.assert_allclose(model.classify(z), logits, atol=2e-5)
    np.testing.assert_allclose(model(video), logits, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "name", "runs", "weights"),
    [
        pytest.param("a0s", "movinet_a0_stream_grw", 3, "plain", marks=pytest.mark.exhaustive),
        ("a0s", "movinet_a0_stream_grw", 3, "ema"),
        pytest.param("a3b", "movinet_a3_grw", 2, "plain", marks=pytest.mark.exhaustive),
        pytest.param("a3b", "movinet_a3_grw", 2, "ema", marks=pytest.mark.exhaustive),
    ],
)
def test_the_authors_numbers_are_reproduced(shared, file, name, runs, weights):
    model = zoo.load(name, shared / "fixtures" / f"{file}_grw.pt", ema=weights == "ema")
    wanted = {k: r for k, r in reference(shared, f"{file}_io.npz").items() if k[-1] == weights}
    assert len(wanted) == runs
    for run in wanted.values():
        assert_reproduces(model, run)


@pytest.fixture(scope="module")
def tiny(shared):
    return zoo.load("movinet_a0_stream_grw", shared / "fixtures" / "tiny_ok.pt")


@pytest.mark.slow
def test_a_small_head_is_read_from_the_file(shared, tiny):
    assert (tiny.spec.embed_dim, tiny.spec.head_depth, tiny.spec.num_classes) == (16, 1, 5)
    assert tiny.spec.gating_activation == "hard_sigmoid_keras2"
    (run,) = reference(shared, "tiny_ok_io.npz").values()
    assert_reproduces(tiny, run)
    video = run[0]
    session = tiny.to_streaming(video.shape[2])
    for frame in video[0]:
        probabilities = session.step(frame)
    np.testing.assert_allclose(probabilities, tf.nn.softmax(run[2][0]), atol=2e-5)


@pytest.mark.slow
def test_files_that_do_not_fit_are_reported_and_leave_the_model_as_it_was(shared, tiny):
    before = {name: v.numpy() for name, v in tiny.named_weights().items()}
    fixtures = shared / "fixtures"
    lost = "backbone/block2_layer0/feature/bn_temporal/moving_variance"
    for file, missing, wrong in (
        ("missing_tensor.pt", (lost,), {}),
        ("wrong_shape.pt", (), {"logits/kernel": ((16, 5), (5, 16))}),
    ):
        imported = zoo.read_weights(fixtures / file)
        with pytest.raises(WeightsMismatchError, match="nothing was loaded") as raised:
            matching.fit(tiny, imported)
        report = raised.value.report
        assert (report.missing, dict(report.wrong_shape), report.unexpected) == (missing, wrong, ())
        skipped = matching.fit(tiny, imported, skip=[*missing, *wrong])
        assert set(skipped.left_new) == {*missing, *wrong}
    for name, variable in tiny.named_weights().items():
        np.testing.assert_array_equal(variable, before[name])


@pytest.mark.slow
def test_the_hub_serves_the_default_weights(shared, tmp_path, monkeypatch):
    """The hub's file is the tiny one, so that the model is built around what arrived."""
    monkeypatch.setenv("GRW_KERAS_CACHE", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    body = (shared / "fixtures" / "tiny_ok.pt").read_bytes()
    with HubServer() as hub:
        path = "/DrGil/grw-smoothing-movinet/resolve/main/a0s_grw.pt"
        hub.files[path] = File(body, linked=True)
        monkeypatch.setenv("HF_ENDPOINT", hub.url())
        model = zoo.load("movinet_a0_stream_grw")
    assert model.spec.embed_dim == 16
    again = zoo.load("movinet_a0_stream_grw")  # from the cache: the hub is gone
    clips = random_clips(1, 5)
    np.testing.assert_array_equal(again(clips), model(clips))


def frames_of(path, fps=5.0, size=172):
    """A video's frames at `fps`, [n, size, size, 3] uint8; the gif's own 25 where it says none."""
    video = cv2.VideoCapture(str(path))
    step = (video.get(cv2.CAP_PROP_FPS) or 25.0) / fps
    frames, index = [], 0
    while (image := video.read()[1]) is not None:
        if index >= len(frames) * step:
            image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
            frames.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        index += 1
    return np.stack(frames)


@pytest.mark.slow
def test_real_kinetics_weights_stream_and_answer_right(shared):
    path = shared / "weights" / K600
    labels = (shared / "weights" / "kinetics600_labels.txt").read_text().splitlines()
    model = zoo.load("movinet_a0_stream", path)
    assert model.spec.name == "movinet_a0_stream_relu6"
    session = model.to_streaming()
    for clip, answer, least in (
        ("arm_wrestling.mp4", "arm wrestling", 0.9),
        ("playing_cricket.gif", "cricket", 0.0),
    ):
        frames = frames_of(shared / "videos" / "clips" / clip)
        session.reset()
        for frame in frames:
            probabilities = session.step(frame)
        best = int(np.argmax(probabilities))
        assert answer in labels[best]
        assert probabilities[best] > least
        assert best == int(np.argmax(streamed(path, frames.astype(np.float32) / 255)[-1]))


@pytest.mark.slow
def test_plain_weights_fill_the_backbone_of_a_smoothed_model(shared, caplog):
    caplog.set_level(logging.WARNING, "grw_keras")
    path = shared / "weights" / K600
    model = zoo.load("movinet_a0_stream_grw", path, num_classes=6)
    said = [record.getMessage() for record in caplog.records]
    assert any("movinet_a0_stream_grw became movinet_a0_stream_relu6_grw" in s for s in said)
    assert any("new, to be trained: affine, logits, norm, transformer" in s for s in said)
    assert model.spec.name == "movinet_a0_stream_relu6_grw"
    assert (model.spec.num_classes, model.spec.activation) == (6, "relu6")
    file = zoo.read_weights(path).tensors
    weights = model.named_weights()
    backbone = [name for name in weights if name.startswith("backbone/")]
    assert len(backbone) == 325
    for name in backbone:
        np.testing.assert_array_equal(weights[name], file[name])
    # Folded batch norms stay as they are while the rest learns.
    assert model.spec.frozen_batch_norm
    model.compile_for_training(run_eagerly=True)
    model.train_on_batch(random_clips(2, 5), tf.range(2))
    for name in backbone:
        frozen = "/bn" in name
        assert np.array_equal(weights[name], file[name]) == frozen, name


@pytest.mark.slow
def test_reestimated_batch_norms_answer_the_same_and_train(shared):
    model = zoo.load("movinet_a0_stream", shared / "weights" / K600)
    frames = frames_of(shared / "videos" / "clips" / "arm_wrestling.mp4", size=64)
    clips = tf.constant(frames[None, :8], tf.float32) / 255
    before = model(clips)
    inference = tf.nn.softmax(before)
    zoo.reestimate_batch_norm(model, [clips])
    np.testing.assert_allclose(model(clips), before, atol=1e-3)
    assert not model.spec.frozen_batch_norm
    # With the batch's own statistics, which are now those measured, it still answers the same.
    np.testing.assert_allclose(tf.nn.softmax(model(clips, training=True)), inference, atol=0.02)
    with pytest.raises(ValueError, match="at least one batch"):
        zoo.reestimate_batch_norm(model, [])
