"""What an evaluation found: as a value, as JSON, and as a row of a CSV."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grw_keras import atomic, csv_table
from grw_keras.data.scan import BadVideo
from grw_keras.evaluation import metrics
from grw_keras.strict_yaml import check_keys

FORMAT = 1  # of the JSON
# fmt: off
COLUMNS = (
    "date", "model", "weights", "data", "split", "clips", "bad_videos", "frames", "fps",
    "resolution_px", "top1_percent", "top5_percent", "macro_f1_percent", "ece_percent", "nll",
    "gmacs", "params", "mean_speed", "mean_acceleration", "variance_2d", "order_accuracy",
    "versions", "command",
)
# fmt: on


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassResult:
    """Scores of one class, as in `metrics.ClassScores`; None: without clips or never told.

    Args:
        label: its name.
        recall, precision, f1: in [0, 1].
        support: clips of the class.
    """

    label: str
    recall: float | None
    precision: float | None
    f1: float | None
    support: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """One row of `metrics.Calibration`; None in an empty bin."""

    count: int
    confidence: float | None
    accuracy: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model answered to the clips of one split. Shares are in [0, 1]; None: not measured.

    Args:
        model: name in the zoo.
        weights: a run's folder, a file, or the name of published weights.
        data, split: what was evaluated.
        clips: that were answered, >= 1.
        frames, fps, resolution_px: of a clip.
        top1, top5: accuracy; top5 is None where there are no more than 5 classes.
        macro_f1: as in `metrics.ClassScores`.
        ece: expected calibration error.
        nll: negative log likelihood, nats.
        per_class: in the order of the labels.
        confusion: clips by true (row) and predicted class.
        reliability: the bins of `ece`.
        gmacs: multiply-accumulates of one clip, 10⁹.
        params: parameters.
        accuracy_by_frames: (frames seen, top-1 share), rising frames.
        bad_videos: left out of everything above.
        mean_speed, mean_acceleration, variance_2d: as in `metrics.Smoothness`.
        order_accuracy: share of windows whose true order is the likeliest.
        date: ISO 8601.
        versions: of what ran, by name.
        command: that made it.

    Raises:
        ValueError: a number out of its range, or parts that contradict each other.
    """

    model: str
    weights: str
    data: str
    split: str
    clips: int
    frames: int
    fps: float
    resolution_px: int
    top1: float
    top5: float | None
    macro_f1: float
    ece: float
    nll: float
    per_class: tuple[ClassResult, ...]
    confusion: tuple[tuple[int, ...], ...]
    reliability: tuple[ReliabilityBin, ...] = ()
    gmacs: float | None = None
    params: int | None = None
    accuracy_by_frames: tuple[tuple[int, float], ...] = ()
    bad_videos: tuple[BadVideo, ...] = ()
    mean_speed: float | None = None
    mean_acceleration: float | None = None
    variance_2d: float | None = None
    order_accuracy: float | None = None
    date: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    command: str = ""

    def __post_init__(self) -> None:
        for name in ("top1", "top5", "macro_f1", "ece", "variance_2d", "order_accuracy"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"`{name}` is a share: in [0, 1]. Received: {value}")
        classes = len(self.per_class)
        if [len(row) for row in self.confusion] != [classes] * classes:
            raise ValueError(
                f"`confusion` must have {classes} rows and columns, as `per_class` has classes. "
                f"Received: rows of {[len(row) for row in self.confusion]}"
            )
        counted = sum(map(sum, self.confusion))
        if counted != self.clips:
            raise ValueError(
                f"`confusion` must count every clip once, {self.clips}. Received: {counted}"
            )


def summarize(logits: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """The fields of `Evaluation` that follow from the answers alone.

    Args:
        logits, labels: as in `metrics.confusion_matrix`.
        names: [K] of the classes.

    Example:
        >>> found = summarize(np.eye(3), np.array([0, 1, 0]), ["jump", "run", "walk"])
        >>> round(found["top1"], 2), found["top5"], found["per_class"][2].support
        (0.67, None, 0)
    """
    confusion = metrics.confusion_matrix(logits, labels)
    if len(names) != len(confusion):
        raise ValueError(
            f"`names` must name every class, {len(confusion)}. Received: {len(names)} names"
        )
    scores = metrics.class_scores(confusion)
    table = metrics.calibration(logits, labels)
    return {
        "clips": int(confusion.sum()),
        "top1": metrics.top_k(logits, labels),
        "top5": metrics.top_k(logits, labels, 5) if len(names) > 5 else None,
        "macro_f1": scores.macro_f1,
        "ece": table.error,
        "nll": metrics.negative_log_likelihood(logits, labels),
        "per_class": tuple(
            ClassResult(
                label=str(name),
                recall=_number(scores.recall[index]),
                precision=_number(scores.precision[index]),
                f1=_number(scores.f1[index]),
                support=int(scores.support[index]),
            )
            for index, name in enumerate(names)
        ),
        "confusion": tuple(map(tuple, confusion.tolist())),
        "reliability": tuple(
            ReliabilityBin(count=int(n), confidence=_number(mean), accuracy=_number(share))
            for n, mean, share in zip(table.counts, table.confidence, table.accuracy, strict=True)
        ),
    }


def write_json(path: str | Path, evaluation: Evaluation) -> None:
    """Writes an evaluation, atomically.

    Raises:
        ValueError: a NaN or an infinity in it, which JSON doesn't know.
    """
    content = {"format": FORMAT, **dataclasses.asdict(evaluation)}
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False, default=_plain)
    atomic.write_text(Path(path), text + "\n")


def read_json(path: str | Path) -> Evaluation:
    """Reads what `write_json` wrote.

    Raises:
        ValueError: another kind of file, an unknown or a missing field.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: was it cut short? {error}") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise ValueError(f"{path} is no evaluation of format {FORMAT}: evaluate again.")
    fields = dict(content)
    for name, kind in (
        ("per_class", ClassResult),
        ("reliability", ReliabilityBin),
        ("bad_videos", BadVideo),
    ):
        rows = fields.get(name, ())
        fields[name] = tuple(_built(kind, row, f"{path}, `{name}`") for row in rows)
    for name in ("confusion", "accuracy_by_frames"):
        fields[name] = tuple(map(tuple, fields.get(name, ())))
    return _built(Evaluation, fields, str(path))


def append_row(path: str | Path, evaluation: Evaluation) -> None:
    """Adds an evaluation as the last row of a CSV with the columns `COLUMNS`, made if absent.

    Atomic, also between processes: a reader sees the file with the whole row or without it.

    Raises:
        ValueError: the file has other columns.
    """
    csv_table.append(Path(path), COLUMNS, [_row(evaluation)])


def _row(e: Evaluation) -> dict[str, Any]:
    row = {name: getattr(e, name, None) for name in COLUMNS}
    for name in ("top1", "top5", "macro_f1", "ece"):
        share = getattr(e, name)
        row[f"{name}_percent"] = None if share is None else f"{100 * share:.2f}"
    row["bad_videos"] = len(e.bad_videos)
    row["fps"] = f"{e.fps:g}"
    row["versions"] = " ".join(f"{name}={version}" for name, version in e.versions.items())
    for name in (
        "nll",
        "gmacs",
        "mean_speed",
        "mean_acceleration",
        "variance_2d",
        "order_accuracy",
    ):
        row[name] = None if row[name] is None else f"{row[name]:.4f}"
    return {name: "" if value is None else value for name, value in row.items()}


def _built(kind: Any, content: Any, where: str) -> Any:
    """A dataclass of a dictionary, strictly."""
    check_keys(content, kind, where)
    return kind(**content)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _plain(value: Any) -> Any:
    """A number of numpy's as one of Python's, for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"An evaluation holds plain numbers and text. Received: {type(value)}")
