"""Tiny TFLite files after the contract of tflite/README.md, made without `grw_keras.export`."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

CROP, RESIZE, CLASSES, WINDOW, WIDTH = 8, 10, 3, 4, 5
LABELS = ["hugging", "kicking", "pushing"]
_RNG = np.random.default_rng(5)
KERNEL = _RNG.normal(size=(3, 3, 3, WIDTH)).astype(np.float32)
MATRIX = _RNG.normal(size=(2 * WIDTH, CLASSES)).astype(np.float32)
HEAD = _RNG.normal(size=(WINDOW * WIDTH, CLASSES)).astype(np.float32)
IMAGE = tf.TensorSpec([1, 1, CROP, CROP, 3], tf.float32, "image")
STATES = {
    name: tf.TensorSpec([1, WIDTH], tf.float32, name) for name in ("state_last", "state_older")
}


def description(kind: str, /, **changes) -> dict:
    split = kind in ("embed", "classify")
    return {
        "format_version": 1,
        "kind": kind,
        "name": "tiny",
        "grw_keras": "0.1.0",
        "quantization": None,
        "fps": 5.0,
        "resize_px": RESIZE,
        "crop_px": CROP,
        "value_range": [0.0, 1.0],
        "num_classes": CLASSES,
        "labels": LABELS,
        "head": "bidirectional" if split else "classifier",
        "window_frames": WINDOW if split else None,
        "embed_dim": WIDTH if split else None,
        "classify_file": "tiny_classify.tflite" if kind == "embed" else None,
        "frames": None,
        **changes,
    }


def write(path: Path, model: bytes, about: dict | str | None) -> Path:
    """Writes a model with the description appended; None: without any zip."""
    archive = io.BytesIO()
    if about is not None:
        with zipfile.ZipFile(archive, "w") as writer:
            text = about if isinstance(about, str) else json.dumps(about)
            writer.writestr("grw_keras.json", text)
    path.write_bytes(model + archive.getvalue())
    return path


def features(image):
    """[1, D] of a frame."""
    return tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(image[0], KERNEL, 2, "SAME")), [1, 2])


def stream(image, state_last, state_older):
    """Logits of this frame and both states.

    One comes out as the other went in, and in its memory: fed back one by one, they would mix.
    """
    now = features(image)
    logits = tf.matmul(tf.concat([now + 0.5 * state_older, state_last], 1), MATRIX)
    return {"logits": logits, "state_last": state_older + now, "state_older": state_last}


def embed(image, state_last, state_older):
    """The frame's features and a part of those before."""
    z = features(image) + 0.5 * state_last - 0.25 * state_older
    return {"embedding": z, "state_last": z, "state_older": state_last}


def classify(window, frame_count):
    """Weights depend on the place in the window, so a shift in it shows."""
    logits = tf.matmul(tf.reshape(window, [1, -1]), HEAD) / tf.reshape(frame_count, [1, 1])
    return {"logits": logits}


def converted(function, **inputs: tf.TensorSpec) -> bytes:
    """A TFLite model with the one signature of the contract."""
    module = tf.Module()
    module.call = tf.function(function)
    concrete = module.call.get_concrete_function(**inputs)
    return tf.lite.TFLiteConverter.from_concrete_functions([concrete], module).convert()


def models() -> dict[str, bytes]:
    """The models of all kinds of files that a session opens."""
    return {
        "stream": converted(stream, image=IMAGE, **STATES),
        "embed": converted(embed, image=IMAGE, **STATES),
        "classify": converted(
            classify,
            window=tf.TensorSpec([1, WINDOW, WIDTH], tf.float32, "window"),
            frame_count=tf.TensorSpec([1], tf.float32, "frame_count"),
        ),
    }


def streamed(path, frames) -> np.ndarray:
    """Logits [n, K] after each of the frames [n, S, S, 3], float, of any streaming file, by LiteRT
    alone: states start at zero and are fed back by name."""
    run = Interpreter(str(path)).get_signature_runner()
    states = {
        name: np.zeros(detail["shape"], detail["dtype"])
        for name, detail in run.get_input_details().items()
        if name != "image"
    }
    logits = []
    for frame in frames:
        states = run(image=frame[None, None], **states)
        logits.append(states.pop("logits")[0])
    return np.array(logits)


def video(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 12, 17, 3), np.uint8)


def prepared(frame, resize_px: int, crop_px: int) -> tf.Tensor:
    """A frame as a session prepares it, by TensorFlow's own resizing, as training resizes."""
    pixels = tf.constant(frame, tf.float32) / (255.0 if frame.dtype == np.uint8 else 1.0)
    if frame.shape[:2] != (crop_px, crop_px):
        pixels = tf.image.resize(pixels, [resize_px, resize_px], antialias=True)
        pixels = tf.image.resize_with_crop_or_pad(pixels, crop_px, crop_px)
    return pixels[None, None]


def images(frames):
    return [prepared(frame, RESIZE, CROP) for frame in frames]


def reference_stream(frames) -> np.ndarray:
    """Probabilities of the tiny stream model, in TensorFlow."""
    states = {name: tf.zeros(spec.shape) for name, spec in STATES.items()}
    answers = []
    for image in images(frames):
        states = stream(image, **states)
        answers.append(tf.nn.softmax(states.pop("logits")[0]).numpy())
    return np.array(answers)
