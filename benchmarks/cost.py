"""What every registered model costs, counted, and what the paper prints of it.

Writes the zoo's table of costs and the page for readers. Rows that the table already has are
kept: after an interruption the same command goes on, and `--fresh` counts all of them again.
A model is built and traced at the size of the paper's clips, which takes 3 to 40 s; nothing runs.

    python benchmarks/cost.py --fresh
"""

import argparse
import csv
import os
from collections.abc import Iterable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from grw_keras import atomic, csv_table
from grw_keras.evaluation.published import published
from grw_keras.zoo import registry

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "grw_keras/zoo/costs.csv"
PAGE = ROOT / "zoo/results/cost.md"
COMMAND = "python benchmarks/cost.py --fresh"
PUBLISHED = ("top1_k600", "gflops", "memory_mb")
COLUMNS = ["name", "family", "resolution_px", "frames", "fps", "gmacs", "macs_per_frame_m"]
COLUMNS += ["parameters", "statistics", "weights_bytes", "state_bytes"]
COLUMNS += ["peak_activation_bytes", "step_peak_activation_bytes"]
COLUMNS += [column for quantity in PUBLISHED for column in (quantity, f"{quantity}_table")]
EXPLAINED_BEYOND_PERCENT = 2.0
Row = dict[str, str]

_ELEMENTWISE = (
    "Our count leaves elementwise products out. With one for every value that a batch norm or a "
    "squeeze-excite gate multiplies, this graph has {} G, which rounds to the published number."
)
_STREAM = (
    "Published with the same number as base MoViNet-A2, from MoViNet's paper, whose stream models "
    "had 3-D convolutions. Those released since July 2021, and this one, have (2+1)-D ones "
    "(official/projects/movinet/README.md, History)."
)
_METHOD = (
    "Multiply-accumulates (MACs) are counted from each model's traced graph at batch size 1: "
    "convolutions, matrix products and einsums; elementwise operations, normalisation and pooling "
    "count nothing. A clip is the backbone on all its frames and the head once. The paper's "
    '"GFLOPs" are such multiply-accumulates.'
)
_NOTES = (
    "A step is one frame of a stream. Of a model with the transformer head it has the head over "
    "its full window, so the frames of a clip one by one cost more than the clip at once. Z is "
    "that head's embedding of a frame. Parameters leave out the batch norms' statistics; weights "
    "have them. Activations are an estimate of the arena that a runtime needs which neither fuses "
    "nor reorders operations, states included; base (3-D) models are counted as they run without "
    "a GPU."
)
EXPLANATIONS = {
    "movinet_a0": _ELEMENTWISE.format("2.71"),
    "movinet_a1": _ELEMENTWISE.format("6.02"),
    "movinet_a3": _ELEMENTWISE.format("56.9"),
    "movinet_a2": (
        "Open. This is the released architecture: the official builder's BLOCK_SPECS, written out "
        "layer by layer, count the same. Of A0 it is known that the release is not the "
        "architecture in MoViNet's paper (Atze00/MoViNet-pytorch issue 14), whose number this is."
    ),
    "movinet_a2_stream": _STREAM,
    "movinet_a2_stream_intermediate": _STREAM,
}


def row(name: str) -> Row:
    """A model's line of the table."""
    from grw_keras.evaluation.cost import measure
    from grw_keras.models.classifier import VideoClassifier

    spec = registry.get(name)
    cost = measure(VideoClassifier(spec))
    per_frame = "" if cost.macs_per_frame is None else f"{cost.macs_per_frame / 1e6:.3f}"
    values = {
        "name": name,
        "family": spec.family,
        "resolution_px": cost.resolution_px,
        "frames": cost.frames,
        "fps": spec.fps,
        "gmacs": f"{cost.macs / 1e9:.4f}",
        "macs_per_frame_m": per_frame,
        "parameters": cost.parameters,
        "statistics": cost.statistics,
        "weights_bytes": cost.weights_bytes,
        "state_bytes": cost.state_bytes,
        "peak_activation_bytes": cost.peak_activation_bytes,
        "step_peak_activation_bytes": cost.step_peak_activation_bytes,
    }
    for quantity in PUBLISHED:
        values[quantity], values[f"{quantity}_table"] = published(name, quantity) or ("", "")
    return {key: "" if value is None else str(value) for key, value in values.items()}


def read(path: Path = TABLE) -> dict[str, Row]:
    """The table's lines by name; none where there is no table yet."""
    return {line["name"]: line for line in csv_table.read(path)}


def write(rows: Iterable[Row], path: Path = TABLE) -> None:
    """Writes the table, atomically."""
    with atomic.replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def deviation_percent(line: Row) -> float | None:
    """How far the count is from the published number; None where none is published."""
    if not line["gflops"]:
        return None
    return 100 * (float(line["gmacs"]) / float(line["gflops"]) - 1)


def page(rows: dict[str, Row]) -> str:
    """The Markdown page: published beside counted, why they differ, then every model."""
    compared = [line for line in rows.values() if line["gflops"] or line["memory_mb"]]
    return "\n".join(
        [
            "# What the models cost",
            "",
            f"Made by `{COMMAND}`; don't edit. As data: `grw_keras/zoo/costs.csv`.",
            "",
            _METHOD,
            "",
            "## Beside the paper's numbers",
            "",
            *_table(
                "Model | Published G | in table | Counted G MACs | Deviation",
                [_compared(line) for line in compared if line["gflops"]],
            ),
            "",
            f"Deviations beyond {EXPLAINED_BEYOND_PERCENT:g} %:",
            "",
            *_explanations(compared),
            "",
            'The paper\'s "Mem MB" (table 2) has no definition there; ours are separate numbers.',
            "",
            *_table(
                "Model | Published MB | Weights MB | States MB | Activations of a step MB",
                [_memory(line) for line in compared if line["memory_mb"]],
            ),
            "",
            "## All models",
            "",
            _NOTES,
            "",
            *_table(
                "Model | px | Frames | Width of Z | G MACs a clip | M MACs a step | Parameters M | "
                "Weights MB | States MB | Activations of a clip MB | of a step MB",
                [_all(line) for line in rows.values()],
            ),
            "",
        ]
    )


def _table(header: str, lines: list[list[str]]) -> list[str]:
    """Markdown: the first column to the left, the others to the right."""
    names = [name.strip() for name in header.split("|")]
    alignment = ["---", *["---:"] * (len(names) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in [names, alignment, *lines]]


def _compared(line: Row) -> list[str]:
    counted, deviation = f"{float(line['gmacs']):.3f}", f"{deviation_percent(line):+.1f} %"
    return [f"`{line['name']}`", line["gflops"], line["gflops_table"], counted, deviation]


def _explanations(lines: list[Row]) -> list[str]:
    """One list item for each explanation, with the models that it holds for."""
    models: dict[str, list[str]] = {}
    for line in lines:
        deviation = deviation_percent(line)
        if deviation is not None and abs(deviation) > EXPLAINED_BEYOND_PERCENT:
            if line["name"] not in EXPLANATIONS:
                raise ValueError(
                    f"{line['name']} is {deviation:+.1f} % off the paper: find out why and add "
                    f"the reason to EXPLANATIONS in {Path(__file__).name}."
                )
            models.setdefault(EXPLANATIONS[line["name"]], []).append(f"`{line['name']}`")
    return [f"- {', '.join(names)}: {reason}" for reason, names in models.items()]


def _memory(line: Row) -> list[str]:
    cells = ["weights_bytes", "state_bytes", "step_peak_activation_bytes"]
    return [f"`{line['name']}`", line["memory_mb"], *(_mb(line[cell]) for cell in cells)]


def _all(line: Row) -> list[str]:
    cells = ["weights_bytes", "state_bytes", "peak_activation_bytes", "step_peak_activation_bytes"]
    step = line["macs_per_frame_m"]
    spec = registry.get(line["name"])
    return [
        f"`{line['name']}`",
        line["resolution_px"],
        line["frames"],
        str(spec.embed_dim) if spec.head == "transformer" else "–",
        f"{float(line['gmacs']):.2f}",
        f"{float(step):.1f}" if step else "–",
        f"{int(line['parameters']) / 1e6:.2f}",
        *(_mb(line[cell]) for cell in cells),
    ]


def _mb(size_bytes: str) -> str:
    return f"{int(size_bytes) / 1e6:.1f}" if size_bytes else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fresh", action="store_true", help="count rows again that are there")
    arguments = parser.parse_args()
    names = list(registry.specs())
    kept = {} if arguments.fresh else read()
    rows = {name: kept[name] for name in names if name in kept}
    for name in names:
        if name not in rows:
            rows[name] = row(name)
            write(rows[other] for other in names if other in rows)
            print(f"{len(rows)}/{len(names)} {name}: {rows[name]['gmacs']} G MACs", flush=True)
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page({name: rows[name] for name in names}))
    print(f"Wrote {TABLE.relative_to(ROOT)} and {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
