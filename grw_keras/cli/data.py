"""grw-keras data prepare."""

from collections.abc import Mapping
from typing import Any

from grw_keras.cli.flags import SPLITTING, add_annotations


def add_commands(commands) -> None:
    """Adds this module's commands to the parser's."""
    data = commands.add_parser("data", help="prepare data sets")
    parts = data.add_subparsers(required=True, metavar="COMMAND")
    prepare = parts.add_parser(
        "prepare",
        help="videos to sharded records of JPEG frames",
        description="Decodes every video once and writes its frames, at a model's rate and size, "
        "to a TFDS data set that train and evaluate take as --data.",
        allow_abbrev=False,
    )
    prepare.add_argument("--data", required=True, help="folder, .csv list, or tfds:NAME")
    prepare.add_argument("--out", required=True, metavar="DIR", help="the records' folder")
    add_annotations(prepare)
    prepare.add_argument("--model", help="take frame rate and size of this model")
    prepare.add_argument("--fps", type=float, help="frames a second (5)")
    prepare.add_argument("--size", type=int, help="height and width, pixels (200)")
    prepare.add_argument("--quality", type=int, default=95, help="of the JPEGs, 1 to 100 (95)")
    prepare.add_argument("--shards", type=int, help="files a split (by size)")
    prepare.add_argument(
        "--workers", type=int, help="processes that decode (by the machine's cores)"
    )
    prepare.add_argument("--source-fps", type=float, help="of a tfds: data set that doesn't say")
    prepare.add_argument("--video-key", help="the frames' feature, where a tfds: set has several")
    prepare.add_argument("--label-key", help="the same of the labels")
    prepare.add_argument("--beam-runner", help="DirectRunner, DataflowRunner, FlinkRunner, …")
    prepare.add_argument(
        "--beam-options",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="of the runner",
    )
    prepare.add_argument("--seed", type=int, help="of the holdout (0)")
    for flag, (_, kind, text) in SPLITTING.items():
        prepare.add_argument(f"--{flag}", type=kind, help=text)
    prepare.set_defaults(run=_prepare)


def _prepare(
    data: str,
    out: str,
    model: str | None,
    fps: float | None,
    size: int | None,
    quality: int,
    shards: int | None,
    **of_a_kind,
) -> None:
    from grw_keras.data.opening import TFDS_PREFIX

    if model is not None:
        from grw_keras.zoo import registry

        spec = registry.get(model)
        fps = spec.fps if fps is None else fps
        size = spec.resize if size is None else size
    shape: dict[str, Any] = {
        "fps": 5.0 if fps is None else fps,
        "size": 200 if size is None else size,
        "quality": quality,
        "num_shards": shards,
    }
    if data.startswith(TFDS_PREFIX):
        prepared = _prepare_tfds(data.removeprefix(TFDS_PREFIX), out, shape, **of_a_kind)
    else:
        prepared = _prepare_videos(data, out, shape, **of_a_kind)
    counts = ", ".join(f"{count} {split}" for split, count in prepared.counts.items())
    kept = " (there already)" if prepared.kept else ""
    print(f"{out}: {counts}; {len(prepared.bad)} bad videos left out{kept}")


def _prepare_tfds(
    name: str,
    out: str,
    shape: Mapping[str, Any],
    *,
    source_fps: float | None,
    video_key: str | None,
    label_key: str | None,
    **of_videos,
):
    from grw_keras.data import tfds_source

    _refuse(of_videos, "A TFDS data set has its own splits, and is read by one process")
    source = tfds_source.open_tfds(name, fps=source_fps, video_key=video_key, label_key=label_key)
    return tfds_source.prepare_tfds(source, out, **shape, progress=_show)


def _prepare_videos(
    data: str,
    out: str,
    shape: Mapping[str, Any],
    *,
    annotations: list[str],
    workers: int | None,
    beam_runner: str | None,
    beam_options: list[str],
    seed: int | None,
    holdout: float | None,
    group_regex: str | None,
    test_regex: str | None,
    max_bad_share: float | None,
    **of_tfds,
):
    from grw_keras.data import records, sources, splits

    _refuse(of_tfds, "Only a TFDS data set needs them")
    if beam_runner is None:
        _refuse({"beam_options": beam_options}, "There is no --beam-runner")
    clips = splits.assign(
        sources.read(data, annotations=annotations),
        holdout=holdout,
        group_regex=group_regex,
        test_regex=test_regex,
        seed=0 if seed is None else seed,
    )
    return records.prepare(
        clips,
        out,
        **shape,
        workers=workers,
        beam_runner=beam_runner,
        beam_options=[f"--{option}" for option in beam_options],
        max_bad_share=0.05 if max_bad_share is None else max_bad_share,
        progress=_show,
    )


def _refuse(values: Mapping[str, Any], why: str) -> None:
    """Refuses flags that were given, by their names in Python."""
    given = [name for name, value in values.items() if value not in (None, [])]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"{why}: leave out {flags}")


def _show(done: int, total: int) -> None:
    if total and (done == total or 20 * done // total != 20 * (done - 1) // total):
        print(f"{done} of {total} clips", flush=True)
