"""What a model says of one video: of its centre clip, and as the video goes on."""

import itertools
import os

import numpy as np
import tensorflow as tf

from grw_keras.data.pipeline import to_unit_range
from grw_keras.data.sampling import clip_indices, grid_size
from grw_keras.data.transforms import evaluation_clip
from grw_keras.data.video import probe, read_frames
from grw_keras.models.classifier import VideoClassifier

# Frames decoded at once, so that long videos take little memory.
CHUNK_FRAMES = 64
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
    times_s = np.arange(count) / spec.fps
    for start in range(0, count, CHUNK_FRAMES):
        video = read_frames(path, times_s[start : start + CHUNK_FRAMES], spec.resize)
        for frame in evaluation_clip(video, spec.resolution):
            answers.append(session.step(frame))
    return times_s, np.stack(answers)


def _clips(model: VideoClassifier, path, count: int) -> tuple[np.ndarray, np.ndarray]:
    spec, answers = model.spec, []
    stride = max(1, round(STRIDE_S * spec.fps))
    ends = np.unique(np.append(np.arange(stride - 1, count, stride), count - 1))
    last = np.empty([0, spec.resize, spec.resize, 3], np.uint8)
    for before, end in itertools.pairwise([-1, *ends]):
        new = read_frames(path, np.arange(before + 1, end + 1) / spec.fps, spec.resize)
        last = np.concatenate([last, new])[-spec.frames :]
        frames, _ = clip_indices(len(last), spec.frames)
        logits = model(to_unit_range(evaluation_clip(last[frames], spec.resolution))[None])
        answers.append(tf.nn.softmax(logits[0]).numpy())
    return ends / spec.fps, np.stack(answers)
