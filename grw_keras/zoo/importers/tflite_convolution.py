"""The convolution behind a tensor of a TFLite graph, with all that converters moved out of it."""

import dataclasses
from typing import NamedTuple

import numpy as np

from grw_keras.zoo.importers.tflite_graph import Graph, Operator, TFLiteError

ARITHMETIC = ("ADD", "SUB", "MUL", "DIV")
_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
# Quantised constants are off by up to half a step of 1/127; 1/6 is 0.16667 in the official code.
_TOLERANCE = 0.01
_SIXTH = 1 / 6


class Operand(NamedTuple):
    """The constant input of an operator of two inputs.

    Attributes:
        values: of the constant.
        first: whether it is the first input.
        other: the other input, a tensor.
    """

    values: np.ndarray
    first: bool
    other: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Convolution:
    """A convolution with all that converters moved out of it folded back in.

    Args:
        kernel: (h, w, in, out), or (h, w, channels, 1) if depthwise; float64.
        bias: one for each output channel.
        stride: along both axes.
        activation: "none", "relu6", "hard_swish", "swish".
        input: the tensor it reads.
        stored: type of the kernel in the file.
    """

    kernel: np.ndarray
    bias: np.ndarray
    stride: int
    activation: str
    input: int
    stored: str

    @property
    def shape(self) -> str:
        """As in "8->24 1x1 stride 1"."""
        height, width, channels, out = self.kernel.shape
        return f"{channels}->{out} {height}x{width} stride {self.stride}"


def refuse(graph: Graph, tensor: int, expected: str) -> TFLiteError:
    """What to raise where another operator stands than the one expected."""
    op = graph.producer(tensor)
    if op is not None:
        received = f"{op}"
    else:
        received = "a constant" if graph.constant(tensor) is not None else "an input of the graph"
    return TFLiteError(f"{expected} was expected. Received: {received}")


def linear(graph: Graph, tensor: int, place: str) -> Convolution:
    """The pointwise convolution without activation that makes `tensor`."""
    return pointwise(_convolution(graph, tensor, place, "none"), place)


def activated(graph: Graph, tensor: int, place: str) -> Convolution:
    """The convolution with activation that makes `tensor`."""
    activation, before = _activation(graph, tensor)
    return _convolution(graph, before, place, activation)


def pointwise(convolution: Convolution, place: str) -> Convolution:
    """The convolution itself; TFLiteError if it is larger than 1x1."""
    if convolution.kernel.shape[:2] != (1, 1) or convolution.stride != 1:
        raise TFLiteError(f"{place} must be pointwise, 1x1. Received: {convolution.shape}")
    return convolution


def behind_constants(graph: Graph, tensor: int) -> Operator | None:
    """The operator that makes `tensor` but for constant factors and terms."""
    op = graph.producer(tensor)
    while op is not None and (operand := constant_operand(graph, op)) is not None:
        op = graph.producer(operand.other)
    return op


def constant_operand(graph: Graph, op: Operator) -> Operand | None:
    """The constant input of an arithmetic operator or a bound; None if both are computed."""
    if op.name in (*ARITHMETIC, "MINIMUM", "MAXIMUM"):
        for position in (1, 0):
            values = graph.constant(op.inputs[position])
            if values is not None:
                return Operand(values, position == 0, op.inputs[1 - position])
    return None


def scalar(graph: Graph, tensor: int) -> tuple[float, int]:
    """The scalar that a tensor is multiplied by, 1 if there is none, and the tensor without it.

    Converters may write the scalar out in the tensor's shape.
    """
    op = graph.producer(tensor)
    if op is None or op.name not in ("MUL", "DIV") or op.activation != "NONE":
        return 1.0, tensor
    operand = constant_operand(graph, op)
    value = None if operand is None else _only(operand.values)
    if operand is None or value is None:
        return 1.0, tensor
    if op.name == "MUL":
        return value, operand.other
    return (1.0, tensor) if operand.first or value == 0 else (1 / value, operand.other)


def close(value: float, expected: float) -> bool:
    """Whether they are the same but for quantisation."""
    return abs(value - expected) <= _TOLERANCE * expected


def _only(values: np.ndarray) -> float | None:
    """The one number that all of a constant are; None if they differ."""
    unique = np.unique(values)
    return float(unique[0]) if unique.size == 1 else None


def gated(graph: Graph, tensor: int, place: str) -> tuple[str, Convolution]:
    """The gate's activation and the convolution before it, without what the activation adds.

    relu6(x + 3) / 6 and clip(0.2 x + 0.5, 0, 1) are told apart by bounds and factor. Converters
    may have folded all that is inside the clip into the convolution.
    """
    factor, scaled = scalar(graph, tensor)
    op = graph.producer(scaled)
    if op is not None and op.name == "LOGISTIC" and factor == 1:
        return "sigmoid", _convolution(graph, op.inputs[0], place, "none")
    low, high, before = _clipped(graph, scaled)
    if (low, high) == (0, 6) and close(factor, _SIXTH):
        name, slope, offset = "hard_sigmoid", 1.0, 3.0
    elif (low, high) == (0, 1) and close(factor, 1):
        name, slope, offset = "hard_sigmoid_keras2", 0.2, 0.5
    else:
        raise refuse(
            graph,
            scaled,
            f"relu6(x + 3) / 6, clip(0.2 x + 0.5, 0, 1) or LOGISTIC behind {place} (found bounds "
            f"{low:g} and {high:g}, factor {factor:g})",
        )
    inner = _convolution(graph, before, place, "relu6" if high == 6 else "none")
    return name, dataclasses.replace(
        inner, kernel=inner.kernel / slope, bias=(inner.bias - offset) / slope, activation=name
    )


def _per_channel(values: np.ndarray, op: Operator, channels: int) -> np.ndarray:
    """An arithmetic operator's constant, one number or one for each channel; float64."""
    flat = values.reshape(-1, values.shape[-1]) if values.ndim else values.reshape(1, 1)
    if flat.shape[1] not in (1, channels) or not len(flat) or np.any(flat != flat[:1]):
        raise TFLiteError(
            f"{op} must have a constant for each of {channels} channels, or a single one. "
            f"Received: {values.shape}"
        )
    return flat[0].astype(np.float64)


def _convolution(graph: Graph, tensor: int, place: str, activation: str) -> Convolution:
    """The convolution behind `tensor`, factors and terms on the way to it folded in."""
    scale, shift = np.ones(1), np.zeros(1)
    fused = activation == "relu6"
    while (op := graph.producer(tensor)) is not None and op.name in ARITHMETIC:
        operand = constant_operand(graph, op)
        if operand is None or (op.name == "DIV" and operand.first):
            raise refuse(graph, tensor, f"the convolution of {place}")
        _check_fused(op, fused, place)
        constant, fused = _per_channel(operand.values, op, _channels(graph, tensor)), False
        if op.name == "MUL":
            scale = scale * constant
        elif op.name == "DIV":
            scale = scale / constant
        else:
            shift = shift + scale * (constant if op.name == "ADD" or operand.first else -constant)
            scale = -scale if op.name == "SUB" and operand.first else scale
        tensor = operand.other
    if op is None or op.name not in _CONVOLUTIONS:
        raise refuse(graph, tensor, f"the convolution of {place}")
    _check_fused(op, fused, place)
    kernel, bias, stride = _weights(graph, op, place)
    channel_axis = 2 if op.name == "DEPTHWISE_CONV_2D" else 3
    broadcast = scale.reshape([-1 if axis == channel_axis else 1 for axis in range(4)])
    return Convolution(
        kernel=kernel * broadcast,
        bias=bias * scale + shift,
        stride=stride,
        activation=activation,
        input=op.inputs[0],
        stored=graph.tensors[graph.source(op.inputs[1])].stored,
    )


def _check_fused(op: Operator, allowed: bool, place: str) -> None:
    if op.activation not in ("NONE", *(["RELU6"] if allowed else [])):
        raise TFLiteError(
            f"{place} has an activation where none, or another, was expected. Received: {op} with "
            f"{op.activation}"
        )


def _weights(graph: Graph, op: Operator, place: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Kernel in TensorFlow's order of axes, bias and stride of a convolution."""
    constant = graph.constant(op.inputs[1])
    bias = graph.constant(op.inputs[2]) if len(op.inputs) > 2 and op.inputs[2] >= 0 else np.zeros(1)
    if constant is None or bias is None:
        raise TFLiteError(f"{op}, {place}, has weights that the graph computes, not constants")
    depthwise = op.name == "DEPTHWISE_CONV_2D"
    kernel = constant[:, None, None] if op.name == "FULLY_CONNECTED" else constant
    strides = {op.options.get("strideH", 1), op.options.get("strideW", 1)}
    dilations = {op.options.get(f"dilation{axis}Factor", 1) for axis in "HW"}
    if (
        kernel.ndim != 4
        or kernel.shape[-1] != _channels(graph, op.inputs[0])
        or (depthwise and kernel.shape[0] != 1)
        or len(strides) != 1
        or dilations != {1}
        or op.options.get("weightsFormat", 0) != 0
    ):
        raise TFLiteError(
            f"{place} must be a plain convolution: depth multiplier 1, no groups or dilation, one "
            f"stride. Received: {op}, weights {constant.shape}, {dict(op.options)}"
        )
    kernel = kernel[0][..., None] if depthwise else kernel.transpose(1, 2, 3, 0)
    out = kernel.shape[2 if depthwise else 3]
    if bias.size not in (1, out):
        raise TFLiteError(f"{op}, {place}, has {bias.size} biases for {out} channels")
    bias = np.broadcast_to(bias.reshape(-1), (out,)).astype(np.float64)
    return kernel.astype(np.float64), bias, strides.pop()


def _channels(graph: Graph, tensor: int) -> int:
    shape = graph.tensors[tensor].shape
    return shape[-1] if shape else 0


def _activation(graph: Graph, tensor: int) -> tuple[str, int]:
    """The activation that makes `tensor`, and the tensor before it: itself if fused or none."""
    op = graph.producer(tensor)
    if op is None:
        return "none", tensor
    if op.name == "HARD_SWISH":
        return "hard_swish", op.inputs[0]
    product = _swish(graph, op)
    if product is not None:
        return product
    low, high, before = _clipped(graph, tensor)
    return ("relu6", before) if (low, high) == (0, 6) else ("none", tensor)


def _swish(graph: Graph, op: Operator) -> tuple[str, int] | None:
    """x sigmoid(x), or x relu6(x + 3) / 6 in any grouping of the product."""
    factor, factors = 1.0, []
    for tensor in _factors(graph, op):
        constant = graph.constant(tensor)
        if constant is None:
            factors.append(tensor)
        elif (value := _only(constant)) is not None:
            factor *= value
        else:
            return None
    if len(factors) != 2:
        return None
    for x, gate in (factors, factors[::-1]):
        if close(factor, 1) and _is_sigmoid(graph, gate, x):
            return "swish", x
        if close(factor, _SIXTH) and _is_hard_sigmoid(graph, gate, x):
            return "hard_swish", x
    return None


def _factors(graph: Graph, op: Operator) -> list[int]:
    """What a product of up to four factors, grouped as it may be, multiplies."""
    if op.name != "MUL" or op.activation != "NONE":
        return []
    factors: list[int] = []
    for tensor in op.inputs[:2]:
        inner = graph.producer(tensor)
        plain = inner is not None and inner.name == "MUL" and inner.activation == "NONE"
        factors += inner.inputs[:2] if inner is not None and plain else [tensor]
    return factors


def _is_sigmoid(graph: Graph, gate: int, x: int) -> bool:
    op = graph.producer(gate)
    if op is None or op.name != "LOGISTIC":
        return False
    return graph.source(op.inputs[0]) == graph.source(x)


def _is_hard_sigmoid(graph: Graph, gate: int, x: int) -> bool:
    """Whether the gate is relu6(x + 3)."""
    low, high, shifted = _clipped(graph, gate)
    add = graph.producer(shifted)
    if (low, high) != (0, 6) or add is None or add.name != "ADD":
        return False
    operand = constant_operand(graph, add)
    if operand is None or graph.source(operand.other) != graph.source(x):
        return False
    return bool(np.allclose(operand.values, 3, rtol=_TOLERANCE))


def _clipped(graph: Graph, tensor: int) -> tuple[float, float, int]:
    """The bounds that a tensor is clipped to, and the tensor before: itself if fused or none."""
    low, high = -np.inf, np.inf
    while (op := graph.producer(tensor)) is not None:
        if op.name in ("RELU", "RELU6", "RELU_0_TO_1"):
            low, high = max(low, 0), min(high, {"RELU6": 6, "RELU_0_TO_1": 1}.get(op.name, high))
            tensor = op.inputs[0]
        elif op.name in ("MINIMUM", "MAXIMUM"):
            operand = constant_operand(graph, op)
            bound = None if operand is None else _only(operand.values)
            if operand is None or bound is None:
                break
            low, high = (low, min(high, bound)) if op.name == "MINIMUM" else (max(low, bound), high)
            tensor = operand.other
        else:
            if op.activation in ("RELU", "RELU6"):
                low, high = max(low, 0), min(high, 6 if op.activation == "RELU6" else high)
            break
    return low, high, tensor
