"""The README's code runs as it stands."""

import ast
import itertools
import re
import shlex
import tarfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import grw_keras
from grw_keras import cli, zoo
from tests import video_files
from tests.hub_server import File, HubServer
from tests.zoo_helpers import random_clips, randomize

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def block(marker: str) -> str:
    """The one block of code that holds `marker`."""
    (found,) = [code for code in BLOCKS if marker in code]
    return found


def clips(size: int):
    video = np.random.default_rng(0).random((2, 5, size, size, 3)).astype(np.float32)
    return tf.data.Dataset.from_tensor_slices((video, [1, 2])).batch(2)


@pytest.mark.slow
def test_the_layer_in_a_models_own_code():
    names: dict = {}
    exec(block("TimeDistributed"), names)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    names["model"].compile("sgd", loss)
    assert np.isfinite(names["model"].fit(clips(96), verbose=0).history["grw_ordering"]).all()


def test_the_keras_3_layer():
    names: dict = {"z": keras.Input((None, 8))}
    exec(block("grw_keras.keras3"), names)
    assert names["z"].shape == (None, None, 8)


def test_the_loss_in_a_loop():
    video, labels = next(iter(clips(8)))
    names = {
        "tf": tf,
        "grw_keras": grw_keras,
        "video": video,
        "labels": labels,
        "encoder": lambda video, training: tf.reduce_mean(video, [2, 3]),
        "head": lambda z: tf.reduce_mean(z, 1),
        "cross_entropy": tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    }
    exec(block("GradientTape"), names)
    assert names["loss"].shape == ()


@pytest.mark.slow
def test_attach_to_the_official_classifier(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"clips": clips(32)}
    exec(block("grw_keras.attach"), names)
    assert np.isfinite(names["model"].history.history["grw_ordering"]).all()
    assert (tmp_path / "movinet.weights.h5").stat().st_size > 1e6


@pytest.mark.slow
def test_the_zoo_from_download_to_stream(shared, tmp_path, monkeypatch, capsys):
    """The hub serves the tiny snapshot in place of the authors' file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRW_KERAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    body = (shared / "fixtures" / "tiny_ok.pt").read_bytes()
    frames = np.random.default_rng(1).integers(0, 256, (2, 90, 120, 3), np.uint8)
    names = {"clips": clips(32), "test_clips": clips(32), "camera": frames}
    with HubServer() as hub:
        path = "/DrGil/grw-smoothing-movinet/resolve/main/a0s_grw.pt"
        hub.files[path] = File(body, linked=True)
        monkeypatch.setenv("HF_ENDPOINT", hub.url())
        exec(block("to_streaming"), names)
    assert "movinet_a3_grw" in capsys.readouterr().out
    assert (tmp_path / "my_model" / "model.safetensors").stat().st_size > 1e6
    assert names["probabilities"].shape == (6,)


@pytest.mark.slow
def test_training_from_python(tmp_path, monkeypatch, capsys):
    """On short videos of six classes, for one epoch, with a small model."""
    monkeypatch.chdir(tmp_path)
    for label in "abcdef":
        (tmp_path / "my_videos" / label).mkdir(parents=True)
        for number in range(3):
            video_files.write(tmp_path / "my_videos" / label / f"{number}.mp4", frames=20)
    code = block("data.open_data").replace("epochs=20", "epochs=1")
    code = code.replace('"movinet_a0_stream_grw"', '"mobilenet_v3_small_grw", None, resolution=32')
    names: dict = {}
    exec(code, names)
    loss, *_ = ast.literal_eval(capsys.readouterr().out.splitlines()[-1])
    assert np.isfinite(loss)
    assert names["model"].labels == tuple("abcdef")
    assert names["steps"] == 3


@pytest.mark.slow
def test_export_and_stream(tmp_path, monkeypatch, capsys):
    """With a small model of random weights, on noise."""
    monkeypatch.chdir(tmp_path)
    spec = {"resolution": 32, "num_classes": 6}
    model = randomize(zoo.load("movinet_a0_stream", None, compile=False, **spec))
    model.labels = tuple("abcdef")
    camera = np.random.default_rng(1).integers(0, 256, (3, 90, 120, 3), np.uint8)
    clips = random_clips(2, 8)
    right = model(clips[:1]).numpy().argmax()
    test_clips = tf.data.Dataset.from_tensors((clips, [right, right]))
    names = {"model": model, "clips": clips, "camera": camera, "test_clips": test_clips}
    exec(block("export.to_tflite"), names)
    assert names["probabilities"].shape == (6,)
    *lines, accuracy = capsys.readouterr().out.splitlines()
    assert float(accuracy) >= 0.5
    printed = [ast.literal_eval(line) for line in lines]
    assert [len(top) for top in printed] == [3, 3, 3]
    assert {label for top in printed for label, _ in top} <= set("abcdef")
    assert (tmp_path / "a0s_sensitivity.csv").is_file()


QUICK = {
    "movinet_a0_stream_grw": "mobilenet_v3_small_grw",
    "movinet_a0_stream_relu6": "none",
    "int8": "dynamic",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "instead", [QUICK, pytest.param({}, marks=pytest.mark.exhaustive)], ids=["quick", "literal"]
)
def test_the_commands(instead, shared, tmp_path, monkeypatch, capsys):
    """All but the one that needs Kinetics; small frames, and one epoch instead of 15 or 20; at
    first with a model that is soon built and exported. A mirror has Kaggle's archive."""
    monkeypatch.chdir(tmp_path)
    for label in ("hop", "wave"):
        (tmp_path / "my_videos" / label).mkdir(parents=True)
        for number in range(5):
            video_files.write(tmp_path / "my_videos" / label / f"{number}.mp4", frames=20)
    video_files.write(tmp_path / "clip.mp4", frames=20)
    (tmp_path / "mirror").mkdir()
    archive = "a0-stream-kinetics-600-classification-tflite-int8-1.tar.gz"
    with tarfile.open(tmp_path / "mirror" / archive, "w:gz") as mirrored:
        mirrored.add(shared / "weights" / "movinet_a0_stream_k600_int8.tflite", "1.tflite")
    monkeypatch.setenv("GRW_KERAS_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("GRW_KERAS_CACHE", str(tmp_path / "cache"))
    small = ["model.spec.resolution=32", "model.spec.resize=36"]
    done, training = [], []
    for line in commands():
        arguments = [
            "1" if before == "--epochs" else instead.get(word, word)
            for before, word in itertools.pairwise(line)
        ]
        if arguments[:2] == ["train", "…"]:
            arguments = [*training, *arguments[2:]]
        if "/data/k600" in arguments:
            assert (Path(__file__).parents[1] / arguments[1]).is_file()
            continue
        if arguments[0] == "train":
            training = [*arguments, *(["--set", *small] if "--resume" not in arguments else [])]
            arguments = training
        assert cli.main(arguments) == 0, arguments
        done.append(arguments[0])
    assert done == ["train", "train", "evaluate", "predict", "export", "benchmark", "train"]
    assert "test top-1" in capsys.readouterr().err
    made = ["mine/report.html", "labelled.mp4", "mine_causal/model", "../out/mine.tflite"]
    assert all((tmp_path / "runs" / name).exists() for name in made)
    if not instead:
        name = zoo.load("runs/mine/model", compile=False).spec.name
        assert f"`{name}`" in README.partition("runs/mine\n")[2]


def commands() -> list[list[str]]:
    """The words of all `grw-keras` commands of blocks, in order."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", "").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if line and line[0] == "grw-keras"]
