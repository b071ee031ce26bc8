"""Models of the zoo as TFLite files for phones, cameras, small computers and browsers."""

from typing import TYPE_CHECKING

from grw_keras import lazy

if TYPE_CHECKING:
    from grw_keras.export.conversion import UnsupportedOperationsError
    from grw_keras.export.tflite import Exported, to_tflite
    from grw_keras.export.verify import VerificationError

__all__ = ["Exported", "UnsupportedOperationsError", "VerificationError", "to_tflite"]

__getattr__, __dir__ = lazy.names(
    globals(),
    {
        "Exported": "tflite",
        "UnsupportedOperationsError": "conversion",
        "VerificationError": "verify",
        "to_tflite": "tflite",
    },
    extra="edge",
)
