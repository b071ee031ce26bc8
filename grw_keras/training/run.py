"""A whole training: from a recipe and data to a folder with a model, its numbers and a report."""

import contextlib
import functools
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import tensorflow as tf
import tf_keras

from grw_keras.data.opening import Opened, check_exists, decoders
from grw_keras.evaluation import evaluating
from grw_keras.evaluation.predictions import Predictor
from grw_keras.evaluation.tables import interval
from grw_keras.models import pretrained
from grw_keras.models.classifier import VideoClassifier
from grw_keras.models.spec import ModelSpec
from grw_keras.training import concluding, distribution, objective, recipe, runs
from grw_keras.training.assembly import expected_spec, make_feed, make_model, open_run_data
from grw_keras.training.listening import HistoryFile, Listener, TensorBoard, Terminal
from grw_keras.training.recipe import Recipe
from grw_keras.training.runs import RunFolder
from grw_keras.training.stopping import stop_signals
from grw_keras.training.trainer import Feed, Outcome, Trainer
from grw_keras.zoo.loading import fetch, find_weights

log = logging.getLogger("grw_keras")


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
    # Worker processes of one machine share its CPUs and memory.
    sharing = 1 if cluster is None else cluster.on_this_machine
    own = recipe.override(wanted, {"data.workers": decoders(wanted.data.workers, sharing)})
    with contextlib.ExitStack() as stack:
        if chief:
            stack.enter_context(runs.claimed(folder))
            runs.check(folder, wanted, resume=resume)
        if wanted.model.weights is not None:
            check_exists(data)  # before a download, and that before any video is read
            fetch(find_weights(wanted.model.name, wanted.model.weights))
        opened = _open(own, data, folder, share, annotations, sharing)
        with objective.precision(settings.precision), strategy.scope():
            model = make_model(wanted, opened.clips.labels)
        _check_fit(model.spec, expected_spec(wanted))
        if chief:
            runs.keep(folder, wanted, opened.clips, command)
        feed = make_feed(own, model.spec, opened, strategy, on_bad=_warn)
        with strategy.scope():
            objective.compile_model(model, settings, feed.plan.steps(settings.epochs))
        trainer, outcome = _run(own, model, feed, opened, folder, strategy, resume)
        if outcome.finished:
            _export(trainer, model, folder, chief)
            if chief:
                _conclude(folder, wanted, opened, outcome, data)
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
    sharing: int,
) -> Opened:
    """The run's data; each worker but the first has a folder of its own for what it notes."""
    chief = share.worker == 0
    opened = open_run_data(
        wanted,
        expected_spec(wanted),
        data,
        folder.path if chief else folder.path / "workers" / str(share.worker),
        annotations=annotations,
        sharing=sharing,
        chief=chief,
    )
    if "train" not in opened.stores:
        raise ValueError(f"The data must have training clips. Received: {opened.clips.splits()}")
    if wanted.training.early_stopping_epochs is not None and "validation" not in opened.stores:
        raise ValueError(
            "Early stopping needs validation clips, apart from those it is tested on: mark test "
            "clips (test/, a split column, data.test_regex) and set data.holdout. "
            f"Received: {opened.clips.splits()}"
        )
    if chief:
        _advise(opened, wanted.training.batch_size)
    return opened


def _advise(opened: Opened, batch_size: int) -> None:
    """Warns of what would be noticed only when all is done."""
    clips = len(opened.stores["train"].clips)
    if batch_size > clips:
        log.warning(
            "A step takes %d clips, but there are %d to train on: some come several times in it",
            batch_size,
            clips,
        )
    if "validation" in opened.stores:
        return
    if "test" in opened.stores:
        log.warning(
            "There are no validation clips: the val_ numbers of each epoch are of the test clips, "
            "so don't choose anything by them. Where test clips are marked (a folder test/, a "
            "split column, --test-regex), --holdout sets others aside for validation"
        )
    else:
        log.warning(
            "No clips are set aside: the model will be trained and saved, but not evaluated. "
            "--holdout 0.2 sets a fifth of the clips aside"
        )


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
    monitored = runs.monitored(opened.stores)
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
            if trainer.outcome.step == trainer.steps:
                log.info("All %d steps are done: only the evaluation is left", trainer.steps)
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
        fresh = folder.with_name(f"{folder.name}.new")
        pretrained.save_pretrained(model, fresh, tensors)
        folder.mkdir(exist_ok=True)
        for file in fresh.iterdir():  # one by one: a kill must not leave a folder without weights
            file.replace(folder / file.name)
        fresh.rmdir()


def _export(trainer: Trainer, model: VideoClassifier, folder: RunFolder, chief: bool) -> None:
    """Puts the chosen weights in `model/`: the best epoch's, or the last ones or their average."""
    if trainer.outcome.best_epoch is None:
        with trainer.exported():
            _save(model, folder.model, chief)
    elif chief:
        shutil.copytree(folder.best, folder.model, dirs_exist_ok=True)


def _conclude(folder: RunFolder, wanted: Recipe, opened: Opened, outcome: Outcome, data) -> None:
    """Evaluates what was saved, on the test clips or else the validation clips, and reports."""
    split = next((name for name in ("test", "validation") if name in opened.stores), None)
    if split is None:
        log.info("Nothing was evaluated: there are no test or validation clips")
        return
    log.info("Evaluating %d %s clips", len(opened.stores[split].clips), split)
    evaluation = concluding.conclude(
        folder,
        wanted,
        opened.stores[split],
        split,
        history=outcome.history,
        data=str(data),
        command=folder.command.read_text(encoding="utf-8"),
        bad=opened.bad_of(split),
    )
    log.info(
        "%s top-1 %.3f of %d clips (%s); report: %s",
        *(split, evaluation.top1, evaluation.clips, interval(evaluation), folder.report),
    )


def _warn(error) -> None:
    log.warning("Replaced by the next clip: %s", error)
