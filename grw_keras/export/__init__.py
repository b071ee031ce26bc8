"""Models of the zoo as TFLite files for phones, cameras, small computers and browsers."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grw_keras.export.conversion import UnsupportedOperationsError
    from grw_keras.export.tflite import Exported, to_tflite
    from grw_keras.export.verify import VerificationError

__all__ = ["Exported", "UnsupportedOperationsError", "VerificationError", "to_tflite"]

_MODULES = {
    "Exported": "tflite",
    "UnsupportedOperationsError": "conversion",
    "VerificationError": "verify",
    "to_tflite": "tflite",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    except ModuleNotFoundError as error:
        if error.name in ("ai_edge_litert", "ai_edge_quantizer"):
            raise ImportError(
                "Exporting needs the extra 'edge': pip install 'grw-keras[edge]'. "
                f"Received: {error}"
            ) from error
        raise
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
