"""What was measured of a file: as a row of a CSV and of a table for the terminal."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from grw_keras import csv_table
from grw_keras.export.operations import Profile
from grw_keras.text_table import aligned


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """One file at one number of threads: a row of the CSV, whose columns are these fields.

    Args:
        date: ISO 8601.
        cpu: the machine's model of CPU.
        runtime: package and version.
        file: its name.
        model, kind, quantization, head: as the file describes itself; empty where it doesn't.
        size_bytes: of the file.
        threads: that the runtime may use.
        frames: that were measured; runs, of a `classify` or a `clip` file.
        median_ms, mean_ms, p90_ms, p99_ms, max_ms: of the time of a frame, its states fed back;
            without what comes before, resizing a camera's frame, and after, softmax.
        memory_mb: resident memory, 10⁶ bytes, that opening the file and running a few frames added
            to a fresh process: packed weights, tensors, and the pages of the file and of the
            runtime's code that were touched; not Python and NumPy.
        operations: of the file.
        delegated: how many of them XNNPACK takes.
        partitions: connected parts that it takes them in; between them data changes hands.
    """

    date: str
    cpu: str
    runtime: str
    file: str
    model: str
    kind: str
    quantization: str
    head: str
    size_bytes: int
    threads: int
    frames: int
    median_ms: float
    mean_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    memory_mb: float
    operations: int
    delegated: int
    partitions: int


COLUMNS = tuple(field.name for field in dataclasses.fields(Measurement))


def append_rows(path: Path, measurements: Iterable[Measurement]) -> None:
    """Appends rows to a CSV with `COLUMNS`, which is made if absent.

    Raises:
        ValueError: the file has other columns.
    """
    csv_table.append(path, COLUMNS, map(_row, measurements))


def _row(measurement: Measurement) -> dict[str, object]:
    return {
        name: f"{value:.3f}" if isinstance(value, float) else value
        for name, value in dataclasses.asdict(measurement).items()
    }


def table(measurements: Sequence[Measurement]) -> str:
    """Measurements for the terminal."""
    rows = [
        (
            m.file,
            str(m.threads),
            *(f"{ms:.2f}" for ms in (m.median_ms, m.mean_ms, m.p90_ms, m.p99_ms, m.max_ms)),
            f"{m.size_bytes / 1e6:.1f}",
            f"{m.memory_mb:.1f}",
            f"{m.delegated}/{m.operations} in {m.partitions}",
        )
        for m in measurements
    ]
    header = ("file", "threads", "median ms", "mean", "p90", "p99", "max", "file MB", "memory MB")
    return aligned([(*header, "XNNPACK takes"), *rows], "<>")


def profile_table(profile: Profile, shown: int) -> str:
    """A profile for the terminal: time by kind of operation, and the slowest operations.

    Args:
        profile: of a file.
        shown: how many of the slowest operations, >= 1.
    """
    kinds: dict[str, list[float]] = {}
    for operation in profile.operations:
        kinds.setdefault(operation.kind, []).append(operation.ms)
    by_kind = sorted(kinds.items(), key=lambda item: -sum(item[1]))
    slowest = sorted(profile.operations, key=lambda operation: -operation.ms)[:shown]
    own_ms = sum(operation.ms for operation in profile.operations)
    return "\n".join(
        [
            f"{profile.path}, threads: {profile.threads}",
            f"{profile.frame_ms:.2f} ms a frame of zeros under the profiler of a CompiledModel,",
            f"{own_ms:.2f} ms of them in operations, whole µs of each. CAPITALS: built-in kernels;",
            "others: XNNPACK's own operations, which need not be those of the file.",
            "",
            aligned(
                [
                    ("kind", "operations", "ms"),
                    *((kind, str(len(ms)), f"{sum(ms):.3f}") for kind, ms in by_kind),
                ],
                "<>",
            ),
            "",
            aligned(
                [
                    ("the slowest", "ms", "output"),
                    *((o.kind, f"{o.ms:.3f}", o.name.partition(";")[0]) for o in slowest),
                ],
                "<><",
            ),
        ]
    )
