"""A run, or any model, taken up again: to be evaluated or asked."""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import tensorflow as tf

from grw_keras import zoo
from grw_keras.data.pipeline import evaluation_batches
from grw_keras.data.scan import BadVideo
from grw_keras.data.stores import FrameStore, JoinedStore
from grw_keras.evaluation import results
from grw_keras.evaluation.evaluating import evaluate, sampling_of
from grw_keras.evaluation.results import Evaluation
from grw_keras.models.classifier import VideoClassifier
from grw_keras.training import concluding, listening
from grw_keras.training.assembly import open_run_data
from grw_keras.training.recipe import ModelPart, Recipe, override
from grw_keras.training.runs import RunFolder, find_model


def load_model(path: str | os.PathLike) -> tuple[VideoClassifier, str]:
    """The model of a run's folder, of a folder of `save_pretrained`, or of a name, and what fills
    its short clips.

    Raises:
        FileNotFoundError: a run that has not ended; no such folder.
        ValueError: no such model.
    """
    folder = RunFolder.at(path)
    place, _ = find_model(path)
    short = folder.read_recipe().data.short if folder.started() else "loop"
    return zoo.load(place, compile=False), short


def evaluate_again(
    path: str | os.PathLike,
    data: str | os.PathLike,
    split: str,
    *,
    annotations: Sequence[str | os.PathLike] = (),
    json_path: str | os.PathLike | None = None,
    workers: int | None = None,
    command: str = "",
) -> tuple[Evaluation, Path | None]:
    """Evaluates a run, or any model, on a split.

    The clips of a run have the splits that they had in its training; those that weren't there
    count as test clips. Its results are written anew, and a report of the split beside its own.
    Other models see the data's own splits.

    Args:
        path: of the run's or the model's folder, or a model's name.
        data: as of `open_data`.
        split: `"train"`, `"validation"` or `"test"`.
        annotations: Kinetics annotation files.
        json_path: where to write the results; those of a run are in its `results_SPLIT.json` too.
        workers: processes that decode; None: as the recipe has it.
        command: for the record.

    Returns:
        The evaluation, and the path of the report or of the results.

    Raises:
        As `load_model` and `open_data`; ValueError: no such split.
    """
    opened = open_split(path, data, split, annotations=annotations, workers=workers)
    with opened as taken:
        folder, store = taken.folder, taken.store
        report: Path | None
        if folder.started():
            report = folder.path / f"report_{split}.html"
            evaluation = concluding.conclude(
                folder,
                taken.recipe,
                store,
                split,
                model=taken.model,
                history=listening.read_history(folder.history),
                data=str(data),
                command=command,
                bad=taken.bad,
                report=report,
            )
        else:
            report = None if json_path is None else Path(json_path)
            evaluation, _ = evaluate(
                taken.model,
                store,
                data=str(data),
                split=split,
                weights=str(path),
                command=command,
                processes=taken.recipe.data.workers,
                bad=taken.bad,
            )
    if json_path is not None:
        results.write_json(Path(json_path), evaluation)
    return evaluation, report


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taken:
    """A model, and the clips of one split as it is to see them."""

    folder: RunFolder
    model: VideoClassifier
    recipe: Recipe
    store: FrameStore
    bad: tuple[BadVideo, ...]


@contextlib.contextmanager
def open_split(
    path: str | os.PathLike,
    data: str | os.PathLike,
    split: str,
    *,
    annotations: Sequence[str | os.PathLike] = (),
    workers: int | None = None,
) -> Iterator[Taken]:
    """A run, or any model, and one split of data; arguments and errors of `evaluate_again`.

    What is written for a model that isn't a run is kept for as long as the context.
    """
    folder = RunFolder.at(path)
    model, _ = load_model(path)
    is_run = folder.started()
    wanted = folder.read_recipe() if is_run else Recipe(model=ModelPart(name=model.spec.name))
    wanted = override(
        wanted, {"data.cache": "none"} | ({} if workers is None else {"data.workers": workers})
    )
    with contextlib.ExitStack() as stack:
        place = folder.path / "evaluation"
        if not is_run:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        opened = open_run_data(
            wanted,
            model.spec,
            data,
            place,
            annotations=annotations,
            labels=model.labels,
            known=folder.read_splits() if is_run else None,
            only=[split],
        )
        if split not in opened.stores:
            raise ValueError(
                f"The data has no {split} clips, as --holdout of train sets them aside: choose "
                f"`split` (--split) among {', '.join(opened.clips.splits())}. Received: {split!r}"
            )
        yield Taken(
            folder=folder,
            model=model,
            recipe=wanted,
            store=opened.stores[split],
            bad=opened.bad_of(split),
        )


def centre_clips(taken: Taken, most: int | None = None) -> tf.data.Dataset:
    """The split's centre clips with their labels, in order, in batches of one.

    Args:
        taken: of `open_split`.
        most: clips to take, from all over the split; None: all.
    """
    store = taken.store
    if most is not None and len(store.clips) > most:
        all_clips = store.clips.clips
        chosen = [all_clips[i * len(all_clips) // most] for i in range(most)]
        store = JoinedStore([store], dataclasses.replace(store.clips, clips=tuple(chosen)))
    sampling = sampling_of(taken.model.spec)
    return evaluation_batches(store, sampling, 1, processes=taken.recipe.data.workers)
