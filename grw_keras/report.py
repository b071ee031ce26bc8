"""A training and its evaluation on one page: report.html, with its pictures inside."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from grw_keras import figures, page
from grw_keras.data.scan import BadVideo
from grw_keras.evaluation.results import ClassResult, Evaluation
from grw_keras.evaluation.tables import interval, percent
from grw_keras.trajectories import trajectories

_WORST_CLASSES = 15  # shown above a folded table


@dataclasses.dataclass(frozen=True, eq=False)
class Embeddings:
    """Embeddings of the evaluated clips, as `trajectories` takes them.

    Args:
        z: [n, N, D].
        labels: [n] integers.
        mask: [n, N] bool, False at frames that only pad.
    """

    z: np.ndarray
    labels: np.ndarray
    mask: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class WorstClip:
    """A clip that was told wrong with confidence.

    Args:
        name: of the clip.
        label: the true one.
        predicted: the likeliest one.
        probability: of that, [0, 1].
        label_probability: of the true one, [0, 1].
        frames: RGB [n, H, W, 3], uint8; 8 of them, evenly spread, are shown.
    """

    name: str
    label: str
    predicted: str
    probability: float
    label_probability: float
    frames: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Report:
    """What is to be told. What is empty or None gets no place on the page.

    Args:
        title: of the page.
        evaluation: its numbers, classes, confusion, calibration and bad videos.
        recipe: as text.
        hardware: in words.
        started_from: the weights before training, in words.
        history: rows of `figures.curves`.
        validated_on: as of `figures.curves`.
        embeddings: of the evaluated clips.
        worst: in the order to show.
    """

    title: str
    evaluation: Evaluation | None = None
    recipe: str = ""
    hardware: str = ""
    started_from: str = ""
    history: Sequence[Mapping[str, float]] = ()
    validated_on: str = "validation"
    embeddings: Embeddings | None = None
    worst: Sequence[WorstClip] = ()


def write_report(path: str | Path, report: Report) -> Path:
    """Writes the page, atomically, and its figures as PNG files beside it: those of `report.html`
    to `images/`, those of another `NAME.html` to `NAME_images/`.

    Args:
        path: of the page, as "runs/mine/report.html"; its folder is made.
        report: what is to be told.

    Returns:
        The page's path.

    Raises:
        ValueError: parts that can't be drawn, as `figures` says.
    """
    path = Path(path)
    pictures = page.Pictures(
        path.parent / ("images" if path.stem == "report" else f"{path.stem}_images")
    )
    return page.write(path, report.title, _sections(report, pictures))


def _sections(report: Report, pictures: page.Pictures) -> Iterable[str]:
    """The page from top to bottom."""
    e = report.evaluation
    yield _opening(report)
    if e is not None:
        yield _tiles(e)
    yield _making(report)
    if report.history:
        curves = figures.curves(report.history, report.validated_on)
        picture = pictures.figure("curves", curves, "curves of the training")
        yield page.section("Training", picture)
    if e is not None:
        matrix = figures.confusion(np.array(e.confusion), [c.label for c in e.per_class])
        picture = pictures.figure("confusion", matrix, "confusion matrix")
        yield page.section("Which classes are taken for which", picture)
        yield page.section("Classes", _class_table(e))
    if report.embeddings is not None:
        yield _embeddings(report, report.embeddings, pictures)
    if report.worst:
        yield page.section("Worst clips", "\n".join(_clip(clip, pictures) for clip in report.worst))
    if e is not None:
        yield _confidence_and_frames(e, pictures)
        yield _bad_videos(e.bad_videos)


def _opening(report: Report) -> str:
    e = report.evaluation
    parts = [f"<h1>{page.escaped(report.title)}</h1>"]
    if e is not None:
        told = [e.model, f"{e.data}, {e.split}: {e.clips:,} clips"]
        told += [f"{e.frames} frames at {e.fps:g} fps, {e.resolution_px} px", e.date]
        parts.append(f'<p class="quiet">{page.escaped(" · ".join(filter(None, told)))}</p>')
    return "\n".join(parts)


def _tiles(e: Evaluation) -> str:
    tiles = {
        f"top-1 accuracy, {interval(e)}".replace(" %", "\N{NO-BREAK SPACE}%"): percent(e.top1),
        "top-5 accuracy": None if e.top5 is None else percent(e.top5),
        "macro F1": percent(e.macro_f1),
        "calibration error": percent(e.ece),
        "GMACs per clip": None if e.gmacs is None else f"{e.gmacs:.2f}",
        "parameters": None if e.params is None else _short_count(e.params),
        "order accuracy": None if e.order_accuracy is None else percent(e.order_accuracy),
        "mean acceleration": None if e.mean_acceleration is None else f"{e.mean_acceleration:.3g}",
    }
    return page.tiles(tiles)


def _making(report: Report) -> str:
    """Command, weights, hardware, versions, recipe."""
    e = report.evaluation
    versions = e.versions if e else {}
    command = e.command if e else ""
    facts = {
        "command": f"<code>{page.escaped(command)}</code>" if command else "",
        "started from": page.escaped(report.started_from),
        "evaluated": page.escaped(e.weights) if e else "",
        "hardware": page.escaped(report.hardware),
        "versions": page.escaped(", ".join(f"{name} {text}" for name, text in versions.items())),
    }
    content = page.facts(facts)
    if report.recipe:
        recipe = f"<pre>{page.escaped(report.recipe)}</pre>"
        content += f"<details><summary>Recipe</summary>{recipe}</details>"
    return page.section("How it was made", f'<div class="card">{content}</div>') if content else ""


def _class_table(e: Evaluation) -> str:
    heading = ["class", "clips", "recall", "precision", "F1"]

    def rows(classes: Iterable[ClassResult]) -> list[list[str]]:
        return [
            [c.label, f"{c.support:,}", percent(c.recall), percent(c.precision), percent(c.f1)]
            for c in classes
        ]

    everything = page.table(heading, rows(e.per_class))
    if len(e.per_class) <= page.OPEN_ROWS:
        return everything
    worst = sorted((c for c in e.per_class if c.support), key=lambda c: c.f1 or 0.0)[
        :_WORST_CLASSES
    ]
    return (
        f'<p class="quiet">The {len(worst)} classes with the lowest F1:</p>\n'
        f"{page.table(heading, rows(worst))}\n{everything}"
    )


def _embeddings(report: Report, found: Embeddings, pictures: page.Pictures) -> str:
    e = report.evaluation
    count = int(np.max(found.labels)) + 1
    names = [c.label for c in e.per_class] if e else [f"class {index}" for index in range(count)]
    drawn = trajectories(found.z, found.labels, names, found.mask)
    told = (
        "Typical clips of each class on the first two principal components of all embeddings, in "
        "grey; the numbers count frames."
    )
    if e and e.mean_speed and e.mean_acceleration is not None:
        told += f" Mean acceleration over mean speed: {e.mean_acceleration / e.mean_speed:.2f}."
    if e and e.order_accuracy is not None:
        told += (
            " Order accuracy: the share of windows of a few frames whose true order is likelier "
            "than any other, by GRW-smoothing's random walk."
        )
    picture = pictures.figure("trajectories", drawn, "paths of embeddings")
    return page.section("How embeddings move", f'<p class="quiet">{told}</p>{picture}')


def _clip(clip: WorstClip, pictures: page.Pictures) -> str:
    told = (
        f"{page.escaped(clip.label)} ({percent(clip.label_probability)}), taken for "
        f'<span class="wrong">{page.escaped(clip.predicted)}</span> ({percent(clip.probability)})'
    )
    strip = pictures.strip(clip.frames, f"frames of {clip.name}") if len(clip.frames) else ""
    name = f'<div class="quiet">{page.escaped(clip.name)}</div>'
    return f'<div class="card clip"><div>{told}</div>{name}{strip}</div>'


def _confidence_and_frames(e: Evaluation, pictures: page.Pictures) -> str:
    cells = []
    if e.reliability:
        figure = figures.calibration(e.reliability, e.ece)
        cells.append(pictures.figure("calibration", figure, "accuracy against confidence"))
    if e.accuracy_by_frames:
        figure = figures.accuracy_over_frames(e.accuracy_by_frames, e.fps, 1 / len(e.per_class))
        cells.append(pictures.figure("accuracy_over_frames", figure, "accuracy over frames seen"))
    titles = ["Confidence"] * bool(e.reliability) + ["Frames seen"] * bool(e.accuracy_by_frames)
    if not cells:
        return ""
    return page.section(
        " and ".join(titles).capitalize(), f'<div class="pair">{"".join(cells)}</div>'
    )


def _bad_videos(bad: Sequence[BadVideo]) -> str:
    if not bad:
        return ""
    rows = [[video.path, video.reason] for video in bad]
    table = page.table(["left out of all numbers", "why"], rows)
    return page.section(f"Bad videos: {len(bad):,}", table)


def _short_count(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 10_000 else f"{count:,}"
