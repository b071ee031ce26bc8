"""Which clips are trained on and which are kept from training, whole groups at a time."""

import collections
import dataclasses
import fractions
import hashlib
import logging
import math
import re
from collections.abc import Container, Iterable, Mapping, Sequence

from grw_keras.data.clips import Clip, ClipSet

log = logging.getLogger("grw_keras")


def assign(
    clip_set: ClipSet,
    *,
    holdout: float | None = None,
    group_regex: str | None = None,
    test_regex: str | None = None,
    seed: int = 0,
) -> ClipSet:
    """The same clips, each with a split; no group lies in two of them.

    Clips that have a split keep it. The others become "train", or "test" where `test_regex` is
    found in their name. Then `holdout` moves whole groups out of "train": "validation" where
    there is a "test" already, else "test". Each class gives its share as far as groups allow, and
    keeps a training clip if it can. Parts of one video stay together, so those of `holdout`'s
    choice must be of one group, and `test_regex` must take all of them or none. What is moved
    depends on the clips and the seed, not on their order.

    Args:
        clip_set: the clips.
        holdout: share of the training clips to set aside, in (0, 1); None: none.
        group_regex: what it matches in a clip's name is the clip's group: its first parenthesis,
            if it has one, else all of the match. None: the clips' own groups.
        test_regex: found in the names of the clips to test on, such as "set2". None: none.
        seed: of the choice of what is set aside.

    Raises:
        ValueError: an argument out of range, a regular expression that is none or doesn't match,
            a group in two splits, parts of one video in two groups or only some of them to be
            tested on, or nothing left on one side.
    """
    if holdout is not None and not 0 < holdout < 1:
        raise ValueError(
            f"`holdout` must be a share of the training clips in (0, 1). Received: {holdout!r}"
        )
    clips = list(clip_set.clips)
    if group_regex is not None:
        clips = _grouped(clips, group_regex)
    clips = _with_splits(clips, test_regex)
    _check_groups(clips)
    if holdout is not None:
        there = {clip.split for clip in clips}
        aside = "validation" if "test" in there else "test"
        if aside in there:
            raise ValueError(
                "`holdout` must be None with data that has validation and test clips already. "
                f"Received: {holdout!r}"
            )
        training = [clip for clip in clips if clip.split == "train"]
        _check_parts(training)
        held = {clip.name for clip in _set_aside(training, holdout, seed)}
        clips = [dataclasses.replace(c, split=aside) if c.name in held else c for c in clips]
    assigned = dataclasses.replace(clip_set, clips=tuple(clips))
    if holdout is not None or test_regex is not None:
        _check_training(assigned)
    return assigned


def reassign(clip_set: ClipSet, known: Mapping[str, str]) -> ClipSet:
    """The same clips, each in the split that an earlier run gave it.

    Clips that the run did not have were not trained on: they keep their split, and are "test"
    clips without one. So data may grow, and what was held out stays held out.

    Args:
        clip_set: the clips.
        known: the run's split of each clip's name.

    Raises:
        ValueError: a split that is none.
    """
    strangers = sum(clip.name not in known for clip in clip_set.clips)
    if strangers:
        log.warning(
            "%d of %d clips were not in the run: those without a split are test clips",
            *(strangers, len(clip_set)),
        )
    clips = (
        dataclasses.replace(clip, split=known.get(clip.name, clip.split or "test"))
        for clip in clip_set.clips
    )
    return dataclasses.replace(clip_set, clips=tuple(clips))


def _grouped(clips: Iterable[Clip], pattern: str) -> list[Clip]:
    regex = _compiled("group_regex", pattern)
    grouped = []
    for clip in clips:
        match = regex.search(clip.name)
        group = match[1 if regex.groups else 0] if match else None
        if group is None or not group.strip():
            raise ValueError(
                "`group_regex` must match something in each clip's name. "
                f"Received: {pattern!r}, which does not in {clip.name!r}"
            )
        grouped.append(dataclasses.replace(clip, group=group))
    return grouped


def _with_splits(clips: Sequence[Clip], pattern: str | None) -> list[Clip]:
    open_clips = [clip for clip in clips if not clip.split]
    tested: set[str] = set()
    if pattern is not None:
        regex = _compiled("test_regex", pattern)
        if not open_clips:
            raise ValueError(
                "`test_regex` must be None with data whose clips all have a split. "
                f"Received: {pattern!r}"
            )
        tested = {clip.name for clip in open_clips if regex.search(clip.name)}
        if not tested:
            raise ValueError(
                "`test_regex` must be found in some clips' names. "
                f"Received: {pattern!r}, with names such as {open_clips[0].name!r}"
            )
        _check_whole(open_clips, tested, pattern)
    return [
        clip
        if clip.split
        else dataclasses.replace(clip, split="test" if clip.name in tested else "train")
        for clip in clips
    ]


def _compiled(argument: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"`{argument}` must be a regular expression: {error}. Received: {pattern!r}"
        ) from error


def _check_whole(clips: Iterable[Clip], tested: Container[str], pattern: str) -> None:
    first: dict[str, Clip] = {}
    for clip in clips:
        other = first.setdefault(clip.path, clip)
        if (other.name in tested) != (clip.name in tested):
            found, without = (other, clip) if other.name in tested else (clip, other)
            raise ValueError(
                "`test_regex` must take all parts of a video or none. "
                f"Received: {pattern!r}, which is found in {found.name!r} but not in "
                f"{without.name!r}, both of {clip.path}"
            )


def _check_parts(clips: Iterable[Clip]) -> None:
    first: dict[str, Clip] = {}
    for clip in clips:
        other = first.setdefault(clip.path, clip)
        if other.group != clip.group:
            raise ValueError(
                "Parts of one video must be of one group with `holdout`, for they stay together. "
                "Give them one group, or splits of their own. "
                f"Received: {clip.path} with groups {other.group!r} and {clip.group!r}"
            )


def _check_groups(clips: Iterable[Clip]) -> None:
    first: dict[str, Clip] = {}
    for clip in clips:
        other = first.setdefault(clip.group, clip) if clip.group else clip
        if other.split != clip.split:
            raise ValueError(
                "A group must lie in one split. Give its clips one split, or another group. "
                f"Received: group {clip.group!r} with {other.name!r} in {other.split} and "
                f"{clip.name!r} in {clip.split}"
            )


def _check_training(clip_set: ClipSet) -> None:
    if "train" not in clip_set.splits():
        raise ValueError(f"A clip must be left to train on. Received: {clip_set.splits()}")
    counts = clip_set.split("train").class_counts()
    without = [name for name, n in clip_set.class_counts().items() if n and not counts[name]]
    if without:
        log.warning("No training clip is left of these classes: %s", ", ".join(without))


@dataclasses.dataclass(frozen=True)
class _Unit:
    """Clips that stay together."""

    rank: bytes  # a random number of its own
    clips: tuple[Clip, ...]

    @property
    def counts(self) -> collections.Counter[str]:
        return collections.Counter(clip.label for clip in self.clips)


def _set_aside(clips: Sequence[Clip], share: float, seed: int) -> list[Clip]:
    """About `share` of the clips, in whole units; at least one unit, and not all of them."""
    units = _units(clips, seed)
    if len(units) < 2:
        raise ValueError(
            "`holdout` must have two groups of training clips to choose from. "
            f"Received: {len(clips)} training clips of {len(units)} groups"
        )
    target = min(max(round(share * len(clips)), 1), len(clips) - 1)
    totals = collections.Counter(clip.label for clip in clips)
    quotas = _quotas(totals, share, target, seed)
    held, rest = _within_quotas(units, quotas)
    counts = collections.Counter(clip.label for unit in held for clip in unit.clips)
    lacking = target - counts.total()

    def excess(unit: _Unit) -> float:
        over = {c: max(0, counts[c] + n - quotas[c]) for c, n in unit.counts.items()}
        return sum(n / totals[label] for label, n in over.items()) / len(unit.clips)

    # What is left would take some class over its quota: those first that do so the least.
    for unit in sorted(rest, key=lambda unit: (excess(unit), unit.rank)):
        if len(unit.clips) < 2 * lacking and len(held) < len(units) - 1:  # comes closer
            held.append(unit)
            lacking -= len(unit.clips)
    if not held:
        held = [min(units, key=lambda unit: (len(unit.clips), unit.rank))]
    return [clip for unit in held for clip in unit.clips]


def _units(clips: Iterable[Clip], seed: int) -> list[_Unit]:
    """The clips by group, or else by video, each unit with a rank that no other clip changes."""
    members = collections.defaultdict(list)
    for clip in clips:
        members[("group", clip.group) if clip.group else ("path", clip.path)].append(clip)
    units = []
    for (kind, group), together in members.items():
        key = group if kind == "group" else min(clip.name for clip in together)
        units.append(_Unit(_rank(seed, kind, key), tuple(together)))
    return units


def _quotas(totals: Mapping[str, int], share: float, target: int, seed: int) -> dict[str, int]:
    """Each class's share of its clips, rounded so that all sum to `target` if each class can keep
    one clip: the largest remainders are rounded up (Hamilton's method)."""
    exact = {label: fractions.Fraction(share) * n for label, n in totals.items()}
    quotas = {label: math.floor(exact[label]) for label in totals}
    most = sorted(
        (label for label, n in totals.items() if quotas[label] < n - 1),
        key=lambda label: (quotas[label] - exact[label], _rank(seed, "label", label)),
    )
    for label in most[: max(0, target - sum(quotas.values()))]:
        quotas[label] += 1
    return quotas


def _within_quotas(
    units: Iterable[_Unit], quotas: Mapping[str, int]
) -> tuple[list[_Unit], list[_Unit]]:
    """Takes the units that fit, the large ones first, for small ones fit into what is left."""
    room = dict(quotas)
    held, rest = [], []
    for unit in sorted(units, key=lambda unit: (-len(unit.clips), unit.rank)):
        if all(n <= room[label] for label, n in unit.counts.items()):
            held.append(unit)
            for label, n in unit.counts.items():
                room[label] -= n
        else:
            rest.append(unit)
    return held, rest


def _rank(seed: int, kind: str, key: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{kind}\0{key}".encode()).digest()
