"""Stores: the same frames from videos, memory, disk and records; caches that are to be trusted."""

import dataclasses
import errno
import os
import pickle

import numpy as np
import pytest

from grw_keras.data import stores
from grw_keras.data.clips import Clip, ClipSet
from grw_keras.data.record_store import RecordStore
from grw_keras.data.records import prepare
from grw_keras.data.samples import Loader, Sampling
from grw_keras.data.scan import scan
from grw_keras.data.stores import DiskStore, JoinedStore, MemoryStore, VideoStore, memory_bytes
from tests import video_files
from tests.store_helpers import ArrayStore

# Of 10 fps and 20, 20 and 13 frames; at 5 fps every other one is seen.
SEEN = ([0, 2, 4, 6, 8, 10, 12, 14, 16, 18], [4, 6, 8], [0, 2, 4, 6, 8, 10], [14, 16, 18])
ASKED = [np.array([0]), np.array([2, 0, 0, 1]), np.array([1, 2])]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two videos, and two parts of a third."""
    folder = tmp_path_factory.mktemp("videos")
    long = video_files.write(folder / "long.mp4", frames=20, fps=10)
    parts = video_files.write(folder / "parts.mp4", frames=20, fps=10, options={"g": "5"})
    short = video_files.write(folder / "short.avi", "mjpeg", 13, fps=10, pix_fmt="yuvj420p")
    return ClipSet(
        (
            Clip(str(long), "bow", split="train"),
            Clip(str(parts), "wave", 0.4, 1.0, split="train"),
            Clip(str(short), "wave", split="train"),
            Clip(str(parts), "bow", 1.4, 9.0, split="train"),
        ),
        ("bow", "wave"),
    )


@pytest.fixture(scope="module")
def videos(clips):
    return VideoStore(clips, scan(clips).infos, fps=5, size=32)


@pytest.fixture
def own(tmp_path):
    """A video of two frames of the grid, and the store of it."""
    path = video_files.write(tmp_path / "own.avi", "mjpeg", 4, fps=10, pix_fmt="yuvj420p")
    return path, lambda fps=5, size=16: store_of(path, fps, size)


def store_of(path, fps, size) -> VideoStore:
    clips = ClipSet((Clip(str(path), "bow"),), ("bow",))
    return VideoStore(clips, scan(clips).infos, fps=fps, size=size)


def everything(store, index) -> np.ndarray:
    return store.read(index, np.arange(store.available(index)))


def no_decoding(monkeypatch):
    def refuse(path, *_):
        raise AssertionError(f"{path} was decoded")

    monkeypatch.setattr(stores, "read_frames", refuse)


def test_a_store_of_videos_has_the_frames_of_the_grid(videos):
    for index, seen in enumerate(SEEN):
        assert [video_files.number_of(image) for image in everything(videos, index)] == seen


@pytest.mark.parametrize("kind", ["memory", "disk", "joined", "pickled"])
def test_all_stores_give_the_same_frames_bit_for_bit(videos, kind, tmp_path):
    store = {
        "memory": lambda: MemoryStore(videos, 0),
        "disk": lambda: DiskStore(videos, tmp_path, 0),
        "joined": lambda: JoinedStore([videos], videos.clips),
        "pickled": lambda: pickle.loads(pickle.dumps(DiskStore(videos, tmp_path, 0))),
    }[kind]()
    assert (store.fps, store.size, store.clips) == (videos.fps, videos.size, videos.clips)
    for index, seen in enumerate(SEEN):
        assert store.available(index) == len(seen)
        whole = everything(videos, index)
        for frames in (*ASKED, np.arange(len(seen))):
            found = store.read(index, frames)
            assert type(found) is np.ndarray
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(found, whole[frames])
            np.testing.assert_array_equal(videos.read(index, frames), whole[frames])


def test_workers_decode_the_same_into_memory_and_onto_disk(videos, tmp_path):
    steps = []
    memory = MemoryStore(videos, 2, lambda *step: steps.append(step))
    disk = DiskStore(videos, tmp_path, 2, lambda *step: steps.append(step))
    assert steps == 2 * [(done, 4) for done in (1, 2, 3, 4)]
    for index in range(4):
        np.testing.assert_array_equal(everything(memory, index), everything(videos, index))
        np.testing.assert_array_equal(everything(disk, index), everything(videos, index))


def test_records_hold_the_same_frames_within_the_error_of_jpeg(videos, tmp_path):
    prepare(videos.clips, tmp_path / "r", fps=5, size=32, workers=0)
    records = RecordStore(tmp_path / "r", "train")
    for index, seen in enumerate(SEEN):
        found = everything(records, index)
        assert [video_files.number_of(image) for image in found] == seen
        error = np.abs(found.astype(int) - everything(videos, index))
        assert error.mean() < 2
        assert error.max() < 24


def test_a_store_in_memory_takes_what_was_foretold(videos):
    frames = sum(map(len, SEEN))
    assert memory_bytes(videos) == frames * 32 * 32 * 3
    held = MemoryStore(videos, 0)
    assert sum(everything(held, index).nbytes for index in range(4)) == memory_bytes(videos)


def test_a_second_store_on_disk_decodes_nothing(videos, tmp_path, monkeypatch):
    first = DiskStore(videos, tmp_path, 0)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    no_decoding(monkeypatch)
    second = DiskStore(videos, tmp_path, 0)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    for index in range(4):
        np.testing.assert_array_equal(everything(second, index), everything(first, index))


def test_the_files_on_disk_are_numpys(videos, tmp_path):
    store = DiskStore(videos, tmp_path, 0)
    found = sorted(np.load(path).tobytes() for path in tmp_path.glob("*.npy"))
    assert found == sorted(everything(store, index).tobytes() for index in range(4))


@pytest.mark.parametrize("damage", ["cut", "empty", "longer", "other frames", "noise"])
def test_a_damaged_file_on_disk_is_decoded_again(own, tmp_path, damage):
    _, make = own
    DiskStore(make(), tmp_path / "frames", 0)
    [path] = (tmp_path / "frames").iterdir()
    good = path.read_bytes()
    if damage == "other frames":
        np.save(path, np.zeros([3, 16, 16, 3], np.uint8))
    else:
        noise = b"\x93NUMPY\x01\x00" + bytes(len(good) - 8)
        changed = {"cut": good[: len(good) // 2], "empty": b"", "longer": good + b" "}
        path.write_bytes(changed.get(damage, noise))
    store = DiskStore(make(), tmp_path / "frames", 0)
    assert path.read_bytes() == good
    np.testing.assert_array_equal(everything(store, 0), everything(make(), 0))


@pytest.mark.parametrize("change", ["time", "content", "fps", "size", "part"])
def test_another_video_rate_size_or_part_is_decoded_anew(own, tmp_path, change):
    path, make = own
    folder = tmp_path / "frames"
    DiskStore(make(), folder, 0)
    store = make(fps=10 if change == "fps" else 5, size=8 if change == "size" else 16)
    if change == "time":
        os.utime(path, ns=(1, 1))
    elif change == "content":
        kept = path.stat().st_mtime_ns
        video_files.write(path, "mjpeg", [video_files.numbered(7)] * 4, fps=10, pix_fmt="yuvj420p")
        with path.open("ab") as file:
            file.write(b"more")
        os.utime(path, ns=(kept, kept))
    elif change == "part":
        [clip] = store.clips.clips
        part = dataclasses.replace(clip, start_s=0.2, name="")
        clips = ClipSet((part,), ("bow",))
        store = VideoStore(clips, scan(clips).infos, fps=5, size=16)
    found = DiskStore(store, folder, 0)
    assert len(list(folder.iterdir())) == 2
    np.testing.assert_array_equal(everything(found, 0), everything(store, 0))


def test_a_full_disk_stops_and_leaves_no_part_of_a_file(own, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stores.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        DiskStore(own[1](), tmp_path / "frames", 0)
    assert list((tmp_path / "frames").iterdir()) == []


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_clips_of_videos_that_turn_out_bad_are_left_out_and_told(kind, tmp_path):
    store = ArrayStore([2, 3, 4, 5], bad=[1, 3])
    kept = MemoryStore(store, 0) if kind == "memory" else DiskStore(store, tmp_path, 0)
    assert [clip.name for clip in kept.clips.clips] == ["v0", "v2"]
    assert kept.clips.labels == store.clips.labels
    assert [(error.path, error.reason) for error in kept.bad] == [
        ("1.mp4", "it is torn"),
        ("3.mp4", "it is torn"),
    ]
    np.testing.assert_array_equal(everything(kept, 1), everything(store, 2))


def test_a_video_that_is_gone_is_bad(own, tmp_path):
    path, make = own
    store = make()
    path.unlink()
    for kept in (MemoryStore(store, 0), DiskStore(store, tmp_path / "frames", 0)):
        assert [error.path for error in kept.bad] == [str(path)]
        assert kept.clips.clips == ()


def test_clips_of_bad_videos_are_refused_with_the_way_to_leave_them_out(videos):
    infos = scan(videos.clips.subset([0, 2])).infos
    with pytest.raises(ValueError, match=r"Scan\.good.*none for 2 of 4, such as .*parts\.mp4"):
        VideoStore(videos.clips, infos, fps=5, size=32)


def test_a_joined_store_reads_in_workers_without_the_list_of_its_clips():
    store = ArrayStore([2, 3, 4])
    joined = JoinedStore([store], store.clips.subset([2, 0]))
    there = pickle.loads(pickle.dumps(joined))
    assert not hasattr(there, "clips")
    assert joined.clips == store.clips.subset([2, 0])
    load = pickle.loads(pickle.dumps(Loader(joined, Sampling(frames=2, resolution=8))))
    for index, clip in enumerate((2, 0)):
        assert there.available(index) == store.available(clip)
        np.testing.assert_array_equal(everything(there, index), everything(store, clip))
        sample = load((0, index))
        assert (sample.index, sample.label) == (index, {2: 0, 0: 0}[clip])
        assert (sample.video[:, 0, 0, 0] == clip).all()


def test_joined_stores_are_read_by_the_clips_names():
    first, second = ArrayStore([2, 3]), ArrayStore([4, 5, 6])
    named = [dataclasses.replace(clip, name=f"w{clip.name}") for clip in second.clips.clips]
    second.clips = dataclasses.replace(second.clips, clips=tuple(named))
    chosen = [dataclasses.replace(clip, split="test") for clip in (named[2], first.clips.clips[1])]
    joined = JoinedStore([first, second], ClipSet(tuple(chosen), second.clips.labels))
    assert [joined.available(i) for i in range(2)] == [6, 3]
    assert joined.clips.splits() == {"test": 2}
    assert joined.read(0, np.array([5]))[0, 0, 0].tolist() == [2, 5, 0]
    assert joined.read(1, np.array([2]))[0, 0, 0].tolist() == [1, 2, 0]
    with pytest.raises(ValueError, match=r"`clips` must be the stores'\. Received: 'wv0'"):
        JoinedStore([first], second.clips)
