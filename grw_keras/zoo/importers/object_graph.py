"""Variables of a TF2 checkpoint and where each stands in the saved objects, without those objects.

A checkpoint holds values by key, and as `_CHECKPOINTABLE_OBJECT_GRAPH` the graph of the objects
that were saved: nodes, edges with the names of Python attributes, and at each variable's node its
full name and its key. Only this data is read: nothing of the file is executed.

Reference: tensorflow/core/protobuf/trackable_object_graph.proto
"""

import collections
import contextlib
import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from official.projects.movinet.modeling.movinet import BLOCK_SPECS, MovinetBlockSpec
from tensorflow.core.protobuf import trackable_object_graph_pb2

from grw_keras.models.names import canonical_name

_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE, _VALUE_SUFFIX = "VARIABLE_VALUE", "/.ATTRIBUTES/VARIABLE_VALUE"
# Edges to the state of a training: of Orbit's and Keras's checkpoints, and of a compiled model.
_TRAINING = frozenset({"optimizer", "save_counter", "global_step", "keras_api"})
# Edges to what Keras lists a second time in a SavedModel.
_LISTS = frozenset({"variables", "trainable_variables", "regularization_losses"})

# Where the official layers keep their parts: Python attributes in movinet_layers.py.
_BLOCK_PARTS = {
    "expansion": "_expansion_layer",
    "feature": "_feature_layer",
    "se_reduce": "_attention_layer/_se_reduce",
    "se_expand": "_attention_layer/_se_expand",
    "projection": "_projection_layer",
    "skip": "_skip_layer/_projection",
}
_CONV_PARTS = (
    ("conv/kernel", "_conv/kernel"),
    ("conv/kernel", "_conv/_conv/kernel"),  # MobileConv2D, of 2plus1d, wraps a Keras layer
    ("conv/kernel", "_conv/_conv/depthwise_kernel"),
    ("conv/bias", "_conv/bias"),
    ("conv/bias", "_conv/_conv/bias"),
    ("conv_temporal/kernel", "_conv_temporal/kernel"),
    ("conv_temporal/kernel", "_conv_temporal/_conv/depthwise_kernel"),
    *(
        (f"{name}/{statistic}", f"{attribute}/{statistic}")
        for name, attribute in (("bn", "_batch_norm"), ("bn_temporal", "_batch_norm_temporal"))
        for statistic in ("gamma", "beta", "moving_mean", "moving_variance")
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelVariables:
    """The model's variables in a checkpoint.

    Args:
        tensors: by canonical name, the backbone's under "backbone/"; what has none, by its full
            name if that is unique, else by its path in the object graph.
        causal: whether the objects have stream buffers; None where they are no official layers.
        averages: number of variables of which an optimizer holds a moving average.
    """

    tensors: dict[str, np.ndarray]
    causal: bool | None
    averages: int


def read_variables(prefix: Path) -> ModelVariables:
    """Reads the variables of the model in a checkpoint, leaving out the state of its training.

    Args:
        prefix: path of the checkpoint's files without ".index" or ".data-…".

    Raises:
        ValueError: files damaged or cut off, no object graph, or two models of the same names.
    """
    with _told_as_damage(prefix):
        reader = tf.train.load_checkpoint(str(prefix))
        keys = reader.get_variable_to_shape_map()
    if _GRAPH_KEY not in keys:
        raise ValueError(
            f"A TF2 checkpoint holds the graph of the saved objects; {prefix} holds {len(keys)} "
            "tensors without one. Restore it into its model, and save that by "
            "tf.train.Checkpoint(model=model)."
        )
    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    with _told_as_damage(prefix):
        graph.ParseFromString(reader.get_tensor(_GRAPH_KEY))
        saved = _model_variables(graph.nodes)
        values = {node: reader.get_tensor(key) for node, (_, key) in saved.items()}
    return ModelVariables(
        tensors=_by_canonical_name(graph.nodes, saved, values),
        causal=_causal(graph.nodes),
        averages=sum(
            slot.slot_name == "average" for node in graph.nodes for slot in node.slot_variables
        ),
    )


@contextlib.contextmanager
def _told_as_damage(prefix: Path) -> Iterator[None]:
    """ValueError that names the checkpoint for whatever TensorFlow says of files it can't read."""
    try:
        yield
    except (tf.errors.OpError, DecodeError, IndexError, ValueError) as error:
        raise ValueError(
            f"The checkpoint {prefix} is damaged, cut off or incomplete: fetch all its files "
            f"again, .index and .data-…. TensorFlow says: {error}"
        ) from error


def _model_variables(nodes) -> dict[int, tuple[str, str]]:
    """(full name, key) of each variable that is reached without passing through a training's."""
    slots = {slot.slot_variable_node_id for node in nodes for slot in node.slot_variables}
    return {
        i: (attribute.full_name, attribute.checkpoint_key)
        for i in _paths(nodes, _TRAINING)
        if i not in slots
        for attribute in nodes[i].attributes
        if attribute.name == _VALUE
    }


def _by_canonical_name(
    nodes, saved: Mapping[int, tuple[str, str]], values: Mapping[int, np.ndarray]
) -> dict[str, np.ndarray]:
    by_path = _official_places(nodes, values)
    paths = _paths(nodes, _TRAINING) | _paths(nodes, _TRAINING | _LISTS)
    occurrences = collections.Counter(full_name for full_name, _ in saved.values())
    found: dict[str, np.ndarray] = {}
    for i, (full_name, key) in saved.items():
        name = canonical_name(full_name) or by_path.get(i)
        if name is None:
            unique = full_name and occurrences[full_name] == 1
            name = full_name if unique else paths[i] or key.removesuffix(_VALUE_SUFFIX)
        elif not name.startswith(("classifier/", "logits/")):
            name = f"backbone/{name}"
        if name in found:
            raise ValueError(
                f"The file holds two variables for {name}, of which one is {key}: save one model "
                "alone, by tf.train.Checkpoint(model=model)."
            )
        found[name] = values[i]
    return found


def _paths(nodes, closed: Collection[str]) -> dict[int, str]:
    """The shortest path from the root to each node, along edges that are not `closed`."""
    paths = {0: ""}
    queue = collections.deque([0])
    while queue:
        i = queue.popleft()
        for child in nodes[i].children:
            if child.node_id not in paths and child.local_name not in closed:
                paths[child.node_id] = f"{paths[i]}/{child.local_name}".lstrip("/")
                queue.append(child.node_id)
    return paths


def _official_places(nodes, values: Mapping[int, np.ndarray]) -> dict[int, str]:
    """Canonical names of the variables that stand where the official layers keep theirs."""
    places: dict[int, str] = {}
    for node in nodes:
        children = _children(node)
        if {"_head", "_classifier"} <= set(children):
            places |= _conv_block(nodes, children["_head"], "classifier")
            places |= _conv_block(nodes, children["_classifier"], "logits")
        elif "layer_with_weights-0" in children:
            layers = [children[n] for n in _numbered("layer_with_weights", children)]
            places |= _backbone(nodes, layers, values)
    return places


def _backbone(nodes, layers: Iterable[int], values: Mapping[int, np.ndarray]) -> dict[int, str]:
    """Canonical names in a backbone, given its layers; the widths tell which layer is which."""
    places: dict[int, str] = {}
    blocks = []
    for layer in layers:
        children = _children(nodes[layer])
        if "_stem" in children:
            places |= _conv_block(nodes, children["_stem"], "stem")
        elif "_project" in children:
            places |= _conv_block(nodes, children["_project"], "head")
        elif "_mobile_bottleneck" in children:
            blocks.append(children["_mobile_bottleneck"])
    gammas = [_follow(nodes, block, "_expansion_layer/_batch_norm/gamma") for block in blocks]
    widths = [len(values[gamma]) for gamma in gammas if gamma is not None and gamma in values]
    for block, name in zip(blocks, _block_names(widths), strict=False):
        scale = _follow(nodes, block, "_rezero/scale")
        if scale is not None:
            places[scale] = f"{name}/rezero/scale"
        for part, path in _BLOCK_PARTS.items():
            start = _follow(nodes, block, path)
            if start is not None:
                places |= _conv_block(nodes, start, f"{name}/{part}")
    return places


def expanded_widths(model_id: str) -> dict[str, int]:
    """Width inside each block of an official MoViNet, by the block's canonical name."""
    stages = [block for block in BLOCK_SPECS[model_id] if isinstance(block, MovinetBlockSpec)]
    return {
        f"block{i}_layer{j}": width
        for i, stage in enumerate(stages)
        for j, width in enumerate(stage.expand_filters)
    }


def _block_names(widths: list[int]) -> list[str]:
    """The blocks' names in the one official MoViNet whose blocks have these widths."""
    for model_id in BLOCK_SPECS:
        official = expanded_widths(model_id)
        if list(official.values()) == widths:
            return list(official)
    return []


def _conv_block(nodes, start: int, prefix: str) -> dict[int, str]:
    found = ((_follow(nodes, start, path), name) for name, path in _CONV_PARTS)
    return {node: f"{prefix}/{name}" for node, name in found if node is not None}


def _causal(nodes) -> bool | None:
    edges = {child.local_name for node in nodes for child in node.children}
    if "_mobile_bottleneck" not in edges:
        return None
    return "_stream_buffer" in edges


def _children(node) -> dict[str, int]:
    return {child.local_name: child.node_id for child in node.children}


def _follow(nodes, start: int, path: str) -> int | None:
    for edge in path.split("/"):
        children = _children(nodes[start])
        if edge not in children:
            return None
        start = children[edge]
    return start


def _numbered(name: str, children: Mapping[str, int]) -> list[str]:
    """`name-0`, `name-1`, … as far as they go."""
    return [f"{name}-{i}" for i in range(len(children)) if f"{name}-{i}" in children]
