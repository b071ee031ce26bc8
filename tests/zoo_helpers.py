"""Small clips, and models whose random weights leave no branch dead."""

import numpy as np
import tensorflow as tf

from grw_keras.models.classifier import VideoClassifier

SIZE = 32  # pixels; every backbone runs at it


def randomize(model: VideoClassifier, seed: int = 0) -> VideoClassifier:
    """Random values in all that starts as 0 or 1: ReZero scales, biases, batch norms."""
    rng = np.random.default_rng(seed)
    for name, variable in model.named_weights().items():
        leaf, shape = name.rpartition("/")[-1], tuple(variable.shape)
        if leaf in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 1.5, shape))
        elif leaf in ("beta", "bias", "moving_mean"):
            variable.assign(rng.normal(0, 0.1, shape))
        elif leaf == "scale":
            variable.assign(rng.uniform(0.3, 0.7) * rng.choice([-1, 1]))
        elif leaf == "kernel" and model.spec.family == "mobilenet" and "backbone/" in name:
            variable.assign(3 * variable)  # as initialised, all frames have the same features
    return model


def random_clips(batch: int, frames: int, seed: int = 0, size: int = SIZE) -> tf.Tensor:
    """Noise, with a colour of its own for each frame: noise alone looks the same in all."""
    rng = np.random.default_rng(seed)
    noise = rng.random((batch, frames, size, size, 3))
    return tf.constant(noise * rng.random((batch, frames, 1, 1, 3)), tf.float32)
