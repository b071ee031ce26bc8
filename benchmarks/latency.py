"""A frame's latency of every stream model that the paper's tables name, as float32 TFLite files.

    python benchmarks/latency.py --csv benchmarks/results/latency.csv

The files have random weights, for latency does not depend on them, 600 classes, and the paper's
head on every frame where a model has it. They take turns in blocks of frames, on one thread, in
each of some processes; the ratios to `movinet_a0_stream` are formed within a process, and their
median over processes is told, and their range.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from grw_keras import zoo
from grw_keras.evaluation.published import ROWS
from grw_keras.export import to_tflite
from grw_keras.export.benchmark import cpu, runtime
from grw_keras.zoo import registry

REFERENCE = "movinet_a0_stream"


def main() -> None:
    options = flags(__doc__, frames=100, processes=5)
    with tempfile.TemporaryDirectory() as folder:
        files = [write(name, Path(folder)) for name in stream_models()]
        runs = [medians_ms(files, options.frames) for _ in range(options.processes)]
    tell(ratio_rows(runs, REFERENCE), options.frames, options.csv)


def flags(doc: str, *, frames: int, processes: int) -> argparse.Namespace:
    """What the command line says, with these defaults."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument(
        "--frames", type=int, default=frames, help="measured of each file and process"
    )
    parser.add_argument("--processes", type=int, default=processes)
    parser.add_argument("--csv", type=Path, help="where to write the table")
    return parser.parse_args()


def stream_models() -> list[str]:
    """Names, each once, of models in the paper's tables that can stream."""
    names = dict.fromkeys(row.model for row in ROWS if row.model)
    return [name for name in names if registry.get(name).streaming]


def write(name: str, folder: Path) -> Path:
    model = zoo.load(name, weights=None, compile=False)
    return to_tflite(model, folder / f"{name}.tflite", split_head=False).path


def medians_ms(files: Sequence[Path], frames: int) -> dict[str, float]:
    """Median latency of a frame by the file's name, measured in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, "rows.csv")
        command = ["-m", "grw_keras.cli", "benchmark", *map(str, files), "--frames", str(frames)]
        subprocess.run(
            [sys.executable, *command, "--csv", str(table)], check=True, capture_output=True
        )
        with table.open(encoding="utf-8", newline="") as file:
            return {Path(row["file"]).stem: float(row["median_ms"]) for row in csv.DictReader(file)}


def ratio_rows(runs: Sequence[Mapping[str, float]], reference: str) -> list[dict[str, str]]:
    """A row for each name: its median over runs, and its ratios to the reference's in each run."""
    table = []
    for name in runs[0]:
        ratios = [run[name] / run[reference] for run in runs]
        table.append(
            {
                "name": name,
                "median_ms": f"{statistics.median(run[name] for run in runs):.2f}",
                "ratio": f"{statistics.median(ratios):.3f}",
                "least": f"{min(ratios):.3f}",
                "most": f"{max(ratios):.3f}",
                "processes": str(len(runs)),
            }
        )
    return table


def tell(rows: Sequence[Mapping[str, str]], frames: int, path: Path | None) -> None:
    """Prints the rows, and writes them with what they were measured on."""
    table = [{**row, "frames": str(frames), "cpu": cpu(), "runtime": runtime()} for row in rows]
    for row in table:
        print(*row.values(), sep="  ")
    if path:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, table[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)


if __name__ == "__main__":
    main()
