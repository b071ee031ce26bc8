"""grw-keras evaluate, predict."""

import shlex
from pathlib import Path

from grw_keras.cli.flags import DATA, add_annotations, add_split


def add_commands(commands) -> None:
    """Adds this module's commands to the parser's."""
    evaluation = commands.add_parser(
        "evaluate",
        help="accuracy of a run or a model on a split",
        description="Single-clip top-1 and top-5, per class, confusion, calibration, accuracy "
        "against frames seen, multiply-accumulates. The clips of a run have the splits that they "
        "had in its training.",
        allow_abbrev=False,
    )
    evaluation.add_argument("run_folder", metavar="RUN", help="a run's folder, or a model's")
    evaluation.add_argument("--data", required=True, help=DATA)
    add_split(
        evaluation, "test", "whose clips; clips that a run was not trained with are test clips"
    )
    add_annotations(evaluation)
    evaluation.add_argument("--json", metavar="FILE", help="where to write the results")
    evaluation.add_argument("--csv", metavar="FILE", help="a table to append a row to")
    evaluation.add_argument("--workers", type=int, help="processes that decode")
    evaluation.set_defaults(run=_evaluate, wants_arguments=True)

    prediction = commands.add_parser(
        "predict",
        help="what a video shows",
        description="The likeliest classes of the clip in the middle of each video, as long as the "
        "model's own; --video has a stream's answers from the first frame to the last.",
        allow_abbrev=False,
    )
    prediction.add_argument("run_folder", metavar="RUN", help="a run's folder, or a model's")
    prediction.add_argument(
        "files", nargs="+", metavar="VIDEO", help="a video file, as ffmpeg reads them"
    )
    prediction.add_argument("--top", type=int, default=5, help="classes to show (5)")
    prediction.add_argument(
        "--video", metavar="FILE", help="write the video with labels over time (one video)"
    )
    prediction.set_defaults(run=_predict)


def _evaluate(
    run_folder: str,
    data: str,
    split: str,
    annotations: list[str],
    json: str | None,
    csv: str | None,
    workers: int | None,
    arguments: list[str],
) -> None:
    # At no cost, ahead of TensorFlow's import.
    from grw_keras.data.opening import check_exists
    from grw_keras.training.runs import find_model

    find_model(run_folder)
    check_exists(data)
    from grw_keras.evaluation import results
    from grw_keras.evaluation.tables import table
    from grw_keras.training import again

    evaluation, path = again.evaluate_again(
        run_folder,
        data,
        split,
        annotations=annotations,
        json_path=json,
        workers=workers,
        command=shlex.join(["grw-keras", *arguments]),
    )
    if csv is not None:
        results.append_row(csv, evaluation)
    print(table(evaluation))
    if path is not None:
        print(f"\n{path}")


def _predict(run_folder: str, files: list[str], top: int, video: str | None) -> None:
    if video is not None and len(files) > 1:
        raise ValueError(f"--video writes one video. Received: {len(files)} videos")
    if top < 1:
        raise ValueError(f"--top must be at least 1. Received: {top}")
    # At next to no cost, ahead of TensorFlow's import.
    from grw_keras.data.video import probe
    from grw_keras.training.runs import find_model

    find_model(run_folder)
    seconds = {file: probe(file).duration_s for file in files}
    from grw_keras.evaluation import timeline
    from grw_keras.training import again

    model, short = again.load_model(run_folder)
    labels = model.labels or tuple(map(str, range(model.spec.num_classes)))
    for file in files:
        probabilities = timeline.classify_video(model, file, short=short)
        clip_s = model.spec.frames / model.spec.fps
        part = f": the middle {clip_s:.3g} s of {seconds[file]:.3g} s"
        print(f"{file}{part if seconds[file] > clip_s else ''}")
        for index in probabilities.argsort()[::-1][:top]:
            print(f"  {probabilities[index]:6.1%}  {labels[index]}")
    if video is not None:
        from grw_keras.labelled_video import write_labelled_video

        times_s, answers = timeline.probabilities_over_time(model, files[0])
        frames = write_labelled_video(files[0], Path(video), times_s, answers, labels, top)
        print(f"{video}: {frames} frames, {len(times_s)} answers")
