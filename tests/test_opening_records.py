"""Opening prepared records and TFDS data sets."""

import dataclasses

import numpy as np
import pytest
import tensorflow_datasets as tfds

from grw_keras.data.opening import Choice
from grw_keras.data.records import prepare
from grw_keras.data.sources import read
from grw_keras.data.splits import assign
from grw_keras.data.stores import JoinedStore
from tests import record_helpers, video_files
from tests.opening_helpers import names, numbers, opened, write_tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("tree"))


def test_a_wrong_number_of_classes_is_refused_before_videos_are_opened(tree, records, tmp_path):
    choice = Choice(workers=0, cache="none", num_classes=3)
    for data, folder in ((tree, "of videos"), (records, "of records")):
        with pytest.raises(ValueError, match=r"must be the data's 2, or null.*Received: 3"):
            opened(data, tmp_path / folder, choice)
        assert not list((tmp_path / folder).iterdir())
    opened(tree, tmp_path, dataclasses.replace(choice, num_classes=2))


@pytest.fixture(scope="module")
def records(tree, tmp_path_factory):
    clips = assign(read(tree))
    return prepare(clips, tmp_path_factory.mktemp("r") / "r", fps=5, size=16, workers=0).folder


def test_records_give_the_same_clips(tree, records, tmp_path):
    videos, found = opened(tree, tmp_path), opened(records, tmp_path, only=["train", "test"])
    for split, store in found.stores.items():
        assert type(store) is JoinedStore
        assert names(store) == names(videos.stores[split])
        assert numbers(store) == numbers(videos.stores[split])
    assert list(opened(records, tmp_path, only=["test"]).stores) == ["test"]


def test_records_can_be_split_again_and_take_a_models_labels(records, tmp_path):
    labels = ("run", "wave", "bow")
    choice = Choice(holdout=0.5, group_regex=".*/", labels=labels)
    found = opened(records, tmp_path, choice)
    assert {split: len(store.clips) for split, store in found.stores.items()} == {
        "train": 2,
        "validation": 2,
        "test": 2,
    }
    assert {store.clips.labels for store in found.stores.values()} == {labels}
    assert found.stores["validation"].clips.splits() == {"validation": 2}
    # Which two are held out is the splits' business; the frames must be theirs.
    shown = dict(zip("abcdef", range(0, 60, 10), strict=True))
    for store in found.stores.values():
        assert numbers(store) == [shown[name[0]] for name in names(store)]


def test_bad_videos_of_records_are_told(tmp_path):
    clips = record_helpers.clip_set(tmp_path / "v", lengths=(3, 3, 3))
    (tmp_path / "v" / "0.mkv").write_bytes(b"")
    folder = prepare(clips, tmp_path / "r", fps=5, size=8, workers=0, max_bad_share=0.5).folder
    found = opened(folder, tmp_path, size=8)
    assert {split: [bad.path for bad in told] for split, told in found.bad.items()} == {
        "": [str(tmp_path / "v" / "0.mkv")]
    }


def test_records_keep_the_splits_of_a_run(records, tmp_path):
    clips = opened(records, tmp_path).clips.clips
    known = {clip.name: "validation" for clip in clips if clip.name.endswith(("a.avi", "e.avi"))}
    found = opened(records, tmp_path, Choice(known=known, holdout=0.5))
    assert names(found.stores["validation"]) == ["a.avi", "e.avi"]
    assert numbers(found.stores["validation"]) == [0, 40]


@pytest.mark.parametrize("given", [{"fps": 10}, {"size": 32}])
def test_records_of_another_rate_or_size_are_refused(records, tmp_path, given):
    with pytest.raises(ValueError, match=r"Prepare them.*Received: 5 fps, 16 px"):
        opened(records, tmp_path, **given)


def test_records_of_unknown_classes_are_refused(records, tmp_path):
    with pytest.raises(ValueError, match=r"It lacks 'wave' \(closest: 'waves'\)"):
        opened(records, tmp_path, Choice(labels=("bow", "waves")))


def test_a_tfds_data_set_is_made_into_records_at_the_rate_that_is_told(tmp_path, monkeypatch):
    pictures = np.stack(
        [np.stack([video_files.numbered(7 * n + i) for i in range(6)]) for n in (0, 1)]
    )

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        name = "tiny"
        code_path = None

        def _info(self):
            frames = tfds.features.Tensor(shape=pictures.shape[1:], dtype=np.uint8)
            label = tfds.features.ClassLabel(names=["bow", "wave"])
            features = tfds.features.FeaturesDict({"frames": frames, "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from ((n, {"frames": video, "label": n}) for n, video in enumerate(pictures))

    builder = Tiny(data_dir=tmp_path / "tfds", file_format="array_record")
    builder.download_and_prepare()
    data = f"tfds:{builder.data_dir}"
    with pytest.raises(ValueError, match="`fps` must be the frames a second"):
        opened(data, tmp_path / "run")
    found = opened(data, tmp_path / "run", Choice(source_fps=10))
    assert [found.stores["train"].available(i) for i in range(2)] == [3, 3]
    assert numbers(found.stores["train"]) == [0, 7]
