"""Which clips are trained on: given splits, a share held out, groups that stay whole."""

import collections
import logging
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grw_keras.data.clips import Clip, ClipSet
from grw_keras.data.sources import from_folder
from grw_keras.data.splits import assign, reassign


def clip_set(*clips: Clip) -> ClipSet:
    return ClipSet(clips, tuple(sorted({clip.label for clip in clips})))


def of_classes(**counts: int) -> ClipSet:
    """So many clips of each class, ungrouped."""
    return clip_set(
        *(Clip(f"{label}/{n}.mp4", label) for label, count in counts.items() for n in range(count))
    )


def in_split(assigned: ClipSet, split: str) -> set[str]:
    return {clip.name for clip in assigned.clips if clip.split == split}


def test_clips_without_a_split_are_trained_on():
    given_set = clip_set(Clip("a", "x"), Clip("b", "x", split="test"), Clip("c", "x"))
    assert [clip.split for clip in assign(given_set).clips] == ["train", "test", "train"]


def test_test_regex_leaves_given_splits_alone():
    assigned = assign(
        clip_set(
            Clip("set1_a", "x"),
            Clip("set2_a", "x"),
            Clip("set2_b", "x", split="train"),
            Clip("set1_b", "x", split="validation"),
        ),
        test_regex="set2",
    )
    assert [clip.split for clip in assigned.clips] == ["train", "test", "train", "validation"]


@pytest.mark.parametrize(
    ("given_split", "aside"), [("", "test"), ("validation", "test"), ("test", "validation")]
)
def test_holdout_makes_the_split_that_is_not_there(given_split, aside):
    own = Clip("own", "a", split=given_split)
    data = of_classes(a=9)
    before = ClipSet((own, *data.clips), data.labels)
    if given_split == "validation":
        with pytest.raises(ValueError, match=r"holdout"):
            assign(ClipSet((*before.clips, Clip("t", "a", split="test")), ("a",)), holdout=0.5)
    assigned = assign(before, holdout=1 / 3)
    assert len(in_split(assigned, aside) - {"own"}) == 3
    if given_split:
        assert assigned.clips[0] == own


@pytest.mark.parametrize(
    ("counts", "share", "held"),
    [
        ({"a": 10, "b": 20, "c": 50}, 0.2, {"a": 2, "b": 4, "c": 10}),
        ({"a": 7, "b": 13}, 0.25, {"a": 2, "b": 3}),
        ({"a": 5, "b": 5}, 0.2, {"a": 1, "b": 1}),
        ({"a": 100}, 0.29, {"a": 29}),
        ({"a": 2}, 0.01, {"a": 1}),
        ({"a": 2}, 0.99, {"a": 1}),
        # A class of one clip keeps it for training, as long as others can give.
        ({"a": 1, "b": 9}, 0.4, {"b": 4}),
        ({"a": 1, "b": 3}, 0.9, {"b": 3}),
        ({"a": 1, "b": 1, "c": 6}, 0.5, {"c": 4}),
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_class_gives_its_share(counts, share, held, seed):
    assigned = assign(of_classes(**counts), holdout=share, seed=seed)
    there = collections.Counter(name.split("/")[0] for name in in_split(assigned, "test"))
    assert there == held


def test_small_classes_take_turns():
    counts = {f"c{n:02}": 2 for n in range(50)}
    assigned = assign(of_classes(**counts), holdout=0.2)
    there = collections.Counter(name.split("/")[0] for name in in_split(assigned, "test"))
    assert there.total() == 20
    assert set(there.values()) == {1}


def test_the_order_of_the_files_plays_no_part():
    data = of_classes(a=12, b=7, c=30)
    grouped = ClipSet(
        tuple(Clip(c.path, c.label, group=f"g{hash_free(c.name) % 9}") for c in data.clips),
        data.labels,
    )
    for before in (data, grouped):
        shuffled = list(before.clips)
        random.Random(0).shuffle(shuffled)
        after = assign(ClipSet(tuple(shuffled), before.labels), holdout=0.25, seed=3)
        straight = assign(before, holdout=0.25, seed=3)
        assert in_split(after, "test") == in_split(straight, "test")
        assert [clip.name for clip in after.clips] == [clip.name for clip in shuffled]


def hash_free(text: str) -> int:
    return sum(text.encode())


def test_the_seed_chooses():
    data = of_classes(a=30)
    chosen = [frozenset(in_split(assign(data, holdout=0.3, seed=s), "test")) for s in range(5)]
    assert len(set(chosen)) == 5
    assert in_split(assign(data, holdout=0.3, seed=2), "test") == chosen[2]


def test_a_choice_that_must_not_change_between_versions():
    assigned = assign(of_classes(a=10, b=5), holdout=0.2, seed=7)
    assert in_split(assigned, "test") == {"a/0.mp4", "a/6.mp4", "b/1.mp4"}


def test_parts_of_one_video_stay_together():
    parts = [Clip(f"{v}.mp4", "x", t, t + 1.0) for v in "abcd" for t in range(5)]
    assigned = assign(clip_set(*parts), holdout=0.25)
    held = [clip.path for clip in assigned.clips if clip.split == "test"]
    assert len(held) == 5
    assert len(set(held)) == 1


PARTS = [Clip("v.mp4", "x", t, t + 1.0, group=f"g{t}") for t in range(2)]
OTHERS = [Clip(f"{name}.mp4", "x", group=f"g{name}") for name in "abc"]


def test_parts_with_groups_of_their_own_are_no_matter_without_a_choice_or_in_one_group():
    assert assign(clip_set(*PARTS, *OTHERS)).splits() == {"train": 5}
    assigned = assign(clip_set(*PARTS, *OTHERS), group_regex=r"^\w", test_regex="^[ab]")
    assert assigned.splits() == {"train": 3, "test": 2}


def test_test_regex_may_take_all_parts_of_a_video():
    assigned = assign(clip_set(*PARTS, *OTHERS), test_regex="v.mp4", holdout=0.3)
    assert assigned.splits() == {"train": 2, "validation": 1, "test": 2}
    # A part whose split is given takes no part in this.
    own = Clip("v.mp4", "x", 7.0, 8.0, split="train")
    assert assign(clip_set(own, *PARTS), test_regex="@[01]").splits() == {"train": 1, "test": 2}


def test_an_earlier_runs_splits_are_kept_and_what_it_had_not_is_no_training_clip(caplog):
    clips = clip_set(
        Clip("a", "x"),
        Clip("b", "x", split="train"),
        Clip("c", "x"),
        Clip("new", "x"),
        Clip("own", "x", split="validation"),
    )
    known = {"a": "train", "b": "test", "c": "validation", "gone": "train"}
    with caplog.at_level(logging.WARNING, "grw_keras"):
        found = reassign(clips, known)
        assert [clip.split for clip in found.clips] == [
            *("train", "test", "validation"),
            *("test", "validation"),
        ]
        assert [record.message for record in caplog.records] == [
            "2 of 5 clips were not in the run: those without a split are test clips"
        ]
        caplog.clear()
        assert reassign(found, {clip.name: clip.split for clip in found.clips}) == found
    assert not caplog.records


SEQUENCES = [
    Clip(f"{label}/set{n // 10}_seq{n:02}.avi", label) for n in range(20) for label in "abc"
]


@pytest.mark.parametrize(
    ("regex", "groups"),
    [
        (r"seq\d+", {f"seq{n:02}" for n in range(20)}),
        (r"set\d_(seq\d)\d", {"seq0", "seq1"}),
        (r"(set\d)_(seq\d+)", {"set0", "set1"}),
    ],
)
def test_groups_by_name(regex, groups):
    assigned = assign(clip_set(*SEQUENCES), group_regex=regex, holdout=0.5)
    assert {clip.group for clip in assigned.clips} == groups
    assert assigned.splits() == {"train": 30, "test": 30}
    for clip in assigned.clips:
        match = re.search(regex, clip.name)
        assert clip.group == (match[1] if match.groups() else match[0])


def test_group_regex_takes_the_place_of_the_groups_column():
    clips = [Clip(f"s{n}_{m}", "x", group="all") for n in range(4) for m in range(2)]
    assert assign(clip_set(*clips), group_regex=r"s\d", holdout=0.25).splits()["test"] == 2


def test_a_group_that_is_too_large_for_its_share_is_not_all_there_is():
    clips = [Clip(f"{n}", "x", group="big") for n in range(9)] + [Clip("9", "x", group="small")]
    assert in_split(assign(clip_set(*clips), holdout=0.5), "test") == {"9"}
    even = [Clip(f"{n}", "x", group=f"g{n % 2}") for n in range(10)]
    assert assign(clip_set(*even), holdout=0.1).splits() == {"train": 5, "test": 5}


@pytest.mark.parametrize(
    ("clips", "arguments", "match"),
    [
        (SEQUENCES, {"holdout": 0}, r"in \(0, 1\). Received: 0"),
        (SEQUENCES, {"holdout": 1.0}, r"in \(0, 1\). Received: 1.0"),
        (SEQUENCES, {"holdout": 20}, r"in \(0, 1\). Received: 20"),
        (SEQUENCES, {"group_regex": "seq1"}, "'seq1', which does not in 'a/set0_seq00.avi'"),
        (SEQUENCES, {"group_regex": "x*"}, "`group_regex` must match something"),
        (SEQUENCES, {"group_regex": "set(9)?"}, "`group_regex` must match something"),
        (SEQUENCES, {"group_regex": "("}, "`group_regex` must be a regular expression: .*'\\('"),
        (SEQUENCES, {"test_regex": "["}, "`test_regex` must be a regular expression"),
        (SEQUENCES, {"test_regex": "set7"}, "found in.*'set7', with names such as 'a/set0_seq00"),
        (SEQUENCES, {"test_regex": "set"}, "left to train on. Received: {'test': 60}"),
        ([Clip("a", "x", split="train")], {"test_regex": "a"}, "clips all have a split"),
        ([Clip("a", "x")], {"holdout": 0.5}, "two groups.*1 training clips of 1 groups"),
        ([Clip("a", "x", split="test")], {"holdout": 0.5}, "0 training clips of 0 groups"),
        (SEQUENCES, {"group_regex": "set", "holdout": 0.5}, "60 training clips of 1 groups"),
        (
            [Clip("a", "x", split="train", group="g"), Clip("b", "x", split="test", group="g")],
            {},
            "group 'g' with 'a' in train and 'b' in test",
        ),
        (
            [Clip("seq1_a", "x"), Clip("seq1_b", "x")],
            {"group_regex": "seq.", "test_regex": "b$"},
            "group 'seq1' with 'seq1_a' in train and 'seq1_b' in test",
        ),
        (
            [*PARTS, *OTHERS],
            {"holdout": 0.5},
            r"Parts of one video must be of one group.*v\.mp4 with groups 'g0' and 'g1'",
        ),
        (
            [PARTS[0], Clip("v.mp4", "x", 5.0, 6.0), *OTHERS],
            {"holdout": 0.5},
            r"v\.mp4 with groups 'g0' and ''",
        ),
        (
            [*PARTS, *OTHERS],
            {"group_regex": r"\w$", "holdout": 0.5},
            r"v\.mp4 with groups '1' and '2'",
        ),
        (
            [*PARTS, *OTHERS],
            {"test_regex": "@1"},
            r"take all parts of a video or none.*'@1', which is found in 'v\.mp4@1-2' but not in "
            r"'v\.mp4@0-1', both of v\.mp4",
        ),
        (
            [*PARTS, *OTHERS],
            {"test_regex": "@0"},
            r"found in 'v\.mp4@0-1' but not in 'v\.mp4@1-2'",
        ),
    ],
)
def test_what_can_not_be_split(clips, arguments, match):
    with pytest.raises(ValueError, match=match):
        assign(clip_set(*clips), **arguments)


def test_classes_that_lose_their_training_clips_are_told(caplog):
    with caplog.at_level(logging.WARNING, "grw_keras"):
        assign(clip_set(Clip("a", "hop"), Clip("b", "wave")), holdout=0.5, seed=0)
    assert re.search("No training clip is left of these classes: (hop|wave)$", caplog.text, re.M)


clip_lists = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.sampled_from(["", *"pqrstuvw"]),
        st.sampled_from(["", "", "", "train", "validation"]),
    ),
    min_size=2,
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(clip_lists, st.floats(0.02, 0.98), st.integers(0, 3))
def test_whatever_the_data_groups_stay_whole(rows, share, seed):
    # A group's split is that of its first clip.
    first = {}
    clips = []
    for number, (label, group, split) in enumerate(rows):
        split = first.setdefault(group, split) if group else split
        clips.append(Clip(f"{number}.mp4", label, split=split, group=group))
    before = clip_set(*clips)
    training = [clip for clip in clips if clip.split != "validation"]
    units = collections.Counter(clip.group or clip.path for clip in training)
    if len(units) < 2:
        with pytest.raises(ValueError, match="two groups"):
            assign(before, holdout=share, seed=seed)
        return
    assigned = assign(before, holdout=share, seed=seed)
    assert [(c.path, c.label, c.group) for c in assigned.clips] == [
        (c.path, c.label, c.group) for c in clips
    ]
    splits = collections.defaultdict(set)
    for old, new in zip(clips, assigned.clips, strict=True):
        splits[new.group or new.path].add(new.split)
        assert new.split in (("validation",) if old.split == "validation" else ("train", "test"))
    assert all(len(of_group) == 1 for of_group in splits.values())
    held, trained = len(in_split(assigned, "test")), len(in_split(assigned, "train"))
    assert held
    assert trained
    # The largest group decides how near the share can be met.
    assert abs(held - share * len(training)) <= max(units.values())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.floats(0.02, 0.98))
def test_whatever_the_classes_ungrouped_shares_are_exact(counts, share):
    total = sum(counts)
    if total < 2:
        return
    assigned = assign(of_classes(**{f"c{n}": c for n, c in enumerate(counts)}), holdout=share)
    held = assigned.split("test").class_counts()
    assert sum(held.values()) == min(max(round(share * total), 1), total - 1)
    if all(count * (1 - share) > 2 for count in counts) and share * total >= 1:
        assert all(abs(held[f"c{n}"] - share * count) <= 1 + 1e-9 for n, count in enumerate(counts))


def test_real_sequences_stay_whole(shared):
    data = from_folder(shared / "videos" / "ut_interaction")
    by_set = assign(data, group_regex=r"set\d_seq\d+", test_regex="set2", holdout=0.2)
    assert by_set.splits() == {"train": 48, "validation": 12, "test": 60}
    assert by_set.split("validation").class_counts() == dict.fromkeys(data.labels, 2)
    sides = collections.defaultdict(set)
    for clip in by_set.clips:
        sides[clip.name.split("/")[1][:10]].add(clip.split)
    assert len(sides) == 20
    assert all(len(side) == 1 for side in sides.values())
