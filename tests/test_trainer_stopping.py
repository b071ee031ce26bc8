"""Validation, and early stopping by it."""

import errno

import numpy as np
import pytest
from safetensors import SafetensorError

from tests.training_programs import ArrayStore, make_trainer


@pytest.mark.parametrize(
    ("every", "patience", "scores", "best", "last"),
    [
        (1, 2, [0.5, 0.6, 0.6, 0.4, 0.9], 2, 4),  # the same is no better
        pytest.param(1, 1, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 6, 6, marks=pytest.mark.slow),
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
        kept.append(every * (len(scores) - len(left)))

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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "scores", "full", "best", "last"),
    [
        # Patience counts from the best epoch, the weights are those that there was room for.
        (OSError, [0.5, 0.6, 0.55, 0.4, 0.9], {2}, 3, 4),
        (SafetensorError, [0.5, 0.6, 0.4, 0.4, 0.9], {2}, 1, 4),
        (OSError, [0.5, 0.4, 0.4, 0.9], {1, 2, 3}, None, 3),
    ],
)
def test_weights_that_there_is_no_room_for_are_not_the_best(
    kind, scores, full, best, last, tmp_path, caplog
):
    left, kept = list(scores), []

    def keep_best():
        epoch = len(scores) - len(left)
        if epoch in full:
            # What safetensors says has no number but in its text.
            text = "I/O error: No space left on device (os error 28)"
            raise OSError(errno.ENOSPC, text) if kind is OSError else kind(text)
        kept.append(epoch)

    training = make_trainer(
        tmp_path,
        {"epochs": 6, "early_stopping_epochs": 2},
        store=ArrayStore(4),
        validate=lambda: {"val_top1": left.pop(0)},
        keep_best=keep_best,
    )
    outcome = training.run()
    assert outcome.finished
    assert (outcome.best_epoch, outcome.history[-1]["epoch"]) == (best, last)
    assert kept[-1:] == ([] if best is None else [best])
    assert all(f"No room for the weights of epoch {epoch}" in caplog.text for epoch in full - {3})
    again = make_trainer(tmp_path, {"epochs": 6, "early_stopping_epochs": 2}, store=ArrayStore(4))
    again.resume()
    assert (again.outcome.best_epoch, again.outcome.step) == (best, last)


@pytest.mark.slow
def test_other_failures_to_keep_the_best_end_the_training(tmp_path):
    def keep_best():
        raise PermissionError(errno.EACCES, "Permission denied")

    training = make_trainer(
        tmp_path,
        {"epochs": 2, "early_stopping_epochs": 2},
        store=ArrayStore(4),
        validate=lambda: {"val_top1": 0.5},
        keep_best=keep_best,
    )
    with pytest.raises(PermissionError):
        training.run()
