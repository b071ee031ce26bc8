"""Numbers on a model's answers and embeddings, in plain numpy: accuracy, calibration, smoothness.

Shape letters: n clips, K classes, N frames of a clip, D embedding width.
"""

import dataclasses
import math
import statistics

import numpy as np

BINS = 15  # of the calibration error, Guo et al. 2017, section 4


@dataclasses.dataclass(frozen=True, eq=False)
class ClassScores:
    """How well each class is told, [K] float64 each.

    Args:
        recall: share of the class's clips that are told; NaN for a class without clips.
        precision: share that is right of the clips told to be of the class; NaN where none is.
        f1: 2 TP / (2 TP + FP + FN); NaN for a class neither present nor ever told.
        support: clips of the class, int64.
    """

    recall: np.ndarray
    precision: np.ndarray
    f1: np.ndarray
    support: np.ndarray

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that have clips.

        A class without clips counts neither as right nor as wrong; clips that are mistaken for it
        lower the recall of their own class.
        """
        return float(self.f1[self.support > 0].mean())


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """Confidence against accuracy in bins of equal width over (0, 1].

    Args:
        error: expected calibration error in [0, 1]: Σ share of clips · |accuracy - confidence|.
        counts: clips whose confidence is in the bin (i/bins, (i+1)/bins], [bins] int64.
        confidence: mean confidence of these, [bins]; NaN in an empty bin.
        accuracy: share of these told right, [bins]; NaN in an empty bin.
    """

    error: float
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


@dataclasses.dataclass(frozen=True)
class Smoothness:
    """How embeddings move; None: too few frames (or no movement at all) to say.

    Args:
        speed: mean |z_{t+1} - z_t|.
        acceleration: mean |z_{t+2} - 2 z_{t+1} + z_t|.
        ratio: acceleration / speed. 0 on a straight line at constant speed, √2 on average where
            each step is turned by 90 degrees, 2 going to and fro.
        variance_2d: share of the variance in the first two principal components, [0, 1].
    """

    speed: float | None
    acceleration: float | None
    ratio: float | None
    variance_2d: float | None


def ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many other classes are at least as likely as the true one, [n] int64; 0 is right.

    Ties go against the model: a model whose logits are all equal has told nothing. In a row with
    a NaN every class counts, the true one too: K.

    Args:
        logits: [n, K], n >= 1, K >= 2; any increasing function of them, as probabilities, does.
        labels: [n] integers in [0, K).

    Raises:
        ValueError, TypeError: other shapes, labels that are no integers or out of range.

    Example:
        >>> ranks(np.array([[0.1, 0.9], [0.5, 0.5]]), np.array([1, 0]))
        array([0, 1])
    """
    logits, labels = _checked(logits, labels)
    true = np.take_along_axis(logits, labels[:, None], axis=1)
    count = (logits >= true).sum(axis=1) - 1
    return np.where(np.isnan(logits).any(axis=1), logits.shape[1], count)


def top_k(logits: np.ndarray, labels: np.ndarray, k: int = 1) -> float:
    """Share of clips whose true class is among the k most likely, ties counted as in `ranks`.

    Args:
        logits, labels: as in `ranks`.
        k: in [1, K]; at K every clip without NaN is right.
    """
    found = ranks(logits, labels)
    classes = np.shape(logits)[1]
    if not 1 <= k <= classes:
        raise ValueError(f"`k` must be in [1, {classes}], the number of classes. Received: {k}")
    return float(np.mean(found < k))


def share_interval(share: float, count: int) -> tuple[float, float]:
    """Between which shares the true one lies, with 95 % confidence: Wilson's interval.

    Args:
        share: of what was counted, in [0, 1].
        count: trials, independent of each other, >= 1.

    Raises:
        ValueError: no share, or no trials.

    Reference:
        Wilson, Probable inference, the law of succession, and statistical inference, 1927.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"`share` must be in [0, 1]. Received: {share}")
    if count < 1:
        raise ValueError(f"`count` must be at least 1. Received: {count}")
    square = statistics.NormalDist().inv_cdf(0.975) ** 2 / count
    centre = (share + square / 2) / (1 + square)
    half = math.sqrt(square * share * (1 - share) + square**2 / 4) / (1 + square)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def confusion_matrix(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Clips by true class (row) and most likely class (column), [K, K] int64.

    Where the true class only ties for the first place, another one of the tie is counted, so that
    the trace over n is the top-1 accuracy.

    Args:
        logits, labels: as in `ranks`; all logits finite.
    """
    logits, labels = _finite(logits, labels)
    tied = (ranks(logits, labels) > 0) & (logits.max(axis=1) == logits[range(len(labels)), labels])
    logits[tied, labels[tied]] = -np.inf
    classes = logits.shape[1]
    cells = np.bincount(labels * classes + logits.argmax(axis=1), minlength=classes**2)
    return cells.reshape(classes, classes)


def class_scores(confusion: np.ndarray) -> ClassScores:
    """Recall, precision, F1 and support of each class.

    Args:
        confusion: [K, K] counts, rows true, at least one clip.
    """
    confusion = np.asarray(confusion)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1] or not confusion.sum():
        raise ValueError(
            "`confusion` must be a square matrix of counts with at least one clip. Received: "
            f"shape {confusion.shape}, sum {confusion.sum()}"
        )
    right, support, told = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    return ClassScores(
        recall=_shares(right, support),
        precision=_shares(right, told),
        f1=_shares(2 * right, support + told),
        support=support,
    )


def calibration(logits: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Calibration:
    """Expected calibration error and its reliability table.

    Confidence is the largest softmax probability.

    Args:
        logits, labels: as in `ranks`; all logits finite.
        bins: >= 1.

    Reference:
        Guo et al., On Calibration of Modern Neural Networks, 2017, equations 2, 3 and 5.
    """
    if bins < 1:
        raise ValueError(f"`bins` must be >= 1. Received: {bins}")
    right = ranks(logits, labels) == 0
    confidence = np.exp(_log_softmax(_finite(logits, labels)[0])).max(axis=1)
    edges = np.arange(1, bins) / bins
    index = np.searchsorted(edges, confidence, side="left")
    counts = np.bincount(index, minlength=bins)
    confidence_sum = np.bincount(index, confidence, bins)
    right_count = np.bincount(index, right, bins)
    return Calibration(
        error=float(np.abs(right_count - confidence_sum).sum() / len(right)),
        counts=counts,
        confidence=_shares(confidence_sum, counts),
        accuracy=_shares(right_count, counts),
    )


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log softmax at the true class, in nats; log K where nothing is known.

    Args:
        logits, labels: as in `ranks`; all logits finite.
    """
    logits, labels = _finite(logits, labels)
    return float(-_log_softmax(logits)[range(len(labels)), labels].mean())


def smoothness(z: np.ndarray, mask: np.ndarray | None = None) -> Smoothness:
    """Mean speed and acceleration of embeddings, and the variance in a plane.

    Args:
        z: [n, N, D], finite, n, N and D >= 1.
        mask: [n, N] bool, False at frames that only pad; differences that touch one are left out.

    Raises:
        ValueError: other shapes, NaN or infinite embeddings, no frame at all.

    Example:
        >>> smoothness(np.array([[[0.0], [1.0], [2.0], [3.0]]])).ratio
        0.0
    """
    z, mask = _embeddings(z, mask)
    speed = _mean_length(z, mask, 1)
    acceleration = _mean_length(z, mask, 2)
    ratio = acceleration / speed if speed and acceleration is not None else None
    _, _, shares = principal_components(z, mask)
    variance_2d = float(shares.sum()) if shares.any() else None
    return Smoothness(speed, acceleration, ratio, variance_2d)


def principal_components(
    z: np.ndarray, mask: np.ndarray | None = None, count: int = 2
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean [D], axes [count, D] and shares of variance [count] of all frames' embeddings.

    An axis' sign makes its largest entry positive, so that the same data gives the same picture.
    Axes beyond D are zero; where nothing varies, so are the shares.

    Args:
        z, mask: as in `smoothness`.
        count: of components, >= 1, largest variance first.
    """
    z, mask = _embeddings(z, mask)
    points = z[mask]
    mean = points.mean(axis=0)
    # D is hundreds where there may be millions of frames: their covariance is the smaller matrix.
    variance, vectors = np.linalg.eigh((points - mean).T @ (points - mean))
    axes, shares = np.zeros((count, z.shape[2])), np.zeros(count)
    kept = min(count, z.shape[2])
    axes[:kept] = vectors.T[::-1][:kept]
    axes *= np.where(axes[range(count), np.abs(axes).argmax(axis=1)] < 0, -1, 1)[:, None]
    total = variance.clip(0).sum()
    if total > 0:
        shares[:kept] = variance.clip(0)[::-1][:kept] / total
    return mean, axes, shares


def _shares(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole != 0)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _mean_length(z: np.ndarray, mask: np.ndarray, degree: int) -> float | None:
    """Mean length of the differences of a degree, over those between real frames."""
    frames = z.shape[1]
    if frames <= degree:
        return None
    real = np.all([mask[:, i : frames - degree + i] for i in range(degree + 1)], axis=0)
    lengths = np.linalg.norm(np.diff(z, degree, axis=1), axis=-1)[real]
    return float(lengths.mean()) if len(lengths) else None


def _checked(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits in float64, for low precision knows too few numbers for a tie to mean one."""
    logits, labels = np.array(logits, np.float64), np.asarray(labels)
    if logits.ndim != 2 or logits.shape[0] < 1 or logits.shape[1] < 2:
        raise ValueError(
            "`logits` must have shape [clips, classes], at least one clip and two classes. "
            f"Received: {logits.shape}"
        )
    if labels.shape != logits.shape[:1]:
        raise ValueError(
            f"`labels` must have one entry per row of `logits`, {logits.shape[:1]}: class "
            f"numbers, not one-hot. Received: shape {labels.shape}"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"`labels` must be integers, class numbers. Received: {labels.dtype}")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(
            f"`labels` must be in [0, {logits.shape[1]}), the classes of `logits`: were they "
            f"made for another model? Received: from {labels.min()} to {labels.max()}"
        )
    return logits, labels.astype(np.int64)


def _finite(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    logits, labels = _checked(logits, labels)
    bad = np.nonzero(~np.isfinite(logits).all(axis=1))[0]
    if len(bad):
        raise ValueError(
            "`logits` must be finite: NaN come from weights that diverged, or from float16 "
            f"overflow. Received: NaN or infinity in {len(bad)} of {len(logits)} rows, first in "
            f"row {bad[0]}"
        )
    return logits, labels


def _embeddings(z: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    z = np.asarray(z, np.float64)
    if z.ndim != 3 or 0 in z.shape:
        raise ValueError(
            f"`z` must have shape [clips, frames, width], all >= 1. Received: {z.shape}"
        )
    mask = np.ones(z.shape[:2], bool) if mask is None else np.asarray(mask)
    if mask.shape != z.shape[:2] or mask.dtype != bool:
        raise ValueError(
            f"`mask` must be bool, one entry per frame, {z.shape[:2]}. Received: {mask.dtype}, "
            f"{mask.shape}"
        )
    if not mask.any():
        raise ValueError("`mask` must leave at least one frame. Received: all False")
    if not np.isfinite(z[mask]).all():
        raise ValueError("`z` must be finite at the frames that count. Received: NaN or infinity")
    return z, mask
