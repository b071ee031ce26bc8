"""An exponential moving average of a model's weights and batch-norm statistics."""

import contextlib
from collections.abc import Iterator, Sequence

import tensorflow as tf


class Average:
    """average ← d · average + (1 - d) · weight, d = min(decay, (1 + n) / (10 + n)) at update n.

    The rising d makes early averages follow the weights closely (as in
    tf.train.ExponentialMovingAverage). Make it in the scope of the model's strategy.

    Args:
        weights: float variables, batch norms' running statistics among them.
        decay: in (0, 1), for each step.

    Raises:
        ValueError: `decay` out of range.
    """

    def __init__(self, weights: Sequence[tf.Variable], decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"`decay` must be in (0, 1). Received: {decay!r}")
        self.decay = decay
        self._weights = list(weights)
        self._averages = [
            tf.Variable(weight.numpy(), dtype=weight.dtype, trainable=False, name="average")
            for weight in weights
        ]
        self._updates = tf.Variable(0, dtype=tf.int64, trainable=False, name="average_updates")

    @property
    def variables(self) -> list[tf.Variable]:
        """The averages, and the number of updates."""
        return [*self._averages, self._updates]

    def update(self) -> None:
        """To be called once after each step, outside the replicas."""
        done = tf.cast(self._updates.read_value(), tf.float32)
        decay = tf.minimum(self.decay, (1 + done) / (10 + done))
        for average, weight in zip(self._averages, self._weights, strict=True):
            value = tf.cast(weight.read_value(), average.dtype)
            rate = tf.cast(1 - decay, average.dtype)
            average.assign(average.read_value() + rate * (value - average.read_value()))
        self._updates.assign(self._updates.read_value() + 1)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Meanwhile the model has the averages as its weights."""
        own = [weight.numpy().copy() for weight in self._weights]
        for weight, average in zip(self._weights, self._averages, strict=True):
            weight.assign(average.numpy())
        try:
            yield
        finally:
            for weight, value in zip(self._weights, own, strict=True):
                weight.assign(value)
