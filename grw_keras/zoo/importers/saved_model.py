"""Official SavedModels of MoViNets, as on Kaggle Models and TF Hub: weights, and their activations.

Nothing of the model is loaded or run: a graph from elsewhere may read and write files. Values come
from the variables' checkpoint, activations and pools from the operations that the functions name.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from grw_keras.zoo.importers import Imported
from grw_keras.zoo.importers.object_graph import read_variables
from grw_keras.zoo.importers.tf_checkpoint import interpret

_FILE, _VARIABLES = "saved_model.pb", "variables"
_PLACE = re.compile(
    r"(?:^|/)(?:(?P<gating_activation>se_expand)|(?P<activation>expansion|feature|se_reduce)"
    r"|(?P<classifier_activation>classifier_head(?:_\d+)?/head))/"
)
_POOL = re.compile(r"(?:^|/)se/(global|spatial)_average_pool3d(?:_\d+)?/")
_STREAM_BUFFER = re.compile(r"(?:^|/)stream_buffer(?:_\d+)?/")
# What an operation is as an activation and as a gate. Relu6 of a sum is relu6(x + 3), of
# hard-swish and hard-sigmoid; Minimum comes from Keras 2's clip(0.2 x + 0.5, 0, 1).
_FORMS = {
    "Sigmoid": ("swish", "sigmoid"),
    "Relu6 of a sum": ("hard_swish", "hard_sigmoid"),
    "Relu6": ("relu6", None),
    "Minimum": (None, "hard_sigmoid_keras2"),
    "ClipByValue": (None, "hard_sigmoid_keras2"),
}
_SUMS = ("Add", "AddV2")


def read(path) -> Imported:
    """Reads the SavedModel of an official MoViNet, with or without its classifier.

    Args:
        path: folder with `saved_model.pb` and `variables/`, or with one such folder alone.

    Returns:
        As `tf_checkpoint.read`. Activations, squeeze-excite and streaming are read from the
        graph; `notes` name those that it does not tell.

    Raises:
        FileNotFoundError: no SavedModel, or one without variables.
        ValueError: several SavedModels, a damaged one, or none of our MoViNets.
    """
    folder = _folder(Path(path))
    variables = folder / _VARIABLES / "variables"
    if not variables.with_suffix(".index").is_file():
        raise FileNotFoundError(
            f"A SavedModel keeps its weights in {_VARIABLES}/. Received: {folder} without "
            f"{_VARIABLES}/variables.index; fetch the whole folder"
        )
    graph = _meta_graph(folder / _FILE)
    return interpret(read_variables(variables), folder, _traits(graph))


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise FileNotFoundError(f"A SavedModel is a folder with {_FILE}. Received: {path}")
    if (path / _FILE).is_file():
        return path
    nested = sorted(file.parent for file in path.rglob(_FILE))
    if not nested:
        raise FileNotFoundError(
            f"A SavedModel is a folder with {_FILE}. Received: {path} without one; unpack an "
            "archive first"
        )
    if len(nested) > 1:
        raise ValueError(
            f"The folder holds several SavedModels: give one of {', '.join(map(str, nested))}. "
            f"Received: {path}"
        )
    return nested[0]


def _meta_graph(file: Path):
    saved_model = saved_model_pb2.SavedModel()
    try:
        saved_model.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise ValueError(f"{file} is damaged or cut off: {error}. Fetch it again.") from error
    if not saved_model.meta_graphs:
        raise ValueError(f"{file} holds no graph: it is damaged or cut off. Fetch it again.")
    return saved_model.meta_graphs[0]


def _traits(meta_graph) -> dict[str, Any]:
    """The fields of the spec that the graph tells."""
    forms: dict[str, set[str]] = {}
    for field, form in _activations(meta_graph):
        forms.setdefault(field, set()).add(form)
    traits: dict[str, Any] = {
        field: next(iter(found)) for field, found in forms.items() if len(found) == 1
    }
    names = {node.name for f in meta_graph.graph_def.library.function for node in f.node_def}
    pools = {found[1] for found in map(_POOL.search, names) if found}
    if len(pools) == 1:  # both are those of "2plus3d", which the weights tell too
        traits["se_type"] = "3d" if pools == {"global"} else "2d"
    if forms:
        inputs = [name for s in meta_graph.signature_def.values() for name in s.inputs]
        traits["streaming"] = any(name.startswith("state_") for name in inputs) or any(
            map(_STREAM_BUFFER.search, names)
        )
    return traits


def _activations(meta_graph) -> Iterator[tuple[str, str]]:
    """(field of the spec, form) of each activation in the graph's functions."""
    for function in meta_graph.graph_def.library.function:
        operations = {node.name: node.op for node in function.node_def}
        for node in function.node_def:
            operation = node.op
            if operation == "Relu6" and operations.get(node.input[0].partition(":")[0]) in _SUMS:
                operation = "Relu6 of a sum"
            place = _PLACE.search(node.name)
            if place and operation in _FORMS:
                field = place.lastgroup or ""
                form = _FORMS[operation][field == "gating_activation"]
                if form:
                    yield field, form
