"""The README's code runs as it stands."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import grw_keras

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def clips(size: int):
    video = np.random.default_rng(0).random((2, 5, size, size, 3)).astype(np.float32)
    return tf.data.Dataset.from_tensor_slices((video, [1, 2])).batch(2)


@pytest.mark.slow
def test_the_layer_in_a_models_own_code():
    names: dict = {}
    exec(BLOCKS[0], names)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    names["model"].compile("sgd", loss)
    assert np.isfinite(names["model"].fit(clips(96), verbose=0).history["grw_ordering"]).all()


def test_the_keras_3_layer():
    names: dict = {"z": keras.Input((None, 8))}
    exec(BLOCKS[2], names)
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
    exec(BLOCKS[3], names)
    assert names["loss"].shape == ()


@pytest.mark.slow
def test_attach_to_the_official_classifier(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"clips": clips(32)}
    exec(BLOCKS[1], names)
    assert np.isfinite(names["model"].history.history["grw_ordering"]).all()
    assert (tmp_path / "movinet.weights.h5").stat().st_size > 1e6
