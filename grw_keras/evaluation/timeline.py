"""What a model says of one video: of its centre clip, and as the video goes on."""

import os
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from grw_keras.data.pipeline import to_unit_range
from grw_keras.data.sampling import clip_indices, grid_size
from grw_keras.data.transforms import evaluation_clip
from grw_keras.data.video import probe, read_frames
from grw_keras.models.classifier import VideoClassifier
from grw_keras.models.spec import ModelSpec

# Frames decoded at once. Some formats can't be sought in: there each chunk decodes all that lies
# before it, so few and long ones; at 256 px one takes 100 MB.
CHUNK_FRAMES = 512
# Seconds between two clips of a model that can't stream.
STRIDE_S = 1.0


def classify_video(
    model: VideoClassifier, path: str | os.PathLike, *, short: str = "loop"
) -> np.ndarray:
    """Probabilities [classes], float32, of a video's centre clip.

    Args:
        model: of the zoo.
        path: of the video.
        short: what fills the clip of a video too short, `"loop"` or `"pad"`.

    Raises:
        BadVideoError: it can't be decoded.
    """
    spec = model.spec
    available = grid_size(probe(path).duration_s, spec.fps)
    frames, mask = clip_indices(available, spec.frames, short=short)
    wanted, where = np.unique(frames, return_inverse=True)
    video = read_frames(path, wanted / spec.fps, spec.resize)[where]
    clip = to_unit_range(evaluation_clip(video, spec.resolution))[None]
    logits = model(clip, mask=None if mask.all() else tf.constant(mask[None]))
    return tf.nn.softmax(logits[0]).numpy()


def probabilities_over_time(
    model: VideoClassifier, path: str | os.PathLike
) -> tuple[np.ndarray, np.ndarray]:
    """A model's answers while a video goes on.

    A model that can stream answers after every frame of the grid, `fps` a second; others, every
    second, by the clip of `frames` that ends then (that begins again where the video is young).

    Args:
        model: of the zoo.
        path: of the video.

    Returns:
        Times of the answers since the video's first frame, seconds [n], and probabilities
        [n, classes], float32.

    Raises:
        BadVideoError: it can't be decoded.
    """
    count = grid_size(probe(path).duration_s, model.spec.fps)
    if model.spec.streaming:
        return _stream(model, path, count)
    return _clips(model, path, count)


def _stream(model: VideoClassifier, path, count: int) -> tuple[np.ndarray, np.ndarray]:
    spec, session, answers = model.spec, model.to_streaming(), []
    for frames in _chunks(path, spec, count):
        answers += [session.step(frame) for frame in frames]
    return np.arange(count) / spec.fps, np.stack(answers)


def _clips(model: VideoClassifier, path, count: int) -> tuple[np.ndarray, np.ndarray]:
    spec, answers = model.spec, []
    stride = max(1, round(STRIDE_S * spec.fps))
    ends = np.unique(np.append(np.arange(stride - 1, count, stride), count - 1))
    held = np.empty([0, spec.resolution, spec.resolution, 3], np.uint8)
    done = 0
    for new in _chunks(path, spec, count):
        held = np.concatenate([held[-spec.frames :], new])
        before, done = done, done + len(new)
        for end in ends[(ends >= before) & (ends < done)]:
            last = held[: len(held) - (done - 1 - end)][-spec.frames :]
            frames, _ = clip_indices(len(last), spec.frames)
            logits = model(to_unit_range(last[frames])[None])
            answers.append(tf.nn.softmax(logits[0]).numpy())
    return ends / spec.fps, np.stack(answers)


def _chunks(path, spec: ModelSpec, count: int) -> Iterator[np.ndarray]:
    """The grid's frames, cut as the model sees them, `CHUNK_FRAMES` at a time."""
    times_s = np.arange(count) / spec.fps
    for start in range(0, count, CHUNK_FRAMES):
        frames = read_frames(path, times_s[start : start + CHUNK_FRAMES], spec.resize)
        yield evaluation_clip(frames, spec.resolution)
