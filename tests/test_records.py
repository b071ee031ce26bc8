"""Writing records: the same clips with Beam or without, and a folder that is whole or not there."""

import csv
import dataclasses
import itertools
import os
import subprocess
import sys

import filelock
import numpy as np
import pytest
import tensorflow_datasets as tfds

from grw_keras.data import record_files
from grw_keras.data.clips import Clip, ClipSet
from grw_keras.data.record_files import Settings
from grw_keras.data.record_store import RecordStore
from grw_keras.data.records import grid_times, plan_shards, prepare, shard_bounds
from grw_keras.data.scan import TooManyBadVideosError
from grw_keras.data.video import BadVideoError, read_frames
from tests.record_helpers import LABELS, clip_set, colour, files, plain_frames, write_video

ASKED = {"fps": 5, "size": 16, "workers": 0}


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> ClipSet:
    return clip_set(tmp_path_factory.mktemp("videos"))


@pytest.fixture
def with_bad(clips, tmp_path) -> ClipSet:
    """Six good clips and two bad videos."""
    (tmp_path / "text.mp4").write_text("not a video")
    bad = [Clip(str(tmp_path / name), "bow", split="train") for name in ("text.mp4", "none.mp4")]
    return ClipSet((*clips.clips[:2], *bad, *clips.clips[2:]), LABELS)


def psnr(a, b) -> float:
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2))


def test_records_hold_the_frames_on_display_at_the_grid_times(clips, tmp_path):
    prepared = prepare(clips, tmp_path / "r", **ASKED)
    assert prepared.counts == {"train": 4, "test": 2}
    store = RecordStore(tmp_path / "r", "test")
    assert [store.available(i) for i in range(2)] == [4, 3]  # 0.9 s and 0.7 s, at 5 fps
    for index, video in enumerate((2, 5)):
        frames = store.read(index, np.arange(store.available(index)))
        expected = [colour(video, 2 * j) for j in range(len(frames))]  # 10 fps, every second one
        assert np.abs(frames - np.array(expected)[:, None, None]).max() <= 3


def test_a_part_of_a_video_has_its_own_grid(tmp_path):
    write_video(tmp_path / "v.mkv", plain_frames(0, 20))
    part = Clip(str(tmp_path / "v.mkv"), "bow", 0.5, 1.3)
    prepare(ClipSet((part,), LABELS), tmp_path / "r", **ASKED)
    store = RecordStore(tmp_path / "r", "train")
    frames = store.read(0, np.arange(4))
    assert store.available(0) == 4  # 0.8 s
    assert np.abs(frames[:, 0, 0] - [colour(0, i) for i in (5, 7, 9, 11)]).max() <= 3
    (clip,) = store.clips.clips
    assert clip == dataclasses.replace(part, split="train")


def test_jpegs_stay_close_to_the_decoded_frames(tmp_path):
    y, x = np.mgrid[:96, :128]
    waves = [
        np.stack([127 + 120 * np.sin(x / 9 + t), 2 * y, 127 + 120 * np.cos(y / 7 - t)], -1)
        for t in range(10)
    ]
    write_video(tmp_path / "v.mkv", waves)
    one = ClipSet((Clip(str(tmp_path / "v.mkv"), "wave"),), LABELS)
    raw = read_frames(tmp_path / "v.mkv", np.arange(5) / 5, 64)
    found = []
    for quality in (40, 95):
        folder = tmp_path / str(quality)
        prepare(one, folder, fps=5, size=64, workers=0, quality=quality)
        found.append(psnr(RecordStore(folder, "train").read(0, np.arange(5)), raw))
    assert found[1] > 36
    assert found[1] > found[0] + 2


@pytest.mark.slow
def test_every_way_writes_the_same_files(with_bad, tmp_path):
    ways = {
        "here": {"workers": 0},
        "workers": {"workers": 2},
        "beam": {"beam_runner": "DirectRunner", "beam_options": ["--direct_num_workers=1"]},
    }
    asked = {"fps": 5, "size": 16, "num_shards": 2, "max_bad_share": 0.3}
    for name, way in ways.items():
        prepared = prepare(with_bad, tmp_path / name, **asked, **way)
        assert sum(prepared.counts.values()) == 6
    here = files(tmp_path / "here")
    assert sum("array_record" in name for name in here) == 4
    assert files(tmp_path / "workers") == here
    assert files(tmp_path / "beam") == here


def test_tfds_reads_the_folder_by_itself(clips, tmp_path):
    prepare(clips, tmp_path / "r", num_shards=3, **ASKED)
    builder = tfds.builder_from_directory(str(tmp_path / "r"))
    for split in ("train", "test"):
        store = RecordStore(tmp_path / "r", split)
        source = builder.as_data_source(split)
        assert len(source) == len(store)
        for index, example in enumerate(source):
            clip = store.clips.clips[index]
            frames = np.stack(example["frames"])
            np.testing.assert_array_equal(frames, store.read(index, np.arange(len(frames))))
            assert builder.info.features["label"].int2str(example["label"]) == clip.label
            text = [example[key].decode() for key in ("name", "group", "path")]
            assert text == [clip.name, clip.group, clip.path]
            assert example["end_s"] == np.float32(clip.end_s)
    metadata = dict(builder.info.metadata)
    assert metadata.pop("source")
    plain = {"fps": 5.0, "size": 16, "quality": 95, "labels": list(LABELS), "count": 6}
    assert metadata == plain


def test_bad_videos_are_left_out_and_listed(with_bad, tmp_path):
    prepared = prepare(with_bad, tmp_path / "r", max_bad_share=0.25, **ASKED)
    assert prepared.counts == {"train": 4, "test": 2}
    reasons = {os.path.basename(bad.path): bad.reason for bad in prepared.bad}
    assert list(reasons) == ["text.mp4", "none.mp4"]
    assert "no such file" in reasons["none.mp4"]
    with (tmp_path / "r" / "bad_videos.csv").open() as file:
        assert [row["path"] for row in csv.DictReader(file)] == [b.path for b in prepared.bad]
    names = [clip.name for clip in RecordStore(tmp_path / "r", "train").clips.clips]
    assert names == ["v0", "v1", "v3", "v4"]


@pytest.mark.parametrize("way", [{}, {"beam_runner": "DirectRunner"}])
def test_too_many_bad_videos_leave_their_list_alone(with_bad, tmp_path, way):
    with pytest.raises(TooManyBadVideosError, match=r"of 8 clips can't be used(.|\n)*text\.mp4"):
        prepare(with_bad, tmp_path / "r", max_bad_share=0.1, **ASKED, **way)
    assert list(files(tmp_path / "r")) == ["bad_videos.csv"]
    with pytest.raises(FileNotFoundError, match="no finished records"):
        RecordStore(tmp_path / "r", "train")
    prepared = prepare(with_bad, tmp_path / "r", max_bad_share=0.25, **ASKED)
    assert len(prepared.bad) == 2


def test_a_run_stops_as_soon_as_too_many_videos_are_bad(with_bad, tmp_path):
    seen = []
    with pytest.raises(TooManyBadVideosError):
        prepare(
            with_bad,
            tmp_path / "r",
            max_bad_share=0.1,
            progress=lambda *at: seen.append(at),
            **ASKED,
        )
    assert seen == [(1, 8), (2, 8)]  # the third is bad


def test_a_data_set_of_bad_videos_alone_is_none(tmp_path):
    gone = ClipSet((Clip(str(tmp_path / "none.mp4"), "bow"),), LABELS)
    with pytest.raises(TooManyBadVideosError, match="1 of 1"):
        prepare(gone, tmp_path / "r", max_bad_share=1.0, **ASKED)


def test_finished_records_are_kept(clips, tmp_path):
    first = prepare(clips, tmp_path / "r", **ASKED)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "r").iterdir()}
    again = prepare(clips, tmp_path / "r", **ASKED, num_shards=1)
    assert (first.kept, again.kept) == (False, True)
    assert dataclasses.replace(again, kept=False) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "r").iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"fps": 4}, r"fps 5\.0, not 4\.0"),
        ({"size": 17}, "size 16, not 17"),
        ({"quality": 90}, "quality 95, not 90"),
        ({"labels": ("wave", "bow")}, "other labels"),
        ({"clips": slice(1, None)}, "other clips; count 6, not 5"),
    ],
)
def test_records_of_other_settings_are_not_overwritten(clips, tmp_path, changes, told):
    prepare(clips, tmp_path / "r", **ASKED)
    before = files(tmp_path / "r")
    changed = dict(changes)
    other = dataclasses.replace(
        clips,
        labels=changed.pop("labels", LABELS),
        clips=clips.clips[changed.pop("clips", slice(None))],
    )
    with pytest.raises(ValueError, match=told):
        prepare(other, tmp_path / "r", **{**ASKED, **changed})
    assert files(tmp_path / "r") == before


def test_records_of_other_videos_of_the_same_names_are_not_kept(clips, tmp_path):
    prepare(clips, tmp_path / "r", **ASKED)
    with open(clips.clips[0].path, "ab") as file:
        file.write(b"another video")
    with pytest.raises(ValueError, match="other clips"):
        prepare(clips, tmp_path / "r", **ASKED)


def test_a_folder_of_something_else_is_not_touched(clips, tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="`out` must be a new or empty folder"):
        prepare(clips, tmp_path / "r", **ASKED)
    assert files(tmp_path / "r") == {"thesis.txt": b"mine"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("No space left on device")])
def test_an_interrupted_run_leaves_nothing(clips, tmp_path, error):
    def stop(done, total):
        if done == 4:
            raise error

    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else OSError):
        prepare(clips, tmp_path / "r", progress=stop, **ASKED)
    assert {path.name for path in tmp_path.iterdir()} <= {".r.lock"}


KILLED = """
import os, sys
from tests.record_helpers import clip_set
from pathlib import Path
from grw_keras.data.records import prepare
folder = Path(sys.argv[1])
prepare(clip_set(folder / "videos"), folder / "r", fps=5, size=16, workers=0,
        progress=lambda done, total: done == 4 and os.kill(os.getpid(), 9))
"""


def test_what_a_killed_run_leaves_is_no_data_set_and_goes_with_the_next(tmp_path):
    clips = clip_set(tmp_path / "videos")
    run = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert run.returncode == -9
    assert not (tmp_path / "r").exists()
    left = [path for path in (tmp_path / ".r.preparing").rglob("*") if path.is_file()]
    assert left
    assert not any(path.name == "dataset_info.json" for path in left)
    assert not prepare(clips, tmp_path / "r", **ASKED).kept
    assert {path.name for path in tmp_path.iterdir()} <= {"r", "videos", ".r.lock"}


def test_a_run_killed_before_its_last_step_is_not_taken_for_the_next(clips, tmp_path):
    prepare(clips, tmp_path / "r", fps=3, size=16, workers=0)
    (tmp_path / ".r.preparing" / "video_records").mkdir(parents=True)
    (tmp_path / "r").rename(tmp_path / ".r.preparing" / "video_records" / "1.0.0")
    prepare(clips, tmp_path / "r", **ASKED)
    assert RecordStore(tmp_path / "r", "train").fps == 5


def test_a_shard_that_lost_records_does_not_pass(clips, tmp_path, monkeypatch):
    class Full(record_files.array_record_module.ArrayRecordWriter):
        def write(self, record):
            pass

    monkeypatch.setattr(record_files.array_record_module, "ArrayRecordWriter", Full)
    with pytest.raises(OSError, match=r"holds 0 records, 4 were written: is the disk full\?"):
        prepare(clips, tmp_path / "r", **ASKED)
    assert not (tmp_path / "r").exists()


def test_two_runs_into_one_folder_do_not_meet(clips, tmp_path):
    with (
        filelock.FileLock(tmp_path / ".r.lock"),
        pytest.raises(RuntimeError, match="Another process is preparing"),
    ):
        prepare(clips, tmp_path / "r", **ASKED)


def test_progress_counts_every_clip(with_bad, tmp_path):
    seen = []
    prepare(
        with_bad, tmp_path / "r", max_bad_share=0.5, progress=lambda *at: seen.append(at), **ASKED
    )
    assert seen == [(done, 8) for done in range(1, 9)]


@pytest.mark.parametrize(
    ("count", "asked"), [*itertools.product((1, 7, 256, 1000), (None, 1, 3, 9))]
)
def test_shards_take_each_clip_once_and_are_even(count, asked):
    bounds = shard_bounds(count, asked)
    sizes = np.diff(bounds)
    assert (bounds[0], bounds[-1]) == (0, count)
    assert len(sizes) == min(count, asked or -(-count // 256))
    assert sizes.max() - sizes.min() <= 1
    assert sizes.min() >= 1


def test_clips_without_a_split_are_for_training():
    bare = ClipSet(
        tuple(Clip(f"{i}.mp4", "bow", split=s) for i, s in enumerate(["", "test"])), LABELS
    )
    plan = [(shard.split, [clip.path for clip in taken]) for shard, taken in plan_shards(bare, 1)]
    assert plan == [("train", ["0.mp4"]), ("test", ["1.mp4"])]


@pytest.mark.parametrize(("start", "end"), [(2.0, None), (3.0, None), (1.0, 1.0), (1.0, 0.5)])
def test_a_part_without_length_is_bad(start, end):
    with pytest.raises(BadVideoError, match="has no length"):
        grid_times(Clip("v.mp4", "bow", start, end), 2.0, 5)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"fps": 0}, "`fps` must be positive"),
        ({"size": 0}, "`size` must be a positive integer"),
        ({"quality": 101}, r"`quality` must be in \[1, 100\]"),
        ({"num_shards": 0}, "`num_shards` must be >= 1"),
        ({"workers": -1}, "`workers` must be >= 0"),
        ({"max_bad_share": 2}, r"`max_bad_share` must be in \[0, 1\]"),
    ],
)
def test_values_out_of_range_are_named(clips, tmp_path, changes, told):
    with pytest.raises(ValueError, match=told):
        prepare(clips, tmp_path / "r", **{**ASKED, **changes})
    assert not (tmp_path / "r").exists()


def test_a_set_without_clips_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there are no clips"):
        prepare(ClipSet((), LABELS), tmp_path / "r", **ASKED)


def test_settings_say_where_they_differ():
    mine = Settings(5, 16, 95, LABELS, "s", 3)
    assert mine.differences(dataclasses.replace(mine, fps=5.0)) == []
    assert mine.differences(dataclasses.replace(mine, fps=6, source="t")) == [
        "fps 5.0, not 6.0",
        "other clips",
    ]
