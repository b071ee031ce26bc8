"""Pictures of a training and of an evaluation.

Figures of matplotlib's own objects: no pyplot, no window, no state that another figure sees. The
same data gives the same bytes.

Shape letters: n clips, N frames of a clip, D embedding width, K classes.
"""

import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from grw_keras.evaluation.results import ReliabilityBin

# Okabe and Ito's colours, safe for the colour-blind; green, blue, red first, as in figure 2 of
# the paper. Their yellow is too pale for lines on white.
PALETTE = ("#009E73", "#0072B2", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")  # one per colour
DPI = 130
STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "text.parse_math": False,  # a label may hold dollar signs
    "xtick.color": "#444444",
    "ytick.color": "#444444",
}
# Keys of a history, and what the curves call them.
_LOSSES = {
    "loss": "total",
    "cross_entropy": "cross-entropy",
    "grw_ordering": "ordering",
    "grw_speed": "speed",
    "val_cross_entropy": "cross-entropy, {validated_on}",
}
_ACCURACIES = {
    "top1": "training",
    "val_top1": "{validated_on}",
    "grw_order_accuracy": "order of frames",
}
_RATES = {
    "backbone_rate": "backbone",
    "head_rate": "head",
}
_NUMBERED, _NAMED = 12, 40  # classes up to which cells are numbered, and axes named
_LISTED = 12  # confusions named beside a matrix too large for names


def png(figure: Figure) -> bytes:
    """A figure as a PNG file's bytes, without a date or a version in them."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # Labels in letters that the font lacks are drawn as boxes; the tables beside spell them.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def save_png(path: str | Path, figure: Figure) -> None:
    """Writes `png(figure)` to a file; its folder is made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(png(figure))


def curves(history: Iterable[Mapping[str, float]], validated_on: str = "validation") -> Figure:
    """Losses, accuracies and learning rates over the epochs.

    What no row has is left out.

    Args:
        history: one row per epoch, with "epoch" (default: counted from 1) and any of "loss",
            "cross_entropy", "grw_ordering", "grw_speed", "val_cross_entropy"; "top1", "val_top1",
            "grw_order_accuracy", in [0, 1]; "backbone_rate", "head_rate".
        validated_on: the split that the "val_" numbers are of.

    Raises:
        ValueError: none of them is there.
    """
    rows = list(history)
    panels = {"Loss": _LOSSES, "Accuracy": _ACCURACIES, "Learning rate": _RATES}
    found = {
        title: {key: name for key, name in keys.items() if any(key in row for row in rows)}
        for title, keys in panels.items()
    }
    found = {title: keys for title, keys in found.items() if keys}
    if not found:
        known = ", ".join(key for keys in panels.values() for key in keys)
        received = ", ".join({key: None for row in rows for key in row}) or "no rows"
        raise ValueError(f"`history` must have some of these keys: {known}. Received: {received}")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(4.5, 3.6 * len(found)), 3.9), layout="constrained")
        panels = figure.subplots(1, len(found), squeeze=False)[0]
        for axes, (title, keys) in zip(panels, found.items(), strict=True):
            for color, (key, name) in zip(PALETTE, keys.items(), strict=False):
                label = name.format(validated_on=validated_on)
                _draw_curve(axes, rows, key, color, label, crowded=len(keys) > 3)
            axes.set(title=title, xlabel="epoch")
            if len(rows) == 1:
                only = rows[0].get("epoch", 1)
                axes.set_xlim(only - 0.5, only + 0.5)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            # Below, where it covers no curve.
            axes.legend(fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
            if title == "Accuracy":
                axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
                axes.set_ylim(0, 1.03)
            elif title == "Learning rate":
                _scale_rates(axes)
    return figure


def _draw_curve(
    axes: Axes,
    rows: Sequence[Mapping[str, float]],
    key: str,
    color: str,
    label: str,
    *,
    crowded: bool,
) -> None:
    """What the rows have under a key; of a held-out split with hollow marks, so that a point of the
    training under one is seen, and dashed among many curves."""
    points = [(row.get("epoch", i + 1), row[key]) for i, row in enumerate(rows) if key in row]
    validated = key.startswith("val_")
    axes.plot(
        *zip(*points, strict=True),
        "--" if validated and crowded else "-",
        marker="o" if len(points) < 25 else None,
        ms=6 if validated else 3.5,
        mfc="none" if validated else color,
        color=color,
        label=label,
    )


def _scale_rates(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 100 * low:  # powers of ten alone would be one tick, or none
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:.0e}".replace("e-0", "e-"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def confusion(matrix: np.ndarray, labels: Sequence[str]) -> Figure:
    """A confusion matrix, each row shaded by the share of its class.

    Up to 12 classes the cells hold counts, up to 40 the axes hold names; beyond, the most
    frequent confusions are listed beside the picture.

    Args:
        matrix: [K, K] counts, rows true.
        labels: [K] names.

    Raises:
        ValueError: no square matrix, or another number of labels.
    """
    matrix = np.asarray(matrix)
    count = len(labels)
    if matrix.shape != (count, count):
        raise ValueError(
            f"`matrix` must have one row and column per label, {count}. Received: {matrix.shape}"
        )
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    with matplotlib.rc_context(STYLE):
        if count > _NAMED:
            return _large_confusion(matrix, shares, labels)
        side = 2.4 + max(0.30 * count, min(0.62 * count, 4.2))
        figure = Figure(figsize=(side + 1.4, side), layout=ConstrainedLayoutEngine(w_pad=0.15))
        axes = figure.subplots()
        image = axes.imshow(shares, "Blues", Normalize(0, 1))
        names = [short(label, 26) for label in labels]
        axes.set_yticks(range(count), names)
        turned = 0 if count <= 3 and max(map(len, names)) <= 14 else 45
        axes.set_xticks(
            range(count),
            names,
            rotation=turned,
            ha="right" if turned else "center",
            rotation_mode="anchor" if turned else "default",
        )
        axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
        axes.grid(False)
        axes.grid(True, which="minor", color="#dddddd", linewidth=0.6)
        axes.tick_params(which="both", length=0)
        axes.tick_params(labelsize=9.5 if count <= 20 else 7.5)
        axes.spines[:].set_visible(False)
        axes.set(xlabel="predicted", ylabel="true")
        if count <= _NUMBERED:
            for row, column in zip(*np.nonzero(matrix), strict=True):
                axes.text(
                    column,
                    row,
                    f"{matrix[row, column]:,}",
                    ha="center",
                    va="center",
                    color="white" if shares[row, column] > 0.55 else "#222222",
                )
        _share_bar(figure, image, axes)
    return figure


def _large_confusion(matrix: np.ndarray, shares: np.ndarray, labels: Sequence[str]) -> Figure:
    """A matrix without names, and its most frequent confusions in words."""
    count = len(labels)
    figure = Figure(figsize=(11.5, 6.2), layout="constrained")
    axes, listing = figure.subplots(1, 2, width_ratios=(1.25, 1))
    # One point in a thousand would vanish when it is scaled down: show each tile's largest cell.
    stride = -(-count // 300)
    padded = np.pad(shares, (0, -count % stride))
    tiles = padded.reshape(len(padded) // stride, stride, -1, stride).max(axis=(1, 3))
    extent = (-0.5, len(padded) - 0.5, len(padded) - 0.5, -0.5)
    norm = PowerNorm(0.5, 0, 1)  # a tenth of a class must be seen
    image = axes.imshow(tiles, "Blues", norm, extent=extent, interpolation="nearest")
    axes.set(xlabel="predicted class, by number", ylabel="true class, by number")
    axes.grid(False)
    axes.spines[:].set_visible(True)
    _share_bar(figure, image, axes)
    wrong = np.where(np.eye(count, dtype=bool), 0, matrix)
    order = np.lexsort((-shares.ravel(), -wrong.ravel()))[:_LISTED]
    listing.set_axis_off()
    listing.set_title("Most frequent confusions", loc="left")
    for line, cell in enumerate(order):
        row, column = divmod(int(cell), count)
        if not wrong[row, column]:
            break
        y = 1 - (line + 0.6) / _LISTED
        share = f"{shares[row, column]:.0%} of {matrix[row].sum():,}"
        listing.text(0, y, short(labels[row], 40), va="bottom", weight="bold")
        listing.text(0.03, y, f"→ {short(labels[column], 34)}  ({share})", va="top")
    return figure


def calibration(bins: Sequence[ReliabilityBin], error: float) -> Figure:
    """Accuracy against confidence, and how many clips have which confidence.

    Args:
        bins: of equal width over (0, 1].
        error: expected calibration error in [0, 1].

    Raises:
        ValueError: no bins.

    Reference:
        Guo et al., On Calibration of Modern Neural Networks, 2017, figures 1 and 4.
    """
    if not bins:
        raise ValueError("`bins` must hold at least one bin. Received: none")
    left = np.arange(len(bins)) / len(bins)
    width = 1 / len(bins)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.8, 4.8), layout="constrained")
        top, bottom = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
        full = [(x, b) for x, b in zip(left, bins, strict=True) if b.count]
        at = [x for x, _ in full]
        accuracy = np.array([b.accuracy for _, b in full], float)
        confidence = np.array([b.confidence for _, b in full], float)
        style: dict[str, Any] = {
            "width": width,
            "align": "edge",
            "edgecolor": "white",
            "linewidth": 0.6,
        }
        top.bar(at, accuracy, color=PALETTE[1], alpha=0.8, label="accuracy", **style)
        ends = [x + width for x in at]
        top.hlines(confidence, at, ends, color=PALETTE[2], lw=2.5, label="mean confidence")
        top.plot([0, 1], [0, 1], "--", color="#555555", lw=1.2)
        top.set(ylabel="accuracy", ylim=(0, 1), title=f"Calibration error {error:.1%}")
        top.yaxis.set_major_formatter(PercentFormatter(1))
        figure.legend(loc="outside lower center", fontsize=8.5, ncols=2)
        bottom.bar(left, [b.count for b in bins], color="#888888", **style)
        bottom.set(xlabel="confidence", ylabel="clips", xlim=(0, 1))
        bottom.xaxis.set_major_formatter(PercentFormatter(1))
        bottom.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
    return figure


def accuracy_over_frames(
    rows: Sequence[tuple[int, float]], fps: float | None = None, chance: float | None = None
) -> Figure:
    """Top-1 accuracy after so many frames of a stream.

    Args:
        rows: (frames seen, share), rising frames, at least one.
        fps: writes seconds above the frames.
        chance: share that guessing gets, drawn as a line.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("`rows` must hold at least one (frames, share). Received: none")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.5), layout="constrained")
        axes = figure.subplots()
        frames, shares = zip(*rows, strict=True)
        axes.plot(frames, shares, "o-", color=PALETTE[1], ms=4)
        axes.annotate(
            f"{shares[-1]:.1%}",
            (frames[-1], shares[-1]),
            (0, 7 if chance is None or shares[-1] >= chance else -15),
            textcoords="offset points",
            ha="center",
            color=PALETTE[1],
            weight="bold",
        )
        if chance is not None:
            axes.axhline(chance, ls=":", color="#777777", label=f"chance, {chance:.1%}")
            axes.legend(loc="upper left", fontsize=8.5)
        axes.set(xlabel="frames seen", ylabel="top-1 accuracy", ylim=(0, 1.08))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if fps:
            seconds = axes.secondary_xaxis(
                "top", functions=(lambda x: np.divide(x, fps), lambda x: np.multiply(x, fps))
            )
            seconds.set_xlabel("seconds")
    return figure


def _share_bar(figure: Figure, image: ScalarMappable, axes: Axes) -> None:
    bar = figure.colorbar(image, ax=axes, shrink=0.7, pad=0.02)
    bar.set_label("share of the true class")
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    bar.outline.set_visible(False)


def short(label: str, length: int) -> str:
    """A label on one line of at most `length` letters."""
    label = " ".join(str(label).split())
    return label if len(label) <= length else label[: length - 1].rstrip() + "…"
