"""A training and its evaluation on one page: report.html, with its pictures inside.

The page asks nothing of the network and runs no script; every text in it is escaped.
"""

import base64
import dataclasses
import html
import io
import os
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from grw_keras import figures
from grw_keras.data.scan import BadVideo
from grw_keras.evaluation.results import ClassResult, Evaluation
from grw_keras.evaluation.tables import percent
from grw_keras.trajectories import trajectories

_TEMPLATE = Path(__file__).with_name("report_template.html")
_STRIP_FRAMES, _STRIP_HEIGHT_PX, _GAP_PX = 8, 120, 2
_OPEN_ROWS = 30  # longer tables are folded
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
        command: that made the run; default: the evaluation's.
        recipe: as text.
        hardware: in words.
        versions: of what ran, by name; default: the evaluation's.
        history: rows of `figures.curves`.
        embeddings: of the evaluated clips.
        worst: in the order to show.
        notes: paragraphs below the title.
    """

    title: str
    evaluation: Evaluation | None = None
    command: str = ""
    recipe: str = ""
    hardware: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    history: Sequence[Mapping[str, float]] = ()
    embeddings: Embeddings | None = None
    worst: Sequence[WorstClip] = ()
    notes: Sequence[str] = ()


def write_report(path: str | Path, report: Report) -> Path:
    """Writes the page, atomically, and its figures as PNG files to `images/` beside it.

    Args:
        path: of the page, as "runs/mine/report.html"; its folder is made.
        report: what is to be told.

    Returns:
        The page's path.

    Raises:
        ValueError: parts that can't be drawn, as `figures` says.
    """
    path = Path(path)
    pictures = _Pictures(path.parent / "images")
    body = "\n".join(filter(None, _sections(report, pictures)))
    template = string.Template(_TEMPLATE.read_text(encoding="utf-8"))
    text = template.substitute(title=_escaped(report.title), body=body)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


class _Pictures:
    """Makes <img> elements; figures also become files of a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def figure(self, name: str, figure: Figure, alt: str) -> str:
        content = figures.png(figure)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{name}.png").write_bytes(content)
        # Drawn with more pixels than it is shown with, for sharp screens.
        width = round(figure.get_figwidth() * 100)
        return f"<figure>{_image(content, 'png', alt, width)}</figure>"

    def strip(self, frames: np.ndarray, alt: str) -> str:
        """Frames of a clip side by side."""
        chosen = np.linspace(0, len(frames) - 1, min(_STRIP_FRAMES, len(frames))).round()
        images = []
        for frame in np.asarray(frames)[chosen.astype(int)]:
            image = Image.fromarray(frame)
            wide = max(1, round(image.width * _STRIP_HEIGHT_PX / image.height))
            small = np.asarray(image.resize((wide, _STRIP_HEIGHT_PX), Image.Resampling.BOX))
            images += [small, np.full((_STRIP_HEIGHT_PX, _GAP_PX, 3), 255, np.uint8)]
        buffer = io.BytesIO()
        Image.fromarray(np.concatenate(images[:-1], axis=1)).save(buffer, "jpeg", quality=82)
        return _image(buffer.getvalue(), "jpeg", alt)


def _sections(report: Report, pictures: _Pictures) -> Iterable[str]:
    """The page from top to bottom."""
    e = report.evaluation
    yield _opening(report)
    if e is not None:
        yield _tiles(e)
    yield _making(report)
    if report.history:
        curves = pictures.figure("curves", figures.curves(report.history), "curves of the training")
        yield _section("Training", curves)
    if e is not None:
        matrix = figures.confusion(np.array(e.confusion), [c.label for c in e.per_class])
        picture = pictures.figure("confusion", matrix, "confusion matrix")
        yield _section("Which classes are taken for which", picture)
        yield _section("Classes", _class_table(e))
    if report.embeddings is not None:
        yield _embeddings(report, report.embeddings, pictures)
    if report.worst:
        yield _section("Worst clips", "\n".join(_clip(clip, pictures) for clip in report.worst))
    if e is not None:
        yield _confidence_and_frames(e, pictures)
        yield _bad_videos(e.bad_videos)


def _opening(report: Report) -> str:
    e = report.evaluation
    parts = [f"<h1>{_escaped(report.title)}</h1>"]
    if e is not None:
        told = [e.model, f"{e.data}, {e.split}: {e.clips:,} clips"]
        told += [f"{e.frames} frames at {e.fps:g} fps, {e.resolution_px} px", e.date]
        parts.append(f'<p class="quiet">{_escaped(" · ".join(filter(None, told)))}</p>')
    parts += [f"<p>{_escaped(note)}</p>" for note in report.notes]
    return "\n".join(parts)


def _tiles(e: Evaluation) -> str:
    tiles = {
        "top-1 accuracy": percent(e.top1),
        "top-5 accuracy": None if e.top5 is None else percent(e.top5),
        "macro F1": percent(e.macro_f1),
        "calibration error": percent(e.ece),
        "GMACs per clip": None if e.gmacs is None else f"{e.gmacs:.2f}",
        "parameters": None if e.params is None else _short_count(e.params),
        "order accuracy": None if e.order_accuracy is None else percent(e.order_accuracy),
        "mean acceleration": None if e.mean_acceleration is None else f"{e.mean_acceleration:.3g}",
    }
    cells = [
        f'<div class="tile"><b>{_escaped(value)}</b><span>{name}</span></div>'
        for name, value in tiles.items()
        if value is not None
    ]
    return f'<div class="tiles">{"".join(cells)}</div>'


def _making(report: Report) -> str:
    """Command, weights, hardware, versions, recipe."""
    e = report.evaluation
    versions = report.versions or (e.versions if e else {})
    command = report.command or (e.command if e else "")
    facts = {
        "command": f"<code>{_escaped(command)}</code>" if command else "",
        "weights": _escaped(e.weights) if e else "",
        "hardware": _escaped(report.hardware),
        "versions": _escaped(", ".join(f"{name} {text}" for name, text in versions.items())),
    }
    rows = [f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items() if value]
    content = f"<dl>{''.join(rows)}</dl>" if rows else ""
    if report.recipe:
        recipe = f"<pre>{_escaped(report.recipe)}</pre>"
        content += f"<details><summary>Recipe</summary>{recipe}</details>"
    return _section("How it was made", f'<div class="card">{content}</div>') if content else ""


def _class_table(e: Evaluation) -> str:
    heading = ["class", "clips", "recall", "precision", "F1"]

    def rows(classes: Iterable[ClassResult]) -> list[list[str]]:
        return [
            [c.label, f"{c.support:,}", percent(c.recall), percent(c.precision), percent(c.f1)]
            for c in classes
        ]

    everything = _table(heading, rows(e.per_class))
    if len(e.per_class) <= _OPEN_ROWS:
        return everything
    worst = sorted((c for c in e.per_class if c.support), key=lambda c: c.f1 or 0.0)[
        :_WORST_CLASSES
    ]
    return (
        f'<p class="quiet">The {len(worst)} classes with the lowest F1:</p>\n'
        f"{_table(heading, rows(worst))}\n{everything}"
    )


def _embeddings(report: Report, found: Embeddings, pictures: _Pictures) -> str:
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
    picture = pictures.figure("trajectories", drawn, "paths of embeddings")
    return _section("How embeddings move", f'<p class="quiet">{told}</p>{picture}')


def _clip(clip: WorstClip, pictures: _Pictures) -> str:
    told = (
        f"{_escaped(clip.label)} ({percent(clip.label_probability)}), taken for "
        f'<span class="wrong">{_escaped(clip.predicted)}</span> ({percent(clip.probability)})'
    )
    strip = pictures.strip(clip.frames, f"frames of {clip.name}") if len(clip.frames) else ""
    name = f'<div class="quiet">{_escaped(clip.name)}</div>'
    return f'<div class="card clip"><div>{told}</div>{name}{strip}</div>'


def _confidence_and_frames(e: Evaluation, pictures: _Pictures) -> str:
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
    return _section(" and ".join(titles).capitalize(), f'<div class="pair">{"".join(cells)}</div>')


def _bad_videos(bad: Sequence[BadVideo]) -> str:
    if not bad:
        return ""
    rows = [[video.path, video.reason] for video in bad]
    table = _table(["left out of all numbers", "why"], rows)
    return _section(f"Bad videos: {len(bad):,}", table)


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in a card; the first column, and one of two, is text."""
    side = ' class="text"' if len(heading) == 2 else ""
    lines = ["".join(f"<th{side}>{_escaped(cell)}</th>" for cell in heading)]
    lines += ["".join(f"<td{side}>{_escaped(cell)}</td>" for cell in row) for row in rows]
    table = "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
    if len(rows) > _OPEN_ROWS:
        table = f"<details><summary>All {len(rows):,}</summary>{table}</details>"
    return f'<div class="card">{table}</div>'


def _section(title: str, content: str) -> str:
    return f"<section><h2>{_escaped(title)}</h2>\n{content}</section>"


def _image(content: bytes, kind: str, alt: str, width: int | None = None) -> str:
    data = base64.b64encode(content).decode("ascii")
    size = f' width="{width}"' if width else ""
    return f'<img src="data:image/{kind};base64,{data}" alt="{_escaped(alt)}"{size}>'


def _short_count(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 10_000 else f"{count:,}"


def _escaped(text: str) -> str:
    return html.escape(str(text))
