"""The loop of a training: steps, checkpoints, validation, and an end that can be taken up again."""

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from grw_keras.data.samples import Plan
from grw_keras.models.optimizer import unwrapped
from grw_keras.training import checkpoint_files, state
from grw_keras.training.averaging import Average
from grw_keras.training.checkpoint_files import DiskFullError
from grw_keras.training.distribution import agree, is_chief, same_everywhere
from grw_keras.training.listening import Listener, Listeners, is_disk_full
from grw_keras.training.recipe import TrainingPart, differences

log = logging.getLogger("grw_keras")

Row = dict[str, float]
# Steps between two looks at the losses: each look waits for the device to finish.
LOSSES_AT_ONCE = 10
MOST_SHOWN = 5  # differences in one message


class NonFiniteLossError(ArithmeticError):
    """The loss, or what a step made of the weights, is NaN or infinite; names the step's clips."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feed:
    """Where the clips come from.

    Args:
        batches: gives a strategy's data set that starts at a step.
        plan: which clips make up which step.
        names: of the clips, by index.
    """

    batches: Callable[[int], Any]
    plan: Plan
    names: Sequence[str]


@dataclasses.dataclass
class Outcome:
    """How a training ended.

    Attributes:
        step: steps done.
        history: one row for each epoch.
        finished: False: stopped by a signal, and to be resumed.
        best_epoch: the epoch whose weights were chosen, with early stopping; else None, as where
            the disk was too full to keep any.
    """

    step: int = 0
    history: list[Row] = dataclasses.field(default_factory=list)
    finished: bool = False
    best_epoch: int | None = None


class Trainer:
    """Trains a compiled model, from the start or from its last checkpoint.

    Steps, samples and random layers are functions of (seed, step), and checkpoints hold all that
    changes; so on a CPU with deterministic operations a run that was killed and resumed ends as
    one that was not does, to the bit where sums are made in the same order
    (`grw_keras.training.determinism`).

    Attributes:
        outcome: how far it has come.
        steps: of the whole training.

    Args:
        model: a compiled `VideoClassifier`, made in the scope of `strategy`.
        feed: its data.
        settings: a recipe's part.
        folder: of the run; checkpoints go to `checkpoints/` in it.
        strategy: of tf.distribute.
        identity: plain data that a resumed run must share, as of `runs.identity`; kept in
            checkpoints.
        validate: called after epochs, with the weights that would be exported; its numbers join
            the epoch's row. Early stopping goes by "val_top1".
        keep_best: called with the weights of the best epoch so far, to save them.
        listeners: told of each step and epoch.
        stop: asked after each step whether to save and end.
    """

    def __init__(
        self,
        model: tf_keras.Model,
        feed: Feed,
        settings: TrainingPart,
        folder,
        *,
        strategy: tf.distribute.Strategy,
        identity: dict[str, Any],
        validate: Callable[[], Row] | None = None,
        keep_best: Callable[[], None] | None = None,
        listeners: Sequence[Listener] = (),
        stop: Callable[[], bool] = lambda: False,
    ):
        self.model, self.feed, self.settings = model, feed, settings
        self.folder = Path(folder) / "checkpoints"
        self.strategy = strategy
        self.identity = identity
        self.validate, self.keep_best = validate, keep_best
        self.listeners, self.stop = Listeners(listeners), stop
        self.steps = feed.plan.steps(settings.epochs)
        with strategy.scope():
            state.build(model, (1, model.spec.num_classes))
            self.average = None
            if settings.ema_decay is not None:
                weights = list(model.named_weights().values())
                self.average = Average(weights, settings.ema_decay)
        self._variables = state.variables(model, self.average)
        self.outcome = Outcome()
        self._losses: list[tf.Tensor] = []
        self._sound_at = 0  # steps after which the weights were last seen to be finite
        self._resumed = ""

    def run(self) -> Outcome:
        """Trains to the end, or until `stop`.

        Raises:
            NonFiniteLossError: a loss or weights that are NaN or infinite; seen `LOSSES_AT_ONCE`
                steps later at most, and before any checkpoint is written.
            DiskFullError: no room for the last checkpoint (earlier ones are only warned of, and
                so is what listeners and `keep_best` have no room for).
            ValueError: workers that would begin elsewhere or read other clips; on all of them.
        """
        self._check_workers()
        outcome = self.outcome
        with self.strategy.scope():  # what takes the current strategy then takes this one
            iterator = iter(self.feed.batches(outcome.step))
        saved_s = time.monotonic()
        step_function: Callable[[Any], tf.Tensor] = self._compiled_step()
        frozen = False
        for step in range(outcome.step, self.steps):
            if self._exhausted():
                break
            if frozen != self._frozen(step):
                frozen = self._frozen(step)
                self._freeze_backbone(frozen)
                step_function = self._compiled_step()
            began_s = time.perf_counter()
            batch = next(iterator)
            waited_s = time.perf_counter() - began_s
            self._losses.append(step_function(batch))
            outcome.step = step + 1
            if len(self._losses) == LOSSES_AT_ONCE:
                self._check_losses()
            self.listeners.on_step(outcome.step, waited_s)
            row = self._end_of_epoch()
            if self._agreed(row is not None or self.stop() or self._due(saved_s)):
                self._save()
                saved_s = time.monotonic()
                if row is not None:  # after the checkpoint, which matters more on a full disk
                    self.listeners.on_epoch(row)
                if self._agreed(self.stop()) and outcome.step < self.steps:
                    return outcome
        outcome.finished = True
        return outcome

    def exported(self):
        """A context in which the model has the weights that count: the average, if there is one."""
        return contextlib.nullcontext() if self.average is None else self.average.applied()

    def _compiled_step(self):
        model, strategy, average = self.model, self.strategy, self.average
        replica_step = model.train_step
        if self.settings.jit_compile:
            replica_step = tf.function(replica_step, jit_compile=True, autograph=False)

        @tf.function(autograph=False)  # no code here needs it, and tracing takes half the time
        def step(batch):
            logs = strategy.run(replica_step, args=(batch,))
            if average is not None:
                average.update()
            # Some strategies give each replica its own loss: so a NaN of one is seen by all.
            return strategy.reduce("MEAN", logs["loss"], axis=None)

        return step

    def _frozen(self, step: int) -> bool:
        return step < self.feed.plan.steps(self.settings.frozen_backbone_epochs)

    def _freeze_backbone(self, frozen: bool) -> None:
        self.model.backbone.trainable = not frozen
        if not frozen:  # thawing a whole part thaws its batch norms too
            self.model.set_batch_norm_frozen(self.model.spec.frozen_batch_norm)

    def _check_losses(self) -> None:
        """Keras's loss is a mean since the epoch began: once NaN it stays so."""
        first = self.outcome.step - len(self._losses)
        losses, self._losses = [float(loss) for loss in self._losses], []
        for step, loss in enumerate(losses, first):
            if not math.isfinite(loss):
                raise self._non_finite(f"The loss is {loss}", step, or_before=step > self._sound_at)
        if losses:
            self.listeners.on_loss(self.outcome.step, losses[-1])

    def _check_weights(self, arrays: Mapping[str, np.ndarray]) -> None:
        """A NaN gradient where the loss is finite: the next loss would have told of it."""
        if not state.is_finite(arrays):
            raise self._non_finite("The weights became NaN or infinite", self.outcome.step - 1)
        self._sound_at = self.outcome.step

    def _non_finite(self, what: str, step: int, *, or_before: bool = False) -> NonFiniteLossError:
        before = (
            f"If they are good, the gradient of step {step} was not finite, though its loss was, "
            f"and spoiled the weights. Clips of step {step}: {self._clips(step - 1)}. "
            if or_before
            else ""
        )
        return NonFiniteLossError(
            f"{what} in step {step + 1}. Its clips: {self._clips(step)}. {before}Look at them; or "
            "lower the learning rates, or set training.clip_norm. The last checkpoint is from "
            "before"
        )

    def _clips(self, step: int) -> str:
        return ", ".join(self.feed.names[index] for _, index in self.feed.plan.step(step))

    def _check_workers(self) -> None:
        """One that began elsewhere would train on, and all that is reduced would be wrong."""
        shared = "the run's folder must be shared by all workers"
        alike = "all workers must read the same clips, in the same order"
        step, steps, count = self.outcome.step, self.steps, len(self.feed.names)
        for text, rule, received in (
            (str(step), shared, f"step {step} to go on from"),
            (self._resumed, shared, f"a checkpoint of step {step} of other contents"),
            ("\n".join(self.feed.names), alike, f"{count} clips, others than another worker's"),
            (str(steps), "all workers must be given the same recipe", f"{steps} steps to train"),
        ):
            if not same_everywhere(self.strategy, text):
                raise ValueError(
                    f"To train together, {rule}. Received: on this worker {received}, and not so "
                    "on another"
                )

    def _end_of_epoch(self) -> Row | None:
        """The row of the epoch that ended with this step, if one did."""
        outcome = self.outcome
        epoch = self._epochs_done()
        if epoch == self._epochs_told():
            return None
        self._check_losses()
        row: Row = {"epoch": epoch, "step": outcome.step}
        row |= {metric.name: float(metric.result()) for metric in self.model.metrics}
        row |= self._rates()
        if self.validate is not None and self._is_validated(epoch):
            self._check_weights(state.capture(state.of_model(self._variables)))
            with self.exported():
                row |= self.validate()
                self._note_best(row)
        outcome.history.append(row)
        self.model.reset_metrics()
        return row

    def _epochs_told(self) -> int:
        return int(self.outcome.history[-1]["epoch"]) if self.outcome.history else 0

    def _epochs_done(self) -> int:
        """Several may end with one step, where a batch has more clips than there are."""
        epoch = self._epochs_told()
        last = self.settings.epochs
        while epoch < last and self.feed.plan.steps(epoch + 1) <= self.outcome.step:
            epoch += 1
        return epoch

    def _is_validated(self, epoch: int) -> bool:
        last = self.outcome.step == self.steps
        return last or epoch % self.settings.validate_every_epochs == 0

    def _note_best(self, row: Row) -> None:
        """Before the checkpoint that tells of it: after a kill between them, it is done again."""
        if self.settings.early_stopping_epochs is None:
            return
        kept = [old for old in self.outcome.history if old["epoch"] == self.outcome.best_epoch]
        if (not kept or row["val_top1"] > kept[0]["val_top1"]) and self._kept(int(row["epoch"])):
            self.outcome.best_epoch = int(row["epoch"])

    def _kept(self, epoch: int) -> bool:
        """Whether there was room for the weights; the same on all workers, though one writes."""
        full = False
        try:
            if self.keep_best is not None:
                self.keep_best()
        except Exception as error:
            if not is_disk_full(error):
                raise
            full = True
            log.warning("No room for the weights of epoch %d, the best: %s", epoch, error)
        return not self._agreed(full)

    def _exhausted(self) -> bool:
        """Whether early stopping has lost its patience; only a validation can tell."""
        patience, history = self.settings.early_stopping_epochs, self.outcome.history
        if patience is None or not history or "val_top1" not in history[-1]:
            return False
        validated = [row for row in history if "val_top1" in row]
        best = max(validated, key=lambda row: row["val_top1"])  # the first of equals
        return self._epochs_told() - best["epoch"] >= patience

    def _rates(self) -> Row:
        optimizer = unwrapped(self.model.optimizer)
        rate = float(tf.convert_to_tensor(optimizer.learning_rate))
        return {"backbone_rate": rate, "head_rate": rate * getattr(optimizer, "head_factor", 1.0)}

    def _due(self, saved_s: float) -> bool:
        every = self.settings.checkpoint_every_steps
        by_steps = every is not None and self.outcome.step % every == 0
        return by_steps or time.monotonic() - saved_s >= self.settings.checkpoint_every_s

    def _agreed(self, flag: bool) -> bool:
        return agree(self.strategy, flag)

    def _save(self) -> None:
        self._check_losses()
        arrays = state.capture(self._variables)  # by all workers: reading may be a collective
        outcome = self.outcome
        self._check_weights(arrays)
        if not is_chief(self.strategy):
            return
        contents = {
            "identity": self.identity,
            "history": outcome.history,
            "best_epoch": outcome.best_epoch,
        }
        try:
            checkpoint_files.write(
                self.folder, outcome.step, arrays, contents, keep=self.settings.keep_checkpoints
            )
        except DiskFullError as error:
            if outcome.step == self.steps or self._exhausted():
                raise
            log.warning("%s. Training goes on; the next checkpoint is tried in its time", error)

    def resume(self) -> None:
        """Goes to the last whole checkpoint, if there is one.

        Raises:
            CorruptCheckpointError: there are some, and none is whole.
            ValueError: it is of another model or of a run of another `identity`; nothing is
                changed then.
        """
        checkpoint = checkpoint_files.latest(self.folder)
        if checkpoint is None:
            log.warning("No checkpoint in %s: starting from the beginning", self.folder)
            return
        changed = differences(checkpoint.state["identity"], self.identity)
        if changed:
            shown = [*changed[:MOST_SHOWN], *(["…"] if len(changed) > MOST_SHOWN else [])]
            raise ValueError(
                "To resume, a run must be told what it was told before; start a new run, in "
                f"another folder, for anything else. Received: {'; '.join(shown)}"
            )
        state.restore(self._variables, checkpoint.arrays)
        self.outcome.step = self._sound_at = checkpoint.step
        self._resumed = state.digest(checkpoint.arrays)
        self.outcome.history = checkpoint.state["history"]
        self.outcome.best_epoch = checkpoint.state["best_epoch"]
        log.info("Resumed at step %d of %d", checkpoint.step, self.steps)
