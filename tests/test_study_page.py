"""The study's page: differences by their formulas, and what it says of rows not there yet."""

import re
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from grw_keras import csv_table
from tests.helpers import script

ZOO = Path(__file__).parents[1] / "zoo"


@pytest.fixture(scope="module")
def study():
    return script(ZOO / "study.py")


@pytest.fixture(scope="module")
def page(study):
    return script(ZOO / "study_page.py")


@pytest.fixture(scope="module")
def rows(study):
    """Rows of all runs with random numbers, in which final GRW is 10 points above the others."""
    rng = np.random.default_rng(0)
    found: list[dict[str, str]] = []
    while True:
        names = {row["name"] for row in found}
        left = [run for run in study.plan(found) if run.name not in names]
        if not left:
            return found
        for run in left:
            top1 = 0.7 + 0.1 * (run.model == "final GRW") + 0.02 * rng.normal()
            embedded = run.model != "official classifier"
            found.append(
                {
                    "name": run.name,
                    **{key: str(value) for key, value in vars(run).items()},
                    "top1": str(top1),
                    "nll": str(1 - top1),
                    "ece": "0.1",
                    "mean_speed": "2" if embedded else "",
                    "mean_acceleration": "3" if embedded else "",
                    "order_accuracy": "0.8" if embedded else "",
                    "accuracy_by_frames": " ".join(
                        f"{n}:{top1 * n / run.frames:.4f}" for n in (1, 2, 3, 4, 5, 7, 10)
                    ),
                }
            )


def test_intervals_are_students_over_pairs_of_fold_and_seed(page, rows):
    part = page.chosen(rows, {"part": "main"})
    found = page.pairs(part, "final GRW", "attention only", "top1")

    def values(model):
        own = [row for row in part if row["model"] == model]
        return [float(row["top1"]) for row in sorted(own, key=lambda r: (r["fold"], r["seed"]))]

    expected = scipy.stats.ttest_rel(values("final GRW"), values("attention only"))
    assert len(found) == 10
    np.testing.assert_allclose(page.interval(found), expected.confidence_interval(0.95))


def test_what_has_no_partner_makes_no_pair(page, rows):
    part = page.chosen(rows, {"part": "main"})
    some = [row for row in part if (row["model"], row["seed"]) != ("attention only", "3")]
    assert len(page.pairs(some, "final GRW", "attention only", "top1")) == 8
    assert len(page.pairs(some, "official classifier", "attention only", "ratio")) == 0


def test_the_committed_page_is_that_of_the_committed_rows(page):
    text = "\n".join(page.lines(csv_table.read(page.CSV), csv_table.read(page.SCALES)))
    assert page.CSV.with_name("study.md").read_text(encoding="utf-8") == text + "\n"


def test_intervals_in_the_findings_words_are_those_of_the_tables(page):
    words = page.FINDINGS.read_text(encoding="utf-8").replace("−", "-")
    told = set(re.findall(r"[+-]\d+\.\d+ to [+-]\d+\.\d+", " ".join(words.split())))
    page_text = "\n".join(page.lines(csv_table.read(page.CSV), csv_table.read(page.SCALES)))
    tables = [line for line in page_text.splitlines() if line.startswith("| ")]
    assert len(told) > 10
    assert [one for one in told if not any(f"({one})" in line for line in tables)] == []


def test_verdicts_follow_the_interval(page):
    steady = np.array([1.0, 1.1, 0.9])
    assert page.verdict(steady) == "better"
    assert page.verdict(-steady) == "worse"
    assert page.verdict(steady - 1) == "no difference shown"


def test_the_whole_study_has_every_part(page, rows):
    text = "\n".join(page.lines(rows))
    assert f"All {len(rows)} runs are done" in text
    for title in page.COMPARISONS:
        assert f"## {title}\n" in text
    (line,) = [
        line
        for line in text.split("## Half")[0].splitlines()
        if line.startswith("| final GRW − attention only")
    ]
    assert line.endswith("| better |")
    assert "## In short" in text
    assert "| T 10, exact − as tuned | 4 |" in text
    for value in ("10, exact", "10, sampled", "layer_norm", "0.25", "as tuned"):
        assert f"| {value} | 4 |" in text
    assert "| 1.500 ± 0.000 |" in text  # acceleration over speed


def test_a_study_at_its_beginning_says_so(page, rows):
    text = "\n".join(page.lines(rows[:3]))
    assert "not complete: 3 runs are done" in text
    for absent in ("## In short", "## All training clips", "frames seen", "One change"):
        assert absent not in text


def test_the_figure_has_the_mean_of_each_model_in_each_panel(page, rows):
    panels = page.frames_figure(rows).axes
    assert len(panels) == 3
    (line,) = [line for line in panels[0].lines if line.get_label() == "final GRW"]
    wanted = {"part": "main", "model": "final GRW"}
    top1 = [float(row["top1"]) for row in page.chosen(rows, wanted)]
    assert list(line.get_xdata()) == [1, 2, 3, 4, 5, 7, 10]
    assert line.get_ydata()[-1] == pytest.approx(np.mean(top1), abs=1e-4)


def test_pulls_are_told_with_their_weight(page):
    row = dict.fromkeys(("cross_entropy", "ordering", "speed", "rms_z", "mean_speed"), "2")
    row |= {"weight": "0.1", "step": "15", "pull_cross_entropy": "0.5", "pull_grw": "3"}
    row |= {"shrinking": "0.25", "acceleration_over_speed": "1.25"}
    text = "\n".join(page.pulls([row]))
    assert "| 0.1 | 15 | 2 | 2 | 2 | 0.5 | 0.3 | 25% | 2 | 2 | 1.250 |" in text
    assert list(page.pulls([])) == []
