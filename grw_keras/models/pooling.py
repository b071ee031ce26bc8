"""Means over the frames of a clip."""

import tensorflow as tf


def mean_over_frames(x, mask=None):
    """[B, D] of [B, N, D]; frames where `mask` [B, N] is False are left out, zeros if all are."""
    if mask is None:
        return tf.reduce_mean(x, axis=1)
    seen = tf.cast(mask, x.dtype)[..., None]
    return tf.math.divide_no_nan(tf.reduce_sum(x * seen, axis=1), tf.reduce_sum(seen, axis=1))
