"""The operations of a TFLite file: which ones XNNPACK takes, and the time of each."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ai_edge_litert.interpreter import Interpreter, OpResolverType

from grw_keras.export import profiler

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
    """Times every operation where it runs, by LiteRT's own profiler, after a warm-up.

    This is LiteRT's CompiledModel, not its Interpreter, whose profiler can't be reached; both run
    the same kernels by the same delegate. Inputs and states are zeros. XNNPACK rewrites its parts,
    so their operations are its own. Whole microseconds are counted and the rest dropped, so many a
    small one shows none: what a frame takes beyond their sum is that, and the work between them.

    Args:
        path: of a TFLite file whose first signature takes a frame.
        threads: that the runtime may use, >= 1.
        frames: to take the median of, >= 1.

    Raises:
        RuntimeError: the installed library can't do it.
    """
    command = [sys.executable, "-m", profiler.__name__, str(path), str(threads), str(frames)]
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
    for event_type, kind, index, ms in events:
        if event_type == profiler.BUILT_IN:
            yield OperationTime(kind, covered.operations[index][1], ms)
        else:
            yield OperationTime(kind, next(names) if kind.startswith(_XNNPACK_WEIGHTED) else "", ms)
