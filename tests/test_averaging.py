"""The moving average against its recursion, written out."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from grw_keras.training.averaging import Average
from tests.training_programs import make_trainer


def literal_average(values, decay):
    """Of a weight's values: first the one that it starts from, then one after each step."""
    average = np.asarray(values[0], np.float64)
    for done, value in enumerate(values[1:]):
        d = min(decay, (1 + done) / (10 + done))
        average = d * average + (1 - d) * np.asarray(value, np.float64)
    return average


# 1/10, 2/11, … pass 0.5 at the 9th update.
@pytest.mark.parametrize("decay", [0.05, 0.5, 0.9999])
def test_it_is_the_recursion(decay):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(21, 3)).astype(np.float32)
    weight = tf.Variable(values[0])
    average = Average([weight], decay)
    np.testing.assert_array_equal(average.variables[0], values[0])
    for value in values[1:]:
        weight.assign(value)
        average.update()
    np.testing.assert_allclose(average.variables[0], literal_average(values, decay), atol=1e-6)
    assert int(average.variables[-1]) == 20


class Record:
    def __init__(self, take):
        self.take = take

    def on_step(self, step, waited_s):
        self.take()

    def on_loss(self, step, loss):
        pass

    def on_epoch(self, row):
        pass


def test_a_training_averages_weights_and_batch_norm_statistics(tmp_path):
    seen = []

    def take():
        seen.append({k: v.numpy() for k, v in training.model.named_weights().items()})

    settings = {"epochs": 2, "ema_decay": 0.5}
    training = make_trainer(tmp_path, settings, listeners=[Record(take)])
    take()
    training.run()
    assert len(seen) == 12
    assert {"backbone/norm/moving_mean", "backbone/norm/moving_variance"} < seen[0].keys()
    assert len(training.average.variables) == len(seen[0]) + 1
    for name, average in zip(seen[0], training.average.variables, strict=False):
        expected = literal_average([weights[name] for weights in seen], 0.5)
        np.testing.assert_allclose(average, expected, atol=1e-6, err_msg=name)
        assert np.abs(average - seen[-1][name]).max() > 1e-5, name
    last = seen[-1]
    with training.exported():
        take()
    take()
    for name, average in zip(last, training.average.variables, strict=False):
        np.testing.assert_array_equal(seen[-2][name], average)
        np.testing.assert_array_equal(seen[-1][name], last[name])


def test_the_weights_come_back_after_an_error():
    weights = [tf.Variable([0.1, 0.2, np.nan]), tf.Variable([[1 / 3]])]
    average = Average(weights, 0.9)
    for weight in weights:
        weight.assign(weight * 3)
    before = [weight.numpy().tobytes() for weight in weights]

    def fail():
        with average.applied():
            assert float(weights[1][0, 0]) == np.float32(1 / 3)
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        fail()
    assert [weight.numpy().tobytes() for weight in weights] == before


@pytest.mark.parametrize("decay", [0, 1, -0.1, 1.5, float("nan")])
def test_decay_is_a_share(decay):
    with pytest.raises(ValueError, match=r"`decay` must be in \(0, 1\). Received: "):
        Average([], decay)


@pytest.mark.slow
def test_replicas_statistics_are_averaged_by_their_mean(two_replicas):
    """Batch norms that aren't synchronised differ between the replicas."""
    with two_replicas.scope():
        norm = tf_keras.layers.BatchNormalization(momentum=0.5)
        norm.build((None, 2))
        average = Average(norm.weights, 0.9)
    means = [np.zeros(2)]

    @tf.function
    def step(batch):
        two_replicas.run(lambda x: norm(x, training=True), (batch,))
        average.update()

    rng = np.random.default_rng(0)
    for _ in range(3):
        batch = rng.normal(size=(8, 2)).astype(np.float32)
        halves = two_replicas.experimental_distribute_values_from_function(
            lambda context, batch=batch: tf.constant(
                np.split(batch, 2)[context.replica_id_in_sync_group]
            )
        )
        step(halves)
        means.append(0.5 * means[-1] + 0.5 * batch.mean(axis=0))
    place = [v.name for v in norm.weights].index(norm.moving_mean.name)
    np.testing.assert_allclose(
        average.variables[place].numpy(), literal_average(means, 0.9), atol=1e-6
    )
    own = norm.moving_mean.numpy()
    with average.applied():
        np.testing.assert_array_equal(norm.moving_mean.numpy(), average.variables[place].numpy())
    np.testing.assert_array_equal(norm.moving_mean.numpy(), own)
