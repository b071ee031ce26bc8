"""The study's page, from the rows that there are by now.

    python zoo/study_page.py      # zoo/results/study*.csv → study.md, study_frames.png

What was found, in words, is in zoo/study_findings.md and goes to the page as it is.
Differences are paired: two models on the same fold, seed and training clips. Their 95 % intervals
are Student's, over those pairs; runs on the same clips are not independent of each other, so the
intervals are rather too narrow than too wide.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import scipy.stats
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from study import CSV, FOLDS, MODELS, SMOOTHED, Row, plan, tuned

from grw_keras import csv_table, figures

FINAL = "final GRW"
# Each smoothed model's equal without smoothing.
OWN = {FINAL: "attention only", "intermediate GRW": "official classifier"}
FINDINGS = Path(__file__).with_name("study_findings.md")
SCALES = CSV.with_name("study_scales.csv")
# Titles of the parts that compare all models, and of those that change one thing of the final GRW.
COMPARISONS = {
    "All training clips": {"part": "main"},
    "Half of the training clips": {"part": "share", "share": "0.5"},
    "A quarter of the training clips": {"part": "share", "share": "0.25"},
    "Clips of 5 frames, in training and test": {"part": "frames", "frames": "5"},
    "Clips of 3 frames, in training and test": {"part": "frames", "frames": "3"},
}
SEEN = list(COMPARISONS.items())[:3]  # those of clips of 10 frames
CHANGES = {"window": "T", "alpha": "α", "weight": "λ", "loss input": "input of the loss"}


def main() -> int:
    rows = csv_table.read(CSV)
    if chosen(rows, SEEN[0][1]):
        figures.save_png(CSV.with_name("study_frames.png"), frames_figure(rows))
    text = "\n".join(lines(rows, csv_table.read(SCALES)))
    CSV.with_name("study.md").write_text(text + "\n", encoding="utf-8")
    return 0


def lines(rows: Sequence[Row], scales: Sequence[Row] = ()) -> Iterator[str]:
    """The page from top to bottom."""
    yield "# GRW-smoothing on real video: UT-Interaction\n"
    yield (
        "Six actions of two people, 60 clips in each of two sets with different actors; trained on "
        "one set, tested on the other, both ways. Models start from the real Kinetics-600 weights "
        "of A0-Stream (Google's int8 file, dequantised), take 10 frames at 5 fps, and train for as "
        "many steps as 10 epochs of all clips have. Rates and λ were chosen on sequences held out "
        "of the training set. Rows: [study.csv](study.csv), by `python zoo/study.py --data "
        "ut_interaction --weights movinet_a0_stream_k600_int8.tflite`; `--repeat NAME` makes a row "
        "again and compares. This page: `python zoo/study_page.py`.\n"
    )
    yield from progress(rows)
    yield from summary(rows)
    if FINDINGS.exists():
        yield FINDINGS.read_text(encoding="utf-8")
    yield from tuning(rows)
    for title, wanted in COMPARISONS.items():
        yield from comparison(title, rows, wanted)
    yield from seen_frames(rows)
    yield from ablations(rows)
    yield from pulls(scales)


def progress(rows: Sequence[Row]) -> Iterator[str]:
    names = {row["name"] for row in rows}
    left = [run for run in plan(rows) if run.name not in names]
    if not left:
        yield f"All {len(rows)} runs are done.\n"
        return
    parts = ", ".join(f"{part}: {n}" for part, n in Counter(run.part for run in left).items())
    yield (
        f"**The study is not complete: {len(rows)} runs are done.** Runs of tuned models are "
        f"planned once their tuning is done; planned by now and missing: {len(left)} ({parts}).\n"
    )


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """What smoothing changed, in one table."""
    found = []
    for title, wanted in COMPARISONS.items():
        part = chosen(rows, wanted)
        asked = [("top1", title)]
        if "frames" not in wanted:
            asked += [(f"seen{n}", f"{title}, answers after {n} frames") for n in (5, 3)]
        for key, name in asked:
            differences = [pairs(part, model, equal, key) for model, equal in OWN.items()]
            if all(len(values) > 1 for values in differences):
                cells = [f"{told(d, 100, ' points')}: {verdict(d)}" for d in differences]
                found.append([name, *cells])
    if found:
        yield "## In short\n"
        yield "Top-1 of each smoothed model minus its equal without smoothing, on the other set.\n"
        yield from table(["", *(f"{model} − {equal}" for model, equal in OWN.items())], found)


def tuning(rows: Sequence[Row]) -> Iterator[str]:
    yield "## What was chosen on training sets\n"
    found = []
    for model in MODELS:
        for fold in FOLDS:
            best = tuned(model, fold, rows)
            if best is not None:
                weight = f"{best.weight:g}" if model in SMOOTHED else ""
                found.append([model, fold, f"{best.rate:g}", weight])
    yield from table(["model", "trained on", "factor of the paper's rates", "λ"], found)


def comparison(title: str, rows: Sequence[Row], wanted: Row) -> Iterator[str]:
    """A part with all models: their means, and differences to both baselines."""
    part = chosen(rows, wanted)
    if not part:
        return
    yield f"## {title}\n"
    yield from means({model: chosen(part, {"model": model}) for model in MODELS}, "model")
    yield "Differences, with 95 % intervals over pairs of the same fold and seed:\n"
    found = []
    for model, baseline in (
        *OWN.items(),
        (FINAL, "official classifier"),
        ("attention only", "official classifier"),
    ):
        top1 = pairs(part, model, baseline, "top1")
        if len(top1) > 1:
            nll, ratio = (pairs(part, model, baseline, key) for key in ("nll", "ratio"))
            cells = [told(top1, 100, " points"), told(nll, 1, ""), told(ratio, 1, "")]
            found.append([f"{model} − {baseline}", str(len(top1)), *cells, verdict(top1)])
    heading = ["", "pairs", "top-1", "cross-entropy", "acceleration / speed", "top-1 in words"]
    yield from table(heading, found)


def seen_frames(rows: Sequence[Row]) -> Iterator[str]:
    """Answers to the beginnings of the test clips, by models trained on whole clips."""
    if not chosen(rows, SEEN[0][1]):
        return
    yield "## Accuracy against frames seen\n"
    yield (
        "Models that were trained on 10 frames answer after each frame of the stream; means over "
        "folds and seeds.\n"
    )
    yield "![Accuracy against frames seen](study_frames.png)\n"
    found = []
    for title, wanted in SEEN:
        part = chosen(rows, wanted)
        for frames in (3, 5):
            for model, equal in OWN.items():
                differences = pairs(part, model, equal, f"seen{frames}")
                if len(differences) > 1:
                    cells = [told(differences, 100, " points"), verdict(differences)]
                    found.append([title, str(frames), f"{model} − {equal}", *cells])
    yield from table(["trained on", "frames seen", "", "top-1", "in words"], found)


def ablations(rows: Sequence[Row]) -> Iterator[str]:
    """One thing changed at a time, beside the same folds and seeds unchanged."""
    if not any(row["part"] in CHANGES for row in rows):
        return
    yield "## One change at a time\n"
    yield "Final GRW on half of the training clips; the first row of each table is unchanged.\n"
    for part, label in CHANGES.items():
        field = {"loss input": "loss_input"}.get(part, part)
        changed = chosen(rows, {"part": part})
        seeds = {row["seed"] for row in changed}
        base = chosen(rows, {"part": "share", "share": "0.5", "model": FINAL})
        groups = {"as tuned": [row for row in base if row["seed"] in seeds]}
        for row in changed:
            value = row[field] + (f", {row['orderings']}" if part == "window" else "")
            groups.setdefault(value, []).append(row)
        if changed:
            yield from means(groups, label)
            yield from differences_to(groups["as tuned"], groups, label)


def differences_to(
    base: Sequence[Row], groups: Mapping[str, Sequence[Row]], label: str
) -> Iterator[str]:
    """Each group against the unchanged runs of the same folds and seeds."""
    found = []
    for name, changed in groups.items():
        if changed is base:
            continue
        both = [{**row, "model": "base"} for row in base] + [{**r, "model": name} for r in changed]
        top1, ratio = (pairs(both, name, "base", key) for key in ("top1", "ratio"))
        if len(top1) > 1:
            cells = [told(top1, 100, " points"), told(ratio, 1, ""), verdict(top1)]
            found.append([f"{label} {name} − as tuned", str(len(top1)), *cells])
    yield from table(["", "pairs", "top-1", "acceleration / speed", "top-1 in words"], found)


def pulls(scales: Sequence[Row]) -> Iterator[str]:
    """The two losses as the final GRW trains, of study_scales.csv."""
    if not scales:
        return
    yield "## The two losses against each other\n"
    yield (
        "Final GRW on set1, tuned as above but for λ, seed 0; all training clips as in evaluation, "
        "before the first step and after some. Pulls are norms of gradients by a clip's Z, of the "
        "cross-entropy and of λ · L_smooth; shrinking: the share of the latter's square that only "
        "moves Z to its mean over the clip. Rows: [study_scales.csv](study_scales.csv), by `python "
        "zoo/study_scales.py --data … --weights …`.\n"
    )
    found = []
    for row in scales:
        weight = float(row["weight"])
        pull = weight * float(row["pull_grw"])
        cells = [f"{weight:g}", row["step"]]
        cells += [f"{float(row[key]):.3g}" for key in ("cross_entropy", "ordering", "speed")]
        cells += [f"{float(row['pull_cross_entropy']):.3g}", f"{pull:.3g}"]
        cells += [f"{float(row['shrinking']):.0%}"]
        cells += [f"{float(row[key]):.3g}" for key in ("rms_z", "mean_speed")]
        found.append([*cells, f"{float(row['acceleration_over_speed']):.3f}"])
    heading = ["λ", "step", "cross-entropy", "ordering term", "speed term", "pull of cross-entropy"]
    heading += ["pull of λ · L_smooth", "shrinking", "RMS of Z", "mean speed"]
    yield from table([*heading, "acceleration / speed"], found)


def means(groups: Mapping[str, Sequence[Row]], label: str) -> Iterator[str]:
    heading = [label, "runs", "top-1", "cross-entropy", "ECE", "acceleration / speed", "order"]
    found = []
    for name, rows in groups.items():
        if rows:
            cells = [spread(rows, "top1", 100, " %"), *(spread(rows, k) for k in ("nll", "ece"))]
            smooth = [spread(rows, key) for key in ("ratio", "order_accuracy")]
            found.append([name, str(len(rows)), *cells, *smooth])
    yield from table(heading, found)
    yield "Mean ± standard deviation over folds and seeds.\n"


def chosen(rows: Sequence[Row], wanted: Row) -> list[Row]:
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def number(row: Row, key: str) -> float | None:
    """A cell, `ratio` of acceleration to speed, or `seenN`, the accuracy after N frames."""
    if key == "ratio":
        speed, acceleration = number(row, "mean_speed"), number(row, "mean_acceleration")
        return None if speed is None or acceleration is None else acceleration / speed
    if key.startswith("seen"):
        return by_frames(row).get(int(key.removeprefix("seen")))
    return float(row[key]) if row[key] else None


def by_frames(row: Row) -> dict[int, float]:
    items = (item.split(":") for item in row["accuracy_by_frames"].split())
    return {int(frames): float(share) for frames, share in items}


def pairs(rows: Sequence[Row], model: str, baseline: str, key: str) -> np.ndarray:
    """Differences of two models on the same fold and seed."""
    values = {
        (row["model"], row["fold"], row["seed"]): value
        for row in rows
        if (value := number(row, key)) is not None
    }
    return np.array(
        [
            value - values[baseline, fold, seed]
            for (name, fold, seed), value in values.items()
            if name == model and (baseline, fold, seed) in values
        ]
    )


def interval(differences: np.ndarray) -> tuple[float, float]:
    """Student's 95 % interval of their mean."""
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    half = scipy.stats.t.ppf(0.975, len(differences) - 1) * error
    return differences.mean() - half, differences.mean() + half


def told(differences: np.ndarray, factor: float, unit: str) -> str:
    if len(differences) < 2:
        return ""
    digits = 1 if factor > 1 else 3
    mean, low, high = (
        f"{value:+z.{digits}f}"
        for value in (factor * differences.mean(), *interval(factor * differences))
    )
    return f"{mean}{unit} ({low} to {high})"


def verdict(differences: np.ndarray) -> str:
    low, high = interval(differences)
    if low > 0:
        return "better"
    return "worse" if high < 0 else "no difference shown"


def spread(rows: Sequence[Row], key: str, factor: float = 1.0, unit: str = "") -> str:
    found = [value for row in rows if (value := number(row, key)) is not None]
    if not found:
        return ""
    digits = 1 if factor > 1 else 3
    deviation = f" ± {factor * np.std(found, ddof=1):.{digits}f}" if len(found) > 1 else ""
    return f"{factor * np.mean(found):.{digits}f}{deviation}{unit}"


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heading)} |"
    yield "|" + "---|" * len(heading)
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def frames_figure(rows: Sequence[Row]) -> Figure:
    """Accuracy against frames seen, a panel for each share of the training clips."""
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        panels = figure.subplots(1, len(SEEN), sharey=True)
        for axes, (title, wanted) in zip(panels, SEEN, strict=True):
            for color, model in zip(figures.PALETTE, MODELS, strict=False):
                found = [by_frames(row) for row in chosen(rows, {**wanted, "model": model})]
                if found:
                    mean = [np.mean([one[frames] for one in found]) for frames in found[0]]
                    axes.plot(list(found[0]), mean, "o-", ms=3, color=color, label=model)
            axes.set(title=title, xlabel="frames seen", ylim=(0, 1.03))
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        panels[0].set_ylabel("accuracy on the other set")
        panels[0].legend(loc="lower right")
    return figure


if __name__ == "__main__":
    sys.exit(main())
