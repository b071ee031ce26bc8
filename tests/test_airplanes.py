"""Airplanes: seeded clips in which time alone tells the class."""

import dataclasses
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds
from scipy.spatial.transform import Rotation
from scipy.stats import kstest
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression

from grw_keras import zoo
from grw_keras.data import Choice, airplanes, open_data
from grw_keras.data.airplanes_tfds import Airplanes
from grw_keras.training.again import evaluate_again

SIZE = 32


def test_clips_are_pixels_of_balanced_classes():
    video, labels = airplanes.make("test", size=SIZE)
    assert video.shape == (100, 10, SIZE, SIZE, 3)
    assert (video.dtype, labels.dtype) == (np.uint8, np.int64)
    assert np.bincount(labels).tolist() == [34, 33, 33]
    assert airplanes.SPLITS == {"train": 1000, "test": 100}
    assert len({clip.tobytes() for clip in video}) == 100


def test_a_seed_gives_the_same_bytes_and_another_seed_others():
    once, again = (airplanes.make("train", size=SIZE, count=5)[0] for _ in range(2))
    np.testing.assert_array_equal(once, again)
    np.testing.assert_array_equal(once[:2], airplanes.make("train", size=SIZE, count=2)[0])
    for other in (
        airplanes.make("train", size=SIZE, count=5, seed=1)[0],
        airplanes.make("test", size=SIZE, count=5)[0],
    ):
        assert not any(np.array_equal(*pair) for pair in zip(once, other, strict=True))


def test_an_airplane_turns_about_its_own_axis_at_an_even_pace():
    axes = {"roll": 0, "pitch": 1, "yaw": 2}
    for index in range(30):
        motion = airplanes.motion("train", index)
        poses = motion.poses(10)
        np.testing.assert_allclose(poses @ poses.transpose(0, 2, 1), [np.eye(3)] * 10, atol=1e-9)
        own_axis = np.eye(3)[axes[motion.axis]]
        np.testing.assert_allclose(poses @ own_axis, [motion.start @ own_axis] * 10, atol=1e-9)
        steps = Rotation.from_matrix(poses[:-1].transpose(0, 2, 1) @ poses[1:]).as_rotvec()
        degrees = np.degrees(steps @ own_axis)
        np.testing.assert_allclose(degrees, motion.speed_degrees)
        assert 6 <= abs(motion.speed_degrees) <= 20
    speeds = [airplanes.motion("train", index).speed_degrees for index in range(300)]
    assert 0.4 < np.mean(np.sign(speeds) > 0) < 0.6


def test_poses_are_uniform_in_every_frame_of_every_class():
    """Of a uniform rotation each entry is uniform in [-1, 1]."""
    for label in range(3):
        motions = [airplanes.motion("train", index) for index in range(label, 3000, 3)]
        poses = np.stack([motion.poses(10) for motion in motions])
        for frame in (0, 9):
            for entry in poses[:, frame].reshape(1000, 9).T:
                assert kstest((entry + 1) / 2, "uniform").pvalue > 1e-4


def drawn(plane, pose, size=SIZE):
    """A picture of an airplane on black."""
    black = ((0, 0, 0), (0, 0, 0))
    motion = airplanes.Motion(plane=plane, start=pose, axis="yaw", speed_degrees=0.0, sky=black)
    return airplanes.draw(motion, 1, size)[0]


def test_no_airplane_leaves_the_picture():
    rng = np.random.default_rng(0)
    border = np.ones((SIZE, SIZE), bool)
    border[1:-1, 1:-1] = False
    for plane in airplanes.PLANES:
        for pose in Rotation.random(40, random_state=rng).as_matrix():
            picture = drawn(plane, pose)
            assert not picture[border].any()
            assert 10 < np.count_nonzero(picture.any(-1)) < SIZE * SIZE / 2
    chosen = {id(airplanes.motion("train", index).plane) for index in range(60)}
    assert len(chosen) == len(airplanes.PLANES) >= 3


def test_light_comes_from_above():
    up, down = (Rotation.from_euler("x", angle, degrees=True).as_matrix() for angle in (-60, 60))
    for plane in airplanes.PLANES:  # its upper side to the camera both times
        lit, dark = (drawn(plane, pose, 64) for pose in (up, down))
        assert lit[lit.any(-1)].mean() > 1.3 * dark[dark.any(-1)].mean()


def test_what_is_nearer_hides_what_is_farther_and_what_looks_away():
    square = np.array([(-0.3, -0.3, 0), (0.3, -0.3, 0), (0.3, 0.3, 0), (-0.3, 0.3, 0)])
    near, far = square + (0, 0, 0.4), square - (0, 0, 0.4)
    red, blue = np.array([200.0, 0, 0]), np.array([0, 0, 200.0])

    def centre(faces, colors):
        picture = np.zeros((60, 60, 3), np.uint8)
        airplanes._paint(picture, np.stack(faces), np.stack(colors))
        return np.flatnonzero(picture[30, 30]).tolist()

    assert centre([near, far], [red, blue]) == centre([far, near], [blue, red]) == [0]
    assert centre([near, far], [blue, red]) == [2]
    assert centre([near[::-1], far], [red, blue]) == [2]


def frames_of(split, count):
    video, labels = airplanes.make(split, size=16, count=count)
    return video.reshape(count, airplanes.FRAMES, -1) / 255, labels


@pytest.mark.slow
def test_single_frames_do_not_tell_the_class():
    (train, train_labels), (test, test_labels) = frames_of("train", 900), frames_of("test", 600)
    trees = ExtraTreesClassifier(200, random_state=0).fit(train[:, 4], train_labels)
    linear = LogisticRegression(C=1e-3, max_iter=300).fit(train[:, 4], train_labels)
    for model in (trees, linear):  # a third by chance, with a deviation of 0.02
        assert model.score(test[:, 4], test_labels) < 1 / 3 + 0.08


def test_a_clip_backwards_is_a_clip_that_turns_the_other_way():
    for index in range(12):
        motion = airplanes.motion("test", index)
        other = dataclasses.replace(
            motion, start=motion.poses(10)[-1], speed_degrees=-motion.speed_degrees
        )
        there, back = (airplanes.draw(m, 10, SIZE).astype(int) for m in (motion, other))
        assert np.mean(there[::-1] != back) < 1e-3


@pytest.mark.slow
def test_shuffled_frames_do_not_tell_the_direction():
    """What is left of a clip without its order: mean, spread and extremes of each pixel."""

    def shuffled(split, count):
        frames, _ = frames_of(split, count)
        turns = [airplanes.motion(split, index).speed_degrees > 0 for index in range(count)]
        parts = (frames.mean(1), frames.std(1), frames.min(1), frames.max(1))
        return np.concatenate(parts, axis=1), turns

    model = ExtraTreesClassifier(200, random_state=0).fit(*shuffled("train", 900))
    assert model.score(*shuffled("test", 600)) < 1 / 2 + 0.08


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "validation"}, "must be one of train, test. Received: 'validation'"),
        ({"size": 8}, "`size` must be at least 16. Received: 8"),
        ({"frames": 0}, "`frames` must be at least 1. Received: 0"),
        ({"count": 0}, "`count` must be at least 1. Received: 0"),
        ({"seed": -1}, "`seed` must be at least 0. Received: -1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        airplanes.make(**{"split": "test", **arguments})


@pytest.mark.slow
def test_the_tfds_builder_holds_the_same_clips(tmp_path, monkeypatch):
    monkeypatch.setattr(airplanes, "SPLITS", {"train": 6, "test": 3})
    builder = Airplanes(data_dir=tmp_path)
    builder.download_and_prepare()
    assert builder.info.features["label"].names == list(airplanes.CLASSES)
    for split, count in airplanes.SPLITS.items():
        received = {
            (example["video"].tobytes(), int(example["label"]))
            for example in tfds.as_numpy(builder.as_dataset(split))
        }
        clips, labels = airplanes.make(split, size=64)
        assert received == {
            (clip.tobytes(), int(label)) for clip, label in zip(clips, labels, strict=True)
        }
        assert len(received) == count
    opened = open_data(
        f"tfds:{builder.data_dir}",
        Choice(source_fps=airplanes.FPS),
        fps=airplanes.FPS,
        size=64,
        folder=tmp_path / "run",
    )
    assert opened.clips.labels == airplanes.CLASSES
    assert {split: len(store.clips) for split, store in opened.stores.items()} == airplanes.SPLITS
    model = zoo.load("mobilenet_v3_small", None, num_classes=3, resolution=32, frames=6)
    model.labels = airplanes.CLASSES
    model.save_pretrained(tmp_path / "model")
    evaluation, _ = evaluate_again(
        tmp_path / "model", f"tfds:{builder.data_dir}", "test", workers=0
    )
    _, labels = airplanes.make("test", size=64)
    assert [c.support for c in evaluation.per_class] == np.bincount(labels, minlength=3).tolist()
