"""GRW-smoothing for efficient video recognition in Keras.

Goldman, Giryes, Satyanarayanan: Smooth Regularization for Efficient Video Recognition,
NeurIPS 2025. The public names are imported when first used: `grw_loss` needs Keras 3 alone,
`GRWRegularizer` and `attach` need TensorFlow and tf_keras.
"""

from typing import TYPE_CHECKING

from grw_keras import lazy

if TYPE_CHECKING:
    from grw_keras.attachment import attach
    from grw_keras.losses import grw_loss
    from grw_keras.regularizer import GRWRegularizer

__version__ = "0.1.0"
__all__ = ["GRWRegularizer", "attach", "grw_loss"]

__getattr__, __dir__ = lazy.names(
    globals(),
    {
        "GRWRegularizer": "regularizer",
        "attach": "attachment",
        "grw_loss": "losses",
    },
)
