"""What the benchmarks compare with is the same, and their statistics hold."""

import csv
import itertools

import numpy as np
import pytest

from benchmarks import pipeline, step
from benchmarks.loss import literal_loss, literal_orderings
from grw_keras import grw_loss
from tests.video_files import write


@pytest.mark.parametrize("window", [5, 9])
def test_the_literal_side_computes_the_same_loss(window):
    z = np.random.default_rng(0).normal(size=(4, window, 6)).astype(np.float32)
    rows = literal_orderings(window)
    literal = float(literal_loss(z, rows))
    assert float(grw_loss(z, window=window, orderings=rows)) == pytest.approx(literal, rel=1e-5)


def test_the_share_is_that_of_the_differences_whatever_disturbs_a_few_pairs():
    rng = np.random.default_rng(0)
    without = rng.uniform(0.4, 0.6, 200)
    times = np.stack([without + 0.005, without], axis=1)
    times[:15, 0] += 3.0
    times[15:30, 1] += 3.0
    kept = times[30:, 0]
    assert step.share(times) == pytest.approx(0.005 / kept.mean(), rel=0.02)


def test_the_upper_bound_lies_as_far_above_the_share_as_its_spread_says():
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.01, 400)
    times = np.stack([np.full(400, 0.5) + noise, np.full(400, 0.5)], axis=1)
    margin = step.upper_bound(times) - step.share(times)
    # 1.645 standard errors of a mean, 0.01 / 20 s in 0.5 s; a trimmed mean's are about the same.
    assert margin == pytest.approx(1.645 * 0.01 / 20 / 0.5, rel=0.25)


def test_each_pair_is_timed_in_either_order(monkeypatch):
    clock = itertools.count(1)
    monkeypatch.setattr(step, "seconds", lambda call: next(clock))
    times = step.timed_pairs(dict, dict, 50)
    assert sorted(times.ravel()) == list(range(1, 101))
    firsts = int((times[:, 0] < times[:, 1]).sum())
    assert 10 < firsts < 40
    assert (abs(times[:, 0] - times[:, 1]) == 1).all()


@pytest.mark.slow
@pytest.mark.exhaustive
def test_with_and_without_grw_differ_in_the_loss_alone():
    calls = step.step_calls(2, 6, 32)
    with_grw, without = calls[step.WITH](), calls[step.WITHOUT]()
    assert with_grw["cross_entropy"] == without["cross_entropy"]
    assert with_grw["loss"] > without["loss"] + 1e-3


@pytest.mark.slow
def test_the_pipeline_is_measured_on_any_folder_of_videos(tmp_path, monkeypatch):
    for number in range(4):
        folder = tmp_path / "videos" / f"class {number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / f"{number}.mp4", frames=30 + 15 * number)
    table = tmp_path / "table.csv"
    options = {"videos": tmp_path / "videos", "csv": table, "size": 32, "rounds": 1, "steps": 0}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    monkeypatch.setattr("sys.argv", ["pipeline", *arguments])
    pipeline.main()
    with table.open(newline="") as file:
        rows = {row["quantity"]: float(row["value"]) for row in csv.DictReader(file)}
    assert rows["decoding, plain PyAV: ratio to plain PyAV"] == 1
    for name in ("plain PyAV", "OpenCV", *(f"ours, {n} processes" for n in (0, 1, 2))):
        assert rows[f"decoding, {name}"] > 0
    for name in ("memory", "disk cache", "records", "videos"):
        assert rows[f"10 frames from {name}"] > 0
