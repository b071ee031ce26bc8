"""The frame orderings that a window's true order is compared with (the sum in equation 2).

Frame 0 always stays first, so a window of T frames has (T-1)! orderings. They are described
either as rows of an integer array [K, T] or, for long windows, by the tables of a dynamic
programme over subsets that sums over all of them without listing one.
"""

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np

MIN_WINDOW = 3  # the shortest window with an acceleration
ENUMERATED_WINDOW = 7  # section 3.1: all (T-1)! orderings are enumerated up to T = 7
NUM_SAMPLED = 1000  # section 3.1: k, the orderings sampled above that
AUTO_EXACT_WINDOW = 12  # "auto" is exact up to here: 2.5e5 transitions a window
MAX_ALL_WINDOW = 10  # 362,880 orderings a window
MAX_EXACT_WINDOW = 14  # 1.8e6 transitions a window
MODES = ("auto", "all", "exact", "sampled")


class Stage(NamedTuple):
    """One step of the dynamic programme: a visited set grows by its new last frame.

    A state is (visited set, last but one frame j, last frame k). `sources[s, a]` is the state of
    the previous stage that reaches state s through `triples[s, a]`, the frames (i, j, k) as one
    flat index into [T, T, T]. States that the true order's prefix also reaches by leaving the
    true order come first; `branches` holds the triple by which it does.
    """

    sources: np.ndarray  # int32 [S, m - 2]
    triples: np.ndarray  # int32 [S, m - 2]
    branches: np.ndarray  # int32 [T - 1 - m]


class ExactOrderings(NamedTuple):
    """Tables of the subset dynamic programme over all (T-1)! orderings of a window.

    `first` holds the triples (0, j, k) of the stage of two visited frames, and `first_true` which
    of its states is the true order's prefix; `stages` continue from three frames to T - 1.
    """

    window: int
    first: np.ndarray  # int32 [(T - 1)(T - 2)]
    first_true: int
    stages: tuple[Stage, ...]


def resolve(orderings, window: int, *, num_orderings: int = NUM_SAMPLED, seed: int = 0):
    """Turn the user's choice of `orderings` into an array [K, T] or `ExactOrderings`.

    Args:
        orderings: `"all"`, `"exact"`, `"sampled"`, `"auto"` (all up to T = 7, exact up to 12,
            sampled above) or an integer array [K, T] of permutations that start with frame 0
            and include the true order.
        window: T, frames in a window, at least 3.
        num_orderings: K of `"sampled"`, the true order included; at least 2.
        seed: seed of `"sampled"`, a non-negative int.

    Raises:
        ValueError: an unknown mode, a window too long for the mode, or a malformed array.

    Reference:
        Section 3.1 of the paper, the paragraph after equation 7.

    Example:
        >>> resolve("all", 4).tolist()[:3]
        [[0, 1, 2, 3], [0, 1, 3, 2], [0, 2, 1, 3]]
        >>> resolve("sampled", 20, num_orderings=5).shape
        (5, 20)
        >>> type(resolve("auto", 10)).__name__
        'ExactOrderings'
    """
    check_window(window)
    check_integer("num_orderings", num_orderings, 2, ": the true order and one to compare it with")
    check_integer("seed", seed, 0)
    if not isinstance(orderings, str):
        return _checked(orderings, window)
    if orderings not in MODES:
        raise ValueError(
            f"`orderings` must be one of {', '.join(map(repr, MODES))} or an integer array "
            f"[K, T]. Received: orderings={orderings!r}"
        )
    if orderings == "auto":
        orderings = _automatic(window)
    if orderings == "all":
        return all_orderings(window)
    if orderings == "exact":
        return exact_orderings(window)
    return sampled_orderings(window, num_orderings, seed)


def _automatic(window: int) -> str:
    if window <= ENUMERATED_WINDOW:
        return "all"
    return "exact" if window <= AUTO_EXACT_WINDOW else "sampled"


def check_integer(name: str, value, minimum: int, why: str = "") -> None:
    """Raise unless `value` is an integer of at least `minimum`; `why` goes into the message."""
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_integer or value < minimum:
        raise ValueError(
            f"`{name}` must be an integer of at least {minimum}{why}. Received: {name}={value!r}"
        )


def check_window(window: int) -> None:
    """Raise unless `window` is an integer of at least 3."""
    check_integer("window", window, MIN_WINDOW, ", because an acceleration spans three frames")


@functools.lru_cache(maxsize=8)
def all_orderings(window: int) -> np.ndarray:
    """All (T-1)! orderings, int32 [(T-1)!, T], lexicographic, the true order first."""
    check_window(window)
    if window > MAX_ALL_WINDOW:
        raise ValueError(
            f"orderings='all' lists (T-1)! = {math.factorial(window - 1):,} orderings a window "
            f"and is limited to window <= {MAX_ALL_WINDOW}. Use orderings='exact' (the same "
            f"value, window <= {MAX_EXACT_WINDOW}) or 'sampled'. Received: window={window}"
        )
    rows = [(0, *rest) for rest in itertools.permutations(range(1, window))]
    return _read_only(np.array(rows, np.int32))


@functools.lru_cache(maxsize=8)
def sampled_orderings(window: int, num_orderings: int = NUM_SAMPLED, seed: int = 0) -> np.ndarray:
    """The true order, then K - 1 independent uniform draws with replacement, int32 [K, T].

    This is the estimator of the authors' code: a draw may repeat another, the true order too,
    and no correction is made for the (T-1)! - K orderings left out, so the loss comes out lower
    than the exact one by about log((T-1)! / K).
    """
    check_window(window)
    rows = np.tile(np.arange(window, dtype=np.int32), (num_orderings, 1))
    rows[1:, 1:] = np.random.default_rng(seed).permuted(rows[1:, 1:], axis=1)
    return _read_only(rows)


def num_transitions(window: int) -> int:
    """Additions of `"exact"` per window: n(n-1)(n-2) 2^(n-3) for n = T - 1."""
    n = window - 1
    return n * (n - 1) * (n - 2) * 2**n // 8


@functools.lru_cache(maxsize=8)
def exact_orderings(window: int) -> ExactOrderings:
    """Tables of the dynamic programme; n(n-1)(n-2) 2^(n-3) transitions for n = T - 1."""
    check_window(window)
    if window > MAX_EXACT_WINDOW:
        transitions = num_transitions(window)
        raise ValueError(
            f"orderings='exact' takes {transitions:,} transitions a window at T = {window}, "
            f"{transitions * 4 / 1e6:,.0f} MB for each window in the batch, and is limited to "
            f"window <= {MAX_EXACT_WINDOW}. Use orderings='sampled'. Received: window={window}"
        )
    n = window - 1
    place, keys = _states(n, 2)
    first = _triple(window, np.zeros(len(keys), np.int64), keys[:, 1], keys[:, 2])
    first_true = int(place[0b11, 0, 1])
    stages = []
    for size in range(3, n + 1):
        next_place, keys = _states(n, size)
        visited, j, k = keys.T
        earlier = _members(visited & ~(1 << (j - 1)) & ~(1 << (k - 1)), size - 2)
        sources = place[(visited & ~(1 << (k - 1)))[:, None], earlier - 1, j[:, None] - 1]
        triples = _triple(window, earlier, j[:, None], k[:, None])
        last = np.arange(size + 1, window)  # where the true order 0 … size-1 may go instead
        branches = _triple(window, size - 2, size - 1, last)
        tables = (_read_only(a.astype(np.int32)) for a in (sources, triples, branches))
        stages.append(Stage(*tables))
        place = next_place
    return ExactOrderings(window, _read_only(first.astype(np.int32)), first_true, tuple(stages))


def _states(n: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """States of `size` visited frames: their places [2^n, n, n] and keys (bits, j, k) [S, 3].

    The states that the true order's prefix branches into come first, in the order of their k.
    """
    subsets = np.array(list(itertools.combinations(range(1, n + 1), size)), np.int64)
    pairs = np.array(list(itertools.permutations(range(size), 2)), np.int64)
    bits = np.repeat(np.sum(1 << (subsets - 1), axis=1), len(pairs))
    keys = np.stack([bits, subsets[:, pairs[:, 0]].ravel(), subsets[:, pairs[:, 1]].ravel()], 1)
    prefix = (1 << (size - 1)) - 1
    branched = (
        (keys[:, 1] == size - 1) & (keys[:, 2] > size) & (bits == prefix | 1 << (keys[:, 2] - 1))
    )
    keys = keys[np.lexsort((keys[:, 2], ~branched))]
    place = np.full((2**n, n, n), -1, np.int64)
    place[keys[:, 0], keys[:, 1] - 1, keys[:, 2] - 1] = np.arange(len(keys))
    return place, keys


def _members(bits: np.ndarray, size: int) -> np.ndarray:
    """The frames in sets of `size` members, given as bit masks [S]: int64 [S, size]."""
    inside = (bits[:, None] >> np.arange(int(bits.max()).bit_length())) & 1
    return np.nonzero(inside)[1].reshape(len(bits), size) + 1


def _triple(window: int, i, j, k):
    return (i * window + j) * window + k


def _checked(orderings, window: int) -> np.ndarray:
    try:
        rows = np.asarray(orderings)
    except ValueError as ragged:
        raise ValueError(
            f"`orderings` must have rows of one length, [K, window] = [K, {window}]. "
            f"Received: {ragged}"
        ) from ragged
    if rows.ndim != 2 or rows.shape[1] != window or rows.dtype.kind not in "iu":
        raise ValueError(
            f"`orderings` as an array must be integers of shape [K, window] = [K, {window}]; for a "
            "sample use orderings='sampled' with num_orderings=K. "
            f"Received: shape={rows.shape}, dtype={rows.dtype}"
        )
    true_order = np.arange(window)
    wrong = np.nonzero((np.sort(rows, axis=1) != true_order).any(axis=1) | (rows[:, 0] != 0))[0]
    if wrong.size:
        raise ValueError(
            f"Each row of `orderings` must be a permutation of 0 … {window - 1} that starts with "
            f"frame 0. Received: orderings[{wrong[0]}]={rows[wrong[0]].tolist()}"
        )
    is_true = (rows == true_order).all(axis=1)
    if not is_true.any() or len(rows) < 2:
        raise ValueError(
            f"`orderings` must hold the true order {true_order.tolist()} and at least one other "
            f"row. Received: {len(rows)} rows, {int(is_true.sum())} of them the true order"
        )
    return rows.astype(np.int32)


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
