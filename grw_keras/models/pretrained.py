"""Our own release form: a folder with weights (safetensors), spec, labels and a card."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

import grw_keras
from grw_keras import atomic
from grw_keras.models.spec import ModelSpec

FORMAT_VERSION = 1
WEIGHTS, SPEC, LABELS, CARD = "model.safetensors", "spec.json", "labels.txt", "README.md"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
    """What such a folder holds: tensors by name, the spec, one label for each class or None."""

    tensors: dict[str, np.ndarray]
    spec: ModelSpec
    labels: tuple[str, ...] | None


def weights_of(model) -> dict[str, np.ndarray]:
    """A model's weights by name; under several workers all must ask, for reading may need all."""
    return {name: np.array(variable.numpy()) for name, variable in model.named_weights().items()}


def save_pretrained(model, folder, tensors: Mapping[str, np.ndarray] | None = None) -> None:
    """Writes `model.safetensors`, `spec.json`, `labels.txt` (if it has labels) and a card.

    Args:
        model: a `VideoClassifier`.
        folder: made if missing; files of the same names in it are replaced.
        tensors: `weights_of(model)`, where they were asked for before.

    Raises:
        NotADirectoryError: `folder` is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"`folder` must be a folder. Received: the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(weights_of(model) if tensors is None else tensors)
    with atomic.replacing(folder / WEIGHTS) as temporary:
        safetensors.numpy.save_file(tensors, temporary)
    if model.labels is None:
        (folder / LABELS).unlink(missing_ok=True)
    else:
        lines = "".join(f"{label}\n" for label in model.labels)
        atomic.write_text(folder / LABELS, lines)
    atomic.write_text(folder / CARD, _card(model))
    atomic.write_text(folder / SPEC, json.dumps(_description(model), indent=2) + "\n")


def is_pretrained(folder: Path) -> bool:
    """Whether a path is such a folder."""
    return (folder / SPEC).is_file()


def read(folder) -> Pretrained:
    """The weights, the spec and the labels of such a folder.

    Raises:
        FileNotFoundError: a file of the folder is missing.
        ValueError: written by a newer format, or damaged.
    """
    folder = Path(folder)
    _require(folder, SPEC, WEIGHTS)
    spec = read_spec(folder)
    try:
        tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged or cut off: {error}") from error
    labels = None
    if (folder / LABELS).is_file():
        labels = tuple((folder / LABELS).read_text(encoding="utf-8").split("\n")[:-1])
        if len(labels) != spec.num_classes:
            raise ValueError(
                f"{folder / LABELS} must have a line for each of {spec.num_classes} classes. "
                f"Received: {len(labels)}"
            )
    return Pretrained(tensors=tensors, spec=spec, labels=labels)


def read_spec(folder) -> ModelSpec:
    """The spec of such a folder; errors as of `read`."""
    folder = Path(folder)
    _require(folder, SPEC)
    try:
        description = json.loads((folder / SPEC).read_text(encoding="utf-8"))
        version, spec = description["format_version"], description["spec"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / SPEC} is no spec of this project: {error!r}") from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{folder} is of format {version}, this version of grw_keras "
            f"({grw_keras.__version__}) reads format {FORMAT_VERSION}: update grw_keras. "
            f"Received: format_version={version!r}"
        )
    try:
        return ModelSpec.from_dict(spec)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{folder / SPEC} is no spec of this project: {error}") from error


def _require(folder: Path, *names: str) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"A folder of `save_pretrained` holds {SPEC} and {WEIGHTS}. "
                f"Received: {folder} without {name}"
            )


def _description(model) -> dict[str, Any]:
    spec = model.spec
    return {
        "format_version": FORMAT_VERSION,
        "grw_keras": grw_keras.__version__,
        "name": spec.name,
        "preprocessing": {
            "fps": spec.fps,
            "frames": spec.frames,
            "resize_px": spec.resize,
            "crop_px": spec.resolution,
            "value_range": [0.0, 1.0],
        },
        "spec": spec.to_dict(),
    }


def _card(model) -> str:
    spec = model.spec
    smoothing = "none"
    if spec.placement != "none":
        smoothing = f"{spec.placement} placement, T = {spec.window}, "
        smoothing += f"α = {spec.alpha}, λ = {spec.grw_weight}"
    form = "frame by frame or whole clips" if spec.streaming else "whole clips"
    return f"""# {spec.name}

A video classifier of {spec.num_classes} classes, made with grw_keras.

| | |
|---|---|
| backbone | {spec.backbone} ({form}) |
| head | {spec.head} |
| GRW-smoothing | {smoothing} |
| input | clips [B, N, {spec.resolution}, {spec.resolution}, 3], RGB, float32 in [0, 1] |
| sampling | {spec.frames} frames at {spec.fps} frames a second |
| evaluation | resize to {spec.resize} × {spec.resize} px, centre crop {spec.resolution} px |

```python
from grw_keras import zoo

model = zoo.load("path/of/this/folder")
logits = model(clips)
```
"""
