"""load: a name, and weights from wherever they are, to a compiled model."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grw_keras.hints import did_you_mean_path
from grw_keras.models import pretrained
from grw_keras.models.classifier import VideoClassifier
from grw_keras.models.spec import ModelSpec, check_fields
from grw_keras.zoo import download, manifest, matching, registry
from grw_keras.zoo.importers import Imported
from grw_keras.zoo.importers.files import read_weights

DEFAULT_WEIGHTS = "k600"
_DATASETS = ("k600", "k400")


def load(
    name: str | os.PathLike,
    weights: str | os.PathLike | None = DEFAULT_WEIGHTS,
    *,
    num_classes: int | None = None,
    ema: bool | None = None,
    skip: Sequence[str] = (),
    compile: bool = True,
    **changes: Any,
) -> VideoClassifier:
    """A compiled model of the zoo, with weights.

    The weights may fix parts of the model: activations, gates, head sizes, number of classes. The
    model's `spec` says what came of it. Weights with another head than the model's fill the
    backbone and leave the head new; one log line says so.

    Args:
        name: a registered name (`list_models()`), or a folder that `save_pretrained` wrote.
        weights: `"k600"` or `"k400"`, published weights of that model; the name of another
            model, whose K600 weights are taken; a file or folder of any format that
            `grw-keras convert` reads; an http(s) or `hf://owner/repository/file` address; or
            None, random. With a folder as `name` the default is its own.
        num_classes: width of the logits; None takes the weights' (600 without weights). Another
            number than theirs makes only the last linear layer new.
        ema: of the authors' snapshots: the averaged weights (True), the plain ones (False), or
            the averaged ones where there are any (None).
        skip: patterns of tensor names (`fnmatch`) to leave new although the weights have them,
            or lack them.
        compile: with the paper's loss and (constant) learning rates; for its cosine call
            `model.compile_for_training(steps)`.
        **changes: fields of `ModelSpec` to change, e.g. `dropout=0.2`, `window=10`.

    Returns:
        A `VideoClassifier`.

    Raises:
        ValueError: an unknown name, weights of another model, a name without published weights.
        TypeError: a change that is no field of `ModelSpec`.
        WeightsMismatchError: weights that don't fit (a ValueError).
        FileNotFoundError: a file or folder that isn't there.
        DownloadError: no source gave the weights; FileNotFoundError when offline.

    Example:
        >>> model = load("mobilenet_v3_small_grw", weights=None, num_classes=6)
        >>> model.spec.name, model.spec.num_classes
        ('mobilenet_v3_small_grw', 6)
    """
    check_fields(changes)
    spec, own = _find(name)
    spec = spec.replace(changes)
    if weights is None:
        chosen = {} if num_classes is None else {"num_classes": num_classes}
        model = VideoClassifier(spec.replace(chosen))
    else:
        if own is None or weights != DEFAULT_WEIGHTS:
            imported = _weights(spec.name, weights, ema)
        else:
            imported = own
        model = _build(spec, imported, num_classes, skip, tuple(changes))
    if compile:
        model.compile_for_training()
    return model


def convert(
    path: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    ema: bool | None = None,
    labels: Sequence[str] | None = None,
) -> VideoClassifier:
    """Turns a foreign file of weights into a folder that `load` reads.

    Args:
        path: an authors' snapshot (.pt), an official checkpoint, SavedModel or TFLite file.
        folder: where to write.
        ema: as of `load`.
        labels: one name for each class; default the file's, if it has them.

    Returns:
        The model, not compiled.

    Raises:
        As of `load`.
    """
    imported = read_weights(Path(path), ema=ema)
    model = _build(spec_of(imported), imported, None, (), ())
    if labels is not None:
        model.labels = labels
    pretrained.save_pretrained(model, folder)
    return model


def spec_of(imported: Imported) -> ModelSpec:
    """The spec that a file's own fields describe, on top of its backbone's registered one."""
    file = dict(imported.spec)
    for field in ("backbone", "head"):
        if field not in file:
            raise ValueError(
                f"The file holds no {field}, so it is no whole model: give it to `load` as the "
                "weights of a model's name."
            )
    form = "_stream" if file.get("streaming") and file["backbone"].startswith("movinet") else ""
    return registry.get(file["backbone"] + form).replace(file)


def _find(name) -> tuple[ModelSpec, Imported | None]:
    """The spec of a name or a folder, and the folder's weights."""
    text = os.fspath(name)
    if Path(text).is_dir() and (isinstance(name, os.PathLike) or text not in registry.specs()):
        if not pretrained.is_pretrained(Path(text)):
            raise ValueError(
                "This folder holds no `spec.json` of `save_pretrained`: give a model's name, and "
                f"foreign weights as `weights`, or convert them. Received: name={text!r}"
            )
        imported = read_weights(Path(text))
        return ModelSpec.from_dict(imported.spec), imported
    if Path(text).is_file():
        raise ValueError(
            "A file of weights needs a model's name: load(NAME, weights=FILE); or convert it to a "
            f"folder. A .keras file is for tf_keras.models.load_model. Received: name={text!r}"
        )
    return registry.find(name), None


def find_weights(
    name: str, weights: str | os.PathLike
) -> Path | manifest.Source | manifest.WeightEntry:
    """The file or folder, address, or published weights that `weights` of `load` means.

    Args:
        name: a registered name.
        weights: as of `load`, but not None.

    Raises:
        ValueError: no published weights of that model.
        FileNotFoundError: a file or folder that isn't there.
    """
    text = os.fspath(weights)
    named = isinstance(weights, str) and (text in _DATASETS or text in registry.specs())
    if not named:
        if "://" in text:
            return manifest.Source(text)
        if text and Path(text).exists():
            return Path(text)
        if os.sep in text or "." in text:
            raise FileNotFoundError(
                f"No such file or folder of weights: {text}. {did_you_mean_path(Path(text))}"
                "Published weights are downloaded by a model's name"
            )
    if text in registry.specs():
        name, text = text, DEFAULT_WEIGHTS
    return manifest.find(name, text)


def fetch(found: Path | manifest.Source | manifest.WeightEntry) -> Path:
    """Where weights of `find_weights` are on this machine, downloaded if need be.

    Raises:
        DownloadError: no source gave them; FileNotFoundError when offline.
    """
    if isinstance(found, Path):
        return found
    try:
        return download.fetch(found).path
    except (download.DownloadError, FileNotFoundError) as error:
        hint = (
            "Or give a file that you have (weights=PATH, --weights PATH), or begin at random "
            "(weights=None, --weights none)."
        )
        raise type(error)(f"{error}\n{hint}") from error


def _weights(name: str, weights, ema: bool | None) -> Imported:
    """The tensors that `weights` names."""
    entry = find_weights(name, weights)
    imported = read_weights(fetch(entry), ema=ema)
    if isinstance(entry, Path | manifest.Source):
        return imported
    return dataclasses.replace(
        imported,
        spec={**imported.spec, **entry.spec},
        assumed=tuple(field for field in imported.assumed if field not in entry.spec),
    )


def _build(
    spec: ModelSpec,
    imported: Imported,
    num_classes: int | None,
    skip: Sequence[str],
    chosen: Sequence[str],
) -> VideoClassifier:
    resolved = matching.resolve(spec, imported, num_classes, chosen)
    model = VideoClassifier(resolved)
    matching.fit(model, imported, skip)
    if imported.labels is not None and len(imported.labels) == resolved.num_classes:
        model.labels = imported.labels
    return model
