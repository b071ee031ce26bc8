"""The script behind `make demo`: what it trains on, and that it runs to its page."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from grw_keras.data import airplanes
from tests.helpers import script

ZOO = Path(__file__).parents[1] / "zoo"
SCRIPT = ZOO / "demo.py"


@pytest.fixture(scope="module")
def demo():
    return script(ZOO / "demo_training.py")


@pytest.fixture(scope="module")
def clips(demo):
    return demo.Clips(*airplanes.make("train", size=16, count=2 * demo.BATCH))


def taken(demo, clips, count, seed=0):
    return [
        (video.numpy(), labels.numpy())
        for video, labels in demo.batches(clips, seed=seed).take(count)
    ]


def test_an_epoch_holds_every_clip_once_in_an_order_of_its_own(demo, clips):
    batches = taken(demo, clips, 4)
    sums = np.sort(clips.video.reshape(len(clips.labels), -1).sum(-1, dtype=np.int64))
    for epoch in (batches[:2], batches[2:]):
        video = np.concatenate([video for video, _ in epoch])
        seen = np.rint(video.reshape(len(video), -1).astype(np.float64).sum(-1) * 255)
        np.testing.assert_allclose(np.sort(seen), sums, atol=2)  # turned, mirrored, reversed
    assert not np.array_equal(batches[0][1], batches[2][1])


def test_batches_are_the_same_for_the_same_seed(demo, clips):
    for once, again in zip(taken(demo, clips, 3), taken(demo, clips, 3), strict=True):
        np.testing.assert_array_equal(once[0], again[0])
        np.testing.assert_array_equal(once[1], again[1])
    other = taken(demo, clips, 1, seed=1)
    assert not np.array_equal(other[0][0], taken(demo, clips, 1)[0][0])


def test_variation_keeps_the_motion_a_turn_about_the_same_axis(demo):
    """Turned by quarters, mirrored and backwards are pictures of an airplane that turns so."""
    clip = np.arange(2 * 3 * 3 * 3).reshape(2, 3, 3, 3)
    np.testing.assert_array_equal(demo.varied(clip, 0, 0, 0), clip)
    np.testing.assert_array_equal(demo.varied(clip, 0, 0, 1), clip[::-1])
    np.testing.assert_array_equal(demo.varied(clip, 0, 1, 0), clip[:, :, ::-1])
    turned = demo.varied(clip, 1, 0, 0)
    np.testing.assert_array_equal(turned[:, 0, 0], clip[:, 0, 2])
    np.testing.assert_array_equal(demo.varied(turned, 3, 0, 0), clip)


def test_numbers_beside_the_figure_are_by_their_formulas(demo):
    z = np.random.default_rng(0).normal(size=(5, 10, 4)).astype(np.float32)
    found = demo.WarmUp([0.1, 0.7], z).numbers()
    speed = np.mean([np.linalg.norm(c[t + 1] - c[t]) for c in z for t in range(9)])
    acceleration = np.mean(
        [np.linalg.norm(c[t + 2] - 2 * c[t + 1] + c[t]) for c in z for t in range(8)]
    )
    assert found["accuracy"] == 0.7
    assert found["acceleration_over_speed"] == pytest.approx(acceleration / speed, rel=1e-5)
    variances = np.linalg.eigvalsh(np.cov(z.reshape(-1, 4).T))
    share = variances[-2:].sum() / variances.sum()
    assert found["variance_in_two_components"] == pytest.approx(share, rel=1e-5)


def test_both_panels_of_figure_two_have_one_scale(demo):
    page = script(ZOO / "demo_page.py")
    rng = np.random.default_rng(0)
    runs = {
        name: demo.WarmUp([0.5], scale * rng.normal(size=(9, 10, 4)))
        for name, scale in (("without GRW", 100.0), ("with GRW", 1.0))
    }
    panels = page.figure_two(runs, np.arange(9) % 3).axes
    assert panels[0].get_xlim() == panels[1].get_xlim() == panels[1].get_ylim()
    assert 0.5 < panels[0].get_xlim()[1] < 10


def short_run(out):
    command = [sys.executable, SCRIPT, "--out", out, "--epochs", "1"]
    command += ["--train-clips", "20", "--test-clips", "6"]
    return subprocess.run(command, capture_output=True, text=True, check=True)


@pytest.mark.slow
def test_a_short_run_writes_the_page_the_numbers_and_the_file(tmp_path):
    run = short_run(tmp_path)
    numbers = json.loads((tmp_path / "results.json").read_text())
    assert list(numbers) == ["without GRW", "with GRW", "stream"]
    assert numbers["stream"]["largest_difference_of_range"] < 1e-3
    for values in numbers.values():
        assert 0 <= values["accuracy"] <= 1
        assert np.isfinite(list(values.values())).all()
    page = (tmp_path / "report.html").read_text()
    for name in ("without GRW", "with GRW"):
        assert f"{numbers[name]['acceleration_over_speed']:.3f}" in page
    assert page.count("<img ") == 6  # three strips, figure 2, two curves
    assert not re.search(r"https?://|<script", page)
    assert (tmp_path / "airplanes.tflite").stat().st_size > 1e6
    told = [line for line in run.stdout.splitlines() if "%]" in line]
    assert len(told) == 5  # an epoch of each, the export, the streaming


def test_time_left_is_by_the_speed_since_all_have_told_of_themselves(monkeypatch, capsys):
    times = iter([0, 50, 60, 100, 100, 110])
    demo = script(SCRIPT)
    monkeypatch.setattr(demo.time, "perf_counter", lambda: next(times))
    monkeypatch.setattr(demo, "SHARES", {"a": 0.5, "b": 0.5})
    clock = demo.Clock()
    for name, done in (("a", 0.1), ("a", 0.2), ("b", 0.2), ("b", 0.2), ("a", 0.4)):
        clock.tell(name, done, "on it")
    *early, last = capsys.readouterr().out.splitlines()
    assert not any("left" in line for line in early)
    assert last.startswith("[ 30%]")
    assert last.endswith("  70 s left")  # a tenth in 10 s, and seven of them to go


def test_silence_is_broken_by_the_time_so_far(monkeypatch, capsys):
    times = iter([0, 19, 21, 40, 50, 69, 71])
    demo = script(SCRIPT)
    monkeypatch.setattr(demo.time, "perf_counter", lambda: next(times))
    clock = demo.Clock()
    for step in (clock.wait, clock.wait, clock.wait, None, clock.wait, clock.wait):
        if step is None:
            clock.tell("stream", 0.5, "on it")
        else:
            step()
    waited = [line for line in capsys.readouterr().out.splitlines() if "at work" in line]
    assert waited == ["[…] at work since 21 s", "[…] at work since 71 s"]


@pytest.mark.exhaustive
def test_two_runs_find_the_same_numbers_and_write_the_same_file(tmp_path):
    for name in ("once", "again"):
        short_run(tmp_path / name)
    for file in ("results.json", "airplanes.tflite"):
        assert (tmp_path / "once" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_bad_arguments_are_refused(capsys):
    with pytest.raises(SystemExit):
        script(SCRIPT).main(["--epochs", "0"])
    assert "must be at least 1. Received: 0" in capsys.readouterr().err
