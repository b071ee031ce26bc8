"""GRW-smoothing for efficient video recognition in Keras.

Goldman, Giryes, Satyanarayanan: Smooth Regularization for Efficient Video Recognition,
NeurIPS 2025. The public names are imported when first used: `grw_loss` needs Keras 3 alone,
`GRWRegularizer` and `attach` need TensorFlow and tf_keras.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grw_keras.attachment import attach
    from grw_keras.losses import grw_loss
    from grw_keras.regularizer import GRWRegularizer

__version__ = "0.1.0"
__all__ = ["GRWRegularizer", "attach", "grw_loss"]

_MODULES = {
    "GRWRegularizer": "grw_keras.regularizer",
    "attach": "grw_keras.attachment",
    "grw_loss": "grw_keras.losses",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
