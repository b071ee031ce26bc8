"""Giving folded batch norms statistics again, so that they can be trained."""

import contextlib
from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from grw_keras.models.classifier import VideoClassifier, check_clip


def reestimate_batch_norm(model: VideoClassifier, clips: Iterable) -> None:
    """Measures what enters each batch norm, and sets statistics, scale and shift by it.

    The model answers as before; but its batch norms, which in weights from a TFLite file are only
    biases, are real ones afterwards and no longer frozen. Compile the model again.

    Args:
        model: with frozen batch norms or not.
        clips: batches [B, N, H, W, 3], pixels in [0, 1], or pairs of one and labels, as `fit`
            takes them; a few hundred frames are enough.

    Raises:
        ValueError: no clips.
    """
    layers = model.batch_norms()
    moments = [_Moments() for _ in layers]
    with contextlib.ExitStack() as stack:
        for layer, its_moments in zip(layers, moments, strict=True):
            stack.enter_context(_watched(layer, its_moments))
        for batch in clips:
            video = tf.convert_to_tensor(batch[0] if isinstance(batch, tuple) else batch)
            check_clip(video)
            model(video, training=False)
    if not any(each.count for each in moments):
        raise ValueError("`clips` must hold at least one batch. Received: none")
    for layer, its_moments in zip(layers, moments, strict=True):
        mean, variance = its_moments.mean_and_variance()
        _restate(layer, mean, variance)
    model.set_batch_norm_frozen(False)


class _Moments:
    """Sums over all but the last axis, in float64."""

    def __init__(self):
        self.count, self.total, self.squares = 0, 0.0, 0.0

    def add(self, inputs) -> None:
        values = np.asarray(inputs, np.float64).reshape(-1, inputs.shape[-1])
        self.count += len(values)
        self.total = self.total + values.sum(0)
        self.squares = self.squares + np.square(values).sum(0)

    def mean_and_variance(self):
        mean = self.total / self.count
        return mean, np.maximum(self.squares / self.count - np.square(mean), 0.0)


@contextlib.contextmanager
def _watched(layer, moments: _Moments):
    """Meanwhile the layer adds its inputs to `moments`."""
    original = layer.call

    def call(inputs, *args, **kwargs):
        moments.add(inputs)
        return original(inputs, *args, **kwargs)

    layer.call = call
    try:
        yield
    finally:
        del layer.call


def _restate(layer, mean, variance) -> None:
    """New statistics; scale and shift changed so that inference gives the same."""
    old_mean, old_variance = layer.moving_mean.numpy(), layer.moving_variance.numpy()
    slope = layer.gamma.numpy() / np.sqrt(old_variance + layer.epsilon)
    layer.beta.assign(layer.beta.numpy() + slope * (mean - old_mean))
    layer.gamma.assign(slope * np.sqrt(variance + layer.epsilon))
    layer.moving_mean.assign(mean)
    layer.moving_variance.assign(variance)
