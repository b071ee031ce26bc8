"""The operations of a TFLite file: which ones XNNPACK takes, and the time of each.

Times come from LiteRT's own profiler. Only its CompiledModel has one, and only for C, so this calls
`libLiteRt.so` of ai-edge-litert; in a process of its own, for in other versions of the library the
functions may differ. A CompiledModel runs the same kernels as the Interpreter, by the same delegate.
"""

import collections
import ctypes
import dataclasses
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

_WARMUP = 5
# Events of LiteRT's profiler (litert/c/litert_profiler_event.h).
_BUILT_IN, _DELEGATED = 2, 8
_CPU = 1  # kLiteRtHwAcceleratorCpu
_OPTIONS = {"runtime_options_string": "enable_profiling = true", "xnnpack": "num_threads = {}"}
# With weights: XNNPACK keeps these one for one and in order, others it fuses, splits and adds.
_WEIGHTED = {
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "FULLY_CONNECTED",
    "BATCH_MATMUL",
    "TRANSPOSE_CONV",
}
_XNNPACK_WEIGHTED = ("Convolution", "Fully Connected", "Batch Matrix Multiply", "Deconvolution")


@dataclasses.dataclass(frozen=True)
class Coverage:
    """What XNNPACK takes of a file.

    Args:
        operations: (kind, name of the first output) of all, in the file's order.
        partitions: numbers of the operations that it takes, by connected part.
    """

    operations: tuple[tuple[str, str], ...]
    partitions: tuple[tuple[int, ...], ...]

    @property
    def delegated(self) -> int:
        """How many operations XNNPACK takes."""
        return sum(map(len, self.partitions))


@dataclasses.dataclass(frozen=True)
class OperationTime:
    """Median time of one operation.

    Args:
        kind: of TFLite (`CONV_2D`), or of XNNPACK with its types and kernel (`Convolution (NHWC,
            F32) IGEMM`).
        name: of its output in the file; empty where XNNPACK's can't be told.
        ms: median over the frames.
    """

    kind: str
    name: str
    ms: float


@dataclasses.dataclass(frozen=True)
class Profile:
    """Where the time of a file goes.

    Args:
        path: of the file.
        threads: that it might use.
        frame_ms: median of a whole frame under the profiler, which slows it.
        operations: in the order in which they run.
    """

    path: Path
    threads: int
    frame_ms: float
    operations: tuple[OperationTime, ...]


def by_kind(operations: Sequence[OperationTime]) -> list[tuple[str, int, float]]:
    """(kind, number of operations, ms together), the slowest first."""
    counts = collections.Counter(operation.kind for operation in operations)
    together = collections.Counter[str]()
    for operation in operations:
        together[operation.kind] += operation.ms  # type: ignore[assignment]
    return [(kind, counts[kind], ms) for kind, ms in together.most_common()]


def coverage(path: Path) -> Coverage:
    """Compares a file's graph with and without the runtime's default delegate.

    The runtime appends a DELEGATE operation for each part that is taken, and leaves the taken ones
    in its list. They are those between a part's inputs and outputs.
    """
    with_delegate = Interpreter(str(path))
    without = Interpreter(
        str(path),
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    for interpreter in (with_delegate, without):
        interpreter.allocate_tensors()
    operations = without._get_ops_details()
    names = {tensor["index"]: tensor["name"] for tensor in without.get_tensor_details()}
    delegates = with_delegate._get_ops_details()[len(operations) :]
    return Coverage(
        operations=tuple((op["op_name"], names[op["outputs"][0]]) for op in operations),
        partitions=tuple(_between(part, operations) for part in delegates),
    )


def _between(part: dict[str, Any], operations: list[dict[str, Any]]) -> tuple[int, ...]:
    """Numbers of the operations that make a part's outputs out of its inputs."""
    maker = {tensor: op for op in operations for tensor in op["outputs"]}
    inputs, wanted, found = {*part["inputs"]}, [*part["outputs"]], set()
    while wanted:
        tensor = wanted.pop()
        if tensor in maker and tensor not in inputs and maker[tensor]["index"] not in found:
            found.add(maker[tensor]["index"])
            wanted += maker[tensor]["inputs"].tolist()
    return tuple(sorted(found))


def profile(path: Path, threads: int, frames: int) -> Profile:
    """Times every operation over some frames of zeros, states left at zero, after a warm-up.

    The profiler counts whole microseconds and drops the rest, so many a small operation shows none;
    what a frame takes beyond the sum of its operations is that, and the work between them.

    Raises:
        RuntimeError: the installed library can't do it.
    """
    command = [sys.executable, "-m", __name__, str(path), str(threads), str(frames)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        last = (run.stderr.strip().splitlines() or [f"exit status {run.returncode}"])[-1]
        raise RuntimeError(
            "Profiles need an ai-edge-litert whose libLiteRt.so has a profiler, as 2.3.0 has. "
            f"Received, of {path}: {last}"
        )
    frame_ms, events = json.loads(run.stdout)
    return Profile(path, threads, frame_ms, tuple(_named(events, coverage(path))))


def _named(events: list[tuple[int, str, int, float]], covered: Coverage) -> Iterator[OperationTime]:
    weighted = [
        covered.operations[index][1]
        for part in covered.partitions
        for index in part
        if covered.operations[index][0] in _WEIGHTED
    ]
    theirs = [kind for _, kind, _, _ in events if kind.startswith(_XNNPACK_WEIGHTED)]
    names = iter(weighted if len(weighted) == len(theirs) else [""] * len(theirs))
    for source, kind, index, ms in events:
        if source == _BUILT_IN:
            yield OperationTime(kind, covered.operations[index][1], ms)
        else:
            yield OperationTime(kind, next(names) if kind.startswith(_XNNPACK_WEIGHTED) else "", ms)


_leave = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda payload: None)  # a destructor


class _Event(ctypes.Structure):
    """`ProfiledEventData` of litert/c/litert_profiler_event.h."""

    _fields_ = (
        ("tag", ctypes.c_char_p),
        ("source", ctypes.c_int),
        ("start_us", ctypes.c_uint64),
        ("elapsed_us", ctypes.c_uint64),
        ("memory", ctypes.c_size_t * 6),
        ("index", ctypes.c_uint64),
        ("subgraph", ctypes.c_uint64),
        ("origin", ctypes.c_int),
    )


class _CompiledModel:
    """A file under LiteRT's profiler. Nothing is freed: the process ends with it."""

    def __init__(self, path: str, threads: int):
        package = importlib.util.find_spec("ai_edge_litert")
        assert package and package.origin  # imported above
        self._library = ctypes.CDLL(str(Path(package.origin).with_name("libLiteRt.so")))
        environment = self._made("CreateEnvironment", 0, None)
        model = self._made("CreateModelFromFile", environment, path.encode())
        options = self._made("CreateOptions")
        self._do("SetOptionsHardwareAccelerators", options, _CPU)
        self._payloads = [
            (name.encode(), ctypes.create_string_buffer(text.format(threads).encode()))
            for name, text in _OPTIONS.items()
        ]
        for name, payload in self._payloads:
            self._do(
                "AddOpaqueOptions",
                options,
                self._made("CreateOpaqueOptions", name, payload, _leave),
            )
        self._model = self._made("CreateCompiledModel", environment, model, options)
        self._profiler = self._made("CompiledModelGetProfiler", self._model)
        signature = self._made("GetModelSignature", model, ctypes.c_size_t(0))
        self._inputs = self._buffers("Input", environment, signature)
        self._outputs = self._buffers("Output", environment, signature)

    def events(self) -> list[_Event]:
        """Runs a frame; what the profiler saw of it."""
        for name in ("ResetProfiler", "StartProfiler"):
            self._do(name, self._profiler)
        sides = [
            x for side in (self._inputs, self._outputs) for x in (ctypes.c_size_t(len(side)), side)
        ]
        self._do("RunCompiledModel", self._model, ctypes.c_size_t(0), *sides)
        self._do("StopProfiler", self._profiler)
        count = ctypes.c_int()
        self._do("GetNumProfilerEvents", self._profiler, ctypes.byref(count))
        events = (_Event * count.value)()
        self._do("GetProfilerEvents", self._profiler, count, events)
        return list(events)

    def _buffers(self, side: str, environment, signature) -> ctypes.Array:
        """Zeros for all inputs, or room for all outputs."""
        count = ctypes.c_size_t()
        self._do(f"GetNumSignature{side}s", signature, ctypes.byref(count))
        buffers = (ctypes.c_void_p * count.value)()
        for i in range(count.value):
            index, kind = ctypes.c_size_t(i), ctypes.create_string_buffer(256)  # of 72 needed
            tensor = self._made(f"GetSignature{side}TensorByIndex", signature, index)
            self._do("GetRankedTensorType", tensor, kind)
            needs = self._made(
                f"GetCompiledModel{side}BufferRequirements", self._model, ctypes.c_size_t(0), index
            )
            buffer = self._made(
                "CreateManagedTensorBufferFromRequirements", environment, kind, needs
            )
            self._do("ClearTensorBuffer", buffer)
            buffers[i] = buffer.value
        return buffers

    def _made(self, name: str, *arguments) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        self._do(name, *arguments, ctypes.byref(handle))
        return handle

    def _do(self, name: str, *arguments) -> None:
        status = getattr(self._library, f"LiteRt{name}")(*arguments)
        if status:
            raise RuntimeError(f"LiteRt{name} must give 0. Received: {status}")


def _main(path: str, threads: str, frames: str) -> None:
    """Prints the median time of a frame, and [source, kind, index, median time] of its events."""
    model = _CompiledModel(path, int(threads))
    runs = [model.events() for _ in range(_WARMUP + int(frames))][_WARMUP:]
    ms = np.median([[event.elapsed_us / 1e3 for event in run] for run in runs], axis=0)
    whole, *_ = (time for event, time in zip(runs[0], ms, strict=True) if event.tag == b"Invoke")
    operations = [
        (event.source, event.tag.decode(), event.index, time)
        for event, time in zip(runs[0], ms, strict=True)
        if event.source in (_BUILT_IN, _DELEGATED)
    ]
    print(json.dumps([whole, operations]))


if __name__ == "__main__":
    _main(*sys.argv[1:])
