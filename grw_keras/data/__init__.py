"""Videos to batches of clips: `open_data`, then `training_batches` and `evaluation_batches`."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grw_keras.data.opening import Choice, open_data
    from grw_keras.data.pipeline import evaluation_batches, to_unit_range, training_batches
    from grw_keras.data.records import prepare
    from grw_keras.data.samples import Sampling
    from grw_keras.data.transforms import Augmentation

__all__ = [
    "Augmentation",
    "Choice",
    "Sampling",
    "evaluation_batches",
    "open_data",
    "prepare",
    "to_unit_range",
    "training_batches",
]

_MODULES = {
    "Augmentation": "transforms",
    "Choice": "opening",
    "Sampling": "samples",
    "evaluation_batches": "pipeline",
    "open_data": "opening",
    "prepare": "records",
    "to_unit_range": "pipeline",
    "training_batches": "pipeline",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
