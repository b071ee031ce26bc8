"""Graphs to TFLite flatbuffers: built-in operations alone, one signature."""

import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from grw_keras.export.graphs import Graph

SIGNATURE = "serving_default"
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
    module.parts = graph.tracked
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
    return flatbuffer


class Kernel(NamedTuple):
    """An operation with a constant kernel: name, operation of TFLite, number of weights."""

    layer: str
    operation: str
    weights: int


def operations(flatbuffer: bytes) -> Counter[str]:
    """How often each operation stands in a file; custom ones as "CUSTOM:NAME"."""
    return Counter(name for name, _, _ in _operators(flatbuffer))


def kernels(flatbuffer: bytes) -> list[Kernel]:
    """The convolutions and matrix products of a file, by the names that `Layers` gave them."""
    found = []
    for name, operator, graph in _operators(flatbuffer):
        kernel = graph.tensors[operator.inputs[1]] if name in WITH_KERNEL else None
        if kernel is not None and kernel.buffer:
            output = graph.tensors[operator.outputs[0]].name.decode()
            layer = output.partition(";")[0].rpartition("/")[0]
            found.append(Kernel(layer, name, math.prod(kernel.shape)))
    return found


def _operators(flatbuffer: bytes) -> Iterator[tuple[str, Any, Any]]:
    """Each operation's name, the operation, and the graph that it stands in."""
    model = schema.ModelT.InitFromPackedBuf(flatbuffer, 0)
    names = {code: name for name, code in vars(schema.BuiltinOperator).items()}
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            builtin = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
            custom = f"CUSTOM:{code.customCode.decode()}" if code.customCode else None
            yield custom or builtin, operator, graph


def _require_builtin(flatbuffer: bytes) -> None:
    custom = [name for name in operations(flatbuffer) if name.startswith("CUSTOM")]
    if custom:
        raise UnsupportedOperationsError(
            f"The converter made operations that are not built in: {', '.join(custom)}", custom
        )
