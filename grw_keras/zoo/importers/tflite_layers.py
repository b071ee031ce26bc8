"""MoViNet layers recognised in a TFLite graph, each found behind the tensor that it makes.

Structure as in the official builder's one-frame graph with external states:
https://github.com/tensorflow/models/blob/master/official/projects/movinet/modeling/movinet_layers.py
"""

import dataclasses
import math
from typing import NamedTuple

from grw_keras.zoo.importers.tflite_convolution import (
    ARITHMETIC,
    Convolution,
    activated,
    behind_constants,
    close,
    constant_operand,
    gated,
    linear,
    pointwise,
    refuse,
    scalar,
)
from grw_keras.zoo.importers.tflite_graph import Graph, Operator, TFLiteError

# A product may be one: x relu6(x + 3) / 6, or a gate.
_ACTIVATIONS = ("HARD_SWISH", "LOGISTIC", "RELU", "RELU6", "MINIMUM", "MAXIMUM", "MUL")


class SqueezeExcite(NamedTuple):
    """Squeeze-excite of a block.

    Attributes:
        se_type: as in the official builder.
        reduce: the first layer.
        expand: the second layer, as it is before the gate's activation.
        activation: of the gate, as in `ModelSpec.gating_activation`.
    """

    se_type: str
    reduce: Convolution
    expand: Convolution
    activation: str


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """A MoViNet block.

    Args:
        expansion: pointwise.
        spatial: depthwise.
        temporal: depthwise over time; None where the block has none.
        excite: squeeze-excite; None where the block has none.
        projection: pointwise.
        rezero: the scalar; None where it is folded into the projection.
        skip: pointwise, on the block's input; None for the identity.
        pooled: whether the skip pools first.
        input: the tensor it reads.
    """

    expansion: Convolution
    spatial: Convolution
    temporal: Convolution | None
    excite: SqueezeExcite | None
    projection: Convolution
    rezero: float | None
    skip: Convolution | None
    pooled: bool
    input: int

    @property
    def convolutions(self) -> list[Convolution]:
        gate = () if self.excite is None else (self.excite.reduce, self.excite.expand)
        parts = (self.expansion, self.spatial, self.temporal, *gate, self.projection, self.skip)
        return [part for part in parts if part is not None]

    @property
    def layout(self) -> str:
        """As in "8->24->8 1x5x5 stride 2, skip pool, 8->8"."""
        channels, expanded = self.expansion.kernel.shape[2:]
        height, width, *_ = self.spatial.kernel.shape
        frames = 1 if self.temporal is None else self.temporal.kernel.shape[0]
        out = self.projection.kernel.shape[3]
        skip = "identity"
        if self.skip is not None:
            skip = "{}->{}".format(*self.skip.kernel.shape[2:])
        return (
            f"{channels}->{expanded}->{out} {frames}x{height}x{width} "
            f"stride {self.spatial.stride}, skip {'pool, ' * self.pooled}{skip}"
        )


def block(graph: Graph, add: Operator) -> Block:
    """The block whose residual sum is `add`."""
    where = f" of the block that ends in {add}"
    residual, skip = _branches(graph, add)
    rezero, projected = _rezero(graph, residual)
    projection = linear(graph, projected, f"the projection{where}")
    features, gate = _gated(graph, projection.input)
    layer = _depthwise(graph, features, where)
    temporal = None
    if (buffer := graph.producer(layer.input)) is not None and buffer.name == "CONCATENATION":
        temporal = layer
        layer = _depthwise(graph, _newest_frame(graph, buffer, temporal, where), where)
    place = f"the expansion{where}"
    expansion = pointwise(activated(graph, layer.input, place), place)
    convolution, pooled = _skip(graph, skip, expansion.input, where)
    return Block(
        expansion=expansion,
        spatial=layer,
        temporal=temporal,
        excite=None if gate is None else _squeeze_excite(graph, gate, features, where),
        projection=projection,
        rezero=rezero,
        skip=convolution,
        pooled=pooled,
        input=expansion.input,
    )


def running_mean(graph: Graph, tensor: int) -> int | None:
    """The features [1, 1, H, W, C] of which `tensor` is the mean over space and all frames yet.

    It is (mean over space + the sum so far, a state) / (number of frames).
    """
    op = graph.producer(tensor)
    if op is None or op.name != "DIV":
        return None
    total, count = op.inputs[:2]
    add = variable_sum(graph, total)
    if graph.constant(count) is not None or add is None:
        return None
    states = [graph.source(i) in graph.inputs for i in add.inputs[:2]]
    return spatial_mean(graph, add.inputs[states.index(False)]) if sum(states) == 1 else None


def spatial_mean(graph: Graph, tensor: int) -> int | None:
    """The features of which `tensor` is the mean over space."""
    factor, tensor = scalar(graph, tensor)
    op = graph.producer(tensor)
    if op is None or op.name not in ("MEAN", "SUM", "AVERAGE_POOL_2D"):
        return None
    before, after = (graph.tensors[i].shape for i in (op.inputs[0], op.outputs[0]))
    if not before or math.prod(after) != before[-1]:
        return None
    expected = before[-1] / math.prod(before) if op.name == "SUM" else 1.0
    return op.inputs[0] if close(factor, expected) else None


def variable_sum(graph: Graph, tensor: int) -> Operator | None:
    """The ADD of two computed tensors that makes `tensor`; None if another operator does."""
    op = graph.producer(tensor)
    if op is None or op.name != "ADD" or constant_operand(graph, op) is not None:
        return None
    return op


def _rezero(graph: Graph, tensor: int) -> tuple[float | None, int]:
    scale, scaled = scalar(graph, tensor)
    return (None, tensor) if scaled == tensor else (scale, scaled)


def _comes_from_depthwise(graph: Graph, tensor: int) -> bool:
    """Whether a depthwise convolution makes `tensor`, but for activations and gates."""
    waiting, seen = [tensor], set[int]()
    while waiting:
        op = graph.producer(waiting.pop())
        if op is None or op.index in seen:
            continue
        seen.add(op.index)
        if op.name == "DEPTHWISE_CONV_2D":
            return True
        constant = op.name in ARITHMETIC and constant_operand(graph, op) is not None
        if op.name in _ACTIVATIONS or constant:
            waiting += op.inputs[:2]
    return False


def _branches(graph: Graph, add: Operator) -> tuple[int, int]:
    """The residual branch, a convolution of depthwise features, and the skip of a block's sum."""
    residual = []
    for tensor in add.inputs[:2]:
        op = behind_constants(graph, tensor)
        if op is not None and op.name == "CONV_2D" and _comes_from_depthwise(graph, op.inputs[0]):
            residual.append(tensor)
    if len(residual) != 1:
        raise TFLiteError(
            "a block's sum must have one branch that is a projection of a depthwise convolution "
            f"and one that is not. Received: {add}, where {len(residual)} are"
        )
    skip = add.inputs[1] if add.inputs[0] == residual[0] else add.inputs[0]
    return residual[0], skip


def _depthwise(graph: Graph, tensor: int, where: str) -> Convolution:
    place = f"the depthwise convolution{where}"
    convolution = activated(graph, tensor, place)
    if convolution.kernel.shape[3] != 1:
        raise TFLiteError(f"{place} must be depthwise. Received: {convolution.shape}")
    return convolution


def _newest_frame(graph: Graph, buffer: Operator, temporal: Convolution, where: str) -> int:
    """Of the concatenation [stream buffer, a state; newest frame] the latter."""
    frames, width = temporal.kernel.shape[:2]
    stored = buffer.inputs[0]
    if (
        len(buffer.inputs) != 2
        or graph.source(stored) not in graph.inputs
        or graph.tensors[buffer.outputs[0]].shape[:2] != (1, frames)
        or width != 1
        or temporal.stride != 1
    ):
        raise TFLiteError(
            f"a state of frames and one new frame, as many as the temporal kernel{where} is long, "
            f"were expected. Received: {buffer} of shapes "
            f"{[graph.tensors[i].shape for i in buffer.inputs]}, kernel {temporal.shape}"
        )
    return buffer.inputs[1]


def _skip(graph: Graph, tensor: int, start: int, where: str) -> tuple[Convolution | None, bool]:
    """The skip branch from the block's input: identity, or projection, perhaps of a mean pool."""
    if graph.source(tensor) == graph.source(start):
        return None, False
    convolution = linear(graph, tensor, f"the skip{where}")
    pool = graph.producer(convolution.input)
    before, pooled = convolution.input, False
    if pool is not None and pool.name == "AVERAGE_POOL_2D":
        before, pooled = pool.inputs[0], True
        settings = ("filterHeight", "filterWidth", "strideH", "strideW", "padding")
        found = [pool.options.get(setting) for setting in settings]
        if found != [3, 3, 2, 2, "SAME"]:
            raise TFLiteError(f"the skip{where} pools 3x3, stride 2, SAME. Received: {found}")
    if graph.source(before) != graph.source(start):
        raise refuse(graph, before, f"the block's input as that of the skip{where}")
    return convolution, pooled


def _gated(graph: Graph, tensor: int) -> tuple[int, int | None]:
    """The depthwise features that the projection reads, and the gate they are multiplied by."""
    op = graph.producer(tensor)
    if op is None or op.name != "MUL":
        return tensor, None
    features = [_comes_from_depthwise(graph, i) for i in op.inputs[:2]]
    if features.count(True) != 1 or constant_operand(graph, op) is not None:
        return tensor, None
    feature = features.index(True)
    return op.inputs[feature], op.inputs[1 - feature]


def _squeeze_excite(graph: Graph, gate: int, features: int, where: str) -> SqueezeExcite:
    place = f"the second layer of squeeze-excite{where}"
    name, expand = gated(graph, gate, place)
    pointwise(expand, place)
    place = f"the first layer of squeeze-excite{where}"
    reduce = pointwise(activated(graph, expand.input, place), place)
    op = graph.producer(reduce.input)
    means: dict[str, tuple[int | None, ...]]
    if op is not None and op.name == "CONCATENATION" and len(op.inputs) == 2:
        means = {"2plus3d": (running_mean(graph, op.inputs[0]), spatial_mean(graph, op.inputs[1]))}
    else:
        means = {
            "3d": (running_mean(graph, reduce.input),),
            "2d": (spatial_mean(graph, reduce.input),),
        }
    for se_type, read in means.items():
        if all(i is not None and graph.source(i) == graph.source(features) for i in read):
            return SqueezeExcite(se_type, reduce, expand, name)
    raise refuse(
        graph, reduce.input, f"the features' mean over space, over all frames yet, or both{where},"
    )
