"""The paper's tables 1 to 5 and figure 1 as a page: its numbers, and what was measured here.

    python zoo/paper_tables.py

Writes zoo/results/paper_tables.md and paper_figure1.png from the published rows
(`grw_keras/evaluation/published.csv`), our counts (`grw_keras/zoo/costs.csv`), latencies
(`benchmarks/results/latency.csv`) and the study's accuracies (`zoo/results/study.csv`).
"""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from study import CSV as STUDY
from study import FOLDS, MODELS, SEEDS

from grw_keras import csv_table, figures
from grw_keras.evaluation.published import ROWS, PublishedRow

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "zoo" / "results"
COSTS = ROOT / "grw_keras" / "zoo" / "costs.csv"
LATENCY = ROOT / "benchmarks" / "results" / "latency.csv"
MEASURED = ("G MACs", "parameters, M", "memory, MB", "latency", "UT-Interaction")
TITLES = {
    1: "Table 1: Kinetics-600 by multiply-accumulates",
    2: "Table 2: Kinetics-600 by memory",
    3: "Table 3: Kinetics-400 by multiply-accumulates",
    4: "Table 4: where GRW-smoothing acts (Kinetics-600, MoViNet-A2-S)",
}
# Table 5: what is changed, its value, top-1.
ABLATIONS = (
    ("window T", "3", 77.3),
    ("window T", "5", 78.4),
    ("window T", "10", 78.0),
    ("α", "0.25", 77.9),
    ("α", "0.5", 78.4),
    ("α", "1.0", 78.3),
    ("λ", "0.01", 78.0),
    ("λ", "0.1", 78.4),
    ("λ", "1.0", 75.5),
    ("any", "no smoothing", 72.0),
)


def main() -> None:
    (RESULTS / "paper_tables.md").write_text(page(), encoding="utf-8")
    figures.save_png(RESULTS / "paper_figure1.png", figure_one())


def page() -> str:
    measured = _measured()
    lines = [
        "# The paper's tables, and what was measured here",
        "",
        "Made by `python zoo/paper_tables.py`; don't edit. *Published* columns are the paper's; "
        "the others are ours. No accuracy on Kinetics was measured here, and of the published "
        "files only Google's int8 A0-Stream was tried. Multiply-accumulates (MACs) are counted, "
        "memory is weights and the estimated activations of one frame of a stream, float32 "
        "([cost.md](cost.md) says how). Latency is that of one frame of a stream, as a multiple of "
        "MoViNet-A0-S's in the same run: float32 under LiteRT, one thread of an x86 server, by "
        "`python benchmarks/latency.py`, which says more; no phone was at hand. UT-Interaction: "
        "mean top-1 and standard deviation of models fine-tuned from real Kinetics-600 weights, "
        "by [the study](study.md). Empty: not a model of the zoo, one that can't stream, or not "
        "measured yet.",
    ]
    for table, title in TITLES.items():
        rows = [row for row in ROWS if row.table == table]
        lines += ["", f"## {title}", "", *_table(rows, measured)]
    lines += ["", "## Table 5: ablations (Kinetics-600, MoViNet-A0-S-GRW)", ""]
    lines += ["| changed | value | published top-1 |", "|---|---|---:|"]
    lines += [f"| {what} | {value} | {top1} |" for what, value, top1 in ABLATIONS]
    lines += [
        "",
        "The same one at a time on UT-Interaction: [study.md](study.md).",
        "",
        "## Figure 1",
        "",
        "![Published accuracy against multiply-accumulates and memory](paper_figure1.png)",
        "",
        "Published accuracies, at published numbers (circles: models of others; squares: with "
        "GRW-smoothing). Right: memory as published.",
    ]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[PublishedRow], measured: Mapping[str, Sequence[str]]) -> list[str]:
    by_memory = rows[0].memory_mb is not None
    value = "published memory, MB" if by_memory else "published G"
    heading = ["model", "name in the zoo", "published top-1", value, *MEASURED]
    lines = [f"| {' | '.join(heading)} |", f"|---|---|{'---:|' * (len(heading) - 2)}"]
    for row in rows:
        cells = [row.printed, f"`{row.model}`" if row.model else "", f"{row.top1:.1f}"]
        cells.append(f"{row.memory_mb if by_memory else row.gflops:g}")
        cells += measured.get(row.model, [""] * len(MEASURED))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _measured() -> dict[str, list[str]]:
    """The cells of columns `MEASURED` of each model of the zoo, by name."""
    latency = {row["name"]: f"{float(row['ratio']):.2f}" for row in csv_table.read(LATENCY)}
    top1 = _study_top1()
    found = {}
    for row in csv_table.read(COSTS):
        name, memory = row["name"], ""
        if row["step_peak_activation_bytes"]:
            used = int(row["weights_bytes"]) + int(row["step_peak_activation_bytes"])
            memory = f"{used / 1e6:.0f}"
        counts = [f"{float(row['gmacs']):.1f}", f"{int(row['parameters']) / 1e6:.2f}", memory]
        found[name] = [*counts, latency.get(name, ""), top1.get(name, "")]
    return found


def _study_top1() -> dict[str, str]:
    """Mean and standard deviation by name in the zoo, of all runs on all training clips; a model
    that lacks some of its runs is left out."""
    top1 = defaultdict(list)
    for row in csv_table.read(STUDY):
        if row["part"] == "main":
            top1[MODELS[row["model"]]].append(100 * float(row["top1"]))
    return {
        name: f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"
        for name, values in top1.items()
        if len(values) == len(FOLDS) * len(SEEDS)
    }


def figure_one() -> Figure:
    """Published accuracy on Kinetics-600 against multiply-accumulates, and against memory."""
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(10.6, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        for axes, table, value in ((left, 1, "gflops"), (right, 2, "memory_mb")):
            rows = [row for row in ROWS if row.table == table]
            for smoothed, marker, color in (
                (False, "o", "#777777"),
                (True, "s", figures.PALETTE[1]),
            ):
                chosen = [row for row in rows if row.printed.endswith("-GRW") == smoothed]
                points = [(getattr(row, value), row.top1) for row in chosen]
                label = "with GRW-smoothing" if smoothed else "without"
                axes.plot(*zip(*points, strict=True), marker, ls="", color=color, label=label)
                for row in chosen:
                    if smoothed or table == 2:
                        place = (getattr(row, value), row.top1)
                        axes.annotate(
                            row.printed,
                            place,
                            (0, 6),
                            textcoords="offset points",
                            fontsize=7.5,
                            color=color,
                            ha="center",
                        )
            axes.set_ylabel("top-1 on Kinetics-600, percent, published")
            axes.legend(loc="lower right")
            axes.margins(y=0.1)
        left.set(
            xscale="log", xlabel="10⁹ multiply-accumulates of a video, published", xlim=(1, 2000)
        )
        left.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
        right.set(xlabel="memory, MB, published", xlim=(20, 90))
    return figure


if __name__ == "__main__":
    main()
