"""Every form of stream file at full size, over a minute of frames, against Keras."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from grw_keras import export
from grw_keras.export import conversion, verify
from grw_keras.export.running import Runner
from grw_keras.models.classifier import VideoClassifier
from grw_keras.zoo import registry
from tests.zoo_helpers import random_clips, randomize

FRAMES = 60
TABLE = Path(__file__).parent / "results" / "export.csv"
CASES = [
    ("movinet_a0_stream", "bidirectional"),
    *(
        (f"movinet_a{i}_stream_grw", attention)
        for i in range(3)
        for attention in ("bidirectional", "causal")
    ),
    ("mobilenet_v3_small_grw", "bidirectional"),
]
ROWS = []


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "attention"), CASES)
def test_float_file_streams_as_keras(name, attention, tmp_path):
    spec = registry.get(name).replace({"head_attention": attention})
    model = randomize(VideoClassifier(spec))
    clip = random_clips(1, FRAMES, size=spec.resolution)[0].numpy()
    made = export.to_tflite(model, tmp_path / "model.tflite", calibration=[clip])
    flatbuffer = made.path.read_bytes()
    found = conversion.operations(flatbuffer)
    assert not [operation for operation in found if operation.startswith("CUSTOM")]
    first, second = (inputs for inputs, _ in list(Runner(flatbuffer).run(clip[:2])))
    assert {n: v.shape for n, v in first.items()} == {n: v.shape for n, v in second.items()}
    assert all(np.any(value) for name, value in second.items() if name.startswith("state_"))
    expected = verify.streamed_by_keras(model, [clip])
    report = verify.compare(expected, verify.streamed_by_file(made.path, [clip]))
    ROWS.append(
        {
            "model": name,
            "head": attention if spec.head == "transformer" else "classifier",
            "frames": FRAMES,
            "largest_difference": f"{report.largest_difference:.1e}",
            "logits_range": f"{report.logits_range:.3g}",
            "same_top1": f"{report.top1_agreement:.3f}",
            "states": len(first) - 1,
            "operations": sum(found.values()),
            "size_mb": f"{len(flatbuffer) / 1e6:.2f}",
        }
    )
    assert report.largest_difference < 1e-3 * report.logits_range


@pytest.mark.exhaustive
def test_table_is_written_whole():
    if len(ROWS) < len(CASES) or not os.environ.get("WRITE_TABLES"):
        pytest.skip("writes tests/results/export.csv after all cases, with WRITE_TABLES=1")
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ROWS[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(ROWS)
    assert len(TABLE.read_text().splitlines()) == len(CASES) + 1


@pytest.mark.exhaustive
def test_base_models_say_what_tflite_lacks_for_them(tmp_path):
    spec = registry.get("movinet_a0").replace({"resolution": 36, "frames": 6})
    with pytest.raises(export.UnsupportedOperationsError, match="AvgPool3D") as refused:
        export.to_tflite(VideoClassifier(spec), tmp_path / "model.tflite", whole_clip=True)
    assert refused.value.operations == ["AvgPool3D"]
