"""A whole training: from a recipe and data to a folder with a model, its numbers and a report."""

import contextlib
import functools
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from grw_keras import zoo
from grw_keras.data.opening import Choice, Opened, open_data
from grw_keras.data.pipeline import OnBad, training_batches
from grw_keras.data.samples import Plan, Sampling
from grw_keras.data.transforms import Augmentation
from grw_keras.evaluation import evaluating
from grw_keras.evaluation.predictions import Predictor
from grw_keras.models import pretrained
from grw_keras.models.classifier import VideoClassifier
from grw_keras.models.spec import ModelSpec
from grw_keras.training import concluding, distribution, objective, runs
from grw_keras.training.listening import HistoryFile, Listener, TensorBoard, Terminal
from grw_keras.training.recipe import Recipe
from grw_keras.training.runs import RunFolder
from grw_keras.training.stopping import stop_signals
from grw_keras.training.trainer import Feed, Outcome, Trainer
from grw_keras.zoo import registry

log = logging.getLogger("grw_keras")

LAST_LAYER = "logits/"  # how the names of its weights begin


def train(
    wanted: Recipe,
    data: str | os.PathLike,
    out: str | os.PathLike,
    *,
    annotations: Sequence[str | os.PathLike] = (),
    resume: bool = False,
    cluster: distribution.Cluster | None = None,
    devices: Sequence[str] | None = None,
    command: str = "",
) -> Outcome:
    """Trains a model of the zoo on a folder, a list, Kinetics or prepared records.

    Under a cluster every worker calls it with the same arguments and sees the same `data`; the
    first one writes. Ends early, with everything saved, on SIGTERM or SIGINT.

    Args:
        wanted: the recipe.
        data: as of `open_data`.
        out: the run's folder (`RunFolder`).
        annotations: Kinetics annotation files.
        resume: go on with the run in `out`, if there is one.
        cluster: this worker's place among others.
        devices: as of `distribution.strategy`.
        command: for the report.

    Returns:
        How it ended; `finished` is False where a signal ended it.

    Raises:
        FileExistsError: there is a run in `out`.
        ValueError: a recipe that isn't the run's, data that isn't, parts that don't go together.
        TooManyBadVideosError, NonFiniteLossError, DiskFullError, CorruptCheckpointError: as said
            there.
    """
    folder, settings = RunFolder.at(out), wanted.training
    strategy = _strategy(wanted, devices, cluster)
    share = distribution.share(strategy)
    chief = share.worker == 0
    with contextlib.ExitStack() as stack:
        if chief:
            stack.enter_context(runs.claimed(folder))
            runs.check(folder, wanted, resume=resume)
        opened = _open(wanted, data, folder, share, annotations)
        with objective.precision(settings.precision), strategy.scope():
            model = make_model(wanted, opened.clips.labels)
        _check_fit(model.spec, expected_spec(wanted))
        if chief:
            runs.keep(folder, wanted, opened.clips)
        feed = make_feed(wanted, model.spec, opened, strategy, on_bad=_warn)
        with strategy.scope():
            objective.compile_model(model, settings, feed.plan.steps(settings.epochs))
        trainer, outcome = _run(wanted, model, feed, opened, folder, strategy, resume)
        if outcome.finished:
            _export(trainer, model, folder, chief)
            if chief:
                _conclude(folder, wanted, opened, outcome, data, command)
        elif chief:
            log.warning(
                "Stopped at step %d of %d; go on with --resume", outcome.step, trainer.steps
            )
        distribution.barrier(strategy)
    return outcome


def _strategy(
    wanted: Recipe, devices: Sequence[str] | None, cluster: distribution.Cluster | None
) -> tf.distribute.Strategy:
    """Seeds, determinism, and the devices, which the recipe's batch must suit."""
    settings = wanted.training
    tf_keras.utils.set_random_seed(settings.seed)
    if settings.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = distribution.strategy(devices, cluster)
    each = distribution.share(strategy).per_replica(settings.batch_size)
    if each % settings.accumulate:
        raise ValueError(
            f"`training.accumulate` must divide the {each} clips that each device takes of a step. "
            f"Received: {settings.accumulate}"
        )
    return strategy


def _open(
    wanted: Recipe,
    data: str | os.PathLike,
    folder: RunFolder,
    share: distribution.Share,
    annotations: Sequence[str | os.PathLike],
) -> Opened:
    """The run's data; each worker but the first has a folder of its own for what it notes."""
    chief = share.worker == 0
    own = folder.path if chief else folder.path / "workers" / str(share.worker)
    spec = expected_spec(wanted)
    opened = open_run_data(wanted, spec, data, own, annotations=annotations, chief=chief)
    if "train" not in opened.stores:
        raise ValueError(f"The data must have training clips. Received: {opened.clips.splits()}")
    if wanted.training.early_stopping_epochs is not None and "validation" not in opened.stores:
        raise ValueError(
            "Early stopping needs validation clips, apart from those it is tested on: mark test "
            "clips (test/, a split column, data.test_regex) and set data.holdout. "
            f"Received: {opened.clips.splits()}"
        )
    return opened


def _run(
    wanted: Recipe,
    model: VideoClassifier,
    feed: Feed,
    opened: Opened,
    folder: RunFolder,
    strategy: tf.distribute.Strategy,
    resume: bool,
) -> tuple[Trainer, Outcome]:
    """Trains, with whoever is to be told of it."""
    settings, chief = wanted.training, distribution.is_chief(strategy)
    monitored = next((s for s in ("validation", "test") if s in opened.stores), None)
    terminal = Terminal(feed.plan.steps(settings.epochs), settings.batch_size)
    listeners: list[Listener] = [terminal] if chief else []
    with stop_signals() as stop, terminal if chief else contextlib.nullcontext():
        trainer = Trainer(
            model,
            feed,
            settings,
            folder.path,
            strategy=strategy,
            identity=runs.identity(wanted, feed.names),
            validate=None if monitored is None else _validator(wanted, model, opened, monitored),
            keep_best=lambda: _save(model, folder.best, chief),
            listeners=listeners,
            stop=stop,
        )
        if resume:
            trainer.resume()
        if chief:
            listeners += [
                HistoryFile(folder.history, trainer.outcome.history),
                TensorBoard(folder.tensorboard),
            ]
            terminal.begin_at(trainer.outcome.step)
        return trainer, trainer.run()


def _validator(
    wanted: Recipe, model: VideoClassifier, opened: Opened, split: str
) -> Callable[[], dict[str, float]]:
    return functools.partial(
        evaluating.validation_row,
        Predictor(model),
        opened.stores[split],
        evaluating.sampling_of(model.spec, wanted.data.short),
        wanted.training.batch_size,
        wanted.data.workers,
    )


def expected_spec(wanted: Recipe) -> ModelSpec:
    """The spec that a recipe asks for; weights may change its head, not its input."""
    return registry.get(wanted.model.name).replace(wanted.model.spec)


def open_run_data(
    wanted: Recipe,
    spec: ModelSpec,
    data: str | os.PathLike,
    folder: Path,
    *,
    annotations: Sequence[str | os.PathLike] = (),
    labels: Sequence[str] | None = None,
    known: Mapping[str, str] | None = None,
    only: Sequence[str] = ("train", "validation", "test"),
    chief: bool = True,
) -> Opened:
    """The data of a run, split as its recipe says; `known`: splits that clips had before."""
    part = wanted.data
    choice = Choice(
        annotations=annotations,
        labels=labels,
        holdout=part.holdout,
        group_regex=part.group_regex,
        test_regex=part.test_regex,
        seed=wanted.training.seed,
        cache=part.cache,
        workers=part.workers,
        max_bad_share=part.max_bad_share,
        source_fps=part.source_fps,
        known=known,
    )
    return open_data(
        data,
        choice,
        fps=spec.fps,
        size=spec.resize,
        folder=folder,
        only=only,
        progress=_Told() if chief else None,
    )


def make_model(wanted: Recipe, labels: Sequence[str]) -> VideoClassifier:
    """The recipe's model for these classes, not compiled, at its starting weights."""
    part, settings = wanted.model, wanted.training
    changes: dict[str, Any] = {**part.spec, "seed": settings.seed}
    if settings.frozen_batch_norm is not None:
        changes["frozen_batch_norm"] = settings.frozen_batch_norm
    classes = len(labels) if part.num_classes is None else part.num_classes
    if classes != len(labels):
        raise ValueError(
            f"`model.num_classes` must be the data's {len(labels)}, or null. Received: {classes}"
        )
    load = functools.partial(
        zoo.load,
        part.name,
        part.weights,
        num_classes=classes,
        ema=part.ema_weights,
        compile=False,
        **changes,
    )
    model = load()
    if model.labels is not None and set(model.labels) != set(labels):
        log.warning("The weights are of other classes: the last layer is made new")
        model = load(skip=(f"{LAST_LAYER}*",))
    elif model.labels is not None:
        _reorder(model, [model.labels.index(label) for label in labels])
    model.labels = labels
    return model


def _reorder(model: VideoClassifier, places: Sequence[int]) -> None:
    """Brings the last layer's outputs into another order, of their present places."""
    for name, variable in model.named_weights().items():
        if name.startswith(LAST_LAYER):
            variable.assign(np.take(variable.numpy(), places, axis=-1))


def make_feed(
    wanted: Recipe,
    spec: ModelSpec,
    opened: Opened,
    strategy: tf.distribute.Strategy,
    *,
    on_bad: OnBad | None = None,
) -> Feed:
    """The training clips, of which each replica of the strategy gets its part of every step."""
    share = distribution.share(strategy)
    store = opened.stores["train"]
    augmentation = wanted.data.augmentation
    sampling = Sampling(
        frames=spec.frames,
        resolution=spec.resolution,
        short=wanted.data.short,
        training=True,
        augmentation=None if augmentation is None else Augmentation(**augmentation),
        seed=wanted.training.seed,
    )

    def batches(start_step: int):
        def of_worker(context):
            del context
            return training_batches(
                store,
                sampling,
                wanted.training.batch_size,
                start_step=start_step,
                worker=share.worker,
                workers=share.workers,
                replicas=share.local_replicas,
                processes=wanted.data.workers,
                on_bad=on_bad,
            )

        return strategy.distribute_datasets_from_function(of_worker)

    plan = Plan(
        clips=len(store.clips), batch_size=wanted.training.batch_size, seed=wanted.training.seed
    )
    return Feed(batches=batches, plan=plan, names=[clip.name for clip in store.clips.clips])


def _check_fit(made: ModelSpec, expected: ModelSpec) -> None:
    """The data was opened for the spec that was expected."""
    for field in ("fps", "resize", "resolution"):
        if getattr(made, field) != getattr(expected, field):
            raise ValueError(
                f"The weights change `{field}` from {getattr(expected, field)} to "
                f"{getattr(made, field)}: set it in model.spec"
            )


def _save(model: VideoClassifier, folder: Path, chief: bool) -> None:
    """Writes the model; all workers read it, for that may need all, and the first one writes."""
    tensors = pretrained.weights_of(model)
    if chief:
        pretrained.save_pretrained(model, folder, tensors)


def _export(trainer: Trainer, model: VideoClassifier, folder: RunFolder, chief: bool) -> None:
    """Puts the chosen weights in `model/`: the best epoch's, or the last ones or their average."""
    if trainer.outcome.best_epoch is None:
        with trainer.exported():
            _save(model, folder.model, chief)
    elif chief:
        shutil.copytree(folder.best, folder.model, dirs_exist_ok=True)


def _conclude(
    folder: RunFolder, wanted: Recipe, opened: Opened, outcome: Outcome, data, command: str
) -> None:
    """Evaluates what was saved, on the test clips or else the validation clips, and reports."""
    split = next((name for name in ("test", "validation") if name in opened.stores), None)
    if split is None:
        log.warning("No test or validation clips: nothing was evaluated. See --holdout")
        return
    evaluation = concluding.conclude(
        folder,
        wanted,
        opened.stores[split],
        split,
        history=outcome.history,
        data=str(data),
        command=command,
        bad=opened.bad.get(split, ()),
    )
    log.info("%s top-1 %.3f; report: %s", split, evaluation.top1, folder.report)


def _warn(error) -> None:
    log.warning("Replaced by the next clip: %s", error)


class _Told:
    """Logs each tenth of a long preparation."""

    def __init__(self):
        self._told: dict[str, int] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        tenth = 10 * done // total
        if self._told.get(what) != tenth and (tenth in (5, 10) or total > 1000):
            self._told[what] = tenth
            log.info("%s: %d of %d", what, done, total)
