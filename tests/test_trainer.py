"""The loop: rows, validation, early stopping, frozen backbones, faults, replicas."""

import dataclasses
import errno
import itertools
import logging
import math

import numpy as np
import pytest
import tensorflow as tf

from grw_keras.data.samples import Plan
from grw_keras.training import checkpoint_files, recipe, runs, state
from grw_keras.training.checkpoint_files import DiskFullError
from grw_keras.training.trainer import LOSSES_AT_ONCE, NonFiniteLossError
from tests.training_programs import ArrayStore, everything, make_trainer


class Notes:
    """A listener that writes all down."""

    def __init__(self, at_step=lambda step: None):
        self.steps, self.losses, self.rows = [], [], []
        self.at_step = at_step

    def on_step(self, step, waited_s):
        self.steps.append(step)
        assert 0 <= waited_s < 60
        self.at_step(step)

    def on_loss(self, step, loss):
        self.losses.append((step, loss))

    def on_epoch(self, row):
        self.rows.append(row)


def bits(arrays):
    return {name: (array.shape, np.asarray(array).tobytes()) for name, array in arrays.items()}


def checkpoint_steps(folder):
    return sorted(int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*"))


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


@pytest.mark.parametrize("case", ["missing", "more", "shape"])
def test_a_checkpoint_of_another_model_is_refused(case, tmp_path):
    training = make_trainer(tmp_path)
    arrays = state.capture(training._variables)
    name = next(name for name in arrays if "kernel" in name)
    changed = {**arrays, name: np.ones((1, 2), np.float32)}
    if case == "missing":
        del changed[name]
    if case == "more":
        changed = {**arrays, "model/99/other": np.ones(3, np.float32)}
    arrays = {name: array + 1 for name, array in changed.items()}
    kept = {"identity": training.identity, "history": [], "best_epoch": None}
    checkpoint_files.write(tmp_path / "checkpoints", 3, arrays, kept)
    before = bits(everything(training.model))
    with pytest.raises(ValueError, match=r"of the same model and optimiser.*1 tensors that differ"):
        training.resume()
    assert bits(everything(training.model)) == before
    assert training.outcome.step == 0


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    def trainer(seed, clips):
        identity = {"recipe": {"training": {"seed": seed, "rate": (0.1, 0.2)}}, "clips": clips}
        return make_trainer(tmp_path, {"epochs": 1}, identity=identity)

    trainer(0, ["a", "b"]).run()
    same = trainer(0, ["a", "b"])
    same.resume()
    assert same.outcome.step == 6
    other = trainer(1, ["a"])
    before = bits(everything(other.model))
    with pytest.raises(ValueError, match=r"recipe.training.seed: 0 → 1; clips: \['a', 'b'\] → "):
        other.resume()
    assert bits(everything(other.model)) == before
    assert other.outcome.step == 0


def test_differences_of_plain_data():
    nan = float("nan")
    old = {"a": 1, "b": {"c": (1, 2), "d": None}, "x": nan, "gone": True}
    new = {"a": 1, "b": {"c": [1, 2], "d": 0}, "x": nan, "new": "é"}
    assert state.differences(old, new) == [
        "b.d: None → 0",
        "gone: True → not set",
        "new: not set → 'é'",
    ]


def test_without_a_checkpoint_it_begins(tmp_path, caplog):
    training = make_trainer(tmp_path)
    training.resume()
    assert "No checkpoint in" in caplog.text
    assert training.outcome.step == 0


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


def test_a_full_disk_where_early_stopping_ends_is_an_error(tmp_path, monkeypatch):
    full_disk(monkeypatch, steps=[11])
    settings = {"epochs": 9, "early_stopping_epochs": 1}
    training = make_trainer(tmp_path, settings, validate=lambda: {"val_top1": 0.5})
    with pytest.raises(DiskFullError, match="step 11"):
        training.run()


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
@pytest.mark.parametrize("step", [3, 5, 8, 16])
def test_a_nan_loss_stops_with_the_names_of_its_clips(step, tmp_path):
    notes = Notes()
    settings = {"checkpoint_every_steps": 3, "keep_checkpoints": 9}
    training = make_trainer(tmp_path, settings, listeners=[notes])
    spoil(training, step, rows=slice(1, 2))
    plan = Plan(clips=22, batch_size=4, seed=0)
    names = ", ".join(f"clip{index}.mp4" for _, index in plan.step(step))
    with pytest.raises(NonFiniteLossError, match=rf"nan in step {step + 1}\. .*: {names}\. Look"):
        training.run()
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


@pytest.mark.parametrize(
    ("every", "patience", "scores", "best", "last"),
    [
        (1, 2, [0.5, 0.6, 0.6, 0.4, 0.9], 2, 4),  # the same is no better
        (1, 1, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 6, 6),
        (2, 1, [0.5, 0.6, 0.6], 4, 6),  # judged when there is something to judge by
    ],
)
def test_early_stopping_waits_and_keeps_the_best_average(
    every, patience, scores, best, last, tmp_path
):
    left, kept = list(scores), []

    def weights():
        return [v.numpy() for v in training.model.named_weights().values()]

    def averages():
        return [v.numpy() for v in training.average.variables[:-1]]

    def validate():
        assert all(map(np.array_equal, weights(), averages()))
        return {"val_top1": left.pop(0)}

    def keep_best():
        assert all(map(np.array_equal, weights(), averages()))
        kept.append(training.outcome.best_epoch)

    settings = {
        "epochs": 6,
        "early_stopping_epochs": patience,
        "validate_every_epochs": every,
        "ema_decay": 0.9,
    }
    store = ArrayStore(8)
    training = make_trainer(tmp_path, settings, store=store, validate=validate, keep_best=keep_best)
    outcome = training.run()
    assert outcome.finished
    assert (outcome.best_epoch, outcome.history[-1]["epoch"]) == (best, last)
    assert kept[-1] == best
    assert len(kept) == sum(
        s > max([0, *scores[:n]]) for n, s in enumerate(scores[: last // every])
    )
    again = make_trainer(tmp_path, settings, store=store, validate=None)
    again.resume()
    assert again.run().best_epoch == best
    assert again.outcome.history == outcome.history


def test_the_last_epoch_is_validated_always(tmp_path):
    settings = {"epochs": 5, "validate_every_epochs": 3}
    training = make_trainer(
        tmp_path, settings, store=ArrayStore(4), validate=lambda: {"val_top1": 0.5}
    )
    validated = [row["epoch"] for row in training.run().history if "val_top1" in row]
    assert validated == [3, 5]


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


def test_time_makes_a_checkpoint_due(tmp_path):
    settings = {"epochs": 1, "checkpoint_every_s": 1e-6, "keep_checkpoints": 9}
    make_trainer(tmp_path, settings).run()
    assert checkpoint_steps(tmp_path) == [1, 2, 3, 4, 5, 6]


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


def test_a_runs_identity_is_its_recipe_and_its_clips():
    def identity(changes, clips=("a.mp4", "b.mp4")):
        wanted = recipe.Recipe(model=recipe.ModelPart(name="mobilenet_v3_small_grw"))
        return runs.identity(recipe.override(wanted, changes), clips)

    own = identity({})
    harmless = {"training.keep_checkpoints": 9, "data.workers": 3, "published": {"top1": 0.7}}
    assert state.differences(own, identity(harmless)) == []
    assert state.differences(own, identity({"training.seed": 1})) == ["recipe.training.seed: 0 → 1"]
    for clips in (["b.mp4", "a.mp4"], ["a.mp4", "c.mp4"], ["a.mp4"]):
        changed = state.differences(own, identity({}, clips))
        assert any(line.startswith("clips.sha256: ") for line in changed)
