"""Readers of other projects' weights: each yields tensors by canonical name, and a spec."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imported:
    """What an importer finds in a file.

    Args:
        tensors: by canonical name (`grw_keras.models.names`), shaped as the TensorFlow variables;
            what an importer doesn't know keeps its own name.
        spec: the fields of `ModelSpec` that the file determines.
        labels: names of the classes, if the file has them.
        assumed: fields of `spec` that such files don't say and that are taken from the official
            models of that form; a user's own choice goes before them.
        notes: what a user should know about the weights.
    """

    tensors: dict[str, np.ndarray]
    spec: dict[str, Any]
    labels: tuple[str, ...] | None = None
    assumed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
