"""grw-keras export."""

from pathlib import Path

CALIBRATION_CLIPS = 24  # `to_tflite` takes 240 frames of them
QUANTIZATIONS = ("none", "float16", "dynamic", "int8")


def add_commands(commands) -> None:
    """Adds this module's command to the parser's."""
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
        "--quantization", choices=QUANTIZATIONS, default="none", help="of weights, activations"
    )
    export.add_argument(
        "--data", help="folder, .csv list or prepared records to calibrate and verify with"
    )
    export.add_argument("--split", default="train", choices=["train", "validation", "test"])
    export.add_argument(
        "--annotations", nargs="+", default=[], metavar="FILE", help="of Kinetics, CSV"
    )
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
    from grw_keras.export import to_tflite
    from grw_keras.training import again

    calibration = None
    if data is None:
        model, _ = again.load_model(run_folder)
    else:
        taken = again.open_split(run_folder, data, split, annotations=annotations)
        model, calibration = taken.model, again.centre_clips(taken, CALIBRATION_CLIPS)
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
        print(f"{file}: {file.stat().st_size / 1e6:.2f} MB")
    print(exported.report)
    spared = [row.layer for row in exported.sensitivity if row.kept != "int8"]
    if exported.sensitivity:
        print(f"{len(exported.sensitivity) - len(spared)} layers in int8, {len(spared)} in float")
