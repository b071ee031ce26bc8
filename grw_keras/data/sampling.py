"""Which frames make a clip, and in what order clips come: functions of integers alone.

Randomness comes from PCG64 seeded through SeedSequence, whose streams numpy keeps the same
between versions (NEP 19). It makes no such promise of a Generator's methods, so `order` uses the
bits alone; what `sample_rng` gives repeats within a version of numpy.

Reference:
    NEP 19, https://numpy.org/neps/nep-0019-rng-policy.html
"""

import math
import numbers

import numpy as np

SHORT = ("loop", "pad")
# They keep the draws of different purposes apart.
_ORDER, _SAMPLE = 1, 2


def grid_size(duration_s: float, fps: float) -> int:
    """How many grid times j / fps lie before the end of a video, at least one.

    Args:
        duration_s: seconds, ≥ 0.
        fps: grid times a second, > 0.

    Example:

    >>> grid_size(2.0, 5), grid_size(1.99, 5), grid_size(0.01, 5)
    (10, 9, 1)
    """
    if not 0 <= duration_s < math.inf:
        raise ValueError(f"`duration_s` must be >= 0 and finite. Received: {duration_s}")
    if not 0 < fps < math.inf:
        raise ValueError(f"`fps` must be positive. Received: {fps}")
    # 2.3 s at 10 fps are 22.999999999999996 periods in floating point.
    return max(1, math.floor(duration_s * fps + 1e-6))


def order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order in which an epoch goes through the examples.

    Args:
        seed: in [0, 2^64).
        epoch: likewise.
        count: of examples, ≥ 0.

    Returns:
        A permutation of 0 … count - 1, int64; the same with every version of numpy.
    """
    if not _whole(count) or count < 0:
        raise ValueError(f"`count` must be an integer >= 0. Received: {count!r}")
    keys = _bits(_ORDER, seed=seed, epoch=epoch).random_raw(int(count))
    return np.argsort(keys, kind="stable").astype(np.int64)


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of an example's random choices in an epoch.

    Args:
        seed: in [0, 2^64).
        epoch: likewise.
        index: of the example in the clip set, likewise.
    """
    return np.random.Generator(_bits(_SAMPLE, seed=seed, epoch=epoch, index=index))


def clip_indices(
    available: int,
    frames: int,
    *,
    short: str = "loop",
    rng: np.random.Generator | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Which frames of its grid an example's clip has.

    Args:
        available: M, frames of the grid, ≥ 1.
        frames: N, frames of a clip, ≥ 1.
        short: what completes a clip when M < N: `"loop"`, the grid again from its start; `"pad"`,
            its last frame, masked out.
        rng: draws the clip's first frame from 0 … M - N. None: the centre clip, (M - N) // 2.

    Returns:
        Indices [N] int64 and a mask [N] bool, False at padding.

    Raises:
        ValueError: `available` or `frames` isn't a positive integer, or `short` is unknown.

    Example:

    >>> clip_indices(9, 4)[0]
    array([2, 3, 4, 5])
    >>> clip_indices(2, 3, short="pad")
    (array([0, 1, 1]), array([ True,  True, False]))
    """
    for name, value in {"available": available, "frames": frames}.items():
        if not _whole(value) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer. Received: {value!r}")
    if short not in SHORT:
        raise ValueError(f"`short` must be one of {SHORT}. Received: {short!r}")
    steps = np.arange(frames, dtype=np.int64)
    spare = available - frames
    if spare < 0:
        if short == "loop":
            return steps % available, np.ones(frames, bool)
        return np.minimum(steps, available - 1), steps < available
    offset = spare // 2 if rng is None else int(rng.integers(spare + 1))
    return offset + steps, np.ones(frames, bool)


def _bits(purpose: int, **keys: int) -> np.random.PCG64:
    """PCG64 of a purpose and integers, each in two words of 32 bits: SeedSequence takes [1], [1, 0]
    and, for wide integers, their words in a row for the same seed."""
    words = [purpose]
    for name, value in keys.items():
        if not _whole(value) or not 0 <= value < 1 << 64:
            raise ValueError(f"`{name}` must be an integer in [0, 2^64). Received: {value!r}")
        words += [int(value) & 0xFFFFFFFF, int(value) >> 32]
    return np.random.PCG64(np.random.SeedSequence(words))


def _whole(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
