"""Frames of our stream files against the official graph's, side by side in each of some processes.

    python -m benchmarks.export --csv benchmarks/results/export.csv

The official graph is `movinet_a0_stream` with its classifier of 600 classes, unchanged: one frame,
external states. Ours have 600 classes and random weights too, for latency does not depend on them.
One thread; blocks of frames take turns. Ratios keep through a process and differ by a tenth and
more from one to the next: so they are formed within a process, and their median over processes is
told, and their range. The bidirectional head's figure at a stride of 5 frames is that of its embed
file plus a fifth of its classify file's.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import tensorflow as tf
from official.projects.movinet.modeling.movinet import Movinet
from official.projects.movinet.modeling.movinet_model import MovinetClassifier

from benchmarks.latency import flags, medians_ms, ratio_rows, tell
from grw_keras import zoo
from grw_keras.export import to_tflite
from grw_keras.models.spec import ModelSpec
from grw_keras.zoo import registry

STRIDE_FRAMES = 5
OFFICIAL = "official graph, official classifier"
EMBEDDINGS, HEAD_ALONE = "lean graph, embeddings alone", "bidirectional head alone"


def main() -> None:
    options = flags(__doc__, frames=300, processes=9)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), options.frames, options.processes)
    tell(rows, options.frames, options.csv)


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
    names = {path.stem: form for form, path in files.items()}
    runs = [_by_form(medians_ms(list(files.values()), frames), names) for _ in range(processes)]
    return ratio_rows(runs, OFFICIAL)


def _by_form(median_ms: Mapping[str, float], names: Mapping[str, str]) -> dict[str, float]:
    """The medians by form, and the sum that a head every few frames comes to."""
    found = {names.get(name, HEAD_ALONE): value for name, value in median_ms.items()}
    strided = f"lean graph, bidirectional head every {STRIDE_FRAMES} frames (sum)"
    return found | {strided: found[EMBEDDINGS] + found[HEAD_ALONE] / STRIDE_FRAMES}


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
