"""Everything of a training that changes, as arrays by name: what a checkpoint holds."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from grw_keras.models.optimizer import unwrapped
from grw_keras.training.averaging import Average


def variables(model: tf_keras.Model, average: Average | None = None) -> dict[str, tf.Variable]:
    """All variables of a compiled and built model, its optimiser, its metrics and its average.

    Names are the place in the order in which the model makes them, and the last part of Keras's
    name: the parts before it may be numbered through all models of a process. So they are those
    of the same model built again.
    """
    groups = {
        "model": model.variables,
        "optimizer": list(unwrapped(model.optimizer).variables),
        "loss_scale": _loss_scale(model.optimizer),
        "metrics": [variable for metric in model.metrics for variable in metric.variables],
        "average": [] if average is None else average.variables,
    }
    named: dict[str, tf.Variable] = {}
    seen: set[int] = set()
    for group, members in groups.items():
        for place, variable in enumerate(members):
            if id(variable) not in seen:
                seen.add(id(variable))
                leaf = variable.name.partition(":")[0].rpartition("/")[-1]
                named[f"{group}/{place}/{leaf}"] = variable
    return named


def build(model: tf_keras.Model, logits_shape: tuple[int, ...]) -> None:
    """Makes the variables that Keras would make in the first step: the optimiser's and metrics'."""
    logits = tf.zeros(logits_shape)
    labels = tf.zeros(logits_shape[:1], tf.int32)
    unwrapped(model.optimizer).build(model.trainable_variables)
    if not model.compiled_loss.built:
        model.compiled_loss.build(logits)
    if not model.compiled_metrics.built:
        model.compiled_metrics.build(logits, labels)


def capture(named: Mapping[str, tf.Variable]) -> dict[str, np.ndarray]:
    """The values; under several workers all must call it, for reading may be a collective."""
    return {name: np.array(variable.numpy()) for name, variable in named.items()}


def restore(named: Mapping[str, tf.Variable], arrays: Mapping[str, np.ndarray]) -> None:
    """Sets every variable.

    Raises:
        ValueError: arrays of other variables; nothing is changed then.
    """
    misfits = named.keys() ^ arrays.keys() or {
        name for name, variable in named.items() if variable.shape != arrays[name].shape
    }
    if misfits:
        raise ValueError(
            "The checkpoint must be of the same model and optimiser. "
            f"Received: {len(misfits)} tensors that differ, the first {sorted(misfits)[:3]}"
        )
    for name, variable in named.items():
        variable.assign(arrays[name])


def of_model(named: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the names that are the model's own."""
    return {name: value for name, value in named.items() if name.startswith("model/")}


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """A checksum of names, types, shapes and bits."""
    total = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        total.update(f"{name} {array.dtype} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def is_finite(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether the model's own arrays, of all that were captured, hold no NaN or infinity."""
    return all(
        np.isfinite(array).all()
        for array in of_model(arrays).values()
        if np.issubdtype(array.dtype, np.floating)
    )


def _loss_scale(optimizer) -> list[tf.Variable]:
    """Of a `LossScaleOptimizer` with a dynamic scale: the scale and its counter."""
    if not getattr(optimizer, "dynamic", False):
        return []
    return [optimizer._loss_scale.current_loss_scale, optimizer._loss_scale.counter]
