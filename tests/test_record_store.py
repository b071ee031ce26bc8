"""Reading records: random access in any process, and clear words for damage."""

import pickle
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

from grw_keras.data import record_store, tf_example
from grw_keras.data.record_store import DamagedRecordsError, RecordStore
from grw_keras.data.records import prepare
from grw_keras.data.sampling import order
from grw_keras.data.stores import FrameStore
from grw_keras.data.workers import in_order
from tests.record_helpers import LABELS, clip_set, colour

VIDEOS = (0, 1, 3, 4)  # of the split "train"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Three shards of training clips, one of test clips."""
    folder = tmp_path_factory.mktemp("records")
    clips = clip_set(folder / "videos")
    return prepare(clips, folder / "r", fps=10, size=16, num_shards=3, workers=0).folder


@pytest.fixture
def copy(prepared, tmp_path):
    """A folder of records to damage."""
    return shutil.copytree(prepared, tmp_path / "r")


def which(frames) -> list[tuple[int, int]]:
    """(video, frame) of each image, by its colour."""
    table = {(v, f): colour(v, f) for v in range(6) for f in range(20)}
    return [min(table, key=lambda key: np.abs(table[key] - image[8, 8]).sum()) for image in frames]


def test_a_store_has_the_clips_and_settings(prepared):
    store: FrameStore = RecordStore(prepared, "train")
    assert (store.fps, store.size, len(store)) == (10.0, 16, 4)
    assert [store.available(i) for i in range(4)] == [20, 14, 20, 12]
    assert store.clips.labels == LABELS
    assert [clip.name for clip in store.clips.clips] == [f"v{i}" for i in VIDEOS]
    assert [clip.label for clip in store.clips.clips] == ["bow", "wave", "wave", "bow"]
    assert [clip.group for clip in store.clips.clips] == ["g0", "g1", "g3", "g4"]
    assert {clip.split for clip in store.clips.clips} == {"train"}


@pytest.mark.parametrize("frames", [[0], [3, 1, 2], [5, 5, 0, 5], [11, 0], []])
def test_frames_come_as_asked_and_each_is_decoded_once(prepared, monkeypatch, frames):
    decoded = []
    monkeypatch.setattr(cv2, "imdecode", lambda *a, f=cv2.imdecode: decoded.append(1) or f(*a))
    store = RecordStore(prepared, "train")
    for index, video in enumerate(VIDEOS):
        decoded.clear()
        found = store.read(index, np.array(frames, np.int64))
        assert (found.shape, found.dtype) == ((len(frames), 16, 16, 3), np.uint8)
        assert which(found) == [(video, frame) for frame in frames]
        assert len(decoded) == len(set(frames))


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_order_shared_out_by_index_loses_and_doubles_no_clip(prepared, workers):
    store = RecordStore(prepared, "train")
    epoch = order(7, 2, len(store))
    seen = []
    for worker in range(workers):
        own = pickle.loads(pickle.dumps(store))
        for index in epoch[worker::workers]:
            ((video, _),) = which(own.read(int(index), np.array([0])))
            seen.append(video)
    assert sorted(seen) == list(VIDEOS)


class FirstFrame:
    def __init__(self, store):
        self.store = store

    def __call__(self, index):
        return self.store.read(index, np.array([0]))


@pytest.mark.slow
def test_worker_processes_read_the_same_from_an_open_store(prepared):
    store = RecordStore(prepared, "train")
    here = [store.read(index, np.array([0])) for index in range(4)]
    there = list(in_order(FirstFrame(store), range(4), 2))
    np.testing.assert_array_equal(there, here)


def test_few_shards_stay_open(prepared, monkeypatch):
    monkeypatch.setattr(record_store, "MAX_OPEN_SHARDS", 1)
    store = RecordStore(prepared, "train")
    for index in (0, 3, 1, 2, 0):
        assert which(store.read(index, np.array([0]))) == [(VIDEOS[index], 0)]
        assert len(store._readers) == 1


def test_a_store_that_was_sent_leaves_the_table_of_clips_alone(prepared, monkeypatch):
    store = RecordStore(prepared, "train")
    size = len(pickle.dumps(store))
    assert len(store.clips) == 4
    sent = pickle.dumps(store)
    assert len(sent) == size
    monkeypatch.delattr(record_store.record_files, "read_clips")
    assert [pickle.loads(sent).available(i) for i in range(4)] == [20, 14, 20, 12]


@pytest.mark.parametrize("index", [-1, 4])
def test_a_clip_that_is_not_there_is_an_index_error(prepared, index):
    store = RecordStore(prepared, "train")
    for ask in (store.available, lambda i: store.read(i, np.array([0]))):
        with pytest.raises(IndexError, match=rf"\[0, 4\). Received: {index}"):
            ask(index)


@pytest.mark.parametrize("frame", [-1, 14])
def test_a_frame_that_is_not_there_is_an_index_error(prepared, frame):
    with pytest.raises(IndexError, match=r"\[0, 14\) for clip 1"):
        RecordStore(prepared, "train").read(1, np.array([frame]))


def test_an_unknown_split_is_told_which_there_are(prepared):
    with pytest.raises(ValueError, match=r"'train', 'test'.*Received: 'validation'"):
        RecordStore(prepared, "validation")


def test_a_missing_shard_is_named(copy):
    next(copy.glob("*train*-00001-of-00003")).unlink()
    with pytest.raises(DamagedRecordsError, match=r"lacks 1 of 3 shards .*-00001-of-00003"):
        RecordStore(copy, "train")
    assert len(RecordStore(copy, "test")) == 2


def flip(data: bytes) -> bytes:
    return data[:300] + bytes([data[300] ^ 255]) + data[301:]  # the first record's


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (flip, "record 0: .*hash mismatch"),
        (lambda data: data[: len(data) // 2], "it holds 0 records, not 1"),
        (lambda data: b"", "it holds 0 records, not 1"),
    ],
)
def test_a_damaged_shard_is_named(copy, damage, told):
    shard = next(copy.glob("*test*-00000-of-00002"))
    shard.write_bytes(damage(shard.read_bytes()))
    store = RecordStore(copy, "test")
    with pytest.raises(DamagedRecordsError, match=rf"00000-of-00002 is damaged: {told}.*prepare"):
        store.read(0, np.array([0]))
    assert which(store.read(1, np.array([0]))) == [(5, 0)]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("clips_train.csv", "name,label\nv0,bow\n", "clips_train.csv can't be read"),
        ("clips_train.csv", None, "clips_train.csv can't be read"),
        ("dataset_info.json", "{", "dataset_info.json is damaged"),
        ("metadata.json", "{}", "has not written"),
    ],
)
def test_damaged_tables_are_named(copy, name, text, told):
    if text is None:
        (copy / name).unlink()
    else:
        (copy / name).write_text(text)
    with pytest.raises(ValueError, match=told):
        RecordStore(copy, "train").available(0)


def test_a_table_of_other_length_than_the_shards_is_refused(copy):
    table = copy / "clips_train.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DamagedRecordsError, match="has 3 clips, the shards 4"):
        RecordStore(copy, "train").available(0)


def test_workers_need_no_tensorflow():
    code = (
        "import sys, grw_keras.data.record_store, grw_keras.data.records, "
        "grw_keras.data.tfds_source; sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


FEATURES = {
    "frames": [b"\xff\xd8" * 300, b"", b"x"],
    "label": [0, 1, -1, 300, 2**62, -(2**63)],
    "start_s": [0.5, -1.25],
    "näme": ["ö".encode()],
    "none": [],
}


def test_examples_are_those_of_tensorflow():
    import tensorflow as tf

    encoded = tf_example.encode(FEATURES)
    parsed = tf.train.Example.FromString(encoded).features.feature
    assert sorted(parsed) == sorted(FEATURES)
    assert list(parsed["frames"].bytes_list.value) == FEATURES["frames"]
    assert list(parsed["label"].int64_list.value) == FEATURES["label"]
    assert list(parsed["start_s"].float_list.value) == FEATURES["start_s"]
    written = tf.train.Example.FromString(encoded).SerializeToString()
    for name in ("frames", "näme", "none"):
        assert [bytes(item) for item in tf_example.bytes_list(written, name)] == FEATURES[name]
    assert tf_example.encode(dict(reversed(FEATURES.items()))) == encoded


def test_what_is_no_example_is_refused():
    encoded = tf_example.encode(FEATURES)
    for name in ("label", "absent"):
        with pytest.raises(KeyError, match=name):
            tf_example.bytes_list(encoded, name)
    for data in (encoded[:-7], b"\x08\x01", b"\x0a", b"\x0a" + b"\xff" * 12):
        with pytest.raises(ValueError, match=r"no tf\.train\.Example"):
            tf_example.bytes_list(data, "frames")
    with pytest.raises(TypeError, match=r"`features\['mixed'\]` must be all bytes"):
        tf_example.encode({"mixed": [b"a", 1]})
