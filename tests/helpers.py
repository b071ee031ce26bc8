"""The loss written out literally in numpy, gradients on any Keras backend, scripts as modules."""

import importlib.util
import itertools
import sys
from pathlib import Path

import keras
import numpy as np
from scipy.special import logsumexp

from grw_keras.losses import as_float


def literal_orderings(window: int) -> np.ndarray:
    return np.array([(0, *rest) for rest in itertools.permutations(range(1, window))])


def literal_terms(frames: np.ndarray, orderings=None) -> tuple[float, float]:
    """Ordering and speed term of one window [T, D] in float64, equation by equation."""
    frames = np.asarray(frames, np.float64)
    orderings = literal_orderings(len(frames)) if orderings is None else orderings

    def log_density(order):
        velocities = np.diff(frames[order], axis=0)
        accelerations = np.diff(velocities, axis=0)
        return -0.5 * np.sum(accelerations**2)

    log_densities = np.array([log_density(order) for order in orderings])
    ordering = logsumexp(log_densities) - log_density(np.arange(len(frames)))
    speed = 0.5 * np.sum(np.diff(frames, axis=0) ** 2)
    return float(ordering), float(speed)


def literal_loss(z: np.ndarray, window: int, alpha: float, stride: int | None = None) -> float:
    """Equation 6 for z [B, N, D]: a mean over clips and windows."""
    starts = range(0, z.shape[1] - window + 1, stride or window)
    losses = []
    for clip in z:
        for start in starts:
            ordering, speed = literal_terms(clip[start : start + window])
            losses.append(ordering + alpha * speed)
    return float(np.mean(losses))


def value_and_grad(function, z):
    """`function(z)` and the gradient of its sum, as numpy arrays, on the active backend."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        z = tf.convert_to_tensor(z)
        with tf.GradientTape() as tape:
            tape.watch(z)
            value = function(z)
        return value.numpy(), tape.gradient(value, z).numpy()
    if backend == "jax":
        import jax

        def total(z):
            value = function(z)
            return value.sum(), value

        (_, value), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(z)
        return np.asarray(value), np.asarray(gradient)
    z = as_float(z).detach().requires_grad_()
    value = function(z)
    value.sum().backward()
    return value.detach().cpu().numpy(), z.grad.cpu().numpy()


def script(path: Path):
    """A script as a module; what lies beside it can be imported, as in a run of it."""
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
