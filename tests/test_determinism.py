"""Sums come out alike, whatever comes first."""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor

import pytest
import tensorflow as tf

from grw_keras.training import determinism


def sums() -> list[float]:
    """1e8 − 1e8 + 1.5 in float32, where the first two terms are still taken by another reader or
    not, which has AddN begin with another term."""
    taken_s = [0.0, 0.3, 0.0, 0.3]

    def read(first, second):
        time.sleep(taken_s.pop())
        return first

    def late(x):
        time.sleep(0.1)
        return x

    def aside(function, *inputs):
        return tf.numpy_function(function, inputs, tf.float32, stateful=False)

    @tf.function
    def total(x):
        first, second = x * 1e8, x * -1e8
        third = aside(late, x) * 1.5
        return tf.add_n([first, second, third]), aside(read, first, second)

    return [float(total(tf.ones([1000]))[0][0]) for _ in range(len(taken_s))]


def in_one_order(same: bool) -> list[float]:
    """`sums` with or without `same_bits`, in a process that has computed nothing."""
    tf.config.threading.set_inter_op_parallelism_threads(4)
    if not same:
        return sums()
    with determinism.same_bits():
        return sums()


@pytest.mark.slow
@pytest.mark.parametrize(("same", "different"), [(False, 2), (True, 1)])
def test_a_sum_does_not_depend_on_what_is_there_first(same, different):
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        found = pool.submit(in_one_order, same).result()
    assert len(set(found)) == different
