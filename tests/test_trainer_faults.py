"""Full disks and numbers that are not finite, in the midst of a training."""

import dataclasses
import errno
import logging
import math

import numpy as np
import pytest
import tensorflow as tf

from grw_keras.data.samples import Plan
from grw_keras.training import checkpoint_files
from grw_keras.training.checkpoint_files import DiskFullError
from grw_keras.training.trainer import LOSSES_AT_ONCE, NonFiniteLossError
from tests.training_programs import ArrayStore, Notes, checkpoint_steps, make_trainer


def full_disk(monkeypatch, steps):
    """Makes the disk full at some steps."""
    write = checkpoint_files.write

    def full(folder, step, *args, **kwargs):
        if step in steps:
            raise DiskFullError(errno.ENOSPC, f"can't write the checkpoint of step {step}")
        return write(folder, step, *args, **kwargs)

    monkeypatch.setattr(checkpoint_files, "write", full)


def test_a_full_disk_is_warned_of(tmp_path, monkeypatch, caplog):
    full_disk(monkeypatch, steps=[4, 6])
    settings = {"epochs": 1, "checkpoint_every_steps": 2}
    store = ArrayStore(30)
    with caplog.at_level(logging.WARNING):
        outcome = make_trainer(tmp_path, settings, store=store).run()
    assert outcome.finished
    assert caplog.text.count("Training goes on") == 2
    assert checkpoint_steps(tmp_path) == [2, 8]


def test_a_full_disk_at_the_end_is_an_error(tmp_path, monkeypatch):
    full_disk(monkeypatch, steps=[6])
    training = make_trainer(tmp_path, {"epochs": 1, "checkpoint_every_steps": 2})
    with pytest.raises(DiskFullError, match="step 6"):
        training.run()
    assert checkpoint_files.latest(tmp_path / "checkpoints").step == 4


@pytest.mark.slow
def test_a_full_disk_where_early_stopping_ends_is_an_error(tmp_path, monkeypatch):
    full_disk(monkeypatch, steps=[11])
    settings = {"epochs": 9, "early_stopping_epochs": 1}
    training = make_trainer(tmp_path, settings, validate=lambda: {"val_top1": 0.5})
    with pytest.raises(DiskFullError, match="step 11"):
        training.run()


class Full(Notes):
    """A listener that fails to write, after its first step."""

    def __init__(self, folder, error):
        super().__init__()
        self.folder, self.error = folder, error
        self.saved = []

    def on_step(self, step, waited_s):
        super().on_step(step, waited_s)
        if step > 1:
            raise self.error

    def on_loss(self, step, loss):
        super().on_loss(step, loss)
        raise self.error

    def on_epoch(self, row):
        super().on_epoch(row)
        self.saved.append(checkpoint_steps(self.folder)[-1])
        raise self.error


def test_a_listener_without_room_is_warned_of_once(tmp_path, caplog):
    full, notes = Full(tmp_path, OSError(errno.ENOSPC, "No space left on device")), Notes()
    outcome = make_trainer(tmp_path, {"epochs": 2}, listeners=[full, notes]).run()
    assert outcome.finished
    assert caplog.text.count("No room for what Full writes") == 1
    assert full.rows == notes.rows == outcome.history
    assert full.steps == notes.steps == [*range(1, 12)]
    assert full.losses == notes.losses
    assert full.saved == [6, 11]  # each epoch's checkpoint comes first


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "no"), ValueError("no")])
def test_other_errors_of_listeners_end_the_training(error, tmp_path):
    with pytest.raises(type(error), match="no"):
        make_trainer(tmp_path, listeners=[Full(tmp_path, error)]).run()


def spoil(training, step, rows=slice(None)):
    """Makes the pixels of some rows of a step's batch NaN."""

    def spoiled(batches):
        for number, (inputs, labels) in enumerate(batches):
            if number == step:
                video = np.array(inputs["video"])
                video[rows] = np.nan
                inputs = {**inputs, "video": video}
            yield inputs, labels

    def batches(start):
        data = training.feed_before.batches(start)
        return tf.data.Dataset.from_generator(
            lambda: spoiled(data), output_signature=data.element_spec
        )

    training.feed_before = training.feed
    training.feed = dataclasses.replace(training.feed, batches=batches)
    return training


# Steps from 0; epochs end after steps 6 and 11, checkpoints are due after every third.
@pytest.mark.parametrize(
    "step", [3, *(pytest.param(step, marks=pytest.mark.slow) for step in (5, 8)), 16]
)
def test_a_nan_loss_stops_with_the_names_of_its_clips(step, tmp_path):
    """And with those of the step before, unless a checkpoint has shown its weights good."""
    notes = Notes()
    settings = {"checkpoint_every_steps": 3, "keep_checkpoints": 9}
    training = make_trainer(tmp_path, settings, listeners=[notes])
    spoil(training, step, rows=slice(1, 2))
    plan = Plan(clips=22, batch_size=4, seed=0)
    names, before = (
        ", ".join(f"clip{index}.mp4" for _, index in plan.step(number))
        for number in (step, step - 1)
    )
    with pytest.raises(NonFiniteLossError, match=rf"nan in step {step + 1}\. .*: {names}\. ") as e:
        training.run()
    assert (f"Clips of step {step}: {before}. Look" in str(e.value)) == (step % 3 != 0)
    assert str(e.value).count("lips") == (2 if step % 3 else 1)
    assert step < notes.steps[-1] + 1 <= step + 1 + LOSSES_AT_ONCE
    assert all(saved <= step for saved in checkpoint_steps(tmp_path))
    assert all(math.isfinite(row["loss"]) for row in notes.rows)


def test_weights_that_became_nan_are_not_saved(tmp_path):
    """A gradient that is NaN where the loss isn't: the next loss comes after the checkpoint."""

    def break_weight(step):
        if step == 6:
            weight = training.model.head.logits.kernel
            weight.assign(weight * np.nan)

    settings = {"checkpoint_every_steps": 3}
    training = make_trainer(tmp_path, settings, listeners=[Notes(break_weight)])
    with pytest.raises(NonFiniteLossError, match=r"weights became NaN or infinite in step 6. Its"):
        training.run()
    assert checkpoint_steps(tmp_path) == [3]


@pytest.mark.parametrize("step", [1, 4])
def test_a_nan_gradient_is_told_of_by_the_next_loss(step, tmp_path):
    def break_weight(done):
        if done == step:
            weight = training.model.head.logits.kernel
            weight.assign(weight * np.nan)

    training = make_trainer(tmp_path, listeners=[Notes(break_weight)])
    own, next_own = (
        ", ".join(f"clip{index}.mp4" for _, index in training.feed.plan.step(number))
        for number in (step - 1, step)
    )
    match = (
        rf"loss is nan in step {step + 1}. Its clips: {next_own}\. If they are good, the gradient "
        rf"of step {step} .* Clips of step {step}: {own}\. Look"
    )
    with pytest.raises(NonFiniteLossError, match=match):
        training.run()


@pytest.mark.slow
def test_weights_that_became_nan_are_not_validated(tmp_path):
    """In an epoch's last step: metrics of NaN would end the training without a clip's name."""

    def break_weight(step):
        if step == 6:
            weight = training.model.head.logits.kernel
            weight.assign(weight * np.nan)

    def validate():
        raise AssertionError

    training = make_trainer(tmp_path, listeners=[Notes(break_weight)], validate=validate)
    with pytest.raises(NonFiniteLossError, match=r"weights became NaN or infinite in step 6. Its"):
        training.run()
    assert checkpoint_steps(tmp_path) == []


@pytest.mark.slow
def test_a_nan_on_the_second_replica_is_seen(tmp_path, two_replicas):
    """In the last step before a checkpoint, and in that replica's rows alone."""
    settings = {"checkpoint_every_steps": 3}
    training = make_trainer(tmp_path, settings, strategy=two_replicas)
    plain = make_trainer(tmp_path).feed.batches
    second = two_replicas.experimental_distribute_dataset

    def batches(start):
        def poison(number, batch):
            inputs, labels = batch
            bad = (number == 2 - start) & (tf.range(4) == 3)
            factor = tf.where(bad, np.float32(np.nan), 1.0)[:, None, None, None, None]
            return {**inputs, "video": inputs["video"] * factor}, labels

        return second(plain(start).enumerate().map(poison))

    training.feed = dataclasses.replace(training.feed, batches=batches)
    with pytest.raises(NonFiniteLossError, match="in step 3"):
        training.run()
    assert checkpoint_steps(tmp_path) == []
