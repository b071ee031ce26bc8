"""`load` with the authors' reference numbers, real weights, and weights that don't fit."""

import logging
import shutil
import types

import cv2
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from ai_edge_litert.interpreter import Interpreter

from grw_keras import zoo
from grw_keras.zoo import loading, matching
from grw_keras.zoo.matching import WeightsMismatchError
from tests.hub_server import File, HubServer
from tests.zoo_helpers import random_clips, randomize

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
        ("a3b", "movinet_a3_grw", 2, "ema"),
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


def tflite_logits(path, frames):
    """The file's own answer after the last frame, states fed back by name."""
    interpreter = Interpreter(str(path))
    runner = interpreter.get_signature_runner()
    states = {
        name: np.zeros(detail["shape"], detail["dtype"])
        for name, detail in runner.get_input_details().items()
    }
    for frame in frames:
        states["image"] = frame[None, None].astype(np.float32) / 255
        states = runner(**states)
        logits = states.pop("logits")
    return logits[0]


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
        assert best == int(np.argmax(tflite_logits(path, frames)))


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


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small trained model's folder, of four classes."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    model = randomize(zoo.load("mobilenet_v3_small_grw", None, num_classes=4, embed_dim=32))
    model.labels = ("a", "b", "c", "d")
    model.save_pretrained(folder)
    return folder


def test_another_number_of_classes_replaces_the_last_layer_alone(saved):
    model, other = zoo.load(saved), zoo.load(str(saved), num_classes=7)
    assert other.spec.num_classes == 7
    assert other.labels is None
    assert other.spec == model.spec.replace({"num_classes": 7})
    for name, variable in other.named_weights().items():
        if not name.startswith("logits/"):
            np.testing.assert_array_equal(variable, model.named_weights()[name])


def test_rgb_weights_start_the_six_channel_stem():
    rgb = randomize(zoo.load("mobilenet_v3_small", None))
    imported = zoo.Imported(
        tensors={name: v.numpy() for name, v in rgb.named_weights().items()},
        spec=rgb.spec.to_dict(),
    )
    pairs = zoo.load("mobilenet_v3_small_attention", None)
    matching.fit(pairs, imported)
    still = tf.repeat(random_clips(1, 1), 4, axis=1)
    # A still clip pairs each frame with itself; the RGB model's features are before its top.
    features = pairs.backbone(still)["features"]
    last = rgb.backbone.cnn.get_layer("Conv_1/BatchNorm").output
    normed = tf_keras.Model(rgb.backbone.cnn.inputs, last)(still[0] * 2 - 1)
    activated = normed * tf.nn.relu6(normed + 3) / 6
    np.testing.assert_allclose(features[0], tf.reduce_mean(activated, [1, 2]), atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("movinet_a0_stream_gwr",), {}, ValueError, "movinet_a0_stream_grw"),
        (("no/such/folder",), {}, FileNotFoundError, "no/such/folder"),
        (("movinet_a0_stream_grw", "no/such/file.pt"), {}, FileNotFoundError, "file.pt"),
        (("movinet_a0_stream_grw", "k700"), {}, ValueError, "k600"),
        (("movinet_a0_stream_intermediate",), {}, ValueError, "weights=None"),
        (("movinet_a0_stream_attention",), {}, ValueError, "movinet_a0_stream"),
        (("mobilenet_v3_small_grw",), {}, ValueError, "weights=None"),
        (("mobilenet_v3_small", None), {"windw": 3}, TypeError, "Did you mean 'window'"),
        (("mobilenet_v3_small", None), {"num_classes": 0}, ValueError, "num_classes"),
    ],
)
def test_what_cannot_be_loaded_says_why(arguments, options, error, message):
    with pytest.raises(error, match=message):
        zoo.load(*arguments, **options)


def test_a_file_in_place_of_a_name_is_told_what_to_be(saved):
    with pytest.raises(ValueError, match=r"load\(NAME, weights=FILE\)"):
        zoo.load(str(saved / "model.safetensors"))


def test_weights_of_another_model_are_refused(saved):
    with pytest.raises(ValueError, match="of another model than movinet_a0_stream"):
        zoo.load("movinet_a0_stream", saved)


def test_a_choice_against_the_weights_is_refused(saved):
    with pytest.raises(ValueError, match="fix `embed_dim`=32"):
        zoo.load("mobilenet_v3_small_grw", saved, embed_dim=64)
    assert zoo.load("mobilenet_v3_small_grw", saved, window=4).spec.window == 4


def test_what_files_only_assume_yields_to_a_choice(saved):
    imported = zoo.read_weights(saved)
    assumed = zoo.Imported(
        tensors=imported.tensors,
        spec={**imported.spec, "activation": "relu6"},
        assumed=("activation",),
    )
    spec = zoo.load(saved).spec
    assert matching.resolve(spec, assumed, None).activation == "relu6"
    assert matching.resolve(spec, assumed, None, ["activation"]).activation == "hard_swish"


def test_a_choice_is_held_against_what_the_manifest_says_of_published_weights(monkeypatch):
    found = zoo.Imported(
        tensors={}, spec={"activation": "relu6"}, assumed=("activation", "classifier_activation")
    )
    monkeypatch.setattr(loading, "read_weights", lambda path, ema: found)
    monkeypatch.setattr(loading.download, "fetch", lambda entry: types.SimpleNamespace(path="p"))
    entry = types.SimpleNamespace(spec={"activation": "swish"})
    monkeypatch.setattr(loading.manifest, "find", lambda name, dataset: entry)
    published = loading._weights("movinet_a0_stream", "k600", None)
    assert published.spec == {"activation": "swish"}
    assert published.assumed == ("classifier_activation",)


def test_weights_that_are_not_numbers_are_refused(saved):
    imported = zoo.read_weights(saved)
    imported.tensors["logits/bias"][1] = np.nan
    with pytest.raises(ValueError, match="logits/bias"):
        matching.fit(zoo.load(saved), imported)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("spec.json", lambda text: text.replace(b'"format_version": 1', b'"format_version": 2'),
         "update grw_keras"),
        ("spec.json", lambda text: text[:40], "no spec of this project"),
        ("spec.json", lambda text: b"[1]", "no spec of this project"),
        ("spec.json", lambda text: text.replace(b'"window"', b'"windw"'), "Did you mean"),
        ("model.safetensors", lambda text: text[:1000], "damaged or cut off"),
    ],
)  # fmt: skip
def test_damaged_and_newer_folders_are_refused(saved, tmp_path, file, change, message):
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    (folder / file).write_bytes(change((folder / file).read_bytes()))
    with pytest.raises(ValueError, match=message):
        zoo.load(folder)


def test_a_folder_without_weights_names_what_is_missing(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"without model\.safetensors"):
        zoo.load(tmp_path / "model")


def test_saving_over_a_file_is_refused(saved):
    with pytest.raises(NotADirectoryError, match=r"spec\.json"):
        zoo.load(saved).save_pretrained(saved / "spec.json")


def test_a_folder_holds_what_other_programs_need(saved):
    names = sorted(path.name for path in saved.iterdir())
    assert names == ["README.md", "labels.txt", "model.safetensors", "spec.json"]
    assert (saved / "labels.txt").read_text() == "a\nb\nc\nd\n"
    assert "mobilenet_v3_small_grw" in (saved / "README.md").read_text()


def test_what_to_skip_must_be_there(saved):
    imported = zoo.read_weights(saved)
    model = zoo.load(saved)
    with pytest.raises(TypeError, match="a sequence of patterns"):
        matching.fit(model, imported, skip="logits/*")
    with pytest.raises(ValueError, match=r"logts/\*"):
        matching.fit(model, imported, skip=["logts/*"])


def test_a_folder_takes_other_weights_when_asked(saved):
    new, own = zoo.load(saved, None), zoo.load(saved)
    name = "transformer/layer0/mlp_hidden/kernel"
    assert np.any(new.named_weights()[name] != own.named_weights()[name])
    with pytest.raises(FileNotFoundError, match=r"other\.pt"):
        zoo.load(saved, "no/other.pt")


def test_folders_named_like_weights_are_in_nobodys_way(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRW_KERAS_OFFLINE", "1")
    monkeypatch.setenv("GRW_KERAS_CACHE", str(tmp_path / "cache"))
    for name in ("k600", "movinet_a0_stream_grw"):
        shutil.copytree(saved, tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"a0s_grw\.pt"):
        zoo.load("movinet_a0_stream_grw")
    with pytest.raises(ValueError, match="k600"):
        zoo.load("movinet_a0_stream_grw", "")


def test_loaded_batch_norms_can_be_frozen(saved):
    assert zoo.load(saved, frozen_batch_norm=True).spec.frozen_batch_norm


def test_weights_with_shifts_are_not_taken_for_plain_ones(caplog):
    model = zoo.load("mobilenet_v3_small_tsm", None, num_classes=4)
    imported = zoo.Imported(
        tensors={name: v.numpy() for name, v in model.named_weights().items()},
        spec=model.spec.to_dict(),
    )
    plain = zoo.load("mobilenet_v3_small", None, num_classes=4).spec
    matching.resolve(plain, imported, None)
    assert any("temporal_shift" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("labels", ["abcd", ["a", "b\nc", "d", "e"], ["a", "b"]])
def test_labels_that_are_none_are_refused(saved, labels):
    with pytest.raises(ValueError, match="`labels`"):
        zoo.load(saved).labels = labels


@pytest.mark.parametrize("resolution", [0, -1, 8.5])
def test_resolutions_that_are_none_are_refused(saved, resolution):
    with pytest.raises(ValueError, match="`resolution`"):
        zoo.load(saved).to_streaming(resolution)


@pytest.mark.parametrize("lost", ["backbone", "head"])
def test_half_a_model_is_not_converted(saved, lost):
    spec = {key: v for key, v in zoo.load(saved).spec.to_dict().items() if key != lost}
    with pytest.raises(ValueError, match=f"holds no {lost}"):
        loading.spec_of(zoo.Imported(tensors={}, spec=spec))


def test_weights_that_no_place_gives_are_told_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("GRW_KERAS_CACHE", str(tmp_path))
    monkeypatch.setenv("GRW_KERAS_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"(?s)not tried, offline.*weights=None"):
        zoo.load("movinet_a0_stream_grw")


def test_a_folder_of_a_similar_name_is_suggested(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileNotFoundError, match=r"Did you mean '.*/mine'\?"):
        zoo.load(f"{tmp_path}/min")


def test_parts_that_were_loaded_in_part_are_told_by_their_number():
    new = ["transformer/layer0/bias", "transformer/layer1/bias", "logits/kernel"]
    loaded = ["transformer/layer0/kernel", "affine/kernel"]
    assert matching._parts(new, loaded) == ["logits", "2 tensors of transformer"]
