"""The study's plan: which runs there are, on which clips, and that it goes on where it stopped."""

from collections import Counter
from pathlib import Path

import pytest

from grw_keras import csv_table
from tests.helpers import script

SCRIPT = Path(__file__).parents[1] / "zoo" / "study.py"


@pytest.fixture(scope="module")
def study():
    return script(SCRIPT)


def finished(study, nll=lambda run: 1.0):
    """Rows of all runs, done as soon as they can be said."""
    rows = []
    while True:
        names = {row["name"] for row in rows}
        left = [run for run in study.plan(rows) if run.name not in names]
        if not left:
            return rows
        rows += [{"name": run.name, "part": run.part, "nll": str(nll(run))} for run in left]


def test_every_part_is_planned_once_with_all_folds_models_and_seeds(study):
    rows = finished(study)
    assert len({row["name"] for row in rows}) == len(rows)
    parts = Counter(row["part"] for row in rows)
    assert parts["main"] == 4 * 2 * 5
    assert parts["share"] == parts["main"] + 4 * 2 * 2
    assert parts["frames"] == 2 * 2 * (4 * 2)
    assert (parts["window"], parts["alpha"], parts["weight"]) == (12, 12, 16)
    assert parts["tuning"] == 2 * (2 * 3 + 2 * 5)


def test_what_follows_tuning_takes_the_best_of_it(study):
    wanted = {"final GRW": (3.0, 0.03), "official classifier": (0.3, 0.1)}

    def nll(run):
        rate, weight = wanted.get(run.model, (1.0, 0.3))
        return abs(run.rate - rate) + abs(run.weight - weight)

    rows = finished(study, nll)
    runs = list(study.plan(rows))
    for run in runs:
        if run.part == "main" and run.model in wanted:
            assert run.rate == wanted[run.model][0]
        if run.part == "main" and run.model == "final GRW":
            assert run.weight == 0.03


def test_nothing_but_tuning_starts_before_a_models_tuning_is_done(study):
    assert {run.part for run in study.plan([])} == {"tuning"}
    rows = finished(study)
    lacking = [row for row in rows if "part=tuning" not in row["name"] or "set1" in row["name"]]
    assert {run.fold for run in study.plan(lacking) if run.part == "main"} == {"set1"}


@pytest.fixture
def videos(tmp_path):
    """Two classes, two sets of ten sequences."""
    for label in ("hug", "kick"):
        (tmp_path / label).mkdir()
        for number in range(20):
            fold = 1 + number // 10
            (tmp_path / label / f"set{fold}_seq{number:02}_0.avi").touch()
    return tmp_path


def test_training_and_test_clips_are_of_different_sets(study, videos):
    for part, share in (("main", 1.0), ("share", 0.5), ("share", 0.25)):
        run = study.Run(part=part, model="final GRW", fold="set2", share=share, seed=3)
        listed = study.clip_list(run, videos)
        train = [path for path, _, split in listed if split == "train"]
        test = [path for path, _, split in listed if split == "test"]
        assert all("set2" in path for path in train)
        assert all("set1" in path for path in test)
        assert len(test) == 20
        labels = Counter(label for _, label, split in listed if split == "train")
        assert labels == dict.fromkeys(("hug", "kick"), round(10 * share))
        assert listed == study.clip_list(run, videos)


def test_tuning_sees_no_test_clip_and_holds_whole_sequences_out(study, videos):
    run = study.Run(part="tuning", model="final GRW", fold="set1")
    listed = study.clip_list(run, videos)
    assert all("set1" in path for path, _, _ in listed)
    sequences = {
        split: {path.split("seq")[1][:2] for path, _, own in listed if own == split}
        for split in ("train", "test")
    }
    assert len(sequences["test"]) == 2
    assert not sequences["train"] & sequences["test"]


def test_rows_are_appended_and_read_again(study, tmp_path):
    path = tmp_path / "rows.csv"
    assert csv_table.read(path) == []
    for name in ("a,b", "c"):
        study.append(path, [{"name": name, "nll": "1"}])
    assert [row["name"] for row in csv_table.read(path)] == ["a,b", "c"]


def test_wrong_data_and_weights_are_named(study, videos, tmp_path, capsys):
    for data, message in ((tmp_path / "none", "--data must hold"), (videos, "--weights must be")):
        with pytest.raises(SystemExit):
            study.main(["--data", str(data), "--weights", str(tmp_path / "none.tflite")])
        assert message in capsys.readouterr().err
