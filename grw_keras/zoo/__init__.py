"""The model zoo: `load` a model by name, `list_models`, `describe` one, `convert` weights."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grw_keras.zoo.batch_norm import reestimate_batch_norm
    from grw_keras.zoo.importers import Imported
    from grw_keras.zoo.importers.files import read_weights
    from grw_keras.zoo.loading import convert, load
    from grw_keras.zoo.tables import describe, list_models

__all__ = [
    "Imported",
    "convert",
    "describe",
    "list_models",
    "load",
    "read_weights",
    "reestimate_batch_norm",
]

_MODULES = {
    "Imported": "importers",
    "convert": "loading",
    "describe": "tables",
    "list_models": "tables",
    "load": "loading",
    "read_weights": "importers.files",
    "reestimate_batch_norm": "batch_norm",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
