"""Any TFDS video data set as a source: which features are taken, and records of their frames."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from grw_keras.data.record_files import read_settings
from grw_keras.data.record_store import RecordStore
from grw_keras.data.tfds_source import grid_frames, open_tfds, prepare_tfds

COUNTS = {"train": 3, "test": 2}
T, H, W = 8, 12, 20


def video(split: str, index: int) -> np.ndarray:
    """Plain frames whose colours tell split, example and frame apart."""
    frame = np.arange(T).reshape(T, 1, 1)
    red, green, blue = 100 * (split == "test") + 9 * index, 25 * frame, 200 - 10 * index
    return np.broadcast_to(
        np.stack(np.broadcast_arrays(red, green, blue), -1), (T, H, W, 3)
    ).astype(np.uint8)


def image() -> tfds.features.Image:
    return tfds.features.Image(shape=(H, W, 3), encoding_format="png")


VIDEOS = {
    "sequence": lambda: tfds.features.Sequence(image()),
    "video": lambda: tfds.features.Video(shape=(None, H, W, 3)),
    "tensor": lambda: tfds.features.Tensor(shape=(T, H, W, 3), dtype=np.uint8),
}
CLASS = {"label": tfds.features.ClassLabel(names=["bow", "wave", "never"])}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Makes a small data set with these features, and gives its folder."""

    def build(features, value, file_format="tfrecord"):
        class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = tfds.core.Version("1.0.0")
            name = "tiny"
            code_path = None

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(features),
                    disable_shuffling=True,
                )

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(split) for split in COUNTS}

            def _generate_examples(self, split):
                for index in range(COUNTS[split]):
                    yield index, value(split, index)

        builder = Tiny(data_dir=tmp_path_factory.mktemp("tfds"), file_format=file_format)
        builder.download_and_prepare()
        return builder.data_dir

    return build


@pytest.fixture(scope="module")
def tiny(built):
    return built(
        {"frames": VIDEOS["sequence"](), **CLASS, "take": tfds.features.Text()},
        lambda split, i: {"frames": list(video(split, i)), "label": i % 2, "take": f"t{i}"},
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", VIDEOS)
@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_each_form_of_frames_is_read(built, kind, file_format):
    def value(split, index):
        frames = video(split, index)
        return {"clip": frames if kind == "tensor" else list(frames), "label": index % 2}

    source = open_tfds(built({"clip": VIDEOS[kind](), **CLASS}, value, file_format), fps=8)
    assert (source.video_key, source.label_key) == ("clip", "label")
    assert source.labels == ("bow", "wave", "never")
    for split, count in COUNTS.items():
        found = list(source.read(split))
        assert [(label, name) for _, label, name in found] == [
            (("bow", "wave")[i % 2], f"{split}/{i:07d}") for i in range(count)
        ]
        for index, (frames, _, _) in enumerate(found):
            np.testing.assert_array_equal(frames, video(split, index))


def test_records_of_a_tfds_data_set_are_records_like_any(tiny, tmp_path):
    source = open_tfds(tiny, fps=8)
    prepared = prepare_tfds(source, tmp_path / "r", fps=4, size=16, num_shards=2)
    assert prepared.counts == COUNTS
    for split, count in COUNTS.items():
        store = RecordStore(tmp_path / "r", split)
        assert [clip.label for clip in store.clips.clips] == ["bow", "wave", "bow"][:count]
        for index in range(count):
            assert store.available(index) == 4  # 1 s
            found = store.read(index, np.arange(4))[:, 8, 8].astype(int)
            assert np.abs(found - video(split, index)[::2, 0, 0]).max() <= 4
    assert prepare_tfds(source, tmp_path / "r", fps=4, size=16).kept
    with pytest.raises(ValueError, match="other clips"):
        prepare_tfds(open_tfds(tiny, fps=16), tmp_path / "r", fps=4, size=16)


def test_a_tfds_folder_that_is_no_records_is_told_how_to_be_given(tiny, tmp_path):
    with pytest.raises(ValueError, match=f"as tfds:{tiny}"):
        read_settings(Path(tiny))
    with pytest.raises(FileNotFoundError, match="holds no finished records"):
        read_settings(tmp_path)


def test_a_clip_without_frames_is_refused():
    with pytest.raises(ValueError, match="must have frames"):
        grid_frames(np.zeros([0, 4, 4, 3], np.uint8), 5.0, 5.0, 8)


def test_splits_can_be_parts_of_others(tiny):
    source = open_tfds(tiny, fps=8, splits={"train": "train[:2]", "validation": "train[2:]"})
    assert [source.count(split) for split in ("train", "validation")] == [2, 1]
    ((frames, label, name),) = source.read("validation")
    np.testing.assert_array_equal(frames, video("train", 2))
    assert (label, name) == ("bow", "validation/0000000")


def test_texts_and_integers_are_classes_when_named(built, tiny):
    source = open_tfds(tiny, fps=8, label_key="take")
    assert source.labels == ("t0", "t1", "t2")
    assert [label for _, label, _ in source.read("train")] == ["t0", "t1", "t2"]
    numbered = built(
        {"video": VIDEOS["tensor"](), "label": tfds.features.Scalar(np.int64)},
        lambda split, i: {"video": video(split, i), "label": 10 - i},
    )
    assert open_tfds(numbered, fps=8).labels == ("8", "9", "10")


def test_features_that_do_not_fit_are_told(built, tiny, tmp_path):
    def value(split, i):
        return {"a": video(split, i), "b": video(split, i), "mood": "x"}

    two = built(
        {"a": VIDEOS["tensor"](), "b": VIDEOS["tensor"](), "mood": tfds.features.Text()}, value
    )
    cases = [
        (
            two,
            {},
            "more than one feature holds frames.*give `video_key`.*'a' .Tensor.*'mood' .Text",
        ),
        (two, {"video_key": "a"}, "no feature holds the class.*give `label_key`"),
        (two, {"video_key": "mod"}, "Did you mean 'mood'.*Received: 'mod'"),
        (two, {"video_key": "a", "label_key": "b"}, "`label_key` must name a feature"),
        (tiny, {"video_key": "take"}, "`video_key` must name a feature.*'frames' .Sequence"),
        (tiny, {"fps": None}, "`fps` must be.*Received: None"),
        (tiny, {"fps": 0}, "`fps` must be.*Received: 0"),
        (tiny, {"splits": {"dev": "test"}}, "`splits` must name.*'train', 'test'.*'dev'"),
        (tiny, {"splits": {}}, "`splits` must name"),
    ]
    for folder, changes, told in cases:
        with pytest.raises(ValueError, match=told):
            open_tfds(folder, **{"fps": 8, **changes})


def test_a_data_set_that_is_not_there_is_told_how_to_come_by(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a data set that TFDS knows.*no_such_videos"):
        open_tfds("no_such_videos", fps=8)
    with pytest.raises(FileNotFoundError, match="`tfds build ucf101/ucf101_1`"):
        open_tfds("ucf101/ucf101_1", fps=8, data_dir=tmp_path)


@pytest.mark.parametrize(("source_fps", "fps"), [(8, 8), (8, 4), (8, 5), (30, 12), (4, 10)])
def test_grid_frames_are_those_on_display(source_fps, fps):
    frames = video("train", 0)
    shown, j = [], 0
    while not shown or j * source_fps < T * fps:  # t_j before the end, in exact integers
        if (j + 1) * source_fps <= T * fps or j == 0:  # whole periods only
            shown.append(max(i for i in range(T) if i * fps <= j * source_fps))
        j += 1
    taken = grid_frames(frames, source_fps, fps, 6)
    assert taken.shape == (len(shown), 6, 6, 3)
    np.testing.assert_array_equal(taken[:, 0, 0], frames[shown, 0, 0])


def test_resizing_averages_where_it_shrinks_and_fills_where_it_grows():
    rows = np.repeat([[0, 100, 200, 40]], 2, 0)[..., None].repeat(3, -1).astype(np.uint8)
    (small,) = grid_frames(rows[None], 1, 1, 2)
    np.testing.assert_array_equal(small[..., 0], [[50, 120], [50, 120]])
    tall = np.array([[0, 100, 50, 150, 20, 80]]).T[..., None].repeat(3, -1).astype(np.uint8)
    (even,) = grid_frames(tall[None], 1, 1, 3)
    np.testing.assert_array_equal(even[..., 0], [[50] * 3, [100] * 3, [50] * 3])
