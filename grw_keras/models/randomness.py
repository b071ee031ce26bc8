"""Random layers that draw from (seed, step) alone, so that a run can be repeated and resumed."""

import tensorflow as tf
import tf_keras


class Randomness(tf_keras.layers.Layer):
    """The seed and the training step that all random layers of a model share.

    `step` is a variable, so checkpoints hold it; each replica draws its own numbers.
    """

    def __init__(self, seed: int, **kwargs):
        super().__init__(**kwargs)
        self.seed = seed
        self.step = self.add_weight(
            name="random_step",
            shape=(),
            dtype=tf.int64,
            initializer="zeros",
            trainable=False,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )

    def advance(self) -> None:
        """To be called once in every training call of the model, after its layers."""
        self.step.assign(self.step + 1)

    def keep(self, rate: float, layer_index: int, shape) -> tf.Tensor:
        """A bool mask of `shape` that is False with probability `rate`."""
        seed = tf.stack([tf.constant(self.seed, tf.int64), self.step.read_value()])
        seed = tf.random.experimental.stateless_fold_in(seed, layer_index)
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        seed = tf.random.experimental.stateless_fold_in(seed, replica)
        return tf.random.stateless_uniform(shape, seed) >= rate


class Drop(tf_keras.layers.Layer):
    """Inverted dropout: in training, zeroes with probability `rate`, divides the rest by 1 - rate.

    Args:
        rate: in [0, 1).
        randomness: the model's.
        layer_index: what tells this layer's numbers from those of the model's others.
        per_sample: drop whole samples, which makes it stochastic depth; else single values.
    """

    def __init__(
        self, rate: float, randomness: Randomness, layer_index: int, *, per_sample=False, **kwargs
    ):
        super().__init__(**kwargs)
        self.rate = rate
        # Bound, not kept as an attribute: the step would count as each layer's own weight.
        self.keep = randomness.keep
        self.layer_index = layer_index
        self.per_sample = per_sample

    def call(self, inputs, training=None):
        if not training or self.rate == 0:
            return inputs
        shape = tf.shape(inputs)
        if self.per_sample:
            shape = tf.concat([shape[:1], tf.ones_like(shape[1:])], axis=0)
        keep = self.keep(self.rate, self.layer_index, shape)
        return inputs * tf.cast(keep, inputs.dtype) / tf.cast(1 - self.rate, inputs.dtype)
