"""Models of the zoo as TFLite files for phones, cameras, small computers and browsers."""

from grw_keras.export.conversion import UnsupportedOperationsError
from grw_keras.export.tflite import Exported, to_tflite
from grw_keras.export.verify import VerificationError

__all__ = ["Exported", "UnsupportedOperationsError", "VerificationError", "to_tflite"]
