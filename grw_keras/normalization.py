"""Pooling and standardisation of an intermediate layer's features (figure 3 of the paper)."""

import math

from keras import ops

from grw_keras import backend

EPSILON = 1e-5  # ours, torch's default for the BN_1d that the paper names


def pool_space(features):
    """Mean over space: [B, N, H, W, D] to [B, N, D]; [B, N, D] stays as it is."""
    if len(features.shape) == 3:
        return features
    if len(features.shape) == 5:
        return ops.mean(features, axis=(2, 3))
    raise ValueError(
        "Features must be [B, N, D] or, channels last, [B, N, H, W, D]. "
        f"Received: features of shape {tuple(features.shape)}"
    )


def standardize(z, mask=None, *, synchronized: bool = False):
    """Z = BN(z) / √D: zero mean and mean squared norm 1 over the frames of the batch.

    Each channel is standardised over batch and time together with this batch's own statistics,
    without learnable parameters and without running averages.

    Args:
        z: embeddings [B, N, D], float32 or float64; finite in masked frames too.
        mask: bool [B, N]; frames where it is False enter no statistic.
        synchronized: take the statistics over all replicas of a tf.distribute strategy.

    Reference:
        Section 3.2 of the paper, "Intermediate Layer Smoothing", and figure 3.
    """
    weights = ops.ones_like(z[..., :1]) if mask is None else ops.cast(mask, z.dtype)[..., None]

    def total(values):
        local = ops.sum(values * weights, axis=(0, 1))
        return backend.sum_over_replicas(local) if synchronized else local

    def mean(values):
        return backend.divide_or_zero(total(values), count)

    count = total(ops.ones_like(weights))
    centred = z - mean(z)
    variance = mean(ops.square(centred))
    return centred * ops.rsqrt(variance + EPSILON) / math.sqrt(z.shape[-1])


def standardize_frames(z):
    """LayerNorm(Z): each frame's embedding less its mean, over its standard deviation.

    Args:
        z: embeddings [B, N, D], float32 or float64.
    """
    centred = z - ops.mean(z, axis=-1, keepdims=True)
    variance = ops.mean(ops.square(centred), axis=-1, keepdims=True)
    return centred * ops.rsqrt(variance + EPSILON)
