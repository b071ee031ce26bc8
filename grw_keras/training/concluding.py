"""What a run leaves for people: the numbers of its test split, a row of a table, and a report."""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from grw_keras import zoo
from grw_keras.data.samples import Loader, Sampling
from grw_keras.data.scan import BadVideo
from grw_keras.data.stores import FrameStore
from grw_keras.evaluation import results
from grw_keras.evaluation.evaluating import evaluate, sampling_of
from grw_keras.evaluation.predictions import Predictions
from grw_keras.evaluation.results import Evaluation
from grw_keras.models.classifier import VideoClassifier
from grw_keras.page import STRIP_FRAMES
from grw_keras.report import Embeddings, Report, WorstClip, write_report
from grw_keras.training import recipe, runs
from grw_keras.training.recipe import Recipe
from grw_keras.training.runs import RunFolder

WORST_CLIPS = 6
# Clips at once on the one device that evaluates, where training may have shared them over many.
EVALUATION_BATCH = 8


def conclude(
    folder: RunFolder,
    wanted: Recipe,
    store: FrameStore,
    split: str,
    *,
    model: VideoClassifier | None = None,
    history: Sequence[Mapping[str, float]],
    data: str,
    command: str,
    bad: Sequence[BadVideo] = (),
    report: Path | None = None,
) -> Evaluation:
    """Evaluates the model of a run as it was saved; writes `results_SPLIT.json` and the report.

    Args:
        folder: of the run.
        wanted: its recipe.
        store: the split's clips.
        split: its name.
        model: the saved model, where it has been loaded already.
        history: a row for each epoch.
        data: what the clips are of.
        command: that made this.
        bad: videos that were left out.
        report: where to write the page; default the run's.
    """
    if model is None:
        model = zoo.load(folder.model, compile=False)
    evaluation, found = evaluate(
        model,
        store,
        data=data,
        split=split,
        weights=str(folder.path),
        command=command,
        short=wanted.data.short,
        batch_size=min(EVALUATION_BATCH, wanted.training.batch_size),
        processes=wanted.data.workers,
        bad=bad,
    )
    results.write_json(folder.results(split), evaluation)
    embeddings = None
    if found.embeddings is not None and found.embeddings.shape[1] > 2:
        shown = found.embedded
        embeddings = Embeddings(found.embeddings, found.labels[shown], found.mask[shown])
    sampling = sampling_of(model.spec, wanted.data.short)
    page = Report(
        title=f"{model.spec.name} on {Path(data).name}",
        evaluation=evaluation,
        recipe=yaml.safe_dump(recipe.to_dict(wanted), sort_keys=False, allow_unicode=True),
        hardware=hardware(),
        started_from="random weights" if wanted.model.weights is None else wanted.model.weights,
        history=history,
        validated_on=runs.monitored(folder.read_splits().values()) or "",
        embeddings=embeddings,
        worst=worst_clips(found, store, sampling),
    )
    write_report(folder.report if report is None else report, page)
    return evaluation


def worst_clips(found: Predictions, store: FrameStore, sampling: Sampling) -> list[WorstClip]:
    """The clips that were told wrong with the most confidence, surest first."""
    logits = found.logits - found.logits.max(axis=1, keepdims=True)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != found.labels)
    wrong = wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")][:WORST_CLIPS]
    load, labels = Loader(store, sampling), store.clips.labels
    worst = []
    for index in wrong:
        number = int(found.numbers[index])
        sample = load((0, number))
        shown = np.linspace(0, sample.mask.sum() - 1, STRIP_FRAMES).round().astype(int)
        worst.append(
            WorstClip(
                name=store.clips.clips[number].name,
                label=labels[found.labels[index]],
                predicted=labels[predicted[index]],
                probability=float(probabilities[index, predicted[index]]),
                label_probability=float(probabilities[index, found.labels[index]]),
                frames=sample.video[np.unique(shown)],
            )
        )
    return worst


def hardware() -> str:
    """The machine in words: GPUs, if any, and CPUs."""
    import tensorflow as tf

    gpus = [
        tf.config.experimental.get_device_details(gpu).get("device_name", "GPU")
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    cpus = f"{len(os.sched_getaffinity(0))} CPU cores ({platform.machine()})"
    return ", ".join([*gpus, cpus])
