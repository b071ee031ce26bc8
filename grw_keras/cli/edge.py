"""grw-keras benchmark."""

import importlib.util
from pathlib import Path


def add_commands(commands) -> None:
    """Adds this module's commands to the parser's."""
    measuring = commands.add_parser(
        "benchmark",
        help="latency and memory of TFLite files on this machine",
        description="Time of a frame with its states fed back, frames of all files in turn; "
        "memory; what XNNPACK takes; on request, the time of each operation.",
        allow_abbrev=False,
    )
    measuring.add_argument("files", nargs="+", metavar="FILE", help="exported, or TFLite streams")
    measuring.add_argument("--threads", nargs="+", type=int, default=[1], help="each is measured")
    measuring.add_argument("--frames", type=int, default=200, help="to measure of each")
    measuring.add_argument("--warmup", type=int, default=20, help="frames before them")
    measuring.add_argument("--csv", metavar="FILE", help="a table to append rows to")
    measuring.add_argument(
        "--profile", type=int, default=0, metavar="N", help="time by kind, and the N slowest"
    )
    measuring.set_defaults(run=_benchmark)


def _benchmark(
    files: list[str],
    threads: list[int],
    frames: int,
    warmup: int,
    csv: str | None,
    profile: int,
) -> None:
    if profile < 0:
        raise ValueError(f"--profile must be at least 0. Received: {profile}")
    _require_runtime()
    from grw_keras.export import benchmark, measurement, operations

    if csv is not None:
        measurement.rows_before(Path(csv))  # refuses another table before all the work
    measured = benchmark.benchmark(files, threads, frames=frames, warmup=warmup)
    if csv is not None:
        measurement.append_rows(Path(csv), measured)
    print(measurement.table(measured))
    if profile:
        for path in benchmark.with_heads(files):
            for count in threads:
                found = operations.profile(path, count, frames)
                print("", measurement.profile_table(found, profile), sep="\n")


def _require_runtime() -> None:
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise RuntimeError(
            "TFLite files are run by ai-edge-litert: pip install 'grw-keras[edge]'. Received: none"
        )
