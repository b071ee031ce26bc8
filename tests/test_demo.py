"""The script behind `make demo`: its data tell nothing frame by frame, and it runs to the end."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ks_2samp

SCRIPT = Path(__file__).parents[1] / "zoo" / "moving_shapes.py"


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("moving_shapes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_in_any_single_frame_all_classes_have_the_same_positions(demo):
    labels = np.repeat(np.arange(len(demo.CLASSES)), 4000)
    paths = demo.make_paths(labels, np.random.default_rng(0))
    for frame in (0, 4, 9):
        x, y = paths[:, frame].T
        for position in (x, y, np.hypot(x, y)):
            classes = [position[labels == label] for label in range(len(demo.CLASSES))]
            for other in classes[1:]:
                assert ks_2samp(classes[0], other).pvalue > 1e-3


def test_the_motion_of_each_class_is_its_own(demo):
    labels = np.arange(300) % 3
    paths = demo.make_paths(labels, np.random.default_rng(1))
    angles = np.unwrap(np.arctan2(paths[..., 1], paths[..., 0]), axis=1)
    turns = angles[:, -1] - angles[:, 0]
    assert (turns[labels == 0] > 1).all()
    assert (turns[labels == 1] < -1).all()
    np.testing.assert_allclose(turns[labels == 2], 0, atol=1e-6)


def test_clips_are_pixels_in_the_unit_range_and_seeded(demo):
    clips, labels = demo.make_clips(9, np.random.default_rng(2))
    again, _ = demo.make_clips(9, np.random.default_rng(2))
    assert clips.shape == (9, demo.N, demo.SIZE, demo.SIZE, 1)
    assert clips.dtype == np.float32
    assert clips.min() >= 0
    assert clips.max() <= 1
    assert np.bincount(labels).tolist() == [3, 3, 3]
    np.testing.assert_array_equal(clips, again)


@pytest.mark.slow
def test_a_short_run_writes_the_figure_and_the_numbers(tmp_path):
    command = [sys.executable, SCRIPT, "--out", tmp_path, "--epochs", "1", "--train-clips", "12"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    numbers = json.loads((tmp_path / "moving_shapes.json").read_text())
    assert list(numbers) == ["without GRW", "with GRW"]
    for values in numbers.values():
        assert 0 <= values["test accuracy"] <= 1
        assert np.isfinite(list(values.values())).all()
    accuracies = "".join(f"{values['test accuracy']:>14.3f}" for values in numbers.values())
    assert f"test accuracy             {accuracies}" in run.stdout
    assert (tmp_path / "moving_shapes.png").read_bytes().startswith(b"\x89PNG")


def test_bad_arguments_are_refused(demo, capsys):
    with pytest.raises(SystemExit):
        demo.main(["--epochs", "0"])
    assert "must be at least 1. Received: 0" in capsys.readouterr().err
