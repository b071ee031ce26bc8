"""The loop: rows, losses, frozen backbones, and when it stops and saves."""

import itertools
import math

import pytest

from grw_keras.training import checkpoint_files
from grw_keras.training.trainer import LOSSES_AT_ONCE
from tests.training_programs import (
    ArrayStore,
    Notes,
    checkpoint_steps,
    everything,
    make_trainer,
)


def test_a_row_for_each_epoch_has_losses_metrics_and_rates(tmp_path):
    notes = Notes()
    settings = {"epochs": 2, "checkpoint_every_steps": 3, "keep_checkpoints": 9}
    training = make_trainer(tmp_path, settings, listeners=[notes])
    outcome = training.run()
    assert outcome.finished
    assert (outcome.step, training.steps) == (11, 11)  # 22 clips in batches of 4, twice
    assert notes.steps == [*range(1, 12)]
    assert notes.rows == outcome.history
    assert [(row["epoch"], row["step"]) for row in outcome.history] == [(1, 6), (2, 11)]
    names = "loss cross_entropy top1 grw_ordering grw_speed grw_order_accuracy grw_acceleration"
    for row in outcome.history:
        assert {*names.split(), "backbone_rate", "head_rate"} < row.keys()
        # The regulariser's loss is a mean over steps, its metrics are means over windows.
        grw = 0.5 * (row["grw_ordering"] + 0.5 * row["grw_speed"])
        assert row["loss"] == pytest.approx(row["cross_entropy"] + grw, rel=0.05)
        rate = 3e-5 + (3e-3 - 3e-5) * (1 + math.cos(math.pi * (row["step"] - 1) / 11)) / 2
        assert row["backbone_rate"] == pytest.approx(rate, rel=1e-5)
        assert row["head_rate"] == pytest.approx(10 * rate, rel=1e-5)
    left = everything(training.model)
    assert not any(value.any() for name, value in left.items() if name.startswith("metrics"))
    assert checkpoint_steps(tmp_path) == [3, 6, 9, 11]
    checkpoint = checkpoint_files.latest(tmp_path / "checkpoints")
    assert checkpoint.state["history"] == outcome.history


@pytest.mark.slow
def test_losses_are_looked_at_now_and_then(tmp_path):
    notes = Notes()
    training = make_trainer(tmp_path, {"epochs": 5}, listeners=[notes])
    epochs = [training.feed.plan.steps(epoch) for epoch in range(6)]
    training.run()
    expected = []
    for begin, end in itertools.pairwise(epochs):
        expected += [*range(begin + LOSSES_AT_ONCE, end, LOSSES_AT_ONCE), end]
    assert [step for step, _ in notes.losses] == expected
    assert [loss for step, loss in notes.losses if step in epochs] == [
        row["loss"] for row in notes.rows
    ]


def test_a_batch_larger_than_the_set_ends_several_epochs_at_once(tmp_path):
    training = make_trainer(tmp_path, {"epochs": 5}, store=ArrayStore(2))
    outcome = training.run()
    # Two clips in batches of 4: a step is two epochs.
    assert [(row["epoch"], row["step"]) for row in outcome.history] == [(2, 1), (4, 2), (5, 3)]


@pytest.mark.slow
def test_an_epoch_without_windows_is_kept_as_nan(tmp_path):
    store = ArrayStore()
    store.frames = [frames[:2] for frames in store.frames]  # fewer than a window of 3
    settings = {"epochs": 2, "checkpoint_every_steps": 1}
    make_trainer(tmp_path, settings, store=store).run()
    resumed = make_trainer(tmp_path, settings, store=store)
    resumed.resume()
    assert resumed.outcome.step == 11
    for row in resumed.outcome.history:
        assert math.isnan(row["grw_ordering"])
        assert math.isfinite(row["loss"])


@pytest.mark.slow
def test_a_frozen_backbone_moves_after_its_epochs(tmp_path):
    seen = {0: None}

    def note(step):
        seen[step] = {k: v.numpy() for k, v in training.model.named_weights().items()}

    # 1.5 epochs of 22 clips in batches of 4 are 9 steps.
    settings = {"epochs": 2, "frozen_backbone_epochs": 1.5, "optimizer": "adamw"}
    settings["weight_decay"] = 0.1
    training = make_trainer(tmp_path, settings, listeners=[Notes(note)])
    note(0)
    training.run()
    for name in seen[0]:
        changes = [
            step for step in range(1, 12) if (seen[step][name] != seen[step - 1][name]).any()
        ]
        assert changes == [*range(10 if name.startswith("backbone/") else 1, 12)], name
    assert training.model.trainable_variables == training.model.trainable_weights
    assert len(training.model.backbone.trainable_weights) == 3  # kernel, gamma, beta


@pytest.mark.slow
def test_thawing_leaves_a_frozen_batch_norm_frozen(tmp_path):
    settings = {"epochs": 1, "frozen_backbone_epochs": 0.5, "frozen_batch_norm": True}
    training = make_trainer(tmp_path, settings)
    before = {k: v.numpy() for k, v in training.model.named_weights().items()}
    training.run()
    moved = {
        name
        for name, variable in training.model.named_weights().items()
        if (variable.numpy() != before[name]).any()
    }
    assert "backbone/conv/kernel" in moved
    assert not any("norm" in name for name in moved)


@pytest.mark.slow
def test_it_stops_when_asked_and_goes_on(tmp_path):
    notes = Notes()
    training = make_trainer(
        tmp_path, {"epochs": 1}, listeners=[notes], stop=lambda: bool(notes.steps[1:])
    )
    outcome = training.run()
    assert (outcome.finished, outcome.step) == (False, 2)
    assert checkpoint_steps(tmp_path) == [2]
    again = make_trainer(tmp_path, {"epochs": 1})
    again.resume()
    assert again.run().finished
    # Asked in the last step, there is nothing left to stop.
    last = make_trainer(tmp_path / "last", {"epochs": 1}, store=ArrayStore(4), stop=lambda: True)
    assert last.run().finished


@pytest.mark.slow
def test_time_makes_a_checkpoint_due(tmp_path):
    settings = {"epochs": 1, "checkpoint_every_s": 1e-6, "keep_checkpoints": 9}
    make_trainer(tmp_path, settings).run()
    assert checkpoint_steps(tmp_path) == [1, 2, 3, 4, 5, 6]
