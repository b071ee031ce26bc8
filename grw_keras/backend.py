"""The few operations that `keras.ops` lacks, on TensorFlow, JAX and PyTorch."""

import keras
import numpy as np
from keras import ops


def refuse_foreign(x, name: str) -> None:
    """Raise TypeError for a tensor of another framework, whose gradient would be lost silently."""
    backend = keras.backend.backend()
    root = type(x).__module__.partition(".")[0].replace("jaxlib", "jax")
    if root in {"tensorflow", "jax", "torch"} - {backend}:
        raise TypeError(
            f"`{name}` is a {root} tensor, but Keras runs on {backend}: set KERAS_BACKEND={root} "
            f"before keras is imported. Received: {name} of type {type(x).__name__}"
        )


def has_float64() -> bool:
    """Whether the backend computes in float64 as it is configured."""
    if keras.backend.backend() == "jax":
        import jax

        return bool(jax.config.jax_enable_x64)
    return True


def full_precision_matmul(x, constant: np.ndarray):
    """`x @ constant` in at least float32 where accelerators would shorten its products.

    TensorFlow and JAX may multiply float32 matrices in TF32 (10 bits) on recent GPUs, which is
    too coarse for differences of energies. TensorFlow can't be told otherwise for one product,
    so it is done in float64 there; PyTorch keeps float32 unless the user says otherwise.

    Shapes: x [W, P], constant [P, K], result [W, K] of x's dtype.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        product = ops.matmul(ops.cast(x, "float64"), ops.convert_to_tensor(constant, "float64"))
        return ops.cast(product, x.dtype)
    constant = ops.cast(ops.convert_to_tensor(constant), x.dtype)
    if backend == "jax":
        import jax

        with jax.default_matmul_precision("highest"):
            return ops.matmul(x, constant)
    return ops.matmul(x, constant)


def divide_or_zero(total, count):
    """`total / count` where `count` > 0, and `total` itself, which is then a sum of nothing."""
    return total / ops.where(count > 0, count, ops.ones_like(count))


def guarded_length(x, minimum: int, message: str):
    """Return `x` [B, N, ...] of unknown N, which raises where N < `minimum` (not under XLA).

    Only TensorFlow leaves sizes open in a compiled function; it raises InvalidArgumentError.
    """
    import tensorflow as tf

    length = tf.shape(x)[1]
    with tf.control_dependencies([tf.debugging.assert_greater_equal(length, minimum, message)]):
        return tf.identity(x)


def check_finite(x, name: str):
    """Return `x`, which raises where it holds a NaN or an infinity.

    Eagerly a ValueError. In a compiled function TensorFlow raises InvalidArgumentError (XLA
    drops the check) and JAX a runtime error that quotes the ValueError.
    """
    message = f"`{name}` must be finite. Received: a NaN or an infinity in it"
    finite = ops.all(ops.isfinite(x))
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        if not tf.executing_eagerly():
            return tf.debugging.check_numerics(x, message)
    if backend == "jax":
        import jax

        if isinstance(finite, jax.core.Tracer):
            jax.debug.callback(_raise_unless, finite, message=message)
            return x
    _raise_unless(finite, message)
    return x


def sum_over_replicas(x):
    """The sum of `x` over the replicas of the running tf.distribute strategy; has a gradient.

    JAX needs no such sum: under jit a reduction of a sharded array is over all of it.
    """
    replica = _replica()
    return x if replica is None else replica.all_reduce("SUM", x)


def mean_over_replicas(x):
    """The mean of `x` over the replicas of the running tf.distribute strategy."""
    replica = _replica()
    return x if replica is None else replica.all_reduce("MEAN", x)


def _replica():
    """This replica's context where a strategy runs several replicas, else None."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    replica = tf.distribute.get_replica_context()
    return replica if replica is not None and replica.num_replicas_in_sync > 1 else None


def _raise_unless(condition, message: str) -> None:
    if not condition:
        raise ValueError(message)
