"""The parts of a run: what replicas read, whose classes a last layer knows, whose folder it is."""

import shlex
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from grw_keras import cli, zoo
from grw_keras.data import opening
from grw_keras.data.opening import Opened
from grw_keras.models import pretrained
from grw_keras.training import recipe, run, runs
from grw_keras.training.cluster import Cluster
from grw_keras.training.runs import RunFolder
from tests.store_helpers import LABELS, ArrayStore
from tests.video_files import write
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


@pytest.mark.slow
def test_a_kill_while_better_weights_are_written_leaves_weights(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    model = zoo.load("mobilenet_v3_small", None, num_classes=4)
    best = tmp_path / "best"
    run._save(model, best, chief=True)
    files = sorted(file.name for file in best.iterdir())
    replace = Path.replace
    for before_it in range(len(files)):
        left = iter(range(before_it))

        def kill(self, target, left=left):
            if Path(target).parent == best and next(left, None) is None:
                raise Killed
            return replace(self, target)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", kill)
            with pytest.raises(Killed):
                run._save(model, best, chief=True)
        assert sorted(file.name for file in best.iterdir()) == files
        pretrained.read(best)
    run._save(model, best, chief=True)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


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


def test_a_run_that_never_began_leaves_no_folder(tmp_path):
    missing, there, used = (RunFolder.at(tmp_path / name) for name in ("a", "b", "c"))
    there.path.mkdir()
    for folder in (missing, there, used):
        with runs.claimed(folder):
            if folder is used:
                (used.path / "scan.json").touch()
    assert not missing.path.exists()
    assert there.path.exists()  # it is somebody's
    assert (used.path / "scan.json").exists()


def test_a_run_remembers_the_command_that_began_it(tmp_path):
    folder = RunFolder.at(tmp_path)
    for command in ("grw-keras train …", "grw-keras train … --resume"):
        runs.keep(folder, RECIPE, ArrayStore([9] * 4).clips, command)
    assert folder.command.read_text(encoding="utf-8") == "grw-keras train …"


def test_a_run_to_be_resumed_that_never_began_is_told_of(tmp_path, caplog):
    folder = RunFolder.at(tmp_path)
    with caplog.at_level("INFO", "grw_keras"):
        runs.check(folder, RECIPE, resume=False)
        assert not caplog.messages
        runs.check(folder, RECIPE, resume=True)
    assert caplog.messages == [f"There is no run in {tmp_path} to go on with: one begins"]


@pytest.mark.parametrize(
    ("splits", "judged_by"),
    [
        (["train", "test", "validation"], "validation"),
        (["train", "test"], "test"),
        (["train"], None),
    ],
)
def test_epochs_are_judged_by_validation_or_else_test_clips(splits, judged_by):
    assert runs.monitored(splits) == judged_by


def test_a_run_that_found_no_data_has_not_begun(tmp_path):
    out = tmp_path / "run"
    arguments = ["train", "--model", "mobilenet_v3_small_grw", "--out", str(out), "--data"]
    assert cli.main([*arguments, str(tmp_path / "typo")]) == 1
    assert not RunFolder.at(out).started()


def test_a_mask_needs_a_head_that_takes_one():
    with pytest.raises(ValueError, match="takes no mask"):
        recipe.from_dict({"model": {"name": "movinet_a0_stream"}, "data": {"short": "pad"}})


def test_clips_shorter_than_the_losss_window_are_refused():
    model = {"name": "movinet_a0_stream_grw", "spec": {"frames": 4}}
    with pytest.raises(ValueError, match=r"`model.spec.frames` must be at least the 5 frames"):
        recipe.from_dict({"model": model})
    recipe.from_dict({"model": {**model, "name": "movinet_a0_stream"}})


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


@pytest.mark.parametrize(
    ("data", "flags", "message"),
    [
        ("tfds:x", ["--holdout", "0.2", "--seed", "1"], "leave out --seed, --holdout"),
        (
            "videos",
            ["--source-fps", "5", "--label-key", "a"],
            "leave out --source-fps, --label-key",
        ),
        ("videos", ["--beam-options", "a=b"], "leave out --beam-options"),
    ],
)
def test_flags_of_other_data_are_refused(data, flags, message, capsys):
    assert cli.main(["data", "prepare", "--data", data, "--out", "o", *flags]) == 1
    assert message in capsys.readouterr().err


def test_zero_is_no_default(tmp_path, capsys):
    (tmp_path / "videos" / "a").mkdir(parents=True)
    write(tmp_path / "videos" / "a" / "clip.mp4", frames=3)
    arguments = [
        "data",
        "prepare",
        "--data",
        str(tmp_path / "videos"),
        "--out",
        str(tmp_path / "o"),
    ]
    for flag in ("--fps", "--size"):
        assert cli.main([*arguments, flag, "0"]) == 1
        assert "positive" in capsys.readouterr().err


@pytest.mark.parametrize("count", ["0", "-2"])
def test_less_than_one_worker_is_refused(count, capsys):
    arguments = ["train", "--model", "m", "--data", "d", "--out", "o", "--local-workers", count]
    assert cli.main(arguments) == 1
    assert f"--local-workers must be at least 1. Received: {count}" in capsys.readouterr().err


def test_launched_workers_know_the_command_that_is_put_on_record(monkeypatch):
    started = []
    monkeypatch.setattr(
        "grw_keras.training.launch.launch_local", lambda workers, command: started.append(command)
    )
    own = ["train", "--model", "m", "--data", "my d", "--out", "o", "--local-workers", "2"]
    cli.main(own)
    (command,) = started
    assert "--local-workers" not in command
    assert command[-2:] == ["--launched-by", shlex.join(["grw-keras", *own])]


def test_workers_of_a_machine_share_its_cpus(monkeypatch):
    cluster = Cluster(("a:1", "b:1", "a:2", "a:3"), index=2)
    assert cluster.on_this_machine == 3
    monkeypatch.setattr("grw_keras.data.opening.default_workers", lambda: 8)
    assert opening.decoders(None, cluster.on_this_machine) == 2
    assert opening.decoders(5, cluster.on_this_machine) == 5


def opened(**splits: int) -> Opened:
    """Stores of so many clips."""
    stores = {split: ArrayStore([9] * count) for split, count in splits.items()}
    return Opened(clips=stores["train"].clips, stores=stores, bad={})


@pytest.mark.parametrize(
    ("splits", "batch_size", "told"),
    [
        ({"train": 3}, 2, ["not evaluated"]),
        ({"train": 3, "test": 2}, 2, ["of the test clips"]),
        ({"train": 3, "test": 2, "validation": 1}, 3, []),
        ({"train": 3, "test": 2, "validation": 1}, 4, ["takes 4 clips, but there are 3"]),
    ],
)
def test_what_would_be_noticed_too_late_is_told_at_the_start(splits, batch_size, told, caplog):
    run._advise(opened(**splits), batch_size)
    assert len(caplog.messages) == len(told)
    for message, part in zip(caplog.messages, told, strict=True):
        assert part in message


@pytest.mark.parametrize(
    ("model", "weights", "reason"),
    [
        ("mobilenet_v3_small_grw", "nothing.pt", "No such file or folder of weights: nothing.pt"),
        ("mobilenet_v3_small_grw", "k600", "--weights none"),
        ("movinet_a0_stream_grw", "k600", "not tried, offline"),
    ],
)
def test_weights_that_are_not_to_be_had_are_refused_before_videos_are_opened(
    model, weights, reason, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRW_KERAS_CACHE", str(tmp_path))
    monkeypatch.setenv("GRW_KERAS_OFFLINE", "1")
    (tmp_path / "no videos").mkdir()
    arguments = ["train", "--model", model, "--weights", weights]
    assert cli.main([*arguments, "--data", "no videos", "--out", "runs/mine"]) == 1
    assert reason in capsys.readouterr().err
