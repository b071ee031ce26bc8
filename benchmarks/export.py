"""Frames of our stream files against the official graph's, interleaved in one run.

    python benchmarks/export.py --csv benchmarks/results/export.csv

The official graph is `movinet_a0_stream` with its classifier of 600 classes, unchanged: one frame,
external states. Ours have 600 classes and random weights too, for latency does not depend on them.
One thread; blocks of frames take turns. The bidirectional head's figure at a stride of 5 frames is
that of its embed file plus a fifth of its classify file's.
"""

import argparse
import csv
import tempfile
from pathlib import Path

import tensorflow as tf
from official.projects.movinet.modeling.movinet import Movinet
from official.projects.movinet.modeling.movinet_model import MovinetClassifier

from grw_keras import zoo
from grw_keras.export import to_tflite
from grw_keras.export.benchmark import benchmark, cpu, runtime
from grw_keras.models.spec import ModelSpec
from grw_keras.zoo import registry

STRIDE_FRAMES = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, default=600, help="measured of each file")
    parser.add_argument("--csv", type=Path, help="where to write the table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), options.frames)
    for row in rows:
        print(*row.values(), sep="  ")
    if options.csv:
        with options.csv.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def measure(folder: Path, frames: int) -> list[dict[str, str]]:
    """A row for each form: median latency of a frame, and its ratio to the official graph's."""
    official = write_official(registry.get("movinet_a0_stream"), folder / "official.tflite")
    files = {"official graph, official classifier": official}
    for form, name, changes, split in (
        ("lean graph, official classifier", "movinet_a0_stream", {}, False),
        ("lean graph, causal head", "movinet_a0_stream_grw", {"head_attention": "causal"}, False),
        ("lean graph, embeddings alone", "movinet_a0_stream_grw", {}, True),
        ("lean graph, bidirectional head on every frame", "movinet_a0_stream_grw", {}, False),
    ):
        model = zoo.load(name, weights=None, compile=False, **changes)
        path = folder / f"file{len(files)}.tflite"
        files[form] = to_tflite(model, path, split_head=split).path
    names = {path.name: form for form, path in files.items()}
    latency_ms = {
        names.get(row.file, "bidirectional head alone"): row.median_ms
        for row in benchmark(list(files.values()), [1], frames=frames)
    }
    strided = f"lean graph, bidirectional head every {STRIDE_FRAMES} frames (sum)"
    latency_ms[strided] = (
        latency_ms["lean graph, embeddings alone"]
        + latency_ms["bidirectional head alone"] / STRIDE_FRAMES
    )
    reference = latency_ms["official graph, official classifier"]
    return [
        {
            "form": form,
            "median_ms": f"{median_ms:.2f}",
            "ratio": f"{median_ms / reference:.3f}",
            "frames": str(frames),
            "cpu": cpu(),
            "runtime": runtime(),
        }
        for form, median_ms in latency_ms.items()
    ]


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
