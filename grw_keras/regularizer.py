"""The GRW regulariser as a tf_keras layer."""

import keras
import tensorflow as tf
import tf_keras

from grw_keras.layer import GRWRegularizerBase


@tf_keras.saving.register_keras_serializable("grw_keras")
class GRWMean(tf_keras.metrics.Mean):
    """A mean that is NaN, not 0, while it has seen nothing (the layer skips evaluation).

    It stays out of weight files, so that those of a model without the layer can be loaded.
    """

    def result(self):
        return tf.math.divide(self.total, self.count)

    def save_own_variables(self, store):
        del store

    def load_own_variables(self, store):
        del store


@tf_keras.saving.register_keras_serializable("grw_keras")
class GRWRegularizer(GRWRegularizerBase, tf_keras.layers.Layer):
    """Adds weight · L_smooth (equation 6) of its input to the model's losses.

    The input passes through unchanged. With `training=True` the layer adds the loss by
    `add_loss` and updates its metrics; otherwise it does nothing at all. For final-layer
    smoothing (figure 4) put it right after the learnable affine map, `Dense(D)`, whose output
    the temporal head reads; for intermediate smoothing (figure 3) use `normalization="batch"`.

    Args:
        window: T, frames in a window, at least 3; 0.5 to 1 s of video in the paper.
        alpha: weight of the speed term, >= 0; the paper's is ½.
        weight: λ of equation 7, >= 0; the paper's is 0.1.
        warmup_steps: training calls over which the weight rises linearly from 0 to `weight`.
        stride: frames between the starts of windows; default `window` (equation 1).
        orderings: `"auto"`, `"all"`, `"exact"`, `"sampled"` or integers [K, T]; see `grw_loss`.
        num_orderings: K of `"sampled"`.
        seed: seed of `"sampled"`.
        normalization: what the loss, and only the loss, does to its input first. None: nothing.
            `"batch"`: figure 3, each channel standardised over batch and time, divided by √D.
            `"layer"`: each frame's embedding standardised over its channels, as a layer norm does.
            `"affine"`: a learnable affine map, the identity at first, seen by the loss alone;
            for figure 4, where the head reads its output too, use `Dense(D)` and None.
        synchronized: under a tf.distribute strategy, take the statistics of `"batch"` and the
            number of valid windows over all replicas.
        debug: raise on NaN or infinite embeddings.
        name: layer name, and prefix of the metrics' names. The second regulariser of a model
            needs a name of its own.

    Input shape: [B, N, D], or [B, N, H, W, D], which is averaged over space for the loss. A
        Keras mask [B, N] excludes every window that touches a masked frame.

    Output shape: as the input.

    Metrics: `{name}_ordering` and `{name}_speed`, the terms of the loss;
        `{name}_order_accuracy`, the share of windows whose true ordering is strictly the
        likeliest; `{name}_acceleration`, the mean of |z_{t+2} - 2 z_{t+1} + z_t|. Over the
        valid windows of the training calls since the last reset; NaN where there were none.

    Loading: import the class (`from grw_keras import GRWRegularizer`) before `load_model`. Weight
        files of the same model without the layer can be loaded too.

    Raises:
        ValueError: bad arguments or input shape.
        TypeError: called on a Keras 3 tensor.
        RuntimeError: Keras 3 runs on another backend than TensorFlow.

    Reference:
        Section 3 of the paper.

    Example:
        >>> layer = GRWRegularizer(window=4, alpha=1.0, weight=1.0)
        >>> z = tf.constant([[[0.0], [1.0], [2.0], [3.0]]])
        >>> layer(z, training=True).shape
        TensorShape([1, 4, 1])
        >>> round(float(layer.losses[0]), 5)
        1.51384
    """

    _dense = tf_keras.layers.Dense
    _mean_metric = GRWMean
    _first_replica = tf.VariableAggregation.ONLY_FIRST_REPLICA

    def __init__(self, window: int = 5, **kwargs):
        if keras.backend.backend() != "tensorflow":
            raise RuntimeError(
                "A tf_keras layer needs Keras 3 to run on TensorFlow too: set "
                "KERAS_BACKEND=tensorflow before keras is imported, or use "
                "grw_keras.keras3.GRWRegularizer. Received: KERAS_BACKEND="
                f"{keras.backend.backend()}"
            )
        super().__init__(window, **kwargs)

    def __call__(self, inputs, *args, **kwargs):
        if isinstance(inputs, keras.KerasTensor):
            raise TypeError(
                "This is the tf_keras layer, which a Keras 3 model would drop without a word: use "
                f"grw_keras.keras3.GRWRegularizer. Received: inputs={inputs}"
            )
        return super().__call__(inputs, *args, **kwargs)
