"""A run that was killed, stopped or cut goes on to the bits of one that never was."""

import json
import os
import random
import signal
import time

import numpy as np
import pytest

from grw_keras.training import checkpoint_files
from tests.training_programs import GROUPS, Zygote

pytestmark = pytest.mark.slow

KILLS = 20
# Lines of each group within which a kill falls, so that it does before the run ends.
REACH = {"write": 1500, "epoch": 60, "step": 150}
ALL_ON = {"ema_decay": 0.9, "checkpoint_every_steps": 2, "early_stopping_epochs": 9}


@pytest.fixture(scope="module")
def zygote():
    running = Zygote()
    yield running
    running.close()


@pytest.fixture(scope="module")
def whole(zygote, tmp_path_factory):
    """Gives the folder of the uninterrupted run of some settings, trained once."""
    done = {}

    def train(**settings):
        key = json.dumps(settings, sort_keys=True)
        if key not in done:
            done[key] = tmp_path_factory.mktemp("whole") / "run"
            assert zygote.train(done[key], settings=settings) == 0, log(done[key])
        return done[key]

    return train


def log(folder):
    return folder.with_name(folder.name + ".log").read_text()


def assert_same_end(folder, expected):
    for name in ("outcome.json", "history.csv"):
        assert (folder / name).read_text() == (expected / name).read_text(), name
    with np.load(folder / "end.npz") as ours, np.load(expected / "end.npz") as theirs:
        assert ours.files == theirs.files
        for name in theirs.files:
            assert ours[name].tobytes() == theirs[name].tobytes(), name


def test_the_reference_run_trains_at_all(whole):
    folder = whole(**ALL_ON)
    outcome = json.loads((folder / "outcome.json").read_text())
    assert outcome["step"] == 17
    assert [row["step"] for row in outcome["history"]] == [6, 11, 17]
    assert outcome["history"][-1]["loss"] < outcome["history"][0]["loss"]
    with np.load(folder / "end.npz") as end:
        assert all(np.isfinite(end[name]).all() for name in end.files)
        assert int(end["counter/0"]) == 17
        assert int(end["optimizer/0"]) == 17


def test_killed_at_random_moments_it_ends_with_the_same_bits(zygote, whole, tmp_path):
    """Two runs at a time; one that ends before it is killed makes room for a new one."""
    seed = int(os.environ.get("GRW_KERAS_KILL_SEED", random.randrange(10**6)))
    print(f"GRW_KERAS_KILL_SEED={seed}")
    rng = random.Random(seed)
    runs, places = [tmp_path / "run0", tmp_path / "run1"], []
    while len(places) < KILLS:
        children = []
        for folder in runs[-2:]:
            group = rng.choice([*GROUPS, "time"])
            moment = rng.uniform(0, 1.5) if group == "time" else rng.randint(1, REACH[group])
            options = {"settings": ALL_ON, "resume": True, "kill": [group, moment]}
            children.append((folder, zygote.start(folder, **options)))
        for folder, pid in children:
            code = zygote.wait(pid)
            assert code in (0, -signal.SIGKILL), log(folder)
            if code:
                places.append((folder / "killed").read_text())
            else:
                runs.append(tmp_path / f"run{len(runs)}")
    print("\n".join(places))
    ended = [folder for folder in runs if folder.exists()]
    for folder in ended:
        if not (folder / "outcome.json").exists():
            assert zygote.train(folder, settings=ALL_ON, resume=True) == 0, log(folder)
        assert_same_end(folder, whole(**ALL_ON))
    assert sum(log(folder).count("Resumed at step") for folder in ended) > KILLS / 2
    assert len(set(places)) > KILLS / 2


def start_and_pause(zygote, folder, step, **options):
    """The process id of a run that has just done a step, and waits a little."""
    (folder / "paused").unlink(missing_ok=True)
    pid = zygote.start(folder, pause_at=step, **options)
    end_s = time.monotonic() + 60
    while not (folder / "paused").exists():
        assert time.monotonic() < end_s, log(folder)
        time.sleep(0.005)
    return pid


def kill_after(zygote, folder, step, **options):
    pid = start_and_pause(zygote, folder, step, **options)
    os.kill(pid, signal.SIGKILL)
    assert zygote.wait(pid) == -signal.SIGKILL


def test_every_kind_of_state_is_kept(zygote, whole, tmp_path):
    """The backbone is frozen for 9 of 17 steps; checkpoints before that, then, and after."""
    settings = {
        "optimizer": "adamw",
        "weight_decay": 0.1,
        "clip_norm": 1.0,
        "precision": "float16",
        "accumulate": 2,
        "label_smoothing": 0.1,
        "frozen_backbone_epochs": 1.5,
        "checkpoint_every_steps": 3,
    }
    folder = tmp_path / "run"
    for stop_at in (7, 10):
        kill_after(zygote, folder, stop_at, settings=settings, resume=True)
    assert zygote.train(folder, settings=settings, resume=True) == 0, log(folder)
    assert "Resumed at step 6 of 17" in log(folder)
    assert "Resumed at step 9 of 17" in log(folder)
    assert_same_end(folder, whole(**settings))


def test_after_a_corrupt_last_checkpoint_it_resumes_from_the_one_before(zygote, whole, tmp_path):
    folder = tmp_path / "run"
    kill_after(zygote, folder, 9, settings=ALL_ON)
    arrays = folder / "checkpoints" / "step-00000008" / checkpoint_files.ARRAYS
    data = bytearray(arrays.read_bytes())
    data[len(data) // 2] ^= 1
    arrays.write_bytes(data)
    assert zygote.train(folder, settings=ALL_ON, resume=True) == 0, log(folder)
    assert "does not have the checksum it was given" in log(folder)
    assert "Resumed at step 6 of 17" in log(folder)
    assert_same_end(folder, whole(**ALL_ON))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_the_next_step_and_ends_clean(number, zygote, whole, tmp_path):
    folder = tmp_path / "run"
    pid = start_and_pause(zygote, folder, 7, settings=ALL_ON)
    os.kill(pid, number)
    assert zygote.wait(pid) == 0, log(folder)
    assert not (folder / "outcome.json").exists()
    assert checkpoint_files.latest(folder / "checkpoints").step == 7
    assert f"{number.name}: saving after this step" in log(folder)
    assert "Traceback" not in log(folder)
    assert zygote.train(folder, settings=ALL_ON, resume=True) == 0, log(folder)
    assert "Resumed at step 7 of 17" in log(folder)
    assert_same_end(folder, whole(**ALL_ON))


def test_an_ended_run_resumes_to_its_end_at_once(zygote, whole, tmp_path):
    folder = tmp_path / "run"
    settings = {**ALL_ON, "early_stopping_epochs": 1, "epochs": 9}
    assert zygote.train(folder, settings=settings) == 0, log(folder)
    first = (folder / "outcome.json").read_text()
    assert json.loads(first)["step"] < 49
    (folder / "outcome.json").unlink()
    assert zygote.train(folder, settings=settings, resume=True) == 0, log(folder)
    assert (folder / "outcome.json").read_text() == first
