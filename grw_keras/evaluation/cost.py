"""What a model costs, counted from the graph that runs: multiply-accumulates, weights, memory."""

import copy
import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.function_def_to_graph import function_def_to_graph

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
# Operations whose outputs are their inputs' memory: output i is input i.
_ALIASES = ["EnsureShape", "ExpandDims", "Identity", "IdentityN", "PreventGradient", "Reshape"]
_ALIASES += ["Snapshot", "Squeeze", "StopGradient"]
_COUNTED = re.compile("Conv|MatMul|Einsum|LSTM|GRU")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What one clip, and one frame of a stream, cost a model at batch size 1.

    Args:
        resolution_px: height and width of the frames.
        frames: N of the clip.
        macs: multiply-accumulates of the whole clip: convolutions, matrix products, einsums.
            Elementwise operations, normalisation and pooling count nothing, as in the "GFLOPs"
            that papers print.
        macs_per_frame: of one step of the stream, which includes a transformer head over its
            full window; None where the model can't stream.
        parameters: numbers in kernels, biases, scales and offsets, as papers count them.
        statistics: numbers in the batch norms' means and variances; converters fold them away.
        weights_bytes: of both.
        state_bytes: of the stream's states; None where the model can't stream.
        peak_activation_bytes: most memory that the clip graph's activations take at once, the
            clip included: an estimate, `peak_activation_bytes`.
        step_peak_activation_bytes: the same of one step of the stream, with the frame and the
            states before and after it; None where the model can't stream.
    """

    resolution_px: int
    frames: int
    macs: int
    macs_per_frame: int | None
    parameters: int
    statistics: int
    weights_bytes: int
    state_bytes: int | None
    peak_activation_bytes: int
    step_peak_activation_bytes: int | None


def measure(model, frames: int | None = None, resolution: int | None = None) -> Cost:
    """Counts a model's cost from its graphs, which are traced but not executed.

    Base (3-D) models are counted as they run on a machine without a GPU, as 2-D convolutions per
    time tap: the same multiply-accumulates, but memory of their own.

    Args:
        model: a `VideoClassifier`.
        frames: of the clip, >= 1; default: the spec's.
        resolution: height and width in pixels, >= 1; default: the spec's.

    Raises:
        ValueError: sizes below 1, or a graph that can't be counted exactly.
    """
    frames = model.spec.frames if frames is None else frames
    resolution = model.spec.resolution if resolution is None else resolution
    for name, value in {"frames": frames, "resolution": resolution}.items():
        if value < 1:
            raise ValueError(f"`{name}` must be >= 1. Received: {value}")
    clip = trace(
        lambda x: model(x, training=False), tf.TensorSpec([1, frames, resolution, resolution, 3])
    )
    macs_per_frame = state_bytes = step_peak = None
    if model.spec.streaming:
        states = {
            name: tf.TensorSpec(state.shape, state.dtype)
            for name, state in model.initial_states(1, resolution).items()
        }
        step = trace(model.step, tf.TensorSpec([1, 1, resolution, resolution, 3]), states)
        macs_per_frame = multiply_accumulates(step)
        state_bytes = sum(map(_size_bytes, states.values()))
        step_peak = peak_activation_bytes(step)
    weights = model.named_weights()
    statistics = {name for name in weights if name.rsplit("/", 1)[-1].startswith("moving_")}
    return Cost(
        resolution_px=resolution,
        frames=frames,
        macs=multiply_accumulates(clip),
        macs_per_frame=macs_per_frame,
        parameters=sum(math.prod(v.shape) for k, v in weights.items() if k not in statistics),
        statistics=sum(math.prod(weights[k].shape) for k in statistics),
        weights_bytes=sum(map(_size_bytes, weights.values())),
        state_bytes=state_bytes,
        peak_activation_bytes=peak_activation_bytes(clip),
        step_peak_activation_bytes=step_peak,
    )


def trace(function: Callable, *signature) -> tf.Graph:
    """The graph of `function` at the shapes of `signature`; nothing is computed."""
    return tf.function(function, autograph=False).get_concrete_function(*signature).graph


def multiply_accumulates(graph: tf.Graph) -> int:
    """Multiply-accumulates of one run of a traced graph.

    Zeros that pad a convolution count like any other input.

    Raises:
        ValueError: an operation that can't be counted: of a kind or shape that is not known, or
            within a loop or a branch.

    Example:
        >>> spec = tf.TensorSpec([1, 8, 8, 3])
        >>> multiply_accumulates(trace(lambda x: tf.nn.conv2d(x, tf.ones([3, 3, 3, 4]), 2, "SAME"),
        ...                            spec))
        1728
    """
    nodes, _, _ = _needed(graph)
    return sum(_macs(node.op) for node in nodes)


def peak_activation_bytes(graph: tf.Graph) -> int:
    """Most bytes of activations alive at once when a traced graph runs in its own order.

    An estimate of the arena of a runtime that neither fuses nor reorders operations nor computes
    them in place: a tensor lives from the operation that makes it to the last one that reads it,
    arguments from the start, outputs to the end; a reshape shares its input's memory. Weights,
    and what follows from weights and constants alone, are no activations.

    Raises:
        ValueError: a tensor's shape is not known.

    Example:
        >>> peak_activation_bytes(trace(lambda x: tf.exp(x + 1.0), tf.TensorSpec([10])))
        80
    """
    nodes, arguments, results = _needed(graph)
    activations = set(arguments)
    last_use: dict[_Value, int] = {}
    for index, node in enumerate(nodes):
        if activations.intersection(node.reads):
            activations.update(node.makes)
        last_use |= dict.fromkeys(node.reads, index)
    last_use |= dict.fromkeys(results, len(nodes))
    ends: dict[int, list[_Value]] = {}
    for value in activations & last_use.keys():
        ends.setdefault(last_use[value], []).append(value)

    def used_bytes(values: Iterable[_Value]) -> int:
        return sum(_size_bytes(v.tensor) for v in values if v in activations and v in last_use)

    now = peak = used_bytes(arguments)
    for index, node in enumerate(nodes):
        now += used_bytes(node.makes)
        peak = max(peak, now)
        now -= used_bytes(ends.get(index, ()))
    return peak


@dataclasses.dataclass(frozen=True, eq=False)
class _Value:
    """One piece of memory: what an operation makes in one call, under all its aliases."""

    tensor: tf.Tensor


class _Node(NamedTuple):
    op: tf.Operation
    reads: list[_Value]
    makes: list[_Value]


def _needed(graph: tf.Graph) -> tuple[list[_Node], list[_Value], list[_Value]]:
    """The operations that the outputs need, in order; the arguments; the outputs."""
    values = {tensor.ref(): _Value(tensor) for tensor in graph.inputs}
    captured = {tensor.ref() for tensor in graph.internal_captures}
    arguments = [value for ref, value in values.items() if ref not in captured]
    nodes = list(_inlined(graph, values))
    results = [values[tensor.ref()] for tensor in graph.outputs]
    wanted = set(results)
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.makes):
            wanted.update(node.reads)
            kept.append(node)
    return kept[::-1], arguments, results


def _inlined(graph: tf.Graph, values: dict[Any, _Value]) -> Iterator[_Node]:
    """The operations of a graph and of the functions that it calls, in order.

    `values` holds those of the graph's arguments, and gains those of all its tensors.
    """
    for op in graph.get_operations():
        if op.type == "Placeholder":
            continue
        reads = [values[tensor.ref()] for tensor in op.inputs]
        if op.type in _CALLS:
            body = _body(op)
            of_body = dict(zip((tensor.ref() for tensor in body.inputs), reads, strict=True))
            yield from _inlined(body, of_body)
            makes = [of_body[tensor.ref()] for tensor in body.outputs]
        elif op.type in _ALIASES:
            makes = reads[: len(op.outputs)]
        else:
            makes = [_Value(tensor) for tensor in op.outputs]
            yield _Node(op, reads, makes)
        values.update(zip((tensor.ref() for tensor in op.outputs), makes, strict=True))


def _body(call: tf.Operation) -> tf.Graph:
    """The graph of a called function, at the shapes that it is called with."""
    function = call.graph._get_function(call.get_attr("f").name)
    shapes = [tensor.shape for tensor in call.inputs]
    if shapes == [tensor.shape for tensor in function.graph.inputs]:
        return function.graph
    # It was traced before for looser shapes, as tf_keras does with grouped convolutions: infer
    # all shapes again from these, not from those noted in the definition.
    definition = copy.deepcopy(function.definition)
    for node in definition.node_def:
        node.attr.pop("_output_shapes", None)
    for index, shape in enumerate(shapes):
        noted = definition.arg_attr[index].attr["_output_shapes"].list
        noted.ClearField("shape")
        noted.shape.append(shape.as_proto())
    return function_def_to_graph(definition)


def _macs(op: tf.Operation) -> int:
    """Multiply-accumulates of one operation."""
    if op.type in _RULES:
        return _RULES[op.type](op)
    if _COUNTED.search(op.type):
        raise ValueError(
            f"Only {', '.join(_RULES)} can be counted: add a rule for this operation to "
            f"grw_keras/evaluation/cost.py. Received: {op.type}, {op.name}"
        )
    for body in _bodies(op):
        if any(_COUNTED.search(inner.type) for inner in body.get_operations()):
            raise ValueError(
                "A loop's or branch's multiply-accumulates are not known before it runs: unroll "
                f"it. Received: {op.type}, {op.name}"
            )
    return 0


def _bodies(op: tf.Operation) -> Iterator[tf.Graph]:
    """Graphs of the functions that an operation runs, and of those that these run."""
    for attribute in op.node_def.attr.values():
        functions = [attribute.func] if attribute.HasField("func") else attribute.list.func
        for function in functions:
            body = op.graph._get_function(function.name).graph
            yield body
            for inner in body.get_operations():
                yield from _bodies(inner)


def _convolution(op: tf.Operation) -> int:
    """Every output is a sum over the kernel's window and, in a group, its input channels."""
    return math.prod(_shape(op.outputs[0])) * math.prod(_shape(op.inputs[1])[:-1])


def _depthwise(op: tf.Operation) -> int:
    return math.prod(_shape(op.outputs[0])) * math.prod(_shape(op.inputs[1])[:2])


def _matrix_product(op: tf.Operation) -> int:
    transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
    return math.prod(_shape(op.outputs[0])) * _shape(op.inputs[0])[-2 if transposed else -1]


def _einsum(op: tf.Operation) -> int:
    """One for every combination of the labels' values; a single operand is only rearranged."""
    if len(op.inputs) == 1:
        return 0
    equation = op.get_attr("equation").decode()
    sizes: dict[str, int] = {}
    broadcast: tuple[int, ...] = ()
    for labels, tensor in zip(equation.split("->")[0].split(","), op.inputs, strict=True):
        before, _, after = labels.partition("...")
        shape = _shape(tensor)
        sizes |= zip(before, shape, strict=False)
        sizes |= zip(after, shape[len(shape) - len(after) :], strict=True)
        if "..." in labels:
            middle = shape[len(before) : len(shape) - len(after)]
            broadcast = np.broadcast_shapes(broadcast, middle)
    return math.prod(sizes.values()) * math.prod(broadcast)


_RULES: dict[str, Callable[[tf.Operation], int]] = {
    "Conv2D": _convolution,
    "Conv3D": _convolution,
    "DepthwiseConv2dNative": _depthwise,
    "MatMul": _matrix_product,
    "BatchMatMulV2": _matrix_product,
    "BatchMatMulV3": _matrix_product,
    "Einsum": _einsum,
}


def _shape(tensor: tf.Tensor) -> tuple[int, ...]:
    if not tensor.shape.is_fully_defined():
        raise ValueError(
            "Costs are counted from static shapes: trace the model at fixed sizes. "
            f"Received: {tensor.shape} of {tensor.name}"
        )
    return tuple(tensor.shape)


def _size_bytes(tensor) -> int:
    return math.prod(_shape(tensor)) * tf.as_dtype(tensor.dtype).size
