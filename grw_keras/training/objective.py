"""From a recipe's training part to the optimiser, the loss, the metrics and the precision."""

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tf_keras

from grw_keras.models.optimizer import TWO_RATE_OPTIMIZERS, cosine
from grw_keras.training.recipe import TrainingPart

_POLICIES = {
    "float32": "float32",
    "bfloat16": "mixed_bfloat16",
    "float16": "mixed_float16",
}


@tf_keras.saving.register_keras_serializable("grw_keras")
class SmoothedCrossEntropy(tf_keras.losses.Loss):
    """Cross-entropy of integer labels with (1 - ε) of the weight on the label, and ε on all.

    Args:
        label_smoothing: ε, in [0, 1).

    Shapes:
        labels [B], logits [B, classes].

    Reference:
        Szegedy et al., Rethinking the Inception Architecture, section 7.
    """

    def __init__(self, label_smoothing: float = 0.0, name: str = "cross_entropy", **kwargs):
        super().__init__(name=name, **kwargs)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"`label_smoothing` must be in [0, 1). Received: {label_smoothing!r}")
        self.label_smoothing = label_smoothing

    def call(self, y_true, y_pred):
        log_probabilities = tf.nn.log_softmax(tf.cast(y_pred, tf.float32))
        labels = tf.cast(tf.reshape(y_true, [-1]), tf.int32)
        own = tf.gather(log_probabilities, labels, batch_dims=1)
        mean = tf.reduce_mean(log_probabilities, axis=-1)
        return -((1 - self.label_smoothing) * own + self.label_smoothing * mean)

    def get_config(self):
        return {**super().get_config(), "label_smoothing": self.label_smoothing}


def optimizer(settings: TrainingPart, steps: int):
    """The recipe's optimiser, with both learning rates along a cosine over `steps`."""
    first, last = settings.backbone_rate
    kwargs: dict[str, Any] = {"head_factor": settings.head_rate[0] / first}
    if settings.optimizer != "adam":
        kwargs["weight_decay"] = settings.weight_decay
    if settings.clip_norm is not None:
        kwargs["global_clipnorm"] = settings.clip_norm
    return TWO_RATE_OPTIMIZERS[settings.optimizer](cosine((first, last), steps), **kwargs)


def compile_model(model, settings: TrainingPart, steps: int) -> None:
    """Compiles a `VideoClassifier` as the recipe says. To be called in its strategy's scope."""
    metrics = [
        tf_keras.metrics.SparseCategoricalCrossentropy(name="cross_entropy", from_logits=True),
        tf_keras.metrics.SparseCategoricalAccuracy(name="top1"),
    ]
    if model.spec.num_classes > 5:
        metrics.append(tf_keras.metrics.SparseTopKCategoricalAccuracy(5, name="top5"))
    chosen = optimizer(settings, steps)
    if settings.precision == "float16":  # its small gradients vanish otherwise
        chosen = tf_keras.mixed_precision.LossScaleOptimizer(chosen)
    model.compile_for_training(
        accumulate=settings.accumulate,
        optimizer=chosen,
        loss=SmoothedCrossEntropy(settings.label_smoothing),
        metrics=metrics,
    )


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """Meanwhile models are made to compute in "float32", "bfloat16" or "float16"."""
    before = tf_keras.mixed_precision.global_policy()
    tf_keras.mixed_precision.set_global_policy(_POLICIES[name])
    try:
        yield
    finally:
        tf_keras.mixed_precision.set_global_policy(before)
