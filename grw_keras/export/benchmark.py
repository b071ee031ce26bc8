"""How TFLite files run on this machine: latency, memory, and what XNNPACK takes of them."""

import dataclasses
import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from grw_keras.export.measurement import Measurement
from grw_keras.export.operations import coverage
from grw_keras.hints import did_you_mean_path
from grw_keras.lite import DESCRIPTION, Description, read_description

_BLOCK = 10  # frames of one file before the next one's turn: what slows the machine slows all
_MEMORY_FRAMES = 5


class RunningFile:
    """An interpreter that is fed noise as its frames, and its own states.

    An input is a state where an output has its name; states start with zeros.

    Args:
        path: a TFLite file with one signature.
        threads: that the runtime may use, >= 1.

    Raises:
        ValueError: the runtime can't run it.
    """

    def __init__(self, path: Path, threads: int):
        try:
            self._interpreter = Interpreter(str(path), num_threads=threads)
            self._interpreter.allocate_tensors()
            runner = self._interpreter.get_signature_runner()
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"A file must be a whole TFLite file with one signature that {runtime()} can run. "
                f"Received: {path}: {error}"
            ) from error
        about, noise = own_description(path), np.random.default_rng(0)
        self._inputs: list[tuple[int, np.ndarray]] = []
        self._states: list[tuple[int, np.ndarray]] = []
        self.outputs = {name: d["index"] for name, d in runner.get_output_details().items()}
        for name, detail in runner.get_input_details().items():
            value = np.zeros(detail["shape"], detail["dtype"])
            if name in self.outputs:
                self._states.append((self.outputs[name], value))
            elif name == "frame_count" and about:
                value[:] = about.window_frames
            else:
                value[...] = noise.random(value.shape)
            self._inputs.append((detail["index"], value))

    def run(self) -> None:
        """Runs one frame, and takes the states after it."""
        for index, value in self._inputs:
            self._interpreter.set_tensor(index, value)
        self._interpreter.invoke()
        for index, state in self._states:  # as grw_keras.lite does it, after all have been fed
            np.copyto(state, self._interpreter.tensor(index)())

    def output(self, name: str) -> np.ndarray:
        """An output of the last frame."""
        return self._interpreter.get_tensor(self.outputs[name])


def benchmark(
    files: Sequence[str | Path], threads: Sequence[int], *, frames: int = 200, warmup: int = 20
) -> list[Measurement]:
    """Measures files side by side: small blocks of frames of each, in turn.

    Args:
        files: of `grw_keras.export`, or other streaming TFLite files. An `embed` file brings the
            `classify` file beside it, which is measured apart.
        threads: numbers of threads, each >= 1.
        frames: to measure of each file and number of threads, >= 1.
        warmup: frames before them, >= 0.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: an argument is out of range, or a file can't be run.
    """
    for name, value, least in (
        *(("threads", count, 1) for count in threads),
        ("frames", frames, 1),
        ("warmup", warmup, 0),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}. Received: {value}")
    pairs = [(path, count) for path in with_heads(files) for count in threads]
    running = [RunningFile(path, count) for path, count in pairs]
    times_ms = _interleaved(running, frames, warmup)
    measured = [
        _measurement(path, count, own_ms)
        for (path, count), own_ms in zip(pairs, times_ms, strict=True)
    ]
    if len({path.name for path, _ in pairs}) == len({path for path, _ in pairs}):
        return measured
    return [
        dataclasses.replace(m, file=str(path)) for m, (path, _) in zip(measured, pairs, strict=True)
    ]


def with_heads(files: Sequence[str | Path]) -> list[Path]:
    """The files, each once, and the `classify` files of those that have one."""
    paths: dict[Path, None] = {}
    for path in map(Path, files):
        about = own_description(path)
        paths[path] = None
        if about and about.classify_file:
            paths[path.with_name(about.classify_file)] = None
    return list(paths)


def own_description(path: Path) -> Description | None:
    """What a file says of itself; None of a file of another program."""
    if not path.exists():
        raise FileNotFoundError(f"No such file. {did_you_mean_path(path)}Received: {path}")
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        ours = DESCRIPTION in archive.namelist()
    return read_description(path) if ours else None


def runtime() -> str:
    """Package and version of what runs the files."""
    return f"ai-edge-litert {importlib.metadata.version('ai-edge-litert')}"


def _interleaved(running: list[RunningFile], frames: int, warmup: int) -> list[np.ndarray]:
    """Times [frames] of each, ms."""
    times_ms = np.empty((len(running), frames))
    for file in running:
        for _ in range(warmup):
            file.run()
    for start in range(0, frames, _BLOCK):
        for file, own_ms in zip(running, times_ms, strict=True):
            file.run()  # unmeasured: it brings this file's weights back to the caches
            for frame in range(start, min(start + _BLOCK, frames)):
                begin = time.perf_counter()
                file.run()
                own_ms[frame] = (time.perf_counter() - begin) * 1e3
    return list(times_ms)


def _measurement(path: Path, threads: int, times_ms: np.ndarray) -> Measurement:
    about, covered = own_description(path), coverage(path)
    p90_ms, p99_ms = np.percentile(times_ms, [90, 99])
    return Measurement(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        cpu=cpu(),
        runtime=runtime(),
        file=path.name,
        model=about.name if about else "",
        kind=about.kind if about else "",
        quantization=(about.quantization or "none") if about else "",
        head=about.head if about else "",
        size_bytes=path.stat().st_size,
        threads=threads,
        frames=len(times_ms),
        median_ms=float(np.median(times_ms)),
        mean_ms=float(np.mean(times_ms)),
        p90_ms=float(p90_ms),
        p99_ms=float(p99_ms),
        max_ms=float(np.max(times_ms)),
        memory_mb=memory_bytes(path, threads) / 1e6,
        operations=len(covered.operations),
        delegated=covered.delegated,
        partitions=len(covered.partitions),
    )


def memory_bytes(path: Path, threads: int) -> int:
    """Resident memory that running a file adds, measured in a process of its own."""
    code = (
        "import sys; from pathlib import Path; from grw_keras.export import benchmark\n"
        "print(benchmark._memory_added(Path(sys.argv[1]), int(sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, str(path), str(threads)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"Memory of {path} can't be measured. Received: {run.stderr.strip()}")
    return int(run.stdout)


def _memory_added(path: Path, threads: int) -> int:
    before = _resident_bytes()
    file = RunningFile(path, threads)
    for _ in range(_MEMORY_FRAMES):
        file.run()
    return _resident_bytes() - before


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def cpu() -> str:
    """The model of the machine's CPU; on ARM boards, of the board."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    known = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    return known.get("model name") or known.get("Model") or platform.machine()
