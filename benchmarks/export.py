"""Frames of our stream files against the official graph's, side by side in each of some processes.

    python benchmarks/export.py --csv benchmarks/results/export.csv

The official graph is `movinet_a0_stream` with its classifier of 600 classes, unchanged: one frame,
external states. Ours have 600 classes and random weights too, for latency does not depend on them.
One thread; blocks of frames take turns. Ratios keep through a process and differ by a tenth and
more from one to the next: so they are formed within a process, and their median over processes is
told, and their range. The bidirectional head's figure at a stride of 5 frames is that of its embed
file plus a fifth of its classify file's.
"""

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import tensorflow as tf
from official.projects.movinet.modeling.movinet import Movinet
from official.projects.movinet.modeling.movinet_model import MovinetClassifier

from grw_keras import zoo
from grw_keras.export import to_tflite
from grw_keras.export.benchmark import cpu, runtime
from grw_keras.models.spec import ModelSpec
from grw_keras.zoo import registry

STRIDE_FRAMES = 5
OFFICIAL = "official graph, official classifier"
EMBEDDINGS, HEAD_ALONE = "lean graph, embeddings alone", "bidirectional head alone"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, default=300, help="measured of each file and process")
    parser.add_argument("--processes", type=int, default=9)
    parser.add_argument("--csv", type=Path, help="where to write the table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), options.frames, options.processes)
    for row in rows:
        print(*row.values(), sep="  ")
    if options.csv:
        with options.csv.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def measure(folder: Path, frames: int, processes: int) -> list[dict[str, str]]:
    """A row for each form: median latency of a frame, and its ratio to the official graph's."""
    official = write_official(registry.get("movinet_a0_stream"), folder / "official.tflite")
    files = {OFFICIAL: official}
    for form, name, changes, split in (
        ("lean graph, official classifier", "movinet_a0_stream", {}, False),
        ("lean graph, causal head", "movinet_a0_stream_grw", {"head_attention": "causal"}, False),
        (EMBEDDINGS, "movinet_a0_stream_grw", {}, True),
        ("lean graph, bidirectional head on every frame", "movinet_a0_stream_grw", {}, False),
    ):
        model = zoo.load(name, weights=None, compile=False, **changes)
        path = folder / f"file{len(files)}.tflite"
        files[form] = to_tflite(model, path, split_head=split).path
    names = {path.name: form for form, path in files.items()}
    runs = [_medians_ms(list(files.values()), frames, names) for _ in range(processes)]
    rows = []
    for form in runs[0]:
        ratios = [run[form] / run[OFFICIAL] for run in runs]
        rows.append(
            {
                "form": form,
                "median_ms": f"{statistics.median(run[form] for run in runs):.2f}",
                "ratio": f"{statistics.median(ratios):.3f}",
                "least": f"{min(ratios):.3f}",
                "most": f"{max(ratios):.3f}",
                "processes": str(processes),
                "frames": str(frames),
                "cpu": cpu(),
                "runtime": runtime(),
            }
        )
    return rows


def _medians_ms(paths: list[Path], frames: int, names: dict[str, str]) -> dict[str, float]:
    """Median latency of a frame by form, measured in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, "rows.csv")
        command = ["-m", "grw_keras.cli", "benchmark", *map(str, paths), "--frames", str(frames)]
        subprocess.run(
            [sys.executable, *command, "--csv", str(table)], check=True, capture_output=True
        )
        with table.open(encoding="utf-8", newline="") as file:
            median_ms = {
                names.get(row["file"], HEAD_ALONE): float(row["median_ms"])
                for row in csv.DictReader(file)
            }
    strided = f"lean graph, bidirectional head every {STRIDE_FRAMES} frames (sum)"
    return median_ms | {strided: median_ms[EMBEDDINGS] + median_ms[HEAD_ALONE] / STRIDE_FRAMES}


def write_official(spec: ModelSpec, path: Path) -> Path:
    """The official builder's stream model of a spec, converted as it is."""
    backbone = Movinet(
        spec.backbone.removeprefix("movinet_"),
        causal=True,
        conv_type=spec.conv_type,
        se_type=spec.se_type,
        activation=spec.activation,
        gating_activation=spec.gating_activation,
        use_positional_encoding=False,
        use_external_states=True,
    )
    model = MovinetClassifier(backbone, num_classes=spec.num_classes, output_states=True)
    frame = [1, 1, spec.resolution, spec.resolution, 3]
    model.build(frame)
    inputs = {"image": tf.TensorSpec(frame, name="image")}
    for name, state in backbone.init_states(frame).items():
        inputs[name] = tf.TensorSpec(state.shape, state.dtype, name=name)

    @tf.function(input_signature=[inputs])
    def step(inputs):
        logits, states = model(inputs)
        return {"logits": logits, **states}

    with tempfile.TemporaryDirectory() as folder:
        signatures = {"serving_default": step.get_concrete_function()}
        tf.saved_model.save(model, folder, signatures=signatures)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        path.write_bytes(converter.convert())
    return path


if __name__ == "__main__":
    main()
