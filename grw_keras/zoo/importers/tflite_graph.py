"""The graph inside a TFLite file: operators in order, tensors dequantised, nothing run.

Format: https://github.com/tensorflow/tensorflow/blob/master/tensorflow/compiler/mlir/lite/schema/schema.fbs
"""

import dataclasses
import functools
import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

_IDENTIFIER = b"TFL3"
_MAX_LABEL_BYTES = 2**20
_STORED = {
    "FLOAT32": np.float32, "FLOAT16": np.float16, "FLOAT64": np.float64, "INT8": np.int8,
    "UINT8": np.uint8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_,
}  # fmt: skip
# Operators that keep every number (up to quantisation) and the order of the channels.
_LOOKED_THROUGH = (
    "RESHAPE", "QUANTIZE", "DEQUANTIZE", "BROADCAST_TO", "SQUEEZE", "EXPAND_DIMS", "CAST",
)  # fmt: skip
_LEAST_INPUTS = (
    dict.fromkeys(_LOOKED_THROUGH, 1)
    | dict.fromkeys(("HARD_SWISH", "LOGISTIC", "RELU", "RELU6", "RELU_0_TO_1", "SOFTMAX"), 1)
    | dict.fromkeys(("AVERAGE_POOL_2D", "MEAN", "SUM"), 1)
    | dict.fromkeys(("ADD", "SUB", "MUL", "DIV", "MINIMUM", "MAXIMUM"), 2)
    | dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "CONCATENATION"), 2)
)
# What the accessors of a damaged flatbuffer raise.
_DAMAGE = (struct.error, IndexError, KeyError, TypeError, AttributeError, ValueError, OverflowError)


class TFLiteError(ValueError):
    """The file is damaged or unsafe, or not what the importer reads."""


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of the graph.

    Args:
        shape: 1 where a size is free.
        free: axes whose size the caller may choose.
        stored: the type in the file, as "INT8".
        data: bytes of a constant; None for what the graph computes or is fed.
        scale: of real = scale (stored - zero_point); empty if not quantised.
        zero_point: one for each scale.
        axis: that several scales lie along.
    """

    shape: tuple[int, ...]
    free: tuple[int, ...]
    stored: str
    data: np.ndarray | None
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int

    @functools.cached_property
    def value(self) -> np.ndarray:
        """The numbers of a constant: float32 if quantised or float, else as stored.

        Raises:
            TFLiteError: no constant, or bytes that don't fit its type and shape.
        """
        if self.data is None:
            raise TFLiteError("a weight is computed in the graph, not a constant")
        if self.stored not in _STORED:
            raise TFLiteError(f"a constant has the type {self.stored}, which isn't supported")
        dtype = np.dtype(_STORED[self.stored])
        if self.data.size != dtype.itemsize * int(np.prod(self.shape, dtype=np.int64)):
            raise TFLiteError(f"a constant of shape {self.shape} has {self.data.size} bytes")
        raw = self.data.view(dtype).reshape(self.shape)
        if not self.scale.size:
            return raw.astype(np.float32) if dtype.kind == "f" else raw
        along = [1] * len(self.shape)
        if self.scale.size > 1:
            along[self.axis] = self.scale.size
        # In double precision: an int32 bias has more digits than float32.
        shifted = raw.astype(np.float64) - self.zero_point.reshape(along)
        return (shifted * self.scale.reshape(along)).astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Operator:
    """An operator: its position in the order of execution, what it is, and what it connects."""

    index: int
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, Any]

    def __str__(self) -> str:
        return f"operator {self.index} ({self.name})"

    @property
    def activation(self) -> str:
        """The activation fused into it: "NONE", "RELU6", …"""
        return self.options.get("fusedActivationFunction", "NONE")


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A file's graph of convolutions.

    Args:
        inputs: indices of tensors.
        outputs: indices of tensors.
        tensors: all of them.
        operators: in order of execution.
        producers: the operator that makes a tensor, by index.
        files: texts appended to the file, by name.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    producers: Mapping[int, Operator]
    files: Mapping[str, str]

    def source(self, tensor: int) -> int:
        """The tensor that holds the same numbers before any change of shape or type."""
        while (op := self.producers.get(tensor)) and op.name in _LOOKED_THROUGH:
            tensor = op.inputs[0]
        return tensor

    def producer(self, tensor: int) -> Operator | None:
        """The operator that computes the tensor's numbers; None for inputs and constants."""
        return self.producers.get(self.source(tensor))

    def constant(self, tensor: int) -> np.ndarray | None:
        """The numbers of a constant, in the shape it is stored in; None if it is none."""
        found = self.tensors[self.source(tensor)]
        return None if found.data is None else found.value


def read_graph(path: str | os.PathLike) -> Graph:
    """Reads a file without running anything of it.

    Args:
        path: a TFLite file. Of several subgraphs the one with most convolutions is taken.

    Raises:
        OSError: the file can't be opened.
        TFLiteError: it is no TFLite file, is damaged, or has operators outside TFLite's own set.
    """
    content = Path(path).read_bytes()
    if content[4:8] != _IDENTIFIER:
        raise TFLiteError(
            f"{path} is no TFLite file, which has b'TFL3' at bytes 4 to 7. "
            f"Received: {content[4:8]!r}"
        )
    try:
        return _graph(content, _texts(path))
    except TFLiteError as error:
        raise TFLiteError(f"{path}: {error}") from error
    except (*_DAMAGE, zipfile.BadZipFile) as error:
        raise TFLiteError(
            f"{path} is truncated or damaged: download or copy it again. Received: "
            f"{len(content)} bytes, {error}"
        ) from error


def _names(enumeration: type) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


_OPERATORS = _names(schema.BuiltinOperator)
_TYPES = _names(schema.TensorType)
_ENUMERATIONS = {
    "fusedActivationFunction": _names(schema.ActivationFunctionType),
    "padding": _names(schema.Padding),
}


def _graph(content: bytes, files: Mapping[str, str]) -> Graph:
    model = schema.Model.GetRootAs(content, 0)
    # Newer operators stand in a field of their own, which the older one's limit can't hold.
    codes = [
        max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        for code in map(model.OperatorCodes, range(model.OperatorCodesLength()))
    ]
    subgraphs = [model.Subgraphs(i) for i in range(model.SubgraphsLength())]
    if not subgraphs:
        raise TFLiteError("it has no graph")
    subgraph = max(
        subgraphs,
        key=lambda graph: sum(
            codes[graph.Operators(i).OpcodeIndex()] == schema.BuiltinOperator.CONV_2D
            for i in range(graph.OperatorsLength())
        ),
    )
    buffers = [_bytes(model.Buffers(i), content) for i in range(model.BuffersLength())]
    tensors = tuple(_tensor(subgraph.Tensors(i), buffers) for i in range(subgraph.TensorsLength()))
    operators = tuple(
        _operator(i, subgraph.Operators(i), codes, model) for i in range(subgraph.OperatorsLength())
    )
    inputs, outputs = tuple(map(int, _list(subgraph, "Inputs"))), _list(subgraph, "Outputs")
    return Graph(inputs, outputs, tensors, operators, _producers(inputs, tensors, operators), files)


def _list(table, field: str) -> tuple[int, ...]:
    return tuple(getattr(table, field)(i) for i in range(getattr(table, f"{field}Length")()))


def _bytes(buffer, content: bytes) -> np.ndarray | None:
    """A buffer's bytes; None for an empty one. Models above 2 GB keep theirs behind the tables."""
    if buffer.Offset() > 1:
        end = buffer.Offset() + buffer.Size()
        if end > len(content):
            raise TFLiteError("it is truncated or damaged: a buffer ends behind the file's end")
        return np.frombuffer(content, np.uint8)[buffer.Offset() : end]
    return buffer.DataAsNumpy() if buffer.DataLength() else None


def _tensor(table, buffers: list) -> Tensor:
    quantization = table.Quantization()
    scale = zero_point = np.zeros(0)
    if quantization is not None and quantization.ScaleLength():
        if quantization.DetailsType() != schema.QuantizationDetails.NONE:
            raise TFLiteError("a tensor is quantised in blocks, which isn't supported")
        scale = quantization.ScaleAsNumpy().astype(np.float64)
        zero_point = np.zeros(scale.size)
        if quantization.ZeroPointLength():
            zero_point += quantization.ZeroPointAsNumpy()
    if table.Sparsity() is not None:
        raise TFLiteError("a tensor is stored sparsely, which isn't supported")
    signature, shape = _list(table, "ShapeSignature"), _list(table, "Shape")
    if min(shape, default=0) < 0:
        raise TFLiteError(f"it is damaged: a tensor has the shape {shape}")
    if scale.size > 1 and shape[quantization.QuantizedDimension()] != scale.size:
        raise TFLiteError(f"it is damaged: {scale.size} scales for a tensor of shape {shape}")
    return Tensor(
        shape=shape,
        free=tuple(axis for axis, size in enumerate(signature) if size < 0),
        stored=_TYPES[table.Type()],
        data=buffers[table.Buffer()],
        scale=scale,
        zero_point=zero_point,
        axis=quantization.QuantizedDimension() if quantization is not None else 0,
    )


def _operator(index: int, table, codes: list[int], model) -> Operator:
    name = _OPERATORS[codes[table.OpcodeIndex()]]
    if name in ("CUSTOM", "DELEGATE"):
        custom = (model.OperatorCodes(table.OpcodeIndex()).CustomCode() or b"").decode()
        raise TFLiteError(
            f"operator {index} is {custom!r}, from outside TFLite's own set. Convert the model "
            "again with TFLITE_BUILTINS alone; one-frame models of conv_type '2plus1d' need no more"
        )
    options = schema.OperatorT.InitFromObj(table).builtinOptions
    fields = {} if options is None else dict(vars(options))
    for field, meanings in _ENUMERATIONS.items():
        if field in fields:
            fields[field] = meanings[fields[field]]
    return Operator(index, name, _list(table, "Inputs"), _list(table, "Outputs"), fields)


def _producers(inputs, tensors, operators) -> dict[int, Operator]:
    """Who makes which tensor; nothing is made twice, or after its use: the graph has no cycles."""
    producers: dict[int, Operator] = {}
    settled = set(inputs)
    for op in operators:
        needed = op.inputs[: _LEAST_INPUTS.get(op.name, 0)]
        if len(needed) < _LEAST_INPUTS.get(op.name, 0) or -1 in needed:
            raise TFLiteError(f"it is damaged: {op} lacks inputs")
        settled.update(op.inputs)
        if not settled.isdisjoint(op.outputs):
            raise TFLiteError(f"it is damaged: {op} writes what was there before")
        settled.update(op.outputs)
        producers.update(dict.fromkeys(op.outputs, op))
    if not settled <= set(range(-1, len(tensors))):
        raise TFLiteError("it is damaged: operators use tensors that don't exist")
    return producers


def _texts(path: str | os.PathLike) -> dict[str, str]:
    """The text files that TFLite metadata appends to a model as a zip archive."""
    if not zipfile.is_zipfile(path):
        return {}
    with zipfile.ZipFile(path) as archive:
        texts = [entry for entry in archive.infolist() if entry.filename.endswith(".txt")]
        large = [entry.filename for entry in texts if entry.file_size > _MAX_LABEL_BYTES]
        if large:
            raise TFLiteError(f"the appended {large[0]} is larger than {_MAX_LABEL_BYTES} bytes")
        return {entry.filename: archive.read(entry).decode() for entry in texts}
