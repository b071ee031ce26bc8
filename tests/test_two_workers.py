"""Two processes on loopback train to the weights of one at the same global batch."""

import sys

import numpy as np
import pytest
import safetensors.numpy
import tf_keras

from grw_keras.models import pretrained
from grw_keras.training import run
from grw_keras.training.launch import launch_local
from tests import distributed_training, video_files
from tests.test_training_run import moving_bar, rows


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Eight videos to train on, two of them too short for a window; two to test on."""
    root = tmp_path_factory.mktemp("data")
    for label in ("down", "right"):
        (root / label).mkdir()
        for number in range(5):
            name = f"{'test' if number == 4 else 'clip'}{number}.mp4"
            pictures = moving_bar(label == "right", 5 * number, frames=6 + 4 * number)
            video_files.write(root / label / name, frames=pictures, fps=10)
    return root


def weights(folder) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "model" / "model.safetensors")


@pytest.mark.exhaustive
def test_two_workers_train_to_the_weights_of_one(videos, tmp_path):
    distributed_training.train(str(videos), str(tmp_path / "one"))
    program = [sys.executable, "-m", distributed_training.__name__]
    command = [*program, str(videos), str(tmp_path / "two")]
    assert launch_local(2, command, log_folder=tmp_path / "logs") == 0
    tf_keras.utils.set_random_seed(distributed_training.RECIPE.training.seed)
    start = pretrained.weights_of(run.make_model(distributed_training.RECIPE, ["down", "right"]))
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys() == start.keys()
    for key in one:
        np.testing.assert_allclose(two[key], one[key], atol=1e-5, err_msg=key)
    # … which is far less than what the training changed.
    moved = [np.max(np.abs(one[key] - start[key])) for key in one if key.endswith("kernel")]
    assert np.median(moved) > 1e-4
    of_one, of_two = (rows(tmp_path / name / "history.csv")[0] for name in ("one", "two"))
    for name in ("loss", "cross_entropy", "top1", "grw_ordering", "grw_speed", "val_cross_entropy"):
        assert float(of_two[name]) == pytest.approx(float(of_one[name]), rel=1e-4), name
