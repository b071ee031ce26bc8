"""Videos to batches of clips: `open_data`, then `training_batches` and `evaluation_batches`."""

from typing import TYPE_CHECKING

from grw_keras import lazy

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

__getattr__, __dir__ = lazy.names(
    globals(),
    {
        "Augmentation": "transforms",
        "Choice": "opening",
        "Sampling": "samples",
        "evaluation_batches": "pipeline",
        "open_data": "opening",
        "prepare": "records",
        "to_unit_range": "pipeline",
        "training_batches": "pipeline",
    },
)
