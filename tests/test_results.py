"""Evaluations written, read back, gathered in a CSV, and shown."""

import csv
import dataclasses
import json
import math
import threading

import filelock
import numpy as np
import pytest
from scipy.stats import binomtest

from grw_keras.data.scan import BadVideo
from grw_keras.evaluation import metrics
from grw_keras.evaluation.results import (
    COLUMNS,
    Evaluation,
    append_row,
    read_json,
    summarize,
    write_json,
)
from grw_keras.evaluation.tables import table

NAMES = ["hand shaking", "日本の踊り", 'a,b\n"c"']


def answers(classes, clips=40):
    rng = np.random.default_rng(classes)
    return rng.standard_normal((clips, classes)), rng.integers(classes, size=clips)


def evaluation(names=NAMES, **changes):
    settings = {
        "model": "movinet_a0_stream_grw",
        "weights": "runs/a, b",
        "data": "my_videos",
        "split": "test",
        "frames": 10,
        "fps": 5.0,
        "resolution_px": 172,
        "gmacs": 0.531,
        "params": 2_345_678,
        "accuracy_by_frames": ((1, 0.25), (10, 0.5)),
        "bad_videos": (BadVideo(path="x/ü.mp4", reason="no video stream"),),
        "mean_speed": 0.125,
        "date": "2026-01-02T03:04:05",
        "versions": {"grw_keras": "0.1", "numpy": "2.4"},
        "command": 'grw-keras evaluate "runs/a, b"',
    }
    return Evaluation(**{**settings, **summarize(*answers(len(names)), names), **changes})


def test_an_evaluation_is_read_back_as_it_was_written(tmp_path):
    written = evaluation()
    write_json(tmp_path / "e.json", written)
    assert read_json(tmp_path / "e.json") == written
    assert [path.name for path in tmp_path.iterdir()] == ["e.json"]


def test_numbers_of_numpy_become_plain_ones(tmp_path):
    write_json(tmp_path / "e.json", evaluation(params=np.int64(7), gmacs=np.float32(0.5)))
    assert (read_json(tmp_path / "e.json").params, read_json(tmp_path / "e.json").gmacs) == (7, 0.5)


def test_a_summary_holds_the_metrics_of_the_answers():
    logits, labels = answers(7)
    found = summarize(logits, labels, list("abcdefg"))
    scores = metrics.class_scores(metrics.confusion_matrix(logits, labels))
    assert found["clips"] == 40
    assert found["top1"] == metrics.top_k(logits, labels)
    assert found["top5"] == metrics.top_k(logits, labels, 5)
    assert found["ece"] == metrics.calibration(logits, labels).error
    assert [c.label for c in found["per_class"]] == list("abcdefg")
    assert [c.f1 for c in found["per_class"]] == scores.f1.tolist()
    assert sum(b.count for b in found["reliability"]) == 40
    assert summarize(*answers(5), list("abcde"))["top5"] is None


def test_what_is_undefined_is_none_not_nan():
    found = summarize(np.eye(3)[[0, 0]], np.array([0, 0]), ["a", "b", "c"])
    unseen = found["per_class"][1]
    assert (unseen.recall, unseen.precision, unseen.f1, unseen.support) == (None, None, None, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top1": 61.3}, r"`top1` is a share: in \[0, 1\]. Received: 61.3"),
        ({"ece": math.nan}, "`ece`.*Received: nan"),
        ({"clips": 41}, "count every clip once, 41. Received: 40"),
        ({"confusion": ((40,),)}, r"`confusion` must have 3 rows.*rows of \[1\]"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        evaluation(**changes)


def test_names_must_name_every_class():
    with pytest.raises(ValueError, match=r"name every class, 7\. Received: 3 names"):
        summarize(*answers(7), NAMES)


def test_an_infinity_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "e.json", evaluation(nll=math.inf))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(format=2), "no evaluation of format 1: evaluate again"),
        (lambda c: c.update(top_1=0.5), "e.json: Did you mean 'top1'.*'top_1'"),
        (lambda c: c.pop("model"), "the key 'model' is missing"),
        (lambda c: c["per_class"][0].pop("f1"), "`per_class`: the key 'f1' is missing"),
        (
            lambda c: c["bad_videos"].append("x"),
            "`bad_videos` must be a mapping .*'x'",
        ),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, edit, message):
    path = tmp_path / "e.json"
    write_json(path, evaluation())
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_json(path)


def test_a_file_cut_short_is_refused(tmp_path):
    write_json(tmp_path / "e.json", evaluation())
    text = (tmp_path / "e.json").read_text(encoding="utf-8")
    (tmp_path / "e.json").write_text(text[:200], encoding="utf-8")
    with pytest.raises(ValueError, match="no JSON: was it cut short"):
        read_json(tmp_path / "e.json")


def test_rows_are_appended_below_one_header(tmp_path):
    path = tmp_path / "results" / "evaluations.csv"
    append_row(path, evaluation(top1=0.5))
    before = path.read_text(encoding="utf-8")
    append_row(path, evaluation(top5=0.75, gmacs=None))
    assert path.read_text(encoding="utf-8").startswith(before)
    with path.open(encoding="utf-8", newline="") as file:
        first, second = csv.DictReader(file)
    assert tuple(first) == COLUMNS
    assert (first["top1_percent"], first["top5_percent"], first["gmacs"]) == ("50.00", "", "0.5310")
    assert (second["top5_percent"], second["gmacs"]) == ("75.00", "")
    assert (first["weights"], first["command"]) == ("runs/a, b", 'grw-keras evaluate "runs/a, b"')
    assert (first["bad_videos"], first["versions"]) == ("1", "grw_keras=0.1 numpy=2.4")


def test_a_row_starts_on_its_own_line_where_the_last_one_lacks_its_end(tmp_path):
    path = tmp_path / "e.csv"
    append_row(path, evaluation())
    path.write_text(path.read_text(encoding="utf-8").rstrip("\n"), encoding="utf-8")
    append_row(path, evaluation())
    with path.open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 2


def test_a_file_with_other_columns_is_left_alone(tmp_path):
    path = tmp_path / "e.csv"
    path.write_text("model,top1\nx,1\n")
    with pytest.raises(ValueError, match=r"other columns.*Received: model,top1"):
        append_row(path, evaluation())
    assert path.read_text() == "model,top1\nx,1\n"


def test_a_row_waits_until_another_process_has_written_its_own(tmp_path):
    path = tmp_path / "e.csv"
    with filelock.FileLock(tmp_path / ".e.csv.lock"):
        writer = threading.Thread(target=append_row, args=(path, evaluation()))
        writer.start()
        writer.join(0.3)
        assert writer.is_alive()
        assert not path.exists()
    writer.join(10)
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2


def test_the_table_shows_summary_classes_and_confusion():
    text = table(evaluation(names=["hand shaking", "hugging", "kicking"]))
    found = evaluation(names=["hand shaking", "hugging", "kicking"])
    assert f"top-1                    {100 * found.top1:.1f} % (95 % interval " in text
    right = round(found.top1 * found.clips)
    low, high = binomtest(right, found.clips).proportion_ci(0.95, "wilson")
    assert f"(95 % interval {100 * low:.0f} to {100 * high:.0f} %)" in text
    assert "top-5                    - (only 3 classes)" in text
    assert "10 frames at 5 fps, 172 px" in text
    assert "GMACs                    0.53" in text
    assert "bad videos               1" in text
    last = text.splitlines()[-1].split()
    assert last == ["kicking", "#2", *map(str, found.confusion[2])]


def test_columns_stand_below_each_other_also_with_wide_letters():
    lines = table(evaluation()).split("\n\n")[1].splitlines()
    assert lines[2].startswith("日本の踊り ")
    # Five of the letters take two cells each on the screen.
    ends = [len(line) + (5 if "日" in line else 0) for line in lines]
    assert len(set(ends)) == 1
    assert lines[3].startswith('a,b "c" ')


def test_of_many_classes_the_worst_are_shown_and_no_matrix():
    names = [f"class {index}" for index in range(30)]
    plain = evaluation(names=names)
    rising = tuple(
        dataclasses.replace(c, f1=(29 - index) / 30, support=1)
        for index, c in enumerate(plain.per_class)
    )
    *_, classes = table(dataclasses.replace(plain, per_class=rising)).split("\n\n")
    heading, *rows = classes.splitlines()
    assert "the 20 of 30 with the lowest F1" in heading
    assert [row.split("  ")[0] for row in rows] == names[:9:-1]


def test_a_long_label_is_clipped():
    text = table(evaluation(names=["very long " * 20, "b", "c"]))
    assert text.count("very long very long very long v…  ") == 2
    assert "very long " * 4 not in text


def test_an_evaluation_can_be_changed_only_by_making_another():
    with pytest.raises(dataclasses.FrozenInstanceError):
        evaluation().top1 = 1.0
