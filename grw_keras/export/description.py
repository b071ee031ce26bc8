"""What a file says of itself: `grw_keras.json` and `labels.txt`, in a zip archive appended to it.

TFLite Metadata keeps associated files so: readers of the model ignore what follows it, readers of
archives ignore what stands before.
"""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import grw_keras
from grw_keras.lite import DESCRIPTION, FORMAT_VERSION
from grw_keras.models.classifier import VideoClassifier

LABELS = "labels.txt"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time of an archive: the same model, the same bytes


def describe(
    model: VideoClassifier, kind: str, quantization: str | None, classify_file: str | None = None
) -> dict[str, Any]:
    """The description of a file, as tflite/README.md defines it."""
    spec = model.spec
    transformer = spec.head == "transformer"
    return {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "name": spec.name,
        "grw_keras": grw_keras.__version__,
        "quantization": quantization,
        "fps": spec.fps,
        "resize_px": spec.resize,
        "crop_px": spec.resolution,
        "value_range": [0.0, 1.0],
        "num_classes": spec.num_classes,
        "labels": None if model.labels is None else list(model.labels),
        "head": spec.head_attention if transformer else "classifier",
        "window_frames": spec.head_window if transformer else None,
        "embed_dim": spec.embed_dim if kind in ("embed", "classify") else None,
        "classify_file": classify_file,
        "frames": spec.frames if kind == "clip" else None,
    }


def write(path: Path, flatbuffer: bytes, description: dict[str, Any]) -> None:
    """Writes a file with its description, and the description beside it (`NAME.json`)."""
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    buffer = io.BytesIO(flatbuffer)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(zipfile.ZipInfo(DESCRIPTION, _EPOCH), text)
        if description["labels"] is not None:
            lines = "".join(f"{label}\n" for label in description["labels"])
            archive.writestr(zipfile.ZipInfo(LABELS, _EPOCH), lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    path.with_suffix(".json").write_text(text, encoding="utf-8")
