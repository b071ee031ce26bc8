"""The demo's trainings, each to be made in a process of its own, on one thread: so its numbers are
the same in every run on one machine, whatever runs beside it.

Shape letters: B clips, N frames of a clip, S pixels, D embedding width.
"""

import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# TensorFlow takes other kernels on CPUs that it holds to be newer: numbers would depend on the CPU.
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"

import numpy as np
import tensorflow as tf
import tf_keras

from grw_keras.data import airplanes
from grw_keras.evaluation import metrics
from grw_keras.export import to_tflite
from grw_keras.lite import StreamSession
from grw_keras.models.classifier import VideoClassifier
from grw_keras.training import determinism
from grw_keras.zoo import registry

SIZE = 48
SMALL = {
    "resolution": SIZE,
    "frames": airplanes.FRAMES,
    "num_classes": len(airplanes.CLASSES),
    "embed_dim": 64,
    "head_depth": 1,  # section 3: a single transformer layer
    "head_heads": 4,
}
GRW_WEIGHT = 1.0  # λ of equation 7: the larger, the smoother
CLIP_NORM = 10.0  # for GRW's first steps; at 1 the plain model learns badly, without with λ = 1
RATE = 1e-3  # chosen by how the plain model learns: at 2e-3 it does so late
BATCH = 20
TRAINED = 0.9  # share of a stream's time that is its training
BN_MOMENTUM = 0.9  # the networks' own, 0.99 and more, are for trainings of many more steps

Tell = Callable[[float, str], None]  # the share that is done, and what


@dataclasses.dataclass(frozen=True, eq=False)
class Clips:
    """Videos uint8 [B, N, S, S, 3] and labels [B]."""

    video: np.ndarray
    labels: np.ndarray

    def shown(self) -> tf.Tensor:
        """As models take them."""
        return tf.constant(self.video.astype(np.float32) / 255)


class Progress(tf_keras.callbacks.Callback):
    """Tells of each epoch."""

    def __init__(self, tell: Tell):
        super().__init__()
        self.tell = tell

    def on_epoch_end(self, epoch, logs=None):
        done, epochs = epoch + 1, self.params["epochs"]
        accuracies = f"accuracy {logs['accuracy']:4.0%} train {logs['val_accuracy']:4.0%} test"
        text = f"epoch {done}/{epochs}, loss {logs['loss']:.2f}, {accuracies}"
        self.tell(done / epochs, text)


def train(model, clips: Clips, test: Clips, epochs: int, seed: int, tell: Tell) -> list[float]:
    """Trains a model from its first weights; test accuracy after each epoch."""
    for layer in model.batch_norms():
        layer.momentum = BN_MOMENTUM
    steps = len(clips.labels) // BATCH
    rate = tf_keras.optimizers.schedules.CosineDecay(
        0.0, steps * epochs, warmup_target=RATE, warmup_steps=steps
    )
    model.compile(
        tf_keras.optimizers.Adam(rate, global_clipnorm=CLIP_NORM),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    history = model.fit(
        batches(clips, seed),
        steps_per_epoch=steps,
        epochs=epochs,
        validation_data=(test.shown(), test.labels),
        validation_batch_size=50,
        verbose=0,
        callbacks=[Progress(tell)],
    )
    return history.history["val_accuracy"]


def batches(clips: Clips, seed: int) -> tf.data.Dataset:
    """Batches without end, each clip turned by quarters, mirrored and played backwards or not: its
    class stays."""
    steps = len(clips.labels) // BATCH

    def steps_without_end():
        for step in itertools.count():
            epoch, place = divmod(step, steps)
            order = np.random.default_rng([seed, epoch]).permutation(len(clips.labels))
            chosen = order[place * BATCH : (place + 1) * BATCH]
            draws = np.random.default_rng([seed, epoch, place]).integers((4, 2, 2), size=(BATCH, 3))
            video = np.stack(
                [varied(clips.video[i], *d) for i, d in zip(chosen, draws, strict=True)]
            )
            yield video.astype(np.float32) / 255, clips.labels[chosen]

    shape = (BATCH, *clips.video.shape[1:])
    signature = (tf.TensorSpec(shape, tf.float32), tf.TensorSpec([BATCH], tf.int64))
    return tf.data.Dataset.from_generator(steps_without_end, output_signature=signature)


def varied(clip: np.ndarray, quarters: int, mirrored: int, backwards: int) -> np.ndarray:
    """A clip [N, S, S, 3] turned, mirrored, played backwards."""
    clip = np.rot90(clip, quarters, axes=(1, 2))
    clip = clip[:, :, ::-1] if mirrored else clip
    return clip[::-1] if backwards else clip


@dataclasses.dataclass(frozen=True, eq=False)
class WarmUp:
    """A warm-up model after training.

    Args:
        accuracies: on the test clips, after each epoch.
        z: embeddings of the test clips [B, N, D].
    """

    accuracies: Sequence[float]
    z: np.ndarray

    def numbers(self) -> dict[str, float]:
        moves = metrics.smoothness(self.z)
        return {
            "accuracy": round(self.accuracies[-1], 6),  # Keras gives a float32
            "acceleration_over_speed": moves.ratio,
            "variance_in_two_components": moves.variance_2d,
        }


@determinism.same_bits()
def warm_up(clips: Clips, test: Clips, epochs: int, seed: int, tell: Tell, weight: float) -> WarmUp:
    """Trains the warm-up model with GRW-smoothing of a weight, λ; 0: without."""
    determinism.one_thread()
    tf_keras.utils.set_random_seed(seed)
    name = "mobilenet_v3_small_grw" if weight else "mobilenet_v3_small_attention"
    spec = registry.get(name).replace({**SMALL, "pair_input": False, "grw_weight": weight})
    model = VideoClassifier(spec, labels=airplanes.CLASSES)
    accuracies = train(model, clips, test, epochs, seed, tell)
    z = np.concatenate([model.embeddings(part).numpy() for part in np.array_split(test.shown(), 2)])
    return WarmUp(accuracies, z)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Streamed:
    """A TFLite file over the test clips, frame by frame.

    Args:
        logits: [B, N, classes].
        keras: the model's own, of whole clips [B, classes].
        latency_ms: of each frame.
        size_bytes: of the file.
    """

    logits: np.ndarray
    keras: np.ndarray
    latency_ms: np.ndarray
    size_bytes: int

    def by_frames(self, labels: np.ndarray) -> list[tuple[int, float]]:
        """(frames seen, accuracy)."""
        right = (self.logits.argmax(-1) == labels[:, None]).mean(0)
        return [(frames, float(share)) for frames, share in enumerate(right, 1)]

    def numbers(self, labels: np.ndarray) -> dict[str, float]:
        difference = np.abs(self.logits[:, -1] - self.keras).max() / np.ptp(self.keras)
        return {
            "accuracy": self.by_frames(labels)[-1][1],
            "keras_accuracy": float((self.keras.argmax(-1) == labels).mean()),
            "largest_difference_of_range": float(difference),
            "size_bytes": self.size_bytes,
        }


@determinism.same_bits()
def stream(clips: Clips, test: Clips, epochs: int, seed: int, tell: Tell, file: Path) -> Streamed:
    """Trains movinet_a0_stream_grw, exports it, and runs the file."""
    determinism.one_thread()
    tf_keras.utils.set_random_seed(seed)
    spec = registry.get("movinet_a0_stream_grw").replace(SMALL)
    model = VideoClassifier(spec, labels=airplanes.CLASSES)
    train(model, clips, test, epochs, seed, lambda done, text: tell(TRAINED * done, text))
    tell(TRAINED, "exporting to TFLite, and comparing the file with the model")
    to_tflite(model, file, calibration=test.video[:6])
    tell((1 + TRAINED) / 2, "streaming the test clips through the file")
    session, logits, latency_ms = StreamSession(file), [], []
    for video in test.video:
        session.reset()
        for frame in video:
            start = time.perf_counter()
            session.step(frame)
            latency_ms.append(1e3 * (time.perf_counter() - start))
            logits.append(session.logits)
    return Streamed(
        logits=np.reshape(logits, (*test.video.shape[:2], -1)),
        keras=np.concatenate([model(part).numpy() for part in np.array_split(test.shown(), 2)]),
        latency_ms=np.array(latency_ms),
        size_bytes=file.stat().st_size,
    )
