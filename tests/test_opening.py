"""Opening data: from folders and lists to stores, and what is said of bad videos."""

import csv
import dataclasses
import logging

import pytest

from grw_keras.data import opening, stores, video
from grw_keras.data.opening import Choice, open_data
from grw_keras.data.scan import TooManyBadVideosError
from grw_keras.data.stores import DiskStore, MemoryStore, VideoStore
from tests.opening_helpers import names, numbers, opened, write_tree, write_videos

KINDS = {"memory": MemoryStore, "disk": DiskStore, "none": VideoStore}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture
def torn(tmp_path):
    """Six training videos and two test videos, of which 1 + 1 hold nothing."""
    folder = tmp_path / "torn"
    names = [f"train/bow/{n}.avi" for n in range(6)] + [f"test/bow/{n}.avi" for n in range(6, 8)]
    write_videos(folder, names)
    for name in (names[2], names[7]):
        (folder / name).write_bytes(b"no video")
    return folder


def lost(found, split) -> list[tuple[str, int]]:
    """A split's bad videos, and how many clips they take along."""
    return [(bad.path.rpartition("/")[2], bad.clips) for bad in found.bad[split]]


def reported(folder) -> list[tuple[str, str]]:
    with (folder / "bad_videos.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "reason"]
    return [(path.rpartition("/")[2], reason) for path, reason in rows]


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_a_folder_gives_a_store_of_each_split(tree, tmp_path, cache):
    steps = []
    found = opened(
        tree,
        tmp_path / "run",
        Choice(workers=0, cache=cache),
        progress=lambda *step: steps.append(step),
    )
    assert {split: names(store) for split, store in found.stores.items()} == {
        "train": ["a.avi", "b.avi", "c.avi", "d.avi"],
        "test": ["e.avi", "f.avi"],
    }
    assert all(type(store) is KINDS[cache] for store in found.stores.values())
    assert numbers(found.stores["train"]) == [0, 10, 20, 30]
    assert numbers(found.stores["test"]) == [40, 50]
    assert (found.stores["test"].fps, found.stores["test"].size) == (5, 16)
    assert found.stores["test"].available(0) == 3
    assert found.clips.splits() == {"train": 4, "test": 2}
    assert (found.bad, reported(tmp_path / "run")) == ({"train": (), "test": ()}, [])
    assert steps[5] == ("opening videos", 6, 6)
    decoded = [("decoding train", n, 4) for n in (1, 2, 3, 4)]
    decoded += [("decoding test", n, 2) for n in (1, 2)]
    assert steps[6:] == ([] if cache == "none" else decoded)


@pytest.mark.parametrize(
    ("free", "kinds"), [(10**6, [MemoryStore] * 2), (20_000, [VideoStore, MemoryStore])]
)
def test_the_cache_is_memory_where_there_is_room(tree, tmp_path, monkeypatch, free, kinds):
    # 4 and 2 clips of 3 frames of 16 px take 9,216 and 4,608 bytes; a quarter may be taken.
    monkeypatch.setattr(opening, "_free_bytes", lambda: free)
    found = opened(tree, tmp_path, Choice(workers=0))
    assert [type(found.stores[split]) for split in ("train", "test")] == kinds


@pytest.mark.parametrize(("sharing", "kind"), [(1, MemoryStore), (2, MemoryStore), (3, VideoStore)])
def test_processes_of_one_machine_share_the_room(tree, tmp_path, monkeypatch, sharing, kind):
    # Two clips of 3 frames of 16 px take 4,608 bytes; a quarter may be taken, by all together.
    monkeypatch.setattr(opening, "_free_bytes", lambda: 4 * 2 * 4608)
    choice = Choice(workers=0, sharing=sharing)
    assert type(opened(tree, tmp_path, choice, only=["test"]).stores["test"]) is kind


@pytest.mark.parametrize(
    ("workers", "sharing", "each"),
    [(None, 1, 8), (None, 2, 4), (None, 3, 2), (None, 9, 1), (5, 4, 5), (0, 4, 0)],
)
def test_processes_of_one_machine_share_its_cpus(
    tree, tmp_path, monkeypatch, workers, sharing, each
):
    asked = []

    def scan(clips, workers, *, f=opening.scan.scan, **options):
        asked.append(workers)
        return f(clips, 0, **options)

    monkeypatch.setattr(opening, "default_workers", lambda: 8)
    monkeypatch.setattr(opening.scan, "scan", scan)
    opened(tree, tmp_path, Choice(workers=workers, sharing=sharing, cache="none"))
    assert asked == [each]
    assert opening.decoders(workers, sharing) == each


@pytest.mark.parametrize(
    ("limit", "room"),
    [(None, 3000 * 1024), ("max", 3000 * 1024), (2_000_000, 1_500_000), (9_000_000, 3000 * 1024)],
)
def test_the_room_in_memory_is_the_machines_or_the_containers(tmp_path, limit, room):
    for folder in ("proc", "sys/fs/cgroup"):
        (tmp_path / folder).mkdir(parents=True)
    meminfo = "MemTotal: 9000 kB\nMemFree: 1000 kB\nMemAvailable: 3000 kB\n"
    (tmp_path / "proc/meminfo").write_text(meminfo)
    if limit is not None:
        (tmp_path / "sys/fs/cgroup/memory.max").write_text(f"{limit}\n")
        (tmp_path / "sys/fs/cgroup/memory.current").write_text("500000\n")
    assert opening._free_bytes(tmp_path) == room


def test_this_machine_has_room_in_memory():
    assert 10**7 < opening._free_bytes() < 10**14


def test_a_second_run_opens_and_decodes_nothing_that_is_known(tree, tmp_path, monkeypatch):
    choice = Choice(workers=0, cache="disk")
    opened(tree, tmp_path, choice)
    for module, name in ((stores, "read_frames"), (video, "VideoFile")):
        monkeypatch.setattr(module, name, None)
    assert numbers(opened(tree, tmp_path, choice).stores["train"]) == [0, 10, 20, 30]


def test_only_the_splits_that_are_asked_for_are_looked_at(torn, tmp_path):
    for name in ("0", "1", "3"):
        (torn / f"train/bow/{name}.avi").write_bytes(b"")
    found = opened(torn, tmp_path / "run", only=["test"])
    assert list(found.stores) == ["test"]
    assert reported(tmp_path / "run") == [("7.avi", found.bad["test"][0].reason)]
    assert list(found.bad) == ["test"]
    assert found.clips.splits() == {"train": 6, "test": 1}


def test_bad_videos_are_left_out_counted_and_listed(torn, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "grw_keras"):
        found = opened(torn, tmp_path / "run")
    assert names(found.stores["train"]) == ["0.avi", "1.avi", "3.avi", "4.avi", "5.avi"]
    assert names(found.stores["test"]) == ["6.avi"]
    assert found.clips.splits() == {"train": 5, "test": 1}
    assert {name for name, _ in reported(tmp_path / "run")} == {"2.avi", "7.avi"}
    assert {split: lost(found, split) for split in found.bad} == {
        "train": [("2.avi", 1)],
        "test": [("7.avi", 1)],
    }
    assert f"Bad videos, left out: 2; see {tmp_path / 'run' / 'bad_videos.csv'}" in caplog.text


def test_too_many_bad_videos_stop_the_run_before_anything_is_decoded(torn, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "read_frames", None)
    choice = Choice(workers=0, cache="memory", max_bad_share=0.2)
    with pytest.raises(TooManyBadVideosError, match=r"2 of 8 clips can't be used, 25\.0%"):
        opened(torn, tmp_path / "run", choice)
    assert {name for name, _ in reported(tmp_path / "run")} == {"2.avi", "7.avi"}


@pytest.mark.parametrize("cache", ["memory", "disk"])
@pytest.mark.parametrize("share", [0.5, 0.3])
def test_videos_that_turn_out_bad_when_decoded_count_too(torn, tmp_path, monkeypatch, cache, share):
    def fail(path, *rest, f=stores.read_frames):
        if path.endswith("4.avi"):
            raise video.BadVideoError(path, "it is torn")
        return f(path, *rest)

    monkeypatch.setattr(stores, "read_frames", fail)
    choice = Choice(workers=0, cache=cache, max_bad_share=share)
    if share == 0.3:
        with pytest.raises(TooManyBadVideosError, match=r"3 of 8 clips can't be used"):
            opened(torn, tmp_path / "run", choice)
    else:
        found = opened(torn, tmp_path / "run", choice)
        assert names(found.stores["train"]) == ["0.avi", "1.avi", "3.avi", "5.avi"]
        assert len(found.clips) == 5
        assert {split: lost(found, split) for split in found.bad} == {
            "train": [("2.avi", 1), ("4.avi", 1)],
            "test": [("7.avi", 1)],
        }
    assert reported(tmp_path / "run")[-1] == ("4.avi", "it is torn")
    assert len(reported(tmp_path / "run")) == 3


def test_a_split_of_bad_videos_alone_has_no_store(torn, tmp_path, caplog):
    (torn / "test/bow/6.avi").write_bytes(b"")
    found = opened(torn, tmp_path / "run")
    assert list(found.stores) == ["train"]
    assert lost(found, "test") == [("6.avi", 1), ("7.avi", 1)]
    assert "No clip of test is left: all its videos are bad" in caplog.text


def test_a_part_that_is_empty_costs_the_others_of_its_video_nothing(tree, tmp_path):
    path = tree / "train/bow/a.avi"
    (tmp_path / "list.csv").write_text(
        f"path,label,start,end\n{path},bow,0,0.2\n{path},bow,5,6\n{path},wave,0.2,0.6\n"
    )
    found = opened(tmp_path / "list.csv", tmp_path / "run")
    assert len(found.stores["train"].clips) == len(found.clips) == 2
    assert numbers(found.stores["train"]) == [0, 2]
    assert lost(found, "train") == [("a.avi", 1)]


@pytest.mark.parametrize("when", ["opened", "decoded"])
def test_a_bad_video_is_told_of_in_each_split_that_it_has_parts_in(
    tree, tmp_path, monkeypatch, when
):
    torn, whole = tmp_path / "torn.avi", tree / "train/bow/b.avi"
    torn.write_bytes((tree / "train/bow/a.avi").read_bytes() if when == "decoded" else b"no video")
    rows = [
        *[(torn, 0, 0.2, "train"), (torn, 0.2, 0.4, "test"), (torn, 0.4, 0.6, "test")],
        *[(whole, 7, 8, "test"), (whole, 0, 0.2, "train"), (whole, 8, 9, "train")],
        *[(whole, 0.2, 0.4, "test"), (whole, 5, 6, "test")],
    ]
    listed = "".join(f"{path},bow,{start},{end},{split}\n" for path, start, end, split in rows)
    (tmp_path / "list.csv").write_text(f"path,label,start,end,split\n{listed}")

    def fail(path, *rest, f=stores.read_frames):
        if path == str(torn):
            raise video.BadVideoError(path, "it is torn")
        return f(path, *rest)

    monkeypatch.setattr(stores, "read_frames", fail)
    choice = Choice(workers=0, cache="memory", max_bad_share=1)
    found = opened(tmp_path / "list.csv", tmp_path / "run", choice)
    assert sorted(lost(found, "train")) == [("b.avi", 1), ("torn.avi", 1)]
    assert sorted(lost(found, "test")) == [("b.avi", 1), ("b.avi", 1), ("torn.avi", 2)]
    starts = {
        split: [bad.reason.partition("starts at ")[2][:3] for bad in found.bad[split]]
        for split in found.bad
    }
    assert {split: sorted(filter(None, each)) for split, each in starts.items()} == {
        "train": ["8 s"],
        "test": ["5 s", "7 s"],
    }
    # The report has the video once.
    assert sorted(name for name, _ in reported(tmp_path / "run")) == [*["b.avi"] * 3, "torn.avi"]


def test_videos_that_a_run_did_not_have_move_none_of_its_clips(tmp_path, caplog):
    folder = tmp_path / "videos"
    write_videos(folder, [f"bow/{n}.avi" for n in range(8)])
    choice = Choice(workers=0, cache="none", holdout=0.25)
    run = opened(folder, tmp_path / "run", choice).clips
    known = {clip.name: clip.split for clip in run.clips}
    trained, held = ({n for n, s in known.items() if s == split} for split in ("train", "test"))
    assert (len(trained), len(held)) == (6, 2)
    added = {f"bow/q{n}.avi" for n in range(3)}
    write_videos(folder, sorted(added))
    # The recipe alone would test on clips that were trained on, now that there are others.
    afresh = opened(folder, tmp_path / "again", choice).stores["test"].clips.clips
    assert trained & {clip.name for clip in afresh}
    choice = dataclasses.replace(choice, known=known, test_regex="bow", group_regex="bow")
    found = opened(folder, tmp_path / "again", choice)
    assert {clip.name for clip in found.stores["test"].clips.clips} == held | added
    assert {clip.name for clip in found.stores["train"].clips.clips} == trained
    assert "3 of 11 clips were not in the run" in caplog.text


def test_a_share_is_held_out_and_labels_are_in_the_models_order(tree, tmp_path):
    (tmp_path / "list.csv").write_text(
        "path,label\n" + "".join(f"{tree}/train/bow/{name}.avi,bow\n" for name in "ab")
    )
    labels = ("wave", "run", "bow")
    choice = Choice(workers=0, cache="none", holdout=0.5, labels=labels)
    found = opened(tmp_path / "list.csv", tmp_path / "run", choice)
    assert {split: len(store.clips) for split, store in found.stores.items()} == {
        "train": 1,
        "test": 1,
    }
    assert found.stores["test"].clips.labels == labels


def test_missing_clips_of_kinetics_are_counted_and_told(tree, tmp_path, caplog):
    rows = [(f"{n:011d}", "bow") for n in range(4)]
    listed = "".join(f"{label},{name},1,11,train\n" for name, label in rows)
    (tmp_path / "k.csv").write_text(f"label,youtube_id,time_start,time_end,split\n{listed}")
    write_videos(tmp_path / "clips", [f"{rows[0][0]}_000001_000011.avi"])
    choice = Choice(workers=0, annotations=[tmp_path / "k.csv"])
    found = opened(tmp_path / "clips", tmp_path / "run", choice)
    assert len(found.stores["train"].clips) == 1
    assert len(found.clips.missing) == 3
    assert "3 of 4 annotated clips are not in" in caplog.text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Choice(cache="ram"), "`cache` must be one of 'auto', .*Received: 'ram'"),
        (lambda: Choice(workers=-1), "`workers` must be None or >= 0. Received: -1"),
        (lambda: Choice(sharing=0), "`sharing` must be >= 1. Received: 0"),
        (lambda: Choice(max_bad_share=5), r"`max_bad_share` must be in \[0, 1\]. Received: 5"),
        (
            lambda: open_data(".", Choice(), fps=5, size=8, folder=".", only=["valid"]),
            "`only` must name splits.*Did you mean 'validation'.*Received: 'valid'",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
