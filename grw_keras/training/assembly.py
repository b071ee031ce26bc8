"""What a recipe is made into: its data, its model, and the clips that feed the training."""

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from grw_keras import zoo
from grw_keras.data.opening import Choice, Opened, open_data
from grw_keras.data.pipeline import OnBad, training_batches
from grw_keras.data.samples import Plan, Sampling
from grw_keras.data.transforms import Augmentation
from grw_keras.models.classifier import VideoClassifier
from grw_keras.models.spec import ModelSpec
from grw_keras.training import distribution
from grw_keras.training.recipe import Recipe
from grw_keras.training.trainer import Feed
from grw_keras.zoo import registry

log = logging.getLogger("grw_keras")

LAST_LAYER = "logits/"  # how the names of its weights begin


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
    sharing: int = 1,
    only: Sequence[str] = ("train", "validation", "test"),
    chief: bool = True,
) -> Opened:
    """The data of a run, split as its recipe says; `known` and `sharing` as of `Choice`."""
    part = wanted.data
    choice = Choice(
        annotations=annotations,
        labels=labels,
        num_classes=wanted.model.num_classes,
        holdout=part.holdout,
        group_regex=part.group_regex,
        test_regex=part.test_regex,
        seed=wanted.training.seed,
        cache=part.cache,
        workers=part.workers,
        max_bad_share=part.max_bad_share,
        source_fps=part.source_fps,
        known=known,
        sharing=sharing,
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
    load = functools.partial(
        zoo.load,
        part.name,
        part.weights,
        num_classes=len(labels),
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
    return _quantization_aware(model) if settings.quantization_aware else model


def _quantization_aware(model: VideoClassifier) -> VideoClassifier:
    try:
        from grw_keras.export import fake_quantization
    except ModuleNotFoundError as error:
        raise ImportError(
            "`training.quantization_aware` needs the extra 'edge': pip install 'grw-keras[edge]'. "
            f"Received: {error}"
        ) from error
    return fake_quantization.quantization_aware(model)


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


class _Told:
    """Logs each tenth of a long preparation."""

    def __init__(self):
        self._told: dict[str, int] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        tenth = 10 * done // total
        if self._told.get(what) != tenth and (tenth in (5, 10) or total > 1000):
            self._told[what] = tenth
            log.info("%s: %d of %d", what, done, total)
