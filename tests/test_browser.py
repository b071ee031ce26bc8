"""The browser client: built, its unit tests run, and the page used in headless Chromium."""

import csv
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests import browser_model, video_files

TFLITE = Path(__file__).parents[1] / "tflite"
ROOT = TFLITE / "browser"
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
NUMBERED = 72  # frames at 24 a second
MADE = shutil.ignore_patterns("node_modules", "dist", "wasm")
NO_REGISTRY = re.compile("ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT|ENETUNREACH")
REFUSED = {
    "text.tflite": "This is not a TFLite file.",
    "truncated.tflite": "it was cut short, or was not written by grw_keras.export.",
    "googles.tflite": "it was cut short, or was not written by grw_keras.export.",
    "damaged.tflite": "LiteRT can’t run this file, which may be damaged",
    "embed.tflite": "This page takes files of kind “stream”; this one is of kind “embed”",
    "version.tflite": "The file is of format version 2, and this page knows only 1",
    "crop.tflite": "“image” should be float32 [1,1,160,160,3], and is float32 [1,1,172,172,3]",
    "classes.tflite": "“logits” should be float32 [1,599], and is float32 [1,600]",
    "labels.tflite": "The file contradicts itself: it has 599 labels for 600 classes.",
    "no model": "Choose a model file first.",
    "no video": "Choose a file to look at first.",
    "bad video": "“stream.tflite” can’t be decoded: this browser plays no such video.",
    "bad image": "“stream.tflite” can’t be decoded as an image.",
    "none.tflite": "The server has no model there (status 404).",
    "https://example.invalid/a.tflite": "The model must come from where the page comes from.",
}


def run(*command, cwd: Path) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=400
    )
    if command[:2] == ("npm", "ci") and NO_REGISTRY.search(done.stderr):
        pytest.skip(f"npm reaches no registry: {done.stderr[:300]}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The folder, built in a copy."""
    for program in ("npm", CHROMIUM):
        if not shutil.which(program):
            pytest.skip(
                f"no {program}: apt-get install -y --no-install-recommends nodejs npm chromium"
            )
    version = run("node", "--version", cwd=ROOT).strip()
    if [int(part) for part in version[1:].split(".")[:2]] < [20, 19]:
        pytest.skip(f"Node.js must be 20.19 or newer, as Vite wants it; this is {version}")
    folder = tmp_path_factory.mktemp("tflite")
    shutil.copytree(TFLITE / "golden", folder / "golden")
    shutil.copytree(ROOT, folder / "browser", ignore=MADE)
    run("npm", "ci", cwd=folder / "browser")
    run("npm", "run", "build", cwd=folder / "browser")
    return folder / "browser"


@pytest.fixture(scope="module")
def model(built, shared, tmp_path_factory) -> Path:
    return browser_model.export(shared, tmp_path_factory.mktemp("model") / "stream.tflite")


@pytest.fixture(scope="module")
def frames(shared, tmp_path_factory) -> tuple[Path, np.ndarray]:
    folder = tmp_path_factory.mktemp("clip") / "frames"
    return folder, browser_model.write_frames(shared, folder)


@pytest.fixture(scope="module")
def page(built, model, frames, shared, tmp_path_factory) -> dict:
    """What came of using the page, as `e2e/run.mjs` tells it."""
    folder = tmp_path_factory.mktemp("page")
    browser_model.write_bad_files(shared, model, folder / "bad")
    numbered = video_files.write(folder / "numbered.mp4", frames=NUMBERED, fps=24)
    videos = [shared / browser_model.CLIP, numbered]
    folders = [folder / "bad", folder / "screenshots"]
    given = ["dist", model, frames[0], *videos, *folders]
    return json.loads(run("node", "e2e/run.mjs", *given, cwd=built))


pytestmark = pytest.mark.xdist_group("browser")


@pytest.mark.slow
def test_unit_tests_pass(built):
    assert "passed" in run("npm", "test", cwd=built)


@pytest.mark.slow
def test_answers_of_image_files_equal_pythons(page, model, frames):
    expected = browser_model.answers(model, frames[1])
    for run_of in ("answers", "again"):  # the first run, and the last of many
        saved = page["images"][run_of]
        np.testing.assert_allclose(saved["probabilities"], expected, atol=1e-5)
        np.testing.assert_allclose(saved["times_s"], np.arange(len(expected)) / 5)
    assert (saved["model"], saved["fps"]) == ("movinet_a0_stream_relu6", 5)
    assert len(saved["labels"]) == saved["labels"].index("zumba") + 1 == 600


@pytest.mark.slow
def test_smoothed_answers_equal_pythons(page, model, frames):
    expected = browser_model.answers(model, frames[1], smoothing=0.5)
    assert abs(expected - browser_model.answers(model, frames[1])).max() > 0.1
    smoothed = page["images"]["smoothed"]["probabilities"]
    np.testing.assert_allclose(smoothed, expected, atol=1e-5)


@pytest.mark.slow
def test_csv_holds_what_json_holds(page):
    header, *rows = csv.reader(page["images"]["csv"].splitlines())
    saved = page["images"]["answers"]
    assert header == ["time_s", *saved["labels"]]
    values = np.array(rows, float)
    np.testing.assert_allclose(values[:, 0], saved["times_s"])
    np.testing.assert_allclose(values[:, 1:], saved["probabilities"])


@pytest.mark.slow
def test_memory_does_not_grow(page):
    assert page["images"]["grown"] == 0


@pytest.mark.slow
def test_a_video_gives_its_label(page):
    assert page["video"]["label"] == "arm wrestling"
    np.testing.assert_allclose(page["video"]["answers"]["times_s"], np.arange(50) / 5)
    assert page["video"]["overflow"] == 0  # on a phone's width nothing is cut off


@pytest.mark.slow
def test_of_a_video_the_frames_on_display_at_each_tick_are_taken(page):
    assert page["numbers"] == [24 * tick // 5 for tick in range(5 * NUMBERED // 24)]


@pytest.mark.slow
def test_camera_refused_then_allowed(page):
    assert page["camera"]["refused"].startswith("The camera was refused")
    times = np.array(page["camera"]["answers"]["times_s"])
    assert times[0] > 1  # the reset forgot what came before
    ticks = np.floor((times + 1e-3) * 5)  # thinned from the camera's 20 or more a second
    assert (np.diff(ticks) > 0).all()


@pytest.mark.slow
def test_what_it_cannot_use_is_refused_in_a_sentence(page):
    assert page["errors"].keys() == REFUSED.keys()
    for name, sentence in REFUSED.items():
        assert sentence in page["errors"][name]


@pytest.mark.slow
def test_nothing_is_asked_of_another_origin(page):
    assert len(page["requests"]) > 5
    for url in page["requests"]:
        assert url.removeprefix("blob:").startswith(page["address"])
    assert page["complaints"] == []


@pytest.mark.slow
def test_the_controls_are_reached_by_keyboard(page):
    assert page["keyboard"] == ["model-file", "camera", "start", "smoothing"]


def test_versions_are_exact_and_no_registry_is_named():
    package = json.loads((ROOT / "package.json").read_text())
    for version in (package["dependencies"] | package["devDependencies"]).values():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    lock = (ROOT / "package-lock.json").read_text()
    assert '"resolved"' not in lock
    assert "registry." not in lock
