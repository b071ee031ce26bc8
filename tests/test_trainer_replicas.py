"""Several replicas share a step's clips and train to the weights of one; workers agree first."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from grw_keras.data.pipeline import training_batches
from grw_keras.data.samples import Sampling
from grw_keras.training import state, trainer
from tests.training_programs import FRAMES, SIZE, ArrayStore, everything, make_trainer


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_replicas_train_to_the_weights_and_average_of_one(accumulate, tmp_path, two_replicas):
    """Masks leave the replicas, and their micro-batches, different numbers of windows."""
    settings = {
        "epochs": 1,
        "batch_size": 8,
        "optimizer": "sgd",
        "backbone_rate": [0.02, 0.02],
        "head_rate": [0.2, 0.2],
        "frozen_batch_norm": True,
        "ema_decay": 0.9,
        "clip_norm": 0.5,
        "accumulate": accumulate,
    }
    ends = []
    for number, strategy in enumerate((None, two_replicas)):
        store = ArrayStore()
        store.frames = [f[: 2 if n % 3 else 9] for n, f in enumerate(store.frames)]
        training = make_trainer(
            tmp_path / str(number), settings, store=store, strategy=strategy, dropout=0.0
        )
        training.model.regularizer.weight = 2.0
        before = {k: v.numpy() for k, v in training.model.named_weights().items()}
        row = training.run().history[0]
        ends.append((everything(training.model, training.average), row))
    (one, one_row), (two, two_row) = ends
    for name in one:
        if not name.startswith("counter"):
            np.testing.assert_allclose(two[name], one[name], atol=1e-5, rtol=1e-5, err_msg=name)
    for name in ("loss", "cross_entropy", "top1", "grw_ordering", "grw_speed"):
        assert two_row[name] == pytest.approx(one_row[name], rel=1e-4), name
    moved = [np.abs(one[f"weights/{n}"] - w).max() for n, w in enumerate(before.values())]
    assert np.median(moved) > 1e-3


class NumberedStore(ArrayStore):
    """Each clip is of one grey, ten times its number."""

    def __init__(self):
        super().__init__()
        self.frames = [np.full_like(f, 10 * number) for number, f in enumerate(self.frames)]


@pytest.mark.slow
@pytest.mark.parametrize("said", [True, False], ids=["strategy named", "current strategy"])
def test_replicas_see_each_clip_of_a_step_once(said, tmp_path, two_replicas):
    """Data that goes by the strategy in whose scope it is made is of the trainer's, too."""
    store, seen = NumberedStore(), []

    def batches(start_step):
        strategy = two_replicas if said else tf.distribute.get_strategy()
        sampling = Sampling(frames=FRAMES, resolution=SIZE, training=True)
        return strategy.distribute_datasets_from_function(
            lambda context: training_batches(
                store, sampling, 4, start_step=start_step, replicas=2, processes=0
            )
        )

    training = make_trainer(tmp_path, {"epochs": 1}, store=store, strategy=two_replicas)
    training.feed = dataclasses.replace(training.feed, batches=batches)
    train_step = training.model.train_step

    def noted_step(batch):
        def note(replica, grey):
            numbers = np.rint(grey.numpy() * 25.5).astype(int)
            seen.append((training.outcome.step, int(replica), sorted(numbers)))

        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        with tf.control_dependencies(
            [tf.py_function(note, [replica, batch[0][:, 0, 0, 0, 0]], [])]
        ):
            return train_step(batch)

    training.model.train_step = noted_step
    training.run()
    assert len(seen) == 2 * training.steps
    for step in range(training.steps):
        parts = dict(part[1:] for part in seen if part[0] == step)
        assert parts.keys() == {0, 1}
        wanted = [index for _, index in training.feed.plan.step(step)]
        assert parts[0] == sorted(wanted[:2])
        assert parts[1] == sorted(wanted[2:])


@pytest.mark.slow
# Which of what this worker says another one has otherwise.
@pytest.mark.parametrize(
    ("differing", "match"),
    [
        (None, None),
        (0, r"run's folder must be shared by all workers\. Received: .* step 0 to go on from"),
        (1, "run's folder must be shared by all workers.*checkpoint of step 0 of other contents"),
        (2, "all workers must read the same clips.*22 clips, others"),
        (3, "must be given the same recipe.*17 steps"),
    ],
)
def test_workers_that_differ_do_not_begin(differing, match, tmp_path, monkeypatch):
    asked = []

    def same_everywhere(strategy, text):
        asked.append(text)
        return len(asked) - 1 != differing

    monkeypatch.setattr(trainer, "same_everywhere", same_everywhere)
    training = make_trainer(tmp_path, stop=lambda: True)
    if match is None:
        training.run()
        assert asked == ["0", "", "\n".join(training.feed.names), "17"]
        again = make_trainer(tmp_path, stop=lambda: True)
        again.resume()
        again.run()
        assert asked[4] == "1"
        assert len(asked[5]) == 64
        return
    training.feed = dataclasses.replace(training.feed, batches=None)
    with pytest.raises(ValueError, match=match):
        training.run()


def test_the_digest_of_arrays_is_of_all_of_them():
    arrays = {"a": np.arange(6.0), "b": np.ones(2, np.int32)}
    others = [
        {"a": arrays["a"]},
        {**arrays, "a": arrays["a"] + np.r_[0, 0, 0, 0, 0, 1e-12]},
        {**arrays, "a": arrays["a"].reshape(2, 3)},
        {**arrays, "b": arrays["b"].view(np.float32)},
        {"a": arrays["a"], "c": arrays["b"]},
    ]
    digests = {state.digest(changed) for changed in (arrays, *others)}
    assert len(digests) == 6
    assert state.digest(dict(reversed(arrays.items()))) == state.digest(arrays)
