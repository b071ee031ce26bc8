"""What int8 costs models fine-tuned on UT-Interaction: accuracy, signal-to-noise, size, latency.

    python zoo/edge_accuracy.py --data ut_interaction --runs runs/edge \\
        --csv zoo/results/edge_accuracy.csv

`--runs` holds folders of `grw-keras train` (commands: zoo/results/edge_accuracy.md). Each model is
exported three times: in float32, in our int8, and in full int8 by the defaults of TensorFlow's
converter, calibrated alike with training clips. All test clips are streamed through each file, and
the answer after a clip's last frame counts. Rows are appended as a run is done, and runs that have
rows are not done again.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf

from grw_keras import csv_table
from grw_keras.export import description, to_tflite
from grw_keras.export.benchmark import benchmark
from grw_keras.export.clips import take
from grw_keras.export.conversion import SIGNATURE, to_flatbuffer
from grw_keras.export.graphs import LeanModel
from grw_keras.export.running import Feeds, Runner
from grw_keras.export.tflite import CALIBRATION_FRAMES
from grw_keras.export.verify import signal_to_noise_db, streamed_by_file
from grw_keras.training import again

CALIBRATION_CLIPS = 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One file over all test clips of a fold; ratios and signal-to-noise to its float32 file."""

    run: str
    model: str
    head: str
    file: str
    test_clips: int
    top1: str
    same_top1: str
    logits_snr_db: str
    size_mb: str
    size_ratio: str
    latency_ms: str
    latency_ratio: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--csv", type=Path, required=True)
    options = parser.parse_args()
    done = {row["run"] for row in csv_table.read(options.csv)}
    for run in sorted(path for path in options.runs.iterdir() if (path / "model").is_dir()):
        if run.name not in done:
            rows = rows_of(run, options.data)
            columns = [field.name for field in dataclasses.fields(Row)]
            csv_table.append(options.csv, columns, map(dataclasses.asdict, rows))
            print(*rows, sep="\n", flush=True)


def rows_of(run: Path, data: str) -> list[Row]:
    """The rows of a run's three files, which are left in its folder."""
    with again.open_split(run, data, "train") as training:
        model, folder = training.model, run / "tflite"
        calibration = take(
            again.centre_clips(training, CALIBRATION_CLIPS), model.spec, CALIBRATION_FRAMES
        )
    clips, labels = [], []
    with again.open_split(run, data, "test") as test:
        for video, label in again.centre_clips(test):
            clips.append(video[0].numpy())
            labels.append(int(label[0]))
    int8 = {"quantization": "int8", "calibration": calibration, "force": True}
    files = {
        "float32": to_tflite(model, folder / "float32.tflite").path,
        "int8": to_tflite(model, folder / "int8.tflite", **int8).path,
        "default full int8": _default_int8(model, calibration, folder / "default.tflite"),
    }
    answers = {
        name: np.stack([logits[-1] for logits in streamed_by_file(path, clips)])
        for name, path in files.items()
    }
    timed = benchmark(list(files.values()), [1])
    latency_ms = {measurement.file: measurement.median_ms for measurement in timed}
    exact, exact_file = answers["float32"], files["float32"]
    return [
        Row(
            run=run.name,
            model=model.spec.name,
            head=model.spec.head_attention,
            file=name,
            test_clips=len(clips),
            top1=f"{np.mean(logits.argmax(-1) == labels):.4f}",
            same_top1=f"{np.mean(logits.argmax(-1) == exact.argmax(-1)):.4f}",
            logits_snr_db=f"{signal_to_noise_db(exact, logits - exact):.1f}",
            size_mb=f"{files[name].stat().st_size / 1e6:.2f}",
            size_ratio=f"{files[name].stat().st_size / exact_file.stat().st_size:.3f}",
            latency_ms=f"{latency_ms[files[name].name]:.2f}",
            latency_ratio=f"{latency_ms[files[name].name] / latency_ms[exact_file.name]:.3f}",
        )
        for name, logits in answers.items()
    ]


def _default_int8(model, calibration: list[np.ndarray], path: Path) -> Path:
    """The same graph by TensorFlow's converter: full int8 by its defaults, floats in and out."""
    graph = LeanModel(model).stream()
    runner = Runner(to_flatbuffer(graph))

    def representative():
        yield from Feeds(runner, calibration)

    function = tf.function(
        graph.compute,
        input_signature=[{n: tf.TensorSpec(s, name=n) for n, s in graph.inputs.items()}],
        autograph=False,
    )
    module = tf.Module()
    with tempfile.TemporaryDirectory() as folder:
        concrete = function.get_concrete_function()
        tf.saved_model.save(module, folder, signatures={SIGNATURE: concrete})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[SIGNATURE])
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = representative
        description.write(path, converter.convert(), description.describe(model, "stream", "int8"))
    return path


if __name__ == "__main__":
    main()
