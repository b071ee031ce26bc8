"""The same bits in every run on one machine."""

import contextlib
import os
from collections.abc import Iterator

import tensorflow as tf
from tensorflow.python.eager import context  # there is no public name for what executes functions


@contextlib.contextmanager
def same_bits() -> Iterator[None]:
    """Meanwhile this thread computes in one order; for one device.

    Deterministic operations are not enough: a sum of many gradients begins with whichever of them
    has come first (TensorFlow's AddN), or takes them as they come (what Grappler's memory
    optimiser makes of it), so that every hundredth step or so of an A0 rounded otherwise.

    Only for data without parallel maps and prefetching: a function that waits for those may wait
    for ever, so `grw_keras.training.run` doesn't use it.

    Raises:
        RuntimeError: on a single CPU, after something was computed.
    """
    if len(os.sched_getaffinity(0)) == 1:
        # A function keeps a thread to itself now, and the data that it waits for needs another.
        tf.config.threading.set_inter_op_parallelism_threads(2)
    tf.config.experimental.enable_op_determinism()
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    with context.function_executor_type("SINGLE_THREADED_EXECUTOR"):
        yield


def one_thread() -> None:
    """One thread for each operation, as where several processes share the CPUs; to be called in a
    process that has computed nothing."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
