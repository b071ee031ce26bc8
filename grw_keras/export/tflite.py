"""to_tflite: a model of the zoo to streaming TFLite files that phones, cameras and browsers run."""

import dataclasses
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from grw_keras.export import clips as clips_of
from grw_keras.export import conversion, description, verify
from grw_keras.export.graphs import Graph, LeanModel, whole_clip_graph
from grw_keras.models.classifier import VideoClassifier

log = logging.getLogger("grw_keras")

QUANTIZATIONS = (None, "float16", "dynamic", "int8")
VERIFIED_FRAMES = 60
CALIBRATION_FRAMES = 240


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """What `to_tflite` wrote.

    Args:
        path: of the file to open with `grw_keras.lite.StreamSession`; a clip file with any
            runtime.
        files: all files written, `path` first.
        report: how it compares with the Keras model.
    """

    path: Path
    files: tuple[Path, ...]
    report: verify.Report


def to_tflite(
    model: VideoClassifier,
    path: str | os.PathLike,
    *,
    quantization: str | None = None,
    calibration: Any = None,
    split_head: bool = False,
    whole_clip: bool = False,
    force: bool = False,
) -> Exported:
    """Writes a model as a TFLite file that takes one frame at a time, and its description.

    The file holds built-in operations alone, static shapes, batch 1, one signature, float inputs,
    outputs and states; all-zero states start a stream. Before it gets its name it is verified:
    clips are streamed through the model and the file, and it is refused where they differ.

    Args:
        model: of the zoo; its labels travel in the file.
        path: of the file to write, `.tflite`; its description goes beside it, `.json`.
        quantization: None, float32; `"float16"`, weights in half precision; `"dynamic"`, weights
            in int8; `"int8"`, weights and, where the model bears it, activations in int8.
        calibration: clips like those that the model will see, [N, S, S, 3] or batches of them, S
            the model's resolution, uint8 or float in [0, 1], or a data set of
            `grw_keras.data`; the first 240 frames are used. `"int8"` needs them; otherwise they
            serve to verify, and default to noise.
        split_head: write two files, `NAME_embed.tflite`, for every frame, and
            `NAME_classify.tflite`, the transformer head, for when an answer is wanted.
        whole_clip: write the clip graph, `spec.frames` frames in, logits out.
        force: write the file although it falls short of the model.

    Returns:
        The files, and how they compare with the model.

    Raises:
        VerificationError: the file answers otherwise than the model (a ValueError).
        UnsupportedOperationsError: TFLite lacks operations that the model needs (a ValueError).
        ValueError: a model that can't stream, int8 without calibration, arguments that don't go
            together.

    Reference:
        The files' contract: tflite/README.md.
    """
    path = Path(path)
    _check(path, quantization, calibration, split_head, whole_clip)
    spec = model.spec
    if calibration is None:
        clips = clips_of.noise(spec, VERIFIED_FRAMES)
    else:
        clips = clips_of.take(calibration, spec, CALIBRATION_FRAMES)
    with tempfile.TemporaryDirectory(prefix="grw_keras") as folder:
        files = {}
        for kind, name in _files(path, split_head, whole_clip).items():
            flatbuffer = _flatbuffer(_graph(model, kind), quantization, clips)
            classify_file = f"{path.stem}_classify.tflite" if kind == "embed" else None
            about = description.describe(model, kind, quantization, classify_file)
            description.write(Path(folder, name), flatbuffer, about)
            files[kind] = name
        first = next(iter(files.values()))
        verified = clips_of.cut(clips, VERIFIED_FRAMES)
        report = verify.verify(model, Path(folder, first), verified)
        log.info("%s: %s", first, report)
        if not force:
            verify.require(report, quantization)
        path.parent.mkdir(parents=True, exist_ok=True)
        written = []
        for name in files.values():
            for part in (name, Path(name).with_suffix(".json").name):
                os.replace(Path(folder, part), path.parent / part)
            written.append(path.parent / name)
    return Exported(path=written[0], files=tuple(written), report=report)
