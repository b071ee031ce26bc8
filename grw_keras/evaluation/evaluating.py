"""A model's answers to a split, turned into numbers."""

import contextlib
import datetime
import importlib.metadata
import platform
from collections.abc import Sequence

import numpy as np

from grw_keras.data.samples import Sampling
from grw_keras.data.scan import BadVideo
from grw_keras.data.stores import FrameStore
from grw_keras.evaluation import cost, metrics
from grw_keras.evaluation.predictions import Predictions, Predictor
from grw_keras.evaluation.results import Evaluation, summarize
from grw_keras.models.classifier import VideoClassifier, loss_normalization
from grw_keras.models.spec import ModelSpec
from grw_keras.regularizer import GRWRegularizer

PACKAGES = ("grw-keras", "tensorflow", "tf-keras", "numpy", "av")
# Clips whose windows are compared at once, for there are up to 720 orderings of each.
_CHUNK = 256
# Clips whose movement an epoch's row tells of: enough for a mean, and in float64 the embeddings
# of these take tens of megabytes, where those of all would take gigabytes after each epoch.
MAX_MEASURED = 256


def sampling_of(spec: ModelSpec, short: str = "loop") -> Sampling:
    """The paper's single clip: the centre in time and space."""
    return Sampling(frames=spec.frames, resolution=spec.resolution, short=short)


def frames_to_ask(frames: int) -> tuple[int, ...]:
    """At most eight numbers of frames up to all of them, closer at the beginning.

    Example:
        >>> frames_to_ask(10), frames_to_ask(50)
        ((1, 2, 3, 4, 5, 7, 10), (1, 2, 3, 5, 9, 16, 29, 50))
    """
    points = np.geomspace(1, frames, num=8).round().astype(int)
    return tuple(sorted({int(point) for point in points}))


def validation_row(
    predictor: Predictor,
    store: FrameStore,
    sampling: Sampling,
    batch_size: int,
    processes: int | None = None,
) -> dict[str, float]:
    """The numbers that an epoch's row has of a validation: "val_top1" and so on."""
    spec = predictor.model.spec
    found = predictor.predict(store, sampling, batch_size, processes=processes)
    row = {
        "val_top1": metrics.top_k(found.logits, found.labels),
        "val_cross_entropy": metrics.negative_log_likelihood(found.logits, found.labels),
    }
    if spec.num_classes > 5:
        row["val_top5"] = metrics.top_k(found.logits, found.labels, 5)
    if found.embeddings is not None:
        count = len(found.embeddings)
        some = np.linspace(0, count - 1, min(count, MAX_MEASURED)).round().astype(int)
        smoothness = metrics.smoothness(found.embeddings[some], found.mask[found.embedded[some]])
        numbers = {
            "val_grw_acceleration": smoothness.acceleration,
            "val_grw_order_accuracy": order_accuracy(found, spec),
        }
        row |= {name: value for name, value in numbers.items() if value is not None}
    return row


def order_accuracy(found: Predictions, spec: ModelSpec) -> float | None:
    """Share of the windows whose true ordering is strictly the likeliest; None without windows.

    Embeddings are compared as the loss has them; in the intermediate placement they are
    standardised over `_CHUNK` clips, as the loss does over a batch.
    """
    if found.embeddings is None or found.embeddings.shape[1] < spec.window:
        return None
    mask = found.mask[found.embedded]
    measured = GRWRegularizer(
        window=spec.window,
        orderings=spec.orderings,
        normalization=loss_normalization(spec),
        seed=spec.seed,
    )
    right, count = 0.0, 0.0
    for start in range(0, len(found.embeddings), _CHUNK):
        part = slice(start, start + _CHUNK)
        terms = measured.terms(found.embeddings[part], mask[part])
        right += float(terms.sum(np.float32(terms.margin.numpy() > 0)))
        count += float(terms.count)
    return right / count if count else None


def evaluate(
    model: VideoClassifier,
    store: FrameStore,
    *,
    data: str,
    split: str,
    weights: str,
    command: str = "",
    short: str = "loop",
    batch_size: int = 8,
    processes: int | None = None,
    bad: Sequence[BadVideo] = (),
) -> tuple[Evaluation, Predictions]:
    """Single-clip accuracy of a model and what else there is to know.

    Args:
        model: of the zoo; its labels are the store's, in order.
        store: the clips of the split.
        data, split, weights, command: for the record.
        short: as of `Sampling`.
        batch_size: clips at once.
        processes: that decode.
        bad: videos that were left out before.

    Raises:
        ValueError: labels that are not the model's.
    """
    spec, labels = model.spec, store.clips.labels
    if len(labels) != spec.num_classes or model.labels not in (None, tuple(labels)):
        raise ValueError(
            "The data's classes must be the model's, in its order: open the data with "
            f"labels=model.labels. Received: {len(labels)} classes, {list(labels)[:5]} …"
        )
    found_bad = list(bad)
    streams = spec.streaming and model.compute_dtype == "float32"
    found = Predictor(model, frames_to_ask(spec.frames) if streams else ()).predict(
        store,
        sampling_of(spec, short),
        batch_size,
        processes=processes,
        on_bad=lambda error: found_bad.append(BadVideo(error.path, error.reason)),
    )
    counted = cost.measure(model)
    smoothness = metrics.Smoothness(None, None, None, None)
    if found.embeddings is not None:
        smoothness = metrics.smoothness(found.embeddings, found.mask[found.embedded])
    evaluation = Evaluation(
        model=spec.name,
        weights=weights,
        data=data,
        split=split,
        frames=spec.frames,
        fps=spec.fps,
        resolution_px=spec.resolution,
        gmacs=counted.macs / 1e9,
        params=counted.parameters,
        accuracy_by_frames=_accuracy_by_frames(found),
        bad_videos=tuple(found_bad),
        mean_speed=smoothness.speed,
        mean_acceleration=smoothness.acceleration,
        variance_2d=smoothness.variance_2d,
        order_accuracy=order_accuracy(found, spec),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        versions=versions(),
        command=command,
        **summarize(found.logits, found.labels, labels),
    )
    return evaluation, found


def _accuracy_by_frames(found: Predictions) -> tuple[tuple[int, float], ...]:
    if found.by_frames is None:
        return ()
    return tuple(
        (frames, metrics.top_k(logits, found.labels))
        for frames, logits in zip(found.frames_seen, found.by_frames, strict=True)
    )


def versions() -> dict[str, str]:
    """Of Python and of the packages that a result may depend on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        # TensorFlow also comes as tensorflow-cpu, and this package may run from its sources.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
