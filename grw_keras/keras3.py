"""The GRW regulariser as a Keras 3 layer, on TensorFlow, JAX or PyTorch."""

import keras
from keras import ops

from grw_keras.layer import METRICS, GRWRegularizerBase


@keras.saving.register_keras_serializable("grw_keras")
class GRWMean(keras.metrics.Mean):
    """A mean that is NaN, not 0, while it has seen nothing (the layer skips evaluation).

    It stays out of weight files, so that those of a model without the layer can be loaded.
    """

    def result(self):
        return ops.divide(self.total, self.count)

    def save_own_variables(self, store):
        del store

    def load_own_variables(self, store):
        del store


@keras.saving.register_keras_serializable("grw_keras")
class GRWRegularizer(GRWRegularizerBase, keras.layers.Layer):
    """Adds weight · L_smooth (equation 6) of its input to the model's losses.

    The twin of `grw_keras.GRWRegularizer` for Keras 3 models, with the same arguments, shapes
    and metrics. On JAX it has no metrics, because Keras does not carry a layer's metrics
    through its compiled JAX training step; `synchronized` is not available on PyTorch.
    """

    _dense = keras.layers.Dense
    _first_replica = "only_first_replica"
    _mean_metric = GRWMean
    _measured = () if keras.backend.backend() == "jax" else METRICS

    def __init__(self, window: int = 5, *, synchronized: bool = False, **kwargs):
        if synchronized and keras.backend.backend() == "torch":
            raise ValueError(
                "`synchronized` needs the TensorFlow or the JAX backend of Keras. "
                "Received: synchronized=True on PyTorch"
            )
        super().__init__(window, synchronized=synchronized, **kwargs)

    def __call__(self, inputs, *args, **kwargs):
        if type(inputs).__module__.startswith("tf_keras."):
            raise TypeError(
                "This is the Keras 3 layer, which a tf_keras model would drop without a word: use "
                f"grw_keras.GRWRegularizer. Received: inputs={inputs}"
            )
        return super().__call__(inputs, *args, **kwargs)
