"""The GRW-smoothing loss: equations 1 to 6 of the paper as functions of arrays.

Everything is computed from the squared distances between the frames of a window: the
acceleration of frames i, j, k is |z_i - 2 z_j + z_k|² = 2 d_ij + 2 d_jk - d_ik. So no permuted
copy of the frames is ever made, and a common offset of the embeddings cancels exactly.
The functions take and return tensors of the active Keras backend (`keras.backend.backend()`).

Shape letters: B batch, N frames of a clip, T frames of a window, C windows of a clip,
D embedding width, K orderings, W = B C windows.
"""

import functools
import math
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from grw_keras import backend
from grw_keras.orderings import NUM_SAMPLED, ExactOrderings, check_integer, check_window, resolve

REDUCTIONS = ("mean", "sum", "none")
UNREACHABLE = -1e30  # log-probability of no path at all; finite, so that its gradient is 0
TOO_SHORT = "A clip must have at least one window of frames: use longer clips or a smaller window."


class ShortClipError(ValueError):
    """A clip has fewer frames than one window."""

    __init__ = Exception.__init__  # by this sign AutoGraph raises the same type again


class GRWTerms(NamedTuple):
    """The parts of equation 6 for each window, tensors [B, C].

    Attributes:
        ordering: -log of the true order's share of the probability (equations 2 to 5), at least
            0; log K where all K orderings are equally likely.
        speed: ½ Σ_t |z_{t+1} - z_t|², -Ω(V) of equation 6 without the Gaussian's constant.
        margin: log-probability of the true order less that of the likeliest other one: positive
            where the true order is the likeliest, 0 at a tie.
        acceleration: mean over t of the norm |z_{t+2} - 2 z_{t+1} + z_t|; carries no gradient.
        valid: bool, False for windows that touch a masked frame.
    """

    ordering: Any
    speed: Any
    margin: Any
    acceleration: Any
    valid: Any

    @property
    def count(self):
        """Number of valid windows, a scalar of the terms' dtype."""
        return ops.sum(ops.cast(self.valid, self.speed.dtype))

    def mean(self, values):
        """Mean of `values` [B, C] over the valid windows, a scalar; 0 where there is none."""
        return backend.divide_or_zero(self.sum(values), self.count)

    def sum(self, values):
        """Sum of `values` [B, C] over the valid windows, a scalar."""
        return ops.sum(ops.where(self.valid, values, ops.zeros_like(values)))


def grw_loss(
    z,
    *,
    window: int = 5,
    stride: int | None = None,
    alpha: float = 0.5,
    orderings="auto",
    num_orderings: int = NUM_SAMPLED,
    seed: int = 0,
    mask=None,
    reduction: str = "mean",
    debug: bool = False,
):
    """L_smooth of equation 6: ordering term + alpha · speed term, averaged over the windows.

    log Σ_π exp(E(true) - E(π)) + alpha · ½ Σ_t |z_{t+1} - z_t|², with the energy of an ordering
    E(π) = ½ Σ_t |z_π(t+2) - 2 z_π(t+1) + z_π(t)|².

    Args:
        z: per-frame embeddings [B, N, D]. float16, bfloat16 and float32 are computed in float32,
            float64 in float64.
        window: T, frames in a window, at least 3 and at most N. The paper uses 0.5 to 1 s: 5
            frames at 5 fps.
        stride: frames from one window's start to the next one's. Default: `window`, windows side
            by side as in equation 1; frames left over at the end are dropped.
        alpha: weight of the speed term, at least 0; the paper's is ½.
        orderings: `"all"`, `"exact"` (dynamic programme, the same value without listing the
            orderings, T <= 14), `"sampled"` (as the authors do above T = 7: biased low),
            `"auto"` (all up to T = 7, exact up to 12, sampled above), or integers [K, T].
        num_orderings: K of `"sampled"`.
        seed: seed of `"sampled"`.
        mask: bool [B, N], False for padding. A window that touches such a frame does not count.
        reduction: `"mean"` over valid windows, `"sum"` of them, or `"none"`: [B, C], 0 at
            invalid windows.
        debug: check that unmasked embeddings are finite.

    Returns:
        A scalar, or [B, C] for reduction `"none"`; float64 for float64 embeddings (float32 on a
        backend without them), otherwise float32.

    Raises:
        ValueError: bad arguments or shapes, or under `debug` a NaN or infinity (in a compiled
            function the backend's own error).
        ShortClipError: N < T; a ValueError too. Where N is unknown until a compiled function of
            TensorFlow runs, InvalidArgumentError; XLA drops that check, and the loss is 0.
        TypeError: a tensor of another framework than the Keras backend's.

    Reference:
        Goldman, Giryes, Satyanarayanan: Smooth Regularization for Efficient Video Recognition,
        NeurIPS 2025, equations 1 to 6.

    Example:
        >>> round(float(grw_loss([[[0.0], [1.0], [2.0], [3.0]]], window=4, alpha=1.0)), 5)
        1.51384
    """
    check_weight("alpha", alpha)
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"`reduction` must be one of {', '.join(map(repr, REDUCTIONS))}. "
            f"Received: reduction={reduction!r}"
        )
    terms = grw_terms(
        z,
        window=window,
        stride=stride,
        orderings=resolve(orderings, window, num_orderings=num_orderings, seed=seed),
        mask=mask,
        debug=debug,
    )
    losses = terms.ordering + alpha * terms.speed
    if reduction == "mean":
        return terms.mean(losses)
    if reduction == "sum":
        return terms.sum(losses)
    return ops.where(terms.valid, losses, ops.zeros_like(losses))


def grw_terms(
    z,
    *,
    window: int,
    orderings: np.ndarray | ExactOrderings,
    stride: int | None = None,
    mask=None,
    debug: bool = False,
) -> GRWTerms:
    """The parts of equation 6 for every window of `z` [B, N, D].

    Args:
        z: embeddings [B, N, D], as in `grw_loss`.
        window: T.
        orderings: what `grw_keras.orderings.resolve` returns.
        stride: frames between window starts; default `window`.
        mask: bool [B, N] or None.
        debug: check that unmasked embeddings are finite.

    Raises:
        ValueError: as `grw_loss`.
    """
    check_window(window)
    stride = check_stride(stride, window)
    z, mask = clean(z, mask, window)
    if debug:
        z = backend.check_finite(z, "z")
    frames = split_windows(z, window, stride)
    batch, count = ops.shape(frames)[:2]
    if mask is None:
        valid = ops.ones((batch, count), "bool")
    else:
        valid = ops.all(split_windows(mask, window, stride), axis=2)

    frames = ops.reshape(frames, (-1, window, z.shape[-1]))
    distances = squared_distances(frames)
    if isinstance(orderings, ExactOrderings):
        rival_sum, rival_best = _compare_exactly(distances, orderings)
    else:
        rival_sum, rival_best = _compare_with_rows(distances, orderings)
    speed = 0.5 * ops.sum(ops.diagonal(distances, offset=1, axis1=1, axis2=2), axis=1)
    per_window = (ops.softplus(rival_sum), speed, -rival_best, _mean_acceleration(frames))
    per_window = tuple(ops.reshape(values, (batch, count)) for values in per_window)
    return GRWTerms(*per_window, valid=valid)


def clean(z, mask, window: int):
    """`z` as floats with zeros in its masked frames, `mask` as bools or None; shapes checked."""
    z = as_float(z)
    mask = None if mask is None else ops.cast(ops.convert_to_tensor(mask), "bool")
    _check_shapes(z, mask, window)
    if z.shape[1] is None:
        z = backend.guarded_length(z, window, f"{TOO_SHORT} Received: window={window}")
    if mask is not None:
        z = ops.where(mask[..., None], z, ops.zeros_like(z))
    return z, mask


def as_float(x):
    """`x` as a tensor: float64 arrays stay so where the backend has them, all else is float32."""
    backend.refuse_foreign(x, "z")
    is_double = hasattr(x, "dtype") and keras.backend.standardize_dtype(x.dtype) == "float64"
    if is_double and backend.has_float64():
        return ops.convert_to_tensor(x, "float64")
    return ops.cast(ops.convert_to_tensor(x), "float32")


def split_windows(x, window: int, stride: int):
    """Cut [B, N, ...] into windows [B, C, T, ...], C = (N - T) // stride + 1 (equation 1)."""
    batch, length = ops.shape(x)[:2]
    count = (length - window) // stride + 1
    if stride == window:
        return ops.reshape(x[:, : count * window], (batch, count, window, *x.shape[2:]))
    span = (count - 1) * stride + 1
    return ops.stack([x[:, t : t + span : stride] for t in range(window)], axis=2)


def squared_distances(frames):
    """|z_i - z_j|² of every two frames of windows [W, T, D]: [W, T, T]."""
    return ops.sum(ops.square(frames[:, :, None] - frames[:, None]), axis=-1)


def _centred(distances, window: int):
    """Distances less their mean over the pairs of frames.

    The coefficients of the distances in an energy have the same sum for every ordering, so this
    changes no difference of energies; it takes the rounding of large but nearly equal distances
    out of what follows. (It also shifts the diagonal, which no energy contains.)
    """
    total = ops.sum(distances, axis=(1, 2), keepdims=True)
    return distances - total / (window * (window - 1))


def _compare_with_rows(distances, rows: np.ndarray):
    """log Σ and max over all rows but one true order, of E(true) - E(π): each [W].

    The energies are linear in the distances, so one matrix product gives all of them.
    """
    window = rows.shape[1]
    gains, repeats = _rival_gains(rows.tobytes(), window)
    distances = ops.reshape(_centred(distances, window), (-1, window**2))
    logits = backend.full_precision_matmul(distances, gains)
    others = logits + ops.cast(repeats, logits.dtype)
    return ops.logsumexp(logits, axis=1), _max(others, axis=1)


@functools.lru_cache(maxsize=8)
def _rival_gains(rows_bytes: bytes, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients [T², K-1] of E(true) - E(π) in the distances, π over all rows but a true one.

    The second array [K-1] is 0, but UNREACHABLE where a sample has drawn the true order again:
    in the sum that counts, as in the authors' code, but it is no rival to itself.
    """
    rows = np.frombuffer(rows_bytes, np.int32).reshape(-1, window)
    energies = np.zeros((len(rows), window, window), np.float32)
    each = np.arange(len(rows))
    for i, j, k in zip(rows.T, rows.T[1:], rows.T[2:], strict=False):
        energies[each, i, j] += 1.0
        energies[each, j, k] += 1.0
        energies[each, i, k] -= 0.5
    is_true = (rows == np.arange(window)).all(axis=1)
    true = np.argmax(is_true)
    rivals = np.delete(energies[true] - energies, true, axis=0)
    repeats = np.where(np.delete(is_true, true), UNREACHABLE, 0.0)
    return rivals.reshape(len(rivals), -1).T, repeats


def _compare_exactly(distances, tables: ExactOrderings):
    """log Σ and max over all orderings but the true one, of E(true) - E(π): each [W].

    A dynamic programme over (visited set, last two frames). The states hold sums over prefixes
    that are not the true order's; that one prefix, whose value is 0 by construction, enters
    where it is left.
    """
    window = tables.window
    square = ops.transpose(_centred(distances, window), (1, 2, 0))
    energies = square[:, :, None] + square[None] - 0.5 * square[:, None]  # [i, j, k, W]
    energies = ops.reshape(energies, (window**3, -1))
    true_triples = [(t * window + t + 1) * window + t + 2 for t in range(window - 2)]
    start = np.zeros((len(tables.first), 1), np.float32)
    start[tables.first_true] = UNREACHABLE

    def run(total):
        values = ops.cast(start, energies.dtype) - ops.take(energies, tables.first, axis=0)
        values = values + energies[true_triples[0]]
        for stage, true_triple in zip(tables.stages, true_triples[1:], strict=True):
            steps = ops.take(values, stage.sources, axis=0)
            values = total(steps - ops.take(energies, stage.triples, axis=0), axis=1)
            if len(stage.branches):
                left = -ops.take(energies, stage.branches, axis=0)
                head = total(ops.stack([values[: len(stage.branches)], left]), axis=0)
                values = ops.concatenate([head, values[len(stage.branches) :]], axis=0)
            values = values + energies[true_triple]
        return total(values, axis=0)

    return run(ops.logsumexp), run(_max)


def _max(x, axis):
    return ops.max(x, axis=axis, initial=UNREACHABLE)  # which also allows an empty batch


def _mean_acceleration(frames):
    """Mean over time of |z_{t+2} - 2 z_{t+1} + z_t| for frames [W, T, D]: [W], no gradient."""
    velocities = frames[:, 1:] - frames[:, :-1]
    accelerations = ops.stop_gradient(velocities[:, 1:] - velocities[:, :-1])
    return ops.mean(ops.sqrt(ops.sum(ops.square(accelerations), axis=-1)), axis=1)


def check_weight(name: str, value: float) -> None:
    """Raise unless `value` is a finite number of at least 0."""
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < 0:
        raise ValueError(f"`{name}` must be a finite number >= 0. Received: {name}={value!r}")


def check_stride(stride: int | None, window: int) -> int:
    """The stride to use; raise unless it is None or an integer of at least 1."""
    if stride is None:
        return window
    check_integer("stride", stride, 1, " or None")
    return int(stride)


def check_length(length: int | None, window: int) -> None:
    """Raise ShortClipError where a known number of frames N is below T."""
    if length is not None and length < window:
        raise ShortClipError(f"{TOO_SHORT} Received: N={length} frames, window={window}")


def _check_shapes(z, mask, window: int) -> None:
    if len(z.shape) != 3:
        raise ValueError(f"`z` must be embeddings [B, N, D]. Received: z of shape {tuple(z.shape)}")
    if z.shape[-1] is None:
        raise ValueError(f"The width D of `z` must be known. Received: z of shape {z.shape}")
    check_length(z.shape[1], window)
    if mask is None:
        return
    both = zip(mask.shape, z.shape[:2], strict=False)
    if len(mask.shape) != 2 or any(m != n for m, n in both if None not in (m, n)):
        raise ValueError(
            f"`mask` must be [B, N], True for real frames. Received: mask of shape "
            f"{tuple(mask.shape)} for z of shape {tuple(z.shape)}"
        )
