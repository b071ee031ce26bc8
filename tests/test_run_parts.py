"""The parts of a run: what replicas read, whose classes a last layer knows, whose folder it is."""

import numpy as np
import pytest
import tensorflow as tf

from grw_keras import cli, zoo
from grw_keras.data import opening
from grw_keras.data.opening import Opened
from grw_keras.training import recipe, run, runs
from grw_keras.training.cluster import Cluster
from grw_keras.training.runs import RunFolder
from tests.store_helpers import LABELS, ArrayStore
from tests.zoo_helpers import random_clips

RECIPE = recipe.from_dict(
    {
        "model": {
            "name": "mobilenet_v3_small_grw",
            "weights": None,
            "spec": {"frames": 5, "resolution": 8},
        },
        "data": {"augmentation": None, "workers": 0},
        "training": {"batch_size": 4},
    }
)


def test_replicas_share_each_step_between_them(two_replicas):
    store = ArrayStore([9] * 7, size=9)
    opened = Opened(clips=store.clips, stores={"train": store}, bad={})
    spec = run.expected_spec(RECIPE)
    of_one = run.make_feed(RECIPE, spec, opened, tf.distribute.get_strategy())
    of_two = run.make_feed(RECIPE, spec, opened, two_replicas)
    alone, shared = iter(of_one.batches(2)), iter(of_two.batches(2))
    for step in range(2, 5):
        whole, labels = next(alone)
        video, its_labels = next(shared)
        parts = two_replicas.experimental_local_results(video)
        assert [part.shape[0] for part in parts] == [2, 2]
        np.testing.assert_array_equal(tf.concat(parts, 0), whole)
        shares = two_replicas.experimental_local_results(its_labels)
        np.testing.assert_array_equal(tf.concat(shares, 0), labels)
        # Each clip's first channel is its number.
        numbers = np.round(whole[:, 0, 0, 0, 0] * 255).astype(int)
        assert list(numbers) == [index for _, index in of_one.plan.step(step)]


@pytest.mark.slow
def test_a_last_layer_keeps_its_classes_or_is_made_new(tmp_path, caplog):
    saved = zoo.load("mobilenet_v3_small_grw", None, num_classes=4, frames=5)
    saved.labels = LABELS
    saved.save_pretrained(tmp_path)
    wanted = recipe.override(
        RECIPE, {"model.weights": str(tmp_path), "training.frozen_batch_norm": None}
    )
    order = ("jump", "wave", "bow", "run")
    model = run.make_model(wanted, order)
    clips = random_clips(2, 5)
    places = [LABELS.index(label) for label in order]
    np.testing.assert_allclose(model(clips), saved(clips).numpy()[:, places], rtol=1e-5)
    assert model.labels == order
    caplog.clear()
    with caplog.at_level("WARNING", "grw_keras"):
        other = run.make_model(wanted, ("bow", "wave", "run", "swim"))
    assert "The weights are of other classes" in caplog.text
    kept, new = "affine/kernel", "logits/kernel"
    weights = saved.named_weights()
    np.testing.assert_array_equal(other.named_weights()[kept], weights[kept])
    assert np.any(other.named_weights()[new].numpy() != weights[new].numpy())


def test_one_process_at_a_time_trains_in_a_folder(tmp_path):
    folder = RunFolder.at(tmp_path / "run")
    with (
        runs.claimed(folder),
        pytest.raises(FileExistsError, match="Another process is training"),
        runs.claimed(folder),
    ):
        raise AssertionError
    with runs.claimed(folder):  # it is free again
        assert not folder.started()


def test_a_run_that_found_no_data_has_not_begun(tmp_path):
    out = tmp_path / "run"
    arguments = ["train", "--model", "mobilenet_v3_small_grw", "--out", str(out), "--data"]
    assert cli.main([*arguments, str(tmp_path / "typo")]) == 1
    assert not RunFolder.at(out).started()


def test_a_mask_needs_a_head_that_takes_one():
    with pytest.raises(ValueError, match="takes no mask"):
        recipe.from_dict({"model": {"name": "movinet_a0_stream"}, "data": {"short": "pad"}})


def test_micro_batches_must_divide_a_devices_part():
    wanted = recipe.override(RECIPE, {"training.batch_size": 6, "training.accumulate": 2})
    with pytest.raises(ValueError, match="must divide the 3 clips"):
        run._strategy(wanted, ["CPU:0", "CPU:1"], None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--local-w", "2"], "unrecognized arguments: --local-w"),
        (["--hold", "0.2"], "unrecognized arguments: --hold"),
    ],
)
def test_flags_are_not_abbreviated(flags, message, capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--model", "m", "--data", "d", "--out", "o", *flags])
    assert message in capsys.readouterr().err


def test_workers_start_no_workers(monkeypatch, capsys):
    monkeypatch.setenv("TF_CONFIG", "{}")
    arguments = ["train", "--model", "m", "--data", "d", "--out", "o", "--local-workers", "2"]
    assert cli.main(arguments) == 1
    assert "TF_CONFIG is set" in capsys.readouterr().err


def test_tfds_data_takes_no_flags_of_videos(capsys):
    arguments = ["data", "prepare", "--data", "tfds:x", "--out", "o", "--holdout", "0.2"]
    assert cli.main(arguments) == 1
    assert "leave out --holdout" in capsys.readouterr().err


def test_workers_of_a_machine_share_its_cpus(monkeypatch):
    cluster = Cluster(("a:1", "b:1", "a:2", "a:3"), index=2)
    assert cluster.on_this_machine == 3
    monkeypatch.setattr("grw_keras.data.opening.default_workers", lambda: 8)
    assert opening.decoders(None, cluster.on_this_machine) == 2
    assert opening.decoders(5, cluster.on_this_machine) == 5
