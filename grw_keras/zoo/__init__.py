"""The model zoo: `load` a model by name, `list_models`, `describe` one, `convert` weights."""

from typing import TYPE_CHECKING

from grw_keras import lazy

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

__getattr__, __dir__ = lazy.names(
    globals(),
    {
        "Imported": "importers",
        "convert": "loading",
        "describe": "tables",
        "list_models": "tables",
        "load": "loading",
        "read_weights": "importers.files",
        "reestimate_batch_norm": "batch_norm",
    },
)
