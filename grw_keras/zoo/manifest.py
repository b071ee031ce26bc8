"""Which weights are published, and where: manifest.yaml, read strictly into plain data."""

import dataclasses
import functools
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grw_keras.models.spec import check_fields
from grw_keras.strict_yaml import check_keys, choices, load, mapping
from grw_keras.zoo.download import Source

MANIFEST = Path(__file__).with_name("manifest.yaml")
FORMATS = ("torch_snapshot", "tf_checkpoint", "saved_model", "tflite", "pretrained")
_VARIANT = re.compile(r"_(grw|intermediate|attention)$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What the weights want to see.

    Args:
        resolution: height and width of the centre that is cut out, pixels.
        resize: height and width that a frame is resized to before, pixels.
        frames: of a clip.
        fps: frames a second.
        value_range: of the pixels.
    """

    resolution: int
    resize: int
    frames: int
    fps: float
    value_range: tuple[float, ...] = (0.0, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """Published top-1 accuracy of a single clip, percent, and the paper's table it is from."""

    top1_percent: float
    table: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """What weights were trained on; `unpublished` says why there are none, if there are none."""

    title: str
    unpublished: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightEntry:
    """Published weights.

    Args:
        key: unique name.
        models: registered names of the models that they are of.
        dataset: "k600" or "k400".
        sources: in the order to try; each has its own format, one of `FORMATS`.
        licence: in words; "not stated" where the source states none.
        preprocessing: as evaluated.
        metrics: published.
        spec: the fields of `ModelSpec` that the weights fix.
        notes: what a user should know.
    """

    key: str
    models: tuple[str, ...]
    dataset: str
    sources: tuple[Source, ...]
    licence: str
    preprocessing: Preprocessing
    metrics: tuple[Metric, ...] = ()
    spec: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """All of a manifest file."""

    datasets: dict[str, Dataset]
    weights: tuple[WeightEntry, ...]


def entries() -> tuple[WeightEntry, ...]:
    """All published weights that this package knows of.

    Example:
        >>> entries()[0].sources[0].url
        'hf://DrGil/grw-smoothing-movinet/a0s_grw.pt'
    """
    return _own().weights


def find(model_name: str, weights: str) -> WeightEntry:
    """The published weights of a model.

    Args:
        model_name: a registered name.
        weights: the data set, "k600" or "k400".

    Raises:
        ValueError: there are none, or no such data set; names the nearest weights there are.
    """
    manifest = _own()
    if weights not in manifest.datasets:
        raise ValueError(
            f"`weights` must be one of {', '.join(map(repr, manifest.datasets))}, a path, an "
            f"address, or None for random weights. Received: weights={weights!r}"
        )
    for entry in manifest.weights:
        if model_name in entry.models and entry.dataset == weights:
            return entry
    raise ValueError(_missing(manifest, model_name, weights))


def _missing(manifest: Manifest, model_name: str, weights: str) -> str:
    dataset = manifest.datasets[weights]
    reason = dataset.unpublished or f"No {dataset.title} weights of this model are published."
    near = _nearest(manifest, model_name)
    if near is None:
        hint = "None of the published weights is near it: pass weights=<path or address>"
    else:
        same = model_name in near.models
        hint = f"The nearest there are: {near.models[0]!r} with weights={near.dataset!r} "
        hint += f"({near.sources[0].url}). " + ("Take those" if same else "Start from those")
        hint += f", weights={near.dataset if same else near.models[0]!r}, or from a file, "
        hint += "weights=<path>"
    return (
        f"{reason} {hint}, or weights=None (--weights none) for random ones. "
        f"Received: {model_name!r}, weights={weights!r}"
    )


def _nearest(manifest: Manifest, model_name: str) -> WeightEntry | None:
    """Its own for another data set, else those of the model that it is a variant of."""
    for name in (model_name, _VARIANT.sub("", model_name)):
        for entry in manifest.weights:
            if name in entry.models:
                return entry
    return None


@functools.cache
def _own() -> Manifest:
    return read(MANIFEST)


def read(path: Path) -> Manifest:
    """A manifest file.

    Raises:
        ValueError: an unknown, missing, repeated or mistyped key; says where, and the closest.
    """
    data = load(path)
    where = path.name
    top = _fields(Manifest, data, where)
    datasets = {
        key: _strict(Dataset, value, f"{where}: datasets: {key}")
        for key, value in mapping(top["datasets"], f"{where}: datasets").items()
    }
    weights = tuple(
        _entry(key, value, datasets, f"{where}: weights: {key}")
        for key, value in mapping(top["weights"], f"{where}: weights").items()
    )
    taken: dict[tuple[str, str], str] = {}
    for entry in weights:
        for model in entry.models:
            if (other := taken.setdefault((model, entry.dataset), entry.key)) != entry.key:
                raise ValueError(f"{where}: {entry.key}: models: {model!r} belongs to {other!r}")
    return Manifest(datasets=datasets, weights=weights)


def _entry(key: str, data: Any, datasets: Mapping, where: str) -> WeightEntry:
    fields = _fields(WeightEntry, {"key": key, **mapping(data, where)}, where)
    if fields["dataset"] not in datasets:
        raise ValueError(f"{where}: dataset: {choices(fields['dataset'], datasets)}")
    preprocessing = _strict(Preprocessing, fields["preprocessing"], f"{where}: preprocessing")
    sources = _several(Source, fields["sources"], f"{where}: sources")
    for source in sources:
        if source.format not in FORMATS:
            raise ValueError(f"{where}: sources: format: {choices(source.format, FORMATS)}")
    metrics = _several(Metric, fields.get("metrics", []), f"{where}: metrics")
    models, spec = fields["models"], mapping(fields.get("spec", {}), f"{where}: spec")
    if not isinstance(models, list) or not all(isinstance(model, str) for model in models):
        raise ValueError(f"{where}: models must be a list of names. Received: {models!r}")
    if not models or not sources:
        raise ValueError(f"{where}: models and sources must name at least one each")
    try:
        check_fields(spec)
    except TypeError as error:
        raise ValueError(f"{where}: spec: {error}") from error
    parts = {"preprocessing": preprocessing, "sources": sources, "metrics": metrics}
    return WeightEntry(**{**fields, **parts, "models": tuple(models), "spec": dict(spec)})


def _several(cls, data: Any, where: str) -> tuple:
    if not isinstance(data, list):
        raise ValueError(f"{where} must be a list. Received: {data!r}")
    return tuple(_strict(cls, item, f"{where}[{i}]") for i, item in enumerate(data))


def _strict(cls, data: Any, where: str):
    fields = _fields(cls, data, where)
    try:
        return cls(**fields)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _fields(cls, data: Any, where: str) -> dict[str, Any]:
    """The keys of `data` as arguments of the dataclass `cls`, checked against its fields."""
    check_keys(data, cls, where)
    types = typing.get_type_hints(cls)
    return {key: _typed(value, types[key], f"{where}: {key}") for key, value in data.items()}


def _typed(value: Any, wanted: Any, where: str) -> Any:
    """`value` if it is of the simple type `wanted`; numbers as floats where those are wanted."""
    if wanted == tuple[float, ...] and isinstance(value, list):
        return tuple(_typed(item, float, where) for item in value)
    simple: dict[Any, Any] = {str: str, int: int, float: (int, float)}
    simple |= {str | None: str, int | None: int}
    if wanted in simple and (isinstance(value, bool) or not isinstance(value, simple[wanted])):
        name = getattr(wanted, "__name__", str(wanted))
        raise ValueError(f"{where} must be of type {name}. Received: {value!r}")
    return float(value) if wanted is float else value
