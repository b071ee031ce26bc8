"""The same bits in every run on one machine."""

import contextlib
from collections.abc import Iterator

import tensorflow as tf
from tensorflow.python.eager import context  # there is no public name for what executes functions


@contextlib.contextmanager
def same_bits() -> Iterator[None]:
    """Meanwhile this thread computes in one order; for one device, before anything is computed.

    Deterministic operations are not enough: a sum of many gradients begins with whichever of them
    has come first (TensorFlow's AddN), or takes them as they come (what Grappler's memory
    optimiser makes of it), so that every hundredth step or so of an A0 rounded otherwise.
    """
    tf.config.experimental.enable_op_determinism()
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    with context.function_executor_type("SINGLE_THREADED_EXECUTOR"):
        yield


def one_thread() -> None:
    """One thread for each operation and among them, as where several processes share the CPUs; to
    be called in a process that has computed nothing."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
