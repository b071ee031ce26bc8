"""grw-keras export, benchmark."""

import contextlib
import importlib.util
from collections import Counter
from pathlib import Path

from grw_keras.cli.flags import DATA, add_annotations, add_split

QUANTIZATIONS = ("none", "float16", "dynamic", "int8")


def add_commands(commands) -> None:
    """Adds this module's commands to the parser's."""
    export = commands.add_parser(
        "export",
        help="a run or a model to streaming TFLite files",
        description="Writes DIR/NAME.tflite, which takes one frame at a time, and its description "
        "DIR/NAME.json, and refuses where the file does not answer as the model does.",
        allow_abbrev=False,
    )
    export.add_argument("run_folder", metavar="RUN", help="a run's folder, or a model's, or a name")
    export.add_argument("--tflite", required=True, metavar="DIR", help="where to write")
    export.add_argument("--name", help="of the file (the run's)")
    export.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        default="none",
        help="of weights, activations (none)",
    )
    export.add_argument("--data", help=f"{DATA} to calibrate and verify with")
    add_split(export, "train", "whose clips calibrate and verify")
    add_annotations(export)
    export.add_argument(
        "--split-head",
        action="store_true",
        help="two files: one for every frame, one for when an answer is wanted",
    )
    export.add_argument(
        "--whole-clip", action="store_true", help="a file that takes a whole clip at once"
    )
    export.add_argument("--force", action="store_true", help="write it although it falls short")
    export.set_defaults(run=_export)

    measuring = commands.add_parser(
        "benchmark",
        help="latency and memory of TFLite files on this machine",
        description="Time of a frame with its states fed back, frames of all files in turn; "
        "memory; what XNNPACK takes; on request, the time of each operation.",
        allow_abbrev=False,
    )
    measuring.add_argument("files", nargs="+", metavar="FILE", help="exported, or TFLite streams")
    measuring.add_argument(
        "--threads", nargs="+", type=int, default=[1], help="each is measured (1)"
    )
    measuring.add_argument("--frames", type=int, default=200, help="to measure of each (200)")
    measuring.add_argument("--warmup", type=int, default=20, help="frames before them (20)")
    measuring.add_argument("--csv", metavar="FILE", help="a table to append rows to")
    measuring.add_argument(
        "--profile", type=int, default=0, metavar="N", help="time by kind, and the N slowest"
    )
    measuring.set_defaults(run=_benchmark)


def _export(
    run_folder: str,
    tflite: str,
    name: str | None,
    quantization: str,
    data: str | None,
    split: str,
    annotations: list[str],
    split_head: bool,
    whole_clip: bool,
    force: bool,
) -> None:
    if quantization == "int8" and data is None:
        raise ValueError("--quantization int8 needs --data: videos to calibrate with")
    # At no cost, ahead of TensorFlow's import.
    from grw_keras.data.opening import check_exists
    from grw_keras.training.runs import find_model

    _, spec = find_model(run_folder)
    if data is not None:
        check_exists(data)
    from grw_keras.export import to_tflite
    from grw_keras.export.clips import MOST_CLIPS
    from grw_keras.export.graphs import check_streams
    from grw_keras.training import again

    if not whole_clip:
        check_streams(spec)  # before weights are looked for
    before = set(Path(tflite).glob("*.tflite"))
    with contextlib.ExitStack() as stack:
        calibration = None
        if data is None:
            model, _ = again.load_model(run_folder)
        else:
            opened = again.open_split(run_folder, data, split, annotations=annotations)
            taken = stack.enter_context(opened)
            model, calibration = taken.model, again.centre_clips(taken, MOST_CLIPS)
        exported = to_tflite(
            model,
            Path(tflite, f"{name or Path(run_folder).resolve().name}.tflite"),
            quantization=None if quantization == "none" else quantization,
            calibration=calibration,
            split_head=split_head,
            whole_clip=whole_clip,
            force=force,
        )
    for file in exported.files:
        replaced = ", in place of the one before" if file in before else ""
        print(f"{file}: {file.stat().st_size / 1e6:.2f} MB{replaced}")
    print(exported.report)
    counts = Counter(row.kept for row in exported.sensitivity)
    if counts:
        told = ", ".join(f"{layers} {kept}" for kept, layers in counts.items())
        print(f"layers: {told}; why: {exported.path.stem}_sensitivity.csv")


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
    from grw_keras import csv_table
    from grw_keras.export import benchmark, measurement, operations

    if csv is not None:
        # Refuses another table before all the work.
        csv_table.text_of(Path(csv), measurement.COLUMNS)
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
