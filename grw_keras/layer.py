"""What the GRW regulariser layers of tf_keras and of Keras 3 have in common."""

from typing import Any

from keras import ops

from grw_keras import backend, normalization
from grw_keras.losses import (
    GRWTerms,
    as_float,
    check_length,
    check_stride,
    check_weight,
    clean,
    grw_terms,
)
from grw_keras.orderings import NUM_SAMPLED, check_integer, resolve

NORMALIZATIONS = (None, "batch", "layer", "affine")
METRICS = ("ordering", "speed", "order_accuracy", "acceleration")
_Layer: Any = object  # to type checkers a Keras layer: tf_keras's or Keras 3's, once mixed in


class GRWRegularizerBase(_Layer):
    """Adds weight · L_smooth of its input to the model's losses; passes the input through.

    Mixed into a Keras layer class, which names its parts: `_dense`, `_mean_metric` and
    `_first_replica`. The public classes' docstrings describe the arguments.
    """

    _measured: tuple[str, ...] = METRICS

    def __init__(
        self,
        window: int = 5,
        *,
        alpha: float = 0.5,
        weight: float = 0.1,
        warmup_steps: int = 0,
        stride: int | None = None,
        orderings="auto",
        num_orderings: int = NUM_SAMPLED,
        seed: int = 0,
        normalization: str | None = None,
        synchronized: bool = False,
        debug: bool = False,
        name: str | None = "grw",
        **kwargs,
    ):
        super().__init__(name=name, autocast=False, **kwargs)
        check_weight("alpha", alpha)
        check_weight("weight", weight)
        check_integer("warmup_steps", warmup_steps, 0)
        if normalization not in NORMALIZATIONS:
            raise ValueError(
                f"`normalization` must be one of {', '.join(map(repr, NORMALIZATIONS))}. "
                f"Received: normalization={normalization!r}"
            )
        self._compared = resolve(orderings, window, num_orderings=num_orderings, seed=seed)
        check_stride(stride, window)
        self.window = int(window)
        self.alpha = float(alpha)
        self.weight = float(weight)
        self.warmup_steps = int(warmup_steps)
        self.stride = stride
        self.orderings = orderings if isinstance(orderings, str) else self._compared.tolist()
        self.num_orderings = int(num_orderings)
        self.seed = int(seed)
        self.normalization = normalization
        self.synchronized = bool(synchronized)
        self.debug = bool(debug)
        self.supports_masking = True
        self.step: Any = None
        self.affine: Any = None
        self._means = {
            metric: self._mean_metric(f"{self.name}_{metric}") for metric in self._measured
        }

    def build(self, input_shape):
        if len(input_shape) not in (3, 5):
            raise ValueError(
                f"{type(self).__name__} takes embeddings [B, N, D] or, channels last, features "
                f"[B, N, H, W, D]. Received: input of shape {tuple(input_shape)}"
            )
        if input_shape[-1] is None:
            raise ValueError(
                "The last dimension of the input, D, must be known. "
                f"Received: input of shape {tuple(input_shape)}"
            )
        check_length(input_shape[1], self.window)
        if self.warmup_steps:
            self.step = self.add_weight(
                name="step",
                shape=(),
                dtype="int32",
                initializer="zeros",
                trainable=False,
                aggregation=self._first_replica,
            )
        if self.normalization == "affine":
            self.affine = self._dense(
                input_shape[-1],
                kernel_initializer="identity",
                dtype=self.variable_dtype,
                name="affine",
            )
            self.affine.build((*input_shape[:2], input_shape[-1]))
        super().build(input_shape)

    def call(self, inputs, mask=None, training=None):
        if training:
            terms = self.terms(inputs, mask)
            self._update(terms)
            loss = self._mean_loss(terms)
            self.add_loss(ops.cast(self._warm_weight(), loss.dtype) * loss)
        return inputs

    def terms(self, inputs, mask=None) -> GRWTerms:
        """The parts of equation 6 for the inputs as the loss sees them: pooled, normalised."""
        if not self.built:
            self.build(inputs.shape)
        z, mask = clean(normalization.pool_space(as_float(inputs)), mask, self.window)
        if self.normalization == "batch":
            z = normalization.standardize(z, mask, synchronized=self.synchronized)
        elif self.normalization == "layer":
            z = normalization.standardize_frames(z)
        elif self.normalization == "affine":
            z = self.affine(z)
        return grw_terms(
            z,
            window=self.window,
            stride=self.stride,
            orderings=self._compared,
            mask=mask,
            debug=self.debug,
        )

    def update_metrics(self, inputs, mask=None) -> None:
        """Count `inputs` in the layer's metrics, as a training call does, without a loss."""
        self._update(self.terms(inputs, mask))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        names = (
            "window alpha weight warmup_steps stride orderings num_orderings seed normalization "
            "synchronized debug"
        )
        config = {name: getattr(self, name) for name in names.split()}
        base = super().get_config()
        base.pop("autocast", None)
        return {**base, **config}

    def load_own_variables(self, store):
        if store.keys():  # a file of the model without this layer has no step to restore
            super().load_own_variables(store)

    def _mean_loss(self, terms: GRWTerms):
        """Mean over valid windows; of all replicas where `synchronized`.

        tf_keras averages the losses of the replicas, so a replica with few valid windows would
        count too much: dividing by the mean count instead gives the mean over all windows.
        """
        losses = terms.ordering + self.alpha * terms.speed
        count = terms.count
        if self.synchronized:
            count = backend.mean_over_replicas(count)
        return backend.divide_or_zero(terms.sum(losses), count)

    def _warm_weight(self):
        if self.step is None:
            return self.weight
        done = ops.cast(self.step, "float32") / self.warmup_steps
        self.step.assign(self.step + 1)
        return self.weight * ops.minimum(done, 1.0)

    def _update(self, terms: GRWTerms) -> None:
        values = {
            "ordering": terms.ordering,
            "speed": terms.speed,
            "order_accuracy": ops.cast(terms.margin > 0, terms.speed.dtype),
            "acceleration": terms.acceleration,
        }
        for name, metric in self._means.items():
            metric.update_state(
                ops.stop_gradient(terms.mean(values[name])), sample_weight=terms.count
            )
