"""grw-keras train, evaluate, predict, export and data prepare, on a folder of small videos."""

import csv
import json
import subprocess
import sys

import av
import numpy as np
import pytest

from grw_keras import cli, zoo
from grw_keras.evaluation import results
from grw_keras.lite import StreamSession
from grw_keras.training import again
from tests import video_files

pytestmark = pytest.mark.xdist_group("training run")  # they share what is dear to make

SIZE = 32
TRAIN = [
    *("train", "--model", "mobilenet_v3_small_grw", "--weights", "none", "--frames", "6"),
    *("--epochs", "2", "--batch-size", "4", "--workers", "0"),
    *("--holdout", "0.25", "--test-regex", "set2", "--group-regex", r"seq\d+"),
    *("--set", f"model.spec.resolution={SIZE}", "training.head_rate=[1e-4, 1e-6]"),
    *("training.backbone_rate=[1e-5, 1e-7]", "training.ema_decay=0.9"),
]


def moving_bar(upright: bool, shift: int, frames: int = 45) -> list[np.ndarray]:
    """A bar that moves to the right, or down."""
    pictures = []
    for t in range(frames):
        picture = np.full((48, 64, 3), 20, np.uint8)
        place = (shift + t) % 40
        if upright:
            picture[:, place : place + 8] = 230
        else:
            picture[place : place + 8] = 230
        pictures.append(picture)
    return pictures


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two classes of six videos; the last two sequences are set 2; one file is no video."""
    root = tmp_path_factory.mktemp("data") / "my videos"
    for label in ("down & out", "right"):
        (root / label).mkdir(parents=True)
        for number in range(6):
            path = root / label / f"set{1 + number // 4}_seq{number:02}_{label[0]}.mp4"
            pictures = moving_bar(label == "right", 5 * number)
            video_files.write(path, frames=pictures, fps=15)
    (root / "right" / "set1_seq09_r.mp4").write_text("not a video")
    return root


@pytest.fixture(scope="module")
def run(videos, tmp_path_factory):
    """A run's folder after training."""
    out = tmp_path_factory.mktemp("runs") / "mine"
    arguments = [*TRAIN, "data.max_bad_share=0.2", "--data", str(videos), "--out", str(out)]
    assert cli.main(arguments) == 0
    return out


def rows(path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_run_leaves_a_model_its_numbers_and_a_report(run):
    assert {"recipe.yaml", "clips.csv", "history.csv", "report.html"} <= {
        path.name for path in run.iterdir()
    }
    history = rows(run / "history.csv")
    assert [row["epoch"] for row in history] == ["1", "2"]
    for name in ("loss", "cross_entropy", "grw_ordering", "grw_speed", "grw_order_accuracy"):
        assert np.isfinite(float(history[-1][name]))
    total = float(history[0]["cross_entropy"]) + 0.1 * (
        float(history[0]["grw_ordering"]) + 0.5 * float(history[0]["grw_speed"])
    )
    assert float(history[0]["loss"]) == pytest.approx(total, rel=1e-4)
    model = zoo.load(run / "model")
    assert model.labels == ("down & out", "right")
    assert (model.spec.frames, model.spec.resolution) == (6, SIZE)
    page = (run / "report.html").read_text()
    assert "down &amp; out" in page
    assert "<code>grw-keras train --model mobilenet_v3_small_grw" in page
    assert "set1_seq09_r.mp4" not in page  # a bad video, but none of the test clips


@pytest.mark.slow
def test_its_splits_are_by_set_and_by_sequence(run):
    clips = rows(run / "clips.csv")
    assert {row["split"] for row in clips if "set2" in row["path"]} == {"test"}
    held = {row["group"] for row in clips if row["split"] == "validation"}
    trained = {row["group"] for row in clips if row["split"] == "train"}
    assert held
    assert not held & trained
    assert [row["path"].rsplit("/", 1)[-1] for row in rows(run / "bad_videos.csv")] == [
        "set1_seq09_r.mp4"
    ]


@pytest.mark.slow
def test_evaluation_repeats_the_runs_own_numbers(run, videos, capsys, tmp_path):
    first = results.read_json(run / "results_test.json")
    table = tmp_path / "evaluations.csv"
    arguments = ["evaluate", str(run), "--data", str(videos), "--split", "test"]
    assert cli.main([*arguments, "--csv", str(table), "--workers", "0"]) == 0
    again = results.read_json(run / "results_test.json")
    for field in ("clips", "top1", "nll", "confusion", "accuracy_by_frames", "mean_speed"):
        assert getattr(again, field) == getattr(first, field)
    assert again.clips == 4
    assert dict(again.accuracy_by_frames)[6] == again.top1
    assert "top-1" in capsys.readouterr().out
    assert rows(table)[0]["clips"] == "4"
    assert json.loads((run / "results_test.json").read_text())["split"] == "test"


@pytest.mark.slow
def test_prediction_names_classes_and_writes_a_labelled_video(run, videos, capsys, tmp_path):
    video = next(videos.glob("right/set2*"))
    target = tmp_path / "labelled.mp4"
    assert cli.main(["predict", str(run), str(video), "--top", "2", "--video", str(target)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{video}: the middle 1.2 s of 3 s"
    shares = [float(line.split("%")[0]) for line in lines[1:3]]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert {line.split("%")[1].strip() for line in lines[1:3]} == {"down & out", "right"}
    with av.open(str(target)) as written:
        assert sum(1 for _ in written.decode(video=0)) == 45


@pytest.mark.exhaustive
def test_export_calibrates_with_training_clips_and_writes_a_stream(run, videos, tmp_path, capsys):
    arguments = ["export", str(run), "--tflite", str(tmp_path), "--name", "bars"]
    assert cli.main([*arguments, "--quantization", "int8", "--data", str(videos)]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path / 'bars.tflite'}: " in said
    assert "int8 weights" in said
    session = StreamSession(tmp_path / "bars.tflite")
    assert session.labels == ("down & out", "right")
    model = zoo.load(run / "model")
    with again.open_split(run, videos, "test", workers=0) as taken:
        clip = next(iter(again.centre_clips(taken)))[0]
    for frame in clip[0].numpy():
        session.step(frame)
    expected = model(clip)[0].numpy()
    assert np.abs(session.logits - expected).max() < 0.2 * np.ptp(expected)


@pytest.mark.slow
def test_clips_to_calibrate_with_are_from_all_over_the_split(run, videos):
    def taken_clips(most=None):
        batches = again.centre_clips(taken, most)
        return [(video[0].numpy(), int(label[0])) for video, label in batches]

    with again.open_split(run, videos, "train", workers=0) as taken:
        every, chosen = taken_clips(), taken_clips(3)
    assert len(every) == sum(row["split"] == "train" for row in rows(run / "clips.csv")) == 6
    assert len(chosen) == 3
    for (video, label), index in zip(chosen, (0, 2, 4), strict=True):
        np.testing.assert_array_equal(video, every[index][0])
        assert label == every[index][1]


@pytest.mark.exhaustive
def test_prepared_records_train_alike(run, videos, tmp_path, capsys):
    records, out = tmp_path / "records", tmp_path / "run"
    splitting = ["--holdout", "0.25", "--test-regex", "set2", "--group-regex", r"seq\d+"]
    prepare = ["data", "prepare", "--data", str(videos), "--out", str(records), "--workers", "0"]
    size = str(zoo.load(run / "model").spec.resize)
    arguments = [*prepare, *splitting, "--max-bad-share", "0.2", "--size", size, "--fps", "5"]
    assert cli.main(arguments) == 0
    assert "4 test" in capsys.readouterr().out
    kept = [a for a in TRAIN if a not in splitting]
    assert cli.main([*kept, "--data", str(records), "--out", str(out)]) == 0
    of_videos, of_records = (rows(folder / "history.csv") for folder in (run, out))
    for name in ("cross_entropy", "val_cross_entropy"):
        # The same clips in the same order, but for JPEG.
        assert float(of_records[0][name]) == pytest.approx(float(of_videos[0][name]), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([], "There is a run in"),
        (["--resume", "--epochs", "3"], "training.epochs: 2 → 3"),
        (["--resume", "--holdout", "0.5"], "data.holdout: 0.25 → 0.5"),
    ],
)
def test_a_run_is_not_mixed_with_another(run, videos, change, message, capsys):
    arguments = [*TRAIN, "data.max_bad_share=0.2", "--data", str(videos), "--out", str(run)]
    assert cli.main([*arguments, *change]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_has_ended_ends_at_once_when_resumed(run, videos, capsys):
    before = (run / "model" / "model.safetensors").read_bytes()
    arguments = ["train", "--data", str(videos), "--out", str(run), "--resume"]
    assert cli.main(arguments) == 0
    assert (run / "model" / "model.safetensors").read_bytes() == before
    assert "Resumed at step" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "x", "--out", "y"], "Give a recipe, or a model"),
        (["train", "--model", "movinet_a0_strem_grw", "--data", "x", "--out", "y"], "closest"),
        (
            ["train", "--model", "movinet_a0_stream_grw", "--data", "nowhere", "--out", "y"],
            "`data` must be a folder or a .csv file that exists",
        ),
        (["train", "no.yaml", "--data", "x", "--out", "y"], "no.yaml"),
        (
            [*("train", "--model", "movinet_a0_stream_grw", "--data", "x", "--out", "y")]
            + ["--set", "training.epoch=3"],
            "epochs",
        ),
        (["evaluate", "nowhere", "--data", "x"], "nowhere"),
        (["predict", "nowhere", "a.mp4", "b.mp4", "--video", "c.mp4"], "--video writes one"),
        (["export", "nowhere", "--tflite", "y"], "nowhere"),
        (["export", "x", "--tflite", "y", "--quantization", "int8"], "int8 needs --data"),
        (["data", "prepare", "--data", "nowhere", "--out", "y"], "`data` must be"),
    ],
)
def test_wrong_arguments_are_told_in_a_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_too_many_bad_videos_stop_a_run_with_their_list(videos, tmp_path, capsys):
    arguments = [*TRAIN, "--data", str(videos), "--out", str(tmp_path / "run")]
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert "1 of 13 clips can't be used" in error
    assert "set1_seq09_r.mp4" in error


COMMANDS = [
    [],
    ["train"],
    ["evaluate"],
    ["predict"],
    ["export"],
    ["benchmark"],
    ["data", "prepare"],
]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_help_comes_without_a_framework(command):
    code = (
        "import sys\nfrom grw_keras.cli import main\n"
        f"try: main({[*command, '--help']!r})\n"
        "except SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: grw-keras" in done.stdout
    assert not {"tensorflow", "keras", "numpy"} & set(done.stderr.split())
