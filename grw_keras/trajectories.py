"""How embeddings of clips move: typical clips of each class in the plane of their variance.

Shape letters: n clips, N frames of a clip, D embedding width, K classes.
"""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from grw_keras.evaluation import metrics
from grw_keras.figures import MARKERS, PALETTE, STYLE, short

_CLOUD = 4000  # points of all embeddings that are drawn behind the paths
_NUMBERED_FRAMES = 16  # longer clips have every second, fifth, … frame numbered


def trajectories(
    z: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    mask: np.ndarray | None = None,
    shown: int = 2,
) -> Figure:
    """The figure of `draw_trajectories` alone, with a legend."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 6.2), layout="constrained")
        draw_trajectories(figure.subplots(), z, labels, names, mask, shown)
    return figure


def draw_trajectories(
    axes: Axes,
    z: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    mask: np.ndarray | None = None,
    shown: int = 2,
) -> None:
    """Typical clips of up to six classes on the first two principal components of all embeddings.

    The points are frames, joined in their order and numbered by it from 0; all other embeddings
    are a grey cloud. Both axes have one scale, so that angles are true. Of more than six classes
    those with the most clips are drawn, one clip each.

    Args:
        axes: to draw on.
        z: [n, N, D], finite where the mask is True.
        labels: [n] integers in [0, K).
        names: [K].
        mask: [n, N] bool, False at frames that only pad.
        shown: clips per class, >= 1, chosen by `typical_clips`.

    Raises:
        ValueError: other shapes, labels out of range.

    Reference:
        Smooth Regularization for Efficient Video Recognition, figure 2.
    """
    z = np.asarray(z, np.float64)
    labels = np.asarray(labels)
    mean, components, variance = metrics.principal_components(z, mask)
    mask = np.ones(z.shape[:2], bool) if mask is None else np.asarray(mask)
    if labels.shape != z.shape[:1] or not np.isin(labels, range(len(names))).all():
        raise ValueError(
            f"`labels` must be {len(z)} class numbers in [0, {len(names)}). Received: shape "
            f"{labels.shape}, from {labels.min()} to {labels.max()}"
        )
    points = np.where(mask[..., None], z - mean, 0.0) @ components.T
    cloud = points[mask]
    few = cloud[:: -(-len(cloud) // _CLOUD)].T
    # Not by axes.plot: the axes are to fit the paths.
    axes.add_artist(Line2D(*few, ls="", marker=".", color="#c4c4c4", ms=3.5, zorder=1))
    drawn = _drawn_classes(labels, len(names))
    if len(drawn) < len(np.unique(labels)):
        shown = 1
    handles = []
    for color, marker, label in zip(PALETTE, MARKERS, drawn, strict=False):
        members = np.nonzero(labels == label)[0]
        for clip in members[typical_clips(z[members], mask[members], shown)]:
            _draw_path(axes, points[clip][mask[clip]], color, marker)
        handles.append(Line2D([], [], color=color, marker=marker, ms=5))
    legend = axes.legend(
        handles,
        [str(i) for i in drawn],
        loc="best",
        framealpha=0.85,
        frameon=True,
        edgecolor="none",
    )
    for text, label in zip(legend.get_texts(), drawn, strict=True):
        text.set_text(short(names[label], 30))  # set later: a name that starts with _ is no legend
    axes.margins(0.1)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(
        xlabel=f"component 1 ({variance[0]:.0%} of the variance)",
        ylabel=f"component 2 ({variance[1]:.0%})",
    )
    if len(drawn) < len(np.unique(labels)):
        axes.set_title(f"The {len(drawn)} most frequent of {len(np.unique(labels))} classes")


def typical_clips(z: np.ndarray, mask: np.ndarray, count: int) -> np.ndarray:
    """Indices of the clips that move most like the median clip, not the prettiest.

    Nearest in mean speed and mean acceleration, both on a log scale, among the longest clips.

    Args:
        z, mask: [n, N, D] and [n, N].
        count: of clips, >= 1; fewer where there are fewer.

    Shapes:
        [min(count, n)] int64, the most typical first.
    """
    lengths = mask.sum(axis=1)
    long = np.nonzero(lengths == lengths.max())[0]
    moves = []
    for clip in long:
        found = metrics.smoothness(z[clip : clip + 1], mask[clip : clip + 1])
        moves.append(
            [np.log((value or 0.0) + 1e-12) for value in (found.speed, found.acceleration)]
        )
    distance = np.linalg.norm(np.array(moves) - np.median(moves, axis=0), axis=1)
    rest = np.setdiff1d(np.arange(len(z)), long)
    order = [
        *long[np.argsort(distance, kind="stable")],
        *rest[np.argsort(-lengths[rest], kind="stable")],
    ]
    return np.array(order[:count], np.int64)


def _drawn_classes(labels: np.ndarray, classes: int) -> list[int]:
    """Classes to draw, in their order."""
    counts = np.bincount(labels, minlength=classes)
    frequent = np.argsort(-counts, kind="stable")[: len(PALETTE)]
    return sorted(int(label) for label in frequent if counts[label])


def _draw_path(axes: Axes, path: np.ndarray, color: str, marker: str) -> None:
    axes.plot(*path.T, color=color, lw=1.4, alpha=0.8, zorder=2)
    stride = next(s for s in (1, 2, 5, 10, 20, 50, len(path)) if len(path) <= s * _NUMBERED_FRAMES)
    size = 5 if stride == 1 else 2.5
    axes.plot(*path.T, marker, ms=size, color=color, mec="white", mew=0.5, ls="", zorder=3)
    halo = [withStroke(linewidth=2.2, foreground="white")]
    for frame in range(0, len(path), stride):
        along = path[min(frame + 1, len(path) - 1)] - path[max(frame - 1, 0)]
        length = np.hypot(*along)
        # Beside the line, not on it.
        x, y = (-along[1] / length, along[0] / length) if length > 0 else (0.0, 1.0)
        axes.annotate(
            str(frame),
            (path[frame, 0], path[frame, 1]),
            (7.5 * x, 7.5 * y),
            textcoords="offset points",
            color=color,
            fontsize=7.5,
            ha="center",
            va="center",
            path_effects=halo,
            zorder=4,
        )
