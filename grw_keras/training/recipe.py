"""Recipes: all that a training run is told, as strict YAML over frozen dataclasses."""

import dataclasses
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from grw_keras import atomic, strict_yaml
from grw_keras.data.transforms import Augmentation
from grw_keras.hints import did_you_mean_path
from grw_keras.training.recipe_checks import Part, plain
from grw_keras.zoo import registry

# Keys that change nothing in the weights that come out: free to differ when a run is resumed.
HARMLESS = (
    "data.cache",
    "data.workers",
    "training.checkpoint_every_steps",
    "training.checkpoint_every_s",
    "training.keep_checkpoints",
    "published",
)
_OWN_PLACE = {"num_classes": "model.num_classes", "seed": "training.seed"}  # not in model.spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelPart(Part):
    """What is trained.

    Args:
        name: a registered model.
        weights: to start from, as `grw_keras.zoo.load` takes them; None: random.
        ema_weights: of the authors' snapshots, the averaged weights or the plain ones; None: the
            averaged ones where there are any.
        num_classes: width of the logits; None: as many as the data has.
        spec: fields of `ModelSpec` to change.
    """

    name: str
    weights: str | None = "k600"
    ema_weights: bool | None = None
    num_classes: int | None = None
    spec: dict[str, Any] = dataclasses.field(default_factory=dict)

    def _check(self) -> None:
        for field, place in _OWN_PLACE.items():
            if field in self.spec:
                raise ValueError(f"`model.spec` must not hold {field!r}: set `{place}`")
        try:
            spec = registry.get(self.name)
        except ValueError as error:
            raise ValueError(f"`model.name`: {error}") from error
        try:
            spec = spec.replace(self.spec)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`model.spec`: {error}") from error
        if spec.placement != "none" and spec.frames < spec.window:
            raise ValueError(
                f"`model.spec.frames` must be at least the {spec.window} frames of the loss's "
                f"window. Received: {spec.frames}"
            )


def _usual_augmentation() -> dict[str, Any]:
    return {"flip": True, "scale": [0.5, 1.0]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataPart(Part):
    """How clips are made; frames, fps and resolution are the model's.

    Args:
        short: what a clip does whose video is too short: "loop", or "pad" with a mask.
        augmentation: of training clips, as fields of `grw_keras.data.transforms.Augmentation`,
            to which a random time offset comes; None: that alone.
        holdout: share of the training clips that is held out, in (0, 1): for validation where there
            are test clips, else as the test clips.
        group_regex: what it matches in a clip's name, its first parenthesis if it has one, is the
            clip's group, which stays on one side of the holdout.
        test_regex: clips whose name it is found in are the test split.
        cache: of decoded frames: "memory", "disk", "none", or "auto", by their size.
        workers: processes that decode; None: by the machine's cores.
        max_bad_share: share of unreadable videos above which the run stops, in [0, 1].
        source_fps: frames a second of a "tfds:" data set that doesn't say it.
    """

    short: str = "loop"
    augmentation: dict[str, Any] | None = dataclasses.field(default_factory=_usual_augmentation)
    holdout: float | None = None
    group_regex: str | None = None
    test_regex: str | None = None
    cache: str = "auto"
    workers: int | None = None
    max_bad_share: float = 0.05
    source_fps: float | None = None

    def _check(self) -> None:
        for field in ("group_regex", "test_regex"):
            try:
                re.compile(getattr(self, field) or "")
            except re.error as error:
                self._require(field, False, f"a regular expression ({error})")
        if self.augmentation is not None:
            strict_yaml.check_keys(self.augmentation, Augmentation, "`data.augmentation`")
            try:
                Augmentation(**self.augmentation)
            except ValueError as error:
                raise ValueError(f"`data.augmentation`: {error}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingPart(Part):
    """How the model is trained. The defaults are for fine-tuning on a folder of videos.

    Args:
        epochs: passes over the training clips.
        batch_size: clips of a whole optimiser step, over all replicas, workers and micro-batches.
        accumulate: micro-batches that a step's gradients are summed over; divides `batch_size`.
        optimizer: "adam", "adamw" or "sgd".
        backbone_rate: first and last learning rate of the backbone, along a cosine over all steps.
        head_rate: the same of everything else.
        weight_decay: decoupled, of "adamw" and "sgd".
        clip_norm: bound on the norm of all gradients together; None: none.
        label_smoothing: in [0, 1).
        ema_decay: of the moving average of all weights, per step, in (0, 1); None: no average.
        precision: of the computation, "float32", "bfloat16" or "float16"; weights are float32.
        frozen_batch_norm: keep the backbone's statistics as they are; None: as the spec has it.
        quantization_aware: compute with weights and activations as int8 files have them; for a few
            epochs at low rates, from trained weights.
        frozen_backbone_epochs: at the beginning, in which the backbone is not trained.
        early_stopping_epochs: without a better validation after which training ends; None: never.
        seed: of everything random.
        deterministic: TensorFlow's deterministic operations; slower on GPUs. Small models end with
            the same bits in every run on one machine; in larger ones the last bit of a sum of many
            gradients may still differ now and then (`grw_keras.training.determinism`).
        jit_compile: by XLA.
        checkpoint_every_steps: None: by time alone.
        checkpoint_every_s: seconds between checkpoints.
        keep_checkpoints: how many stay.
        validate_every_epochs: epochs between validations.

    Reference:
        The learning rates: section 4 of the paper, "Training".
    """

    epochs: int = 20
    batch_size: int = 4
    accumulate: int = 1
    optimizer: str = "adam"
    backbone_rate: tuple[float, float] = (1e-4, 1e-6)
    head_rate: tuple[float, float] = (1e-3, 1e-5)
    weight_decay: float = 0.0
    clip_norm: float | None = None
    label_smoothing: float = 0.0
    ema_decay: float | None = None
    precision: str = "float32"
    frozen_batch_norm: bool | None = True
    quantization_aware: bool = False
    frozen_backbone_epochs: float = 0.0
    early_stopping_epochs: int | None = None
    seed: int = 0
    deterministic: bool = False
    jit_compile: bool = False
    checkpoint_every_steps: int | None = None
    checkpoint_every_s: float = 600.0
    keep_checkpoints: int = 3
    validate_every_epochs: int = 1

    def _check(self) -> None:
        divides = self.batch_size % self.accumulate == 0
        self._require("accumulate", divides, f"a divisor of the batch size, {self.batch_size}")
        exact = self.precision == "float32" or not self.quantization_aware
        self._require("precision", exact, "'float32' with quantization_aware")
        within = self.frozen_backbone_epochs <= self.epochs
        self._require("frozen_backbone_epochs", within, f"<= the {self.epochs} epochs")
        (first, last), (head_first, head_last) = self.backbone_rate, self.head_rate
        alike = abs(head_first * last - head_last * first) <= 1e-6 * head_first * first
        fall = f"falling by the same factor as the backbone's, {first:g} to {last:g}"
        self._require("head_rate", alike, fall)
        no_decay = self.optimizer != "adam" or self.weight_decay == 0
        self._require("weight_decay", no_decay, "0 with adam: adamw is adam with weight decay")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Part):
    """A whole training run.

    Args:
        model: what is trained.
        data: how clips are made.
        training: how it is trained.
        published: numbers of the paper to compare with, in any form.
    """

    model: ModelPart
    data: DataPart = dataclasses.field(default_factory=DataPart)
    training: TrainingPart = dataclasses.field(default_factory=TrainingPart)
    published: dict[str, Any] | None = None

    def _check(self) -> None:
        spec = registry.get(self.model.name).replace(self.model.spec)
        averages = spec.family == "movinet" and spec.head == "classifier"
        if self.data.short == "pad" and averages:
            raise ValueError(
                "`data.short` must be 'loop' with the official MoViNet classifier, which averages "
                "over all frames and takes no mask. Received: 'pad'"
            )


def read(path: str | os.PathLike) -> Recipe:
    """The recipe of a YAML file.

    Raises:
        ValueError: an unknown, missing, repeated, mistyped or out-of-range key; names the file,
            the key and what comes closest.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"No such recipe. {did_you_mean_path(path)}Received: {path}")
    data = strict_yaml.load(path)
    try:
        return from_dict(data)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


def write(recipe: Recipe, path: str | os.PathLike) -> None:
    """Writes a file that `read` reads back; one that is there is replaced at once, as a whole."""
    text = yaml.safe_dump(to_dict(recipe), sort_keys=False, allow_unicode=True)
    atomic.write_text(Path(path), text)


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain data, all defaults included, that `from_dict` reads back."""
    return plain(dataclasses.asdict(recipe))


def from_dict(data: Mapping[str, Any]) -> Recipe:
    """The recipe of plain data.

    Raises:
        ValueError: as of `read`, without a file's name.
    """
    parts = {"model": ModelPart, "data": DataPart, "training": TrainingPart}
    strict_yaml.check_keys(data, Recipe, "A recipe")
    given = dict(data)
    for key, part in parts.items():
        if key in data:
            strict_yaml.check_keys(data[key], part, f"`{key}`")
            given[key] = part(**data[key])
    return Recipe(**given)


def override(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """A copy with some keys changed.

    Args:
        recipe: the recipe.
        changes: dotted key to value, e.g. `{"training.epochs": 20, "model.spec.frames": 10}`.

    Raises:
        ValueError: as of `from_dict`.
    """
    data = to_dict(recipe)
    for key, value in changes.items():
        *path, last = key.split(".")
        place = data
        for name in path:
            if place.get(name) is None:
                place[name] = {}
            place = place[name]
            strict_yaml.mapping(place, f"`{key}`: `{name}`")
        place[last] = plain(value)
    return from_dict(data)


def assignments(texts: Iterable[str]) -> dict[str, Any]:
    """The changes that texts like "training.epochs=20" stand for, values read as YAML.

    Raises:
        ValueError: a text without "=", or whose value is no plain YAML.

    Example:
        >>> assignments(["training.head_rate=[1e-3, 1e-5]", "data.augmentation=null"])
        {'training.head_rate': [0.001, 1e-05], 'data.augmentation': None}
    """
    changes = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise ValueError(
                f"A setting must be KEY=VALUE, as training.epochs=20. Received: {text}"
            )
        try:
            changes[key.strip()] = strict_yaml.parse(value)
        except ValueError as error:
            raise ValueError(f"The value of {key.strip()}: {error}") from error
    return changes


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], ignore: Collection[str] = ()
) -> list[str]:
    """What differs between two pieces of plain data, as lines like "training.epochs: 14 → 20".

    Args:
        old: what `to_dict` gives, or other mappings of what JSON knows; tuples count as lists.
        new: the same.
        ignore: dotted keys that may differ, such as `HARMLESS`.
    """
    before, after = dict(_leaves(old)), dict(_leaves(new))
    return [
        f"{key}: {before.get(key, _NOT_SET)} → {after.get(key, _NOT_SET)}"
        for key in {**before, **after}
        if before.get(key) != after.get(key)
        and not any(key == other or key.startswith(f"{other}.") for other in ignore)
    ]


_NOT_SET = "not set"


def _leaves(data: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """(dotted key, value as JSON) of all that is no mapping."""
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value, ensure_ascii=False, default=str)
