"""Graphs to TFLite flatbuffers: built-in operations alone, one signature."""

import copy
import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flatbuffers
import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from grw_keras.export.graphs import Graph
from grw_keras.export.layers import Affine

SIGNATURE = "serving_default"
ANSWERS = {"logits": "logits", "embedding": "affine"}  # outputs that are no states, by layer
WITH_KERNEL = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


class UnsupportedOperationsError(ValueError):
    """The runtime lacks operations of the graph: `operations` names them."""

    def __init__(self, message: str, operations: list[str]):
        super().__init__(message)
        self.operations = operations


def to_flatbuffer(graph: Graph, *, float16: bool = False) -> bytes:
    """A float TFLite model of a graph.

    Args:
        graph: to convert.
        float16: store the weights in half precision.

    Raises:
        UnsupportedOperationsError: the graph needs what TFLite's built-in operations lack.
    """
    signature = [{name: tf.TensorSpec(shape, name=name) for name, shape in graph.inputs.items()}]
    function = tf.function(graph.compute, input_signature=signature, autograph=False)
    module = tf.Module()
    module.read = list(graph.variables)
    with tempfile.TemporaryDirectory() as folder:
        concrete = function.get_concrete_function()
        tf.saved_model.save(module, folder, signatures={SIGNATURE: concrete})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[SIGNATURE])
        if float16:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        try:
            flatbuffer = converter.convert()
        except Exception as error:
            lacking = sorted(set(re.findall(r"'tf\.(\w+)' op is neither", str(error))))
            if not lacking:
                raise
            raise UnsupportedOperationsError(
                "TFLite's built-in operations lack what this model needs, and files with Flex "
                f"operations run on few devices. Lacking: {', '.join(lacking)}",
                lacking,
            ) from error
    _require_builtin(flatbuffer)
    return _finished(flatbuffer)


class Kernel(NamedTuple):
    """An operation with a constant kernel: name, operation of TFLite, number of weights."""

    layer: str
    operation: str
    weights: int


def operations(flatbuffer: bytes) -> Counter[str]:
    """How often each operation stands in a file; custom ones as "CUSTOM:NAME"."""
    return Counter(name for name, _, _ in _operators(_read(flatbuffer)))


def kernels(flatbuffer: bytes) -> list[Kernel]:
    """The convolutions and matrix products of a file, by the names that `Layers` gave them."""
    return [
        Kernel(
            _layer(operator, graph),
            name,
            math.prod(map(int, graph.Tensors(operator.Inputs(1)).ShapeAsNumpy())),
        )
        for name, operator, graph in _operators(_read(flatbuffer))
        if name in WITH_KERNEL
    ]


def with_weights(flatbuffer: bytes, weights: Mapping[str, Affine]) -> bytes:
    """A float file with other weights in some of its convolutions and matrix products.

    Args:
        flatbuffer: the file, as `to_flatbuffer` made it.
        weights: by name of the layer; kernels as in `Layers`.
    """
    changed = bytearray(flatbuffer)
    model = _read(changed)
    for name, operator, graph in _operators(model):
        if name not in WITH_KERNEL or (layer := _layer(operator, graph)) not in weights:
            continue
        kernel, bias = weights[layer]
        kernel = np.moveaxis(kernel, -1, 0)  # outputs come first in TFLite
        for place, values in ((1, kernel), (2, bias)):
            constant = model.Buffers(graph.Tensors(operator.Inputs(place)).Buffer())
            constant.DataAsNumpy()[:] = np.ascontiguousarray(values, np.float32).ravel().view("u1")
    return bytes(changed)


def _finished(flatbuffer: bytes) -> bytes:
    """A file as the converter made it, with what the quantiser and `with_weights` go by."""
    model = schema.ModelT.InitFromPackedBuf(flatbuffer, 0)
    _name_answers(model)
    kinds = [name for name, _, _ in _operators(_read(flatbuffer))]
    _separate_constants(model, kinds)
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _name_answers(model) -> None:
    """Names the answer's tensor after its layer: the converter names it by number."""
    for output in model.signatureDefs[0].outputs:
        layer = ANSWERS.get(output.name.decode())
        if layer is not None:
            model.subgraphs[0].tensors[output.tensorIndex].name = f"{layer}/answer".encode()


def _separate_constants(model, kinds: Sequence[str]) -> None:
    """Gives each kernel and bias a constant of its own: the converter keeps equal ones once.

    Args:
        model: unpacked.
        kinds: the operations' names, in order.
    """
    placed = [(operator, graph) for graph in model.subgraphs for operator in graph.operators]
    uses = Counter(
        graph.tensors[index].buffer
        for operator, graph in placed
        for index in operator.inputs
        if index >= 0  # -1 stands for an input that the operation does without
    )
    for kind, (operator, graph) in zip(kinds, placed, strict=True):
        if kind not in WITH_KERNEL:
            continue
        operator.inputs = np.array(operator.inputs)
        for place, index in enumerate(operator.inputs):
            tensor = graph.tensors[index]
            constant = model.buffers[tensor.buffer]
            if index < 0 or constant.data is None or uses[tensor.buffer] == 1:
                continue
            uses[tensor.buffer] -= 1
            tensor = copy.copy(tensor)
            tensor.buffer = len(model.buffers)
            tensor.name = f"constant{tensor.buffer}".encode()  # the quantiser goes by names
            model.buffers.append(copy.copy(constant))
            operator.inputs[place] = len(graph.tensors)
            graph.tensors.append(tensor)


def _read(flatbuffer: bytes | bytearray) -> Any:
    """The file, read where it lies; to unpack it whole takes many times as long."""
    return schema.Model.GetRootAs(flatbuffer, 0)


def _layer(operator, graph) -> str:
    """Under which name of `Layers` an operation stands."""
    # The names of all that was fused into it, some of which stand outside of the layer.
    names = graph.Tensors(operator.Outputs(0)).Name().decode().split(";")
    return next((name for name in names if "/" in name), "").rpartition("/")[0]


def _operators(model) -> Iterator[tuple[str, Any, Any]]:
    """Each operation's name, the operation, and the graph that it stands in."""
    names = {code: name for name, code in vars(schema.BuiltinOperator).items()}
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        for operator in map(graph.Operators, range(graph.OperatorsLength())):
            code = model.OperatorCodes(operator.OpcodeIndex())
            builtin = names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
            custom = f"CUSTOM:{code.CustomCode().decode()}" if code.CustomCode() else None
            yield custom or builtin, operator, graph


def _require_builtin(flatbuffer: bytes) -> None:
    custom = [name for name in operations(flatbuffer) if name.startswith("CUSTOM")]
    if custom:
        raise UnsupportedOperationsError(
            f"The converter made operations that are not built in: {', '.join(custom)}", custom
        )
