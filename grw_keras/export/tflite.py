"""to_tflite: a model of the zoo to streaming TFLite files that phones, cameras and browsers run."""

import dataclasses
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grw_keras.export import clips as clips_of
from grw_keras.export import conversion, description, quantize, rounding, verify
from grw_keras.export.graphs import Graph, LeanModel, whole_clip_graph
from grw_keras.models.classifier import VideoClassifier

log = logging.getLogger("grw_keras")

QUANTIZATIONS = (None, "float16", "dynamic", "int8")
VERIFIED_FRAMES = 60
CALIBRATION_FRAMES = 240
NOISE_CLIPS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """What `to_tflite` wrote.

    Args:
        path: of the file to open with `grw_keras.lite.StreamSession`; a clip file with any
            runtime.
        files: the models written, `path` first.
        report: how it compares with the Keras model.
        sensitivity: of `"int8"`: what was quantised, what was left in float, and why; in
            `NAME_sensitivity.csv` too. A `classify` file, int8 weights throughout, has no rows.
    """

    path: Path
    files: tuple[Path, ...]
    report: verify.Report
    sensitivity: tuple[quantize.Sensitivity, ...] = ()


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
            `grw_keras.data`; the first 24 clips, 240 frames in all, are used. `"int8"` needs
            them; otherwise they serve to verify, and default to noise.
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
            together, clips that aren't the model's.
        TypeError: another model; clips of another type.

    Reference:
        The files' contract: tflite/README.md.
    """
    path = Path(path)
    kinds = _kinds(split_head, whole_clip)
    _check(model, path, quantization, calibration, whole_clip)
    clips = _clips(model, calibration, whole_clip)
    lean = None if whole_clip else LeanModel(model)
    if quantization == "int8":
        log.info("Rounding the kernels to int8 by %d clips", len(clips))
    rounded = rounding.rounded_weights(lean, clips) if lean and quantization == "int8" else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as folder:
        names, sensitivity = [], []
        for kind in kinds:
            log.info("Converting %s", path.name if len(kinds) == 1 else f"{path.name}, {kind}")
            graph = getattr(lean, kind)() if lean else whole_clip_graph(model)
            flatbuffer, of_layers = _flatbuffer(model, graph, quantization, rounded, clips)
            names.append(f"{path.stem}_{kind}.tflite" if split_head else path.name)
            sensitivity += of_layers
            head = f"{path.stem}_classify.tflite" if kind == "embed" else None
            about = description.describe(model, kind, quantization, head)
            description.write(Path(folder, names[-1]), flatbuffer, about)
        if sensitivity:
            quantize.write_report(Path(folder, f"{path.stem}_sensitivity.csv"), sensitivity)
        kind = "clips of noise" if calibration is None else "clips"
        log.info("Streaming %s through the model and the file, to compare", kind)
        report = verify.verify(
            model, Path(folder, names[0]), clips_of.spread(clips, VERIFIED_FRAMES)
        )
        if not force:
            verify.require(report, quantization)
        path.with_name(f"{path.stem}_sensitivity.csv").unlink(missing_ok=True)  # of a file before
        for file in Path(folder).iterdir():
            os.replace(file, path.parent / file.name)
    files = tuple(path.parent / name for name in names)
    return Exported(path=files[0], files=files, report=report, sensitivity=tuple(sensitivity))


def _kinds(split_head: bool, whole_clip: bool) -> tuple[str, ...]:
    if split_head and whole_clip:
        raise ValueError("`split_head` and `whole_clip` don't go together: a clip has one answer")
    if split_head:
        return ("embed", "classify")
    return ("clip",) if whole_clip else ("stream",)


def _check(
    model: VideoClassifier,
    path: Path,
    quantization: str | None,
    calibration: Any,
    whole_clip: bool,
) -> None:
    if not isinstance(model, VideoClassifier):
        raise TypeError(
            "`model` must be a VideoClassifier, as grw_keras.zoo.load gives it. "
            f"Received: {type(model).__name__}"
        )
    if any(hasattr(module, "fake_kernel") for module in model.submodules):
        raise ValueError(
            "`model` computes as an int8 file would: make it plain by "
            "grw_keras.export.fake_quantization.settled(model) first"
        )
    if path.suffix != ".tflite":
        raise ValueError(f"`path` must end in .tflite. Received: {path}")
    if quantization not in QUANTIZATIONS:
        raise ValueError(
            f"`quantization` must be one of {', '.join(map(repr, QUANTIZATIONS))}. "
            f"Received: {quantization!r}"
        )
    if quantization == "int8" and whole_clip:
        raise ValueError("'int8' is for streams: use 'dynamic' with whole_clip=True")
    if quantization == "int8" and calibration is None:
        raise ValueError(
            "'int8' needs `calibration`: some clips like those that the model will see. "
            "Received: None"
        )


def _clips(model: VideoClassifier, calibration: Any, whole_clip: bool) -> list[np.ndarray]:
    if calibration is not None:
        return clips_of.take(calibration, model.spec, CALIBRATION_FRAMES)
    frames = model.spec.frames if whole_clip else VERIFIED_FRAMES // NOISE_CLIPS
    return clips_of.noise(model.spec, NOISE_CLIPS, frames)


def _flatbuffer(
    model: VideoClassifier,
    graph: Graph,
    quantization: str | None,
    rounded: quantize.Weights,
    clips: Sequence[np.ndarray],
) -> tuple[bytes, list[quantize.Sensitivity]]:
    flatbuffer = conversion.to_flatbuffer(graph, float16=quantization == "float16")
    if quantization == "dynamic":
        return quantize.dynamic(flatbuffer), []
    if quantization != "int8":
        return flatbuffer, []
    if "image" not in graph.inputs:
        return quantize.with_rounded(flatbuffer, rounded), []
    road = quantize.static_int8 if model.spec.relu6 else quantize.dynamic_int8
    return road(flatbuffer, rounded, clips)
