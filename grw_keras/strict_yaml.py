"""YAML without surprises: no key twice, no object tags, 1e-4 is a number; errors name the file."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from grw_keras.hints import did_you_mean


class _UniqueKeys(yaml.SafeLoader):
    """Plain YAML, but a key that stands twice is an error instead of the last one winning."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"{key!r} stands twice{node.start_mark}")
        return super().construct_mapping(node, deep)


# YAML 1.1, which PyYAML reads, takes 1e-4 for text; this is the float of YAML 1.2, section 10.3.2.
_UniqueKeys.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def load(path: Path) -> Any:
    """The plain data of a file.

    Raises:
        ValueError: no YAML, a key that stands twice, or an object tag; says where.
    """
    try:
        return parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


def parse(text: str) -> Any:
    """The plain data of a text.

    Raises:
        ValueError: as of `load`.

    Example:
        >>> parse("[1e-4, null, {flip: true}]")
        [0.0001, None, {'flip': True}]
    """
    try:
        return yaml.load(text, Loader=_UniqueKeys)
    except yaml.YAMLError as error:
        raise ValueError(f"no plain YAML: {error}") from error


def mapping(data: Any, where: str) -> Mapping[str, Any]:
    """`data` if it is a mapping of names, else a ValueError that begins with `where`."""
    if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
        raise ValueError(f"{where} must be a mapping of names. Received: {data!r}")
    return data


def choices(name: Any, known: Iterable[str]) -> str:
    """What to say of a name that is none of the known ones, the closest first.

    Example:
        >>> choices("epoch", ["epochs", "seed"])
        "Did you mean 'epochs'? It must be one of 'epochs', 'seed'. Received: 'epoch'"
    """
    known = list(known)
    allowed = ", ".join(map(repr, known))
    return f"{did_you_mean(name, known)}It must be one of {allowed}. Received: {name!r}"


def check_keys(data: Any, cls: type, where: str) -> None:
    """Sees that plain data, of YAML or JSON, has the keys that a dataclass takes.

    Raises:
        ValueError: no mapping, an unknown or a missing key; begins with `where`.
    """
    known = {field.name: field for field in dataclasses.fields(cls)}
    for key in mapping(data, where):
        if key not in known:
            raise ValueError(f"{where}: {choices(key, known)}")
    for name, field in known.items():
        optional = (field.default, field.default_factory) != (dataclasses.MISSING,) * 2
        if name not in data and not optional:
            raise ValueError(f"{where}: the key {name!r} is missing")
