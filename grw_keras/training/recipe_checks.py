"""What the values of a recipe may be: types by annotation, ranges by a table."""

import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from grw_keras import strict_yaml
from grw_keras.checked import Checked
from grw_keras.data.opening import CACHES
from grw_keras.data.sampling import SHORT

_TYPES = {
    str: "text",
    int: "an integer",
    float: "a finite number",
    bool: "true or false",
    tuple[float, float]: "two finite numbers",
    type(None): "null",
}
_Rule = tuple[Callable[[Any], bool], str]


def _at_least(low: float) -> _Rule:
    return lambda value: value >= low, f">= {low}"


def _one_of(*names: str) -> _Rule:
    return lambda value: value in names, f"one of {', '.join(map(repr, names))}"


_POSITIVE: _Rule = (lambda value: value > 0, "> 0")
_SHARE: _Rule = (lambda value: 0 < value < 1, "in (0, 1)")
_FALLING: _Rule = (
    lambda rates: rates[0] >= rates[1] >= 0 and rates[0] > 0,
    "a first rate > 0 and a last one >= 0, not above the first",
)
_RULES: dict[str, _Rule] = {
    "model.weights": (bool, "a name, a path, an address or null"),
    "model.num_classes": _at_least(1),
    "data.short": _one_of(*SHORT),
    "data.holdout": _SHARE,
    "data.cache": _one_of(*CACHES),
    "data.workers": _at_least(0),
    "data.max_bad_share": (lambda value: 0 <= value <= 1, "in [0, 1]"),
    "data.source_fps": _POSITIVE,
    "training.epochs": _at_least(1),
    "training.batch_size": _at_least(1),
    "training.accumulate": _at_least(1),
    "training.optimizer": _one_of("adam", "adamw", "sgd"),
    "training.backbone_rate": _FALLING,
    "training.head_rate": _FALLING,
    "training.weight_decay": _at_least(0),
    "training.clip_norm": _POSITIVE,
    "training.label_smoothing": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "training.ema_decay": _SHARE,
    "training.precision": _one_of("float32", "bfloat16", "float16"),
    "training.frozen_backbone_epochs": _at_least(0),
    "training.early_stopping_epochs": _at_least(1),
    "training.seed": _at_least(0),
    "training.checkpoint_every_steps": _at_least(1),
    "training.checkpoint_every_s": _POSITIVE,
    "training.keep_checkpoints": _at_least(1),
    "training.validate_every_epochs": _at_least(1),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part(Checked):
    """A part of a recipe: its fields are checked by their annotations and by `_RULES`."""

    def __post_init__(self):
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = _typed(getattr(self, field.name), hints[field.name], self._key(field.name))
            object.__setattr__(self, field.name, value)
            holds, allowed = _RULES.get(self._key(field.name), (None, ""))
            if holds is not None and value is not None:
                self._require(field.name, holds(value), allowed)
        self._check()

    def _check(self) -> None:
        """What one field alone does not tell."""

    @classmethod
    def _key(cls, field: str) -> str:
        part = cls.__name__.removesuffix("Part").lower()
        return f"{part}.{field}" if part != "recipe" else field


def plain(value: Any) -> Any:
    """Plain data with lists for tuples, as YAML has them."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _typed(value: Any, wanted: Any, key: str) -> Any:
    """`value` if it is of the annotated type; numbers as floats and lists as pairs by it."""
    options = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
    for option in options:
        if option is float:
            if _is_number(value):
                return float(value)
        elif option == tuple[float, float]:
            if isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value)):
                return tuple(map(float, value))
        elif typing.get_origin(option) is dict:
            if isinstance(value, Mapping):
                return plain(strict_yaml.mapping(value, f"`{key}`"))
        elif type(value) is option:
            return value
    allowed = " or ".join(_TYPES.get(option, "a mapping") for option in options)
    raise ValueError(f"`{key}` must be {allowed}. Received: {value!r}")


def _is_number(value: Any) -> bool:
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and math.isfinite(value)
