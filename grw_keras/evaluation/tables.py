"""An evaluation as a table for the terminal."""

from rich.cells import cell_len, set_cell_size

from grw_keras.evaluation import metrics
from grw_keras.evaluation.results import Evaluation
from grw_keras.text_table import aligned

_SHOWN_CLASSES = 20  # all are shown up to this number
_LABEL_CELLS = 32


def table(evaluation: Evaluation) -> str:
    """An evaluation for the terminal: the summary, the classes, and the confusion matrix.

    Of more than 20 classes the 20 with the lowest F1 are shown, and no matrix.
    """
    shown = len(evaluation.per_class) <= _SHOWN_CLASSES
    parts = [aligned(_summary(evaluation), "<"), _class_table(evaluation)]
    if shown:
        parts.append(_confusion_table(evaluation))
    return "\n\n".join(parts)


def percent(share: float | None) -> str:
    """A share as people read it; "-" where there is none."""
    return "-" if share is None else f"{100 * share:.1f} %"


def interval(evaluation: Evaluation) -> str:
    """How much the top-1 accuracy of so many clips can be trusted, in words."""
    low, high = metrics.share_interval(evaluation.top1, evaluation.clips)
    return f"95 % interval {100 * low:.0f} to {100 * high:.0f} %"


def _summary(evaluation: Evaluation) -> list[tuple[str, str]]:
    e = evaluation
    found: dict[str, str | None] = {
        "model": e.model,
        "weights": e.weights,
        "data": f"{e.data}, {e.split}: {e.clips} clips",
        "clip": f"{e.frames} frames at {e.fps:g} fps, {e.resolution_px} px",
        "top-1": f"{percent(e.top1)} ({interval(e)})",
        "top-5": f"- (only {len(e.per_class)} classes)" if e.top5 is None else percent(e.top5),
        "macro F1": percent(e.macro_f1),
        "calibration error": percent(e.ece),
        "negative log likelihood": f"{e.nll:.3f}",
        "GMACs": None if e.gmacs is None else f"{e.gmacs:.2f}",
        "parameters": None if e.params is None else f"{e.params:,}",
        "bad videos": str(len(e.bad_videos)) if e.bad_videos else None,
    }
    return [(name, value) for name, value in found.items() if value is not None]


def _class_table(evaluation: Evaluation) -> str:
    classes = list(evaluation.per_class)
    heading = "class"
    if len(classes) > _SHOWN_CLASSES:
        heading = f"class (the {_SHOWN_CLASSES} of {len(classes)} with the lowest F1)"
        measured = [c for c in classes if c.support]
        classes = sorted(measured, key=lambda c: c.f1 or 0.0)[:_SHOWN_CLASSES]
    rows = [(heading, "clips", "recall", "precision", "F1")]
    for c in classes:
        scores = (percent(c.recall), percent(c.precision), percent(c.f1))
        rows.append((_clipped(c.label), str(c.support), *scores))
    return aligned(rows, "<>")


def _confusion_table(evaluation: Evaluation) -> str:
    numbers = [f"#{index}" for index in range(len(evaluation.confusion))]
    rows = [("true \\ predicted", "", *numbers)]
    for c, number, row in zip(evaluation.per_class, numbers, evaluation.confusion, strict=True):
        rows.append((_clipped(c.label), number, *(str(count) if count else "." for count in row)))
    return aligned(rows, "<>")


def _clipped(label: str) -> str:
    """A label on one line of bounded length."""
    label = " ".join(label.split())
    short = cell_len(label) <= _LABEL_CELLS
    return label if short else set_cell_size(label, _LABEL_CELLS - 1).rstrip() + "…"
