"""grw-keras train."""

import argparse
import os
import shlex
import sys
from typing import Any

from grw_keras.cli.flags import DATA, SPLITTING, add_annotations

# Flags that stand for one key of the recipe each.
_KEYS: dict[str, tuple[str, Any, str]] = {
    "model": ("model.name", str, "a model of the zoo, see grw-keras list"),
    "weights": (
        "model.weights",
        str,
        "to start from: a file, folder, address, model's name, k600 (the model's published "
        "ones) or none (k600)",
    ),
    "frames": ("model.spec.frames", int, "frames of a clip, at the model's fps (the model's own)"),
    "epochs": ("training.epochs", int, "passes over the training clips (20)"),
    "batch-size": ("training.batch_size", int, "clips of a step, over all devices (4)"),
    "seed": ("training.seed", int, "of everything random (0)"),
    "precision": ("training.precision", str, "float32, bfloat16 or float16 (float32)"),
    "workers": ("data.workers", int, "processes that decode (by the machine's cores)"),
    "cache": ("data.cache", str, "of decoded frames: auto, memory, disk or none (auto)"),
}


def add_commands(commands) -> None:
    """Adds this module's command to the parser's."""
    parser = commands.add_parser(
        "train",
        help="train or fine-tune a model on videos",
        description="Trains a model of the zoo on a folder of class folders, a CSV list, Kinetics, "
        "prepared records or a TFDS data set. What is not given is the recipe's; in parentheses "
        "is what it is without a recipe. Under TF_CONFIG or SLURM it is one worker of many.",
        allow_abbrev=False,
    )
    parser.add_argument("recipe", nargs="?", help="a recipe (YAML); without one: --model")
    parser.add_argument("--data", required=True, help=DATA)
    parser.add_argument("--out", required=True, metavar="DIR", help="the run's folder")
    add_annotations(parser)
    for flag, (_, kind, text) in {**_KEYS, **SPLITTING}.items():
        parser.add_argument(f"--{flag}", type=kind, help=text)
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="any key of the recipe (grw-keras describe tells those of model.spec), e.g. "
        "model.spec.resolution=96 training.ema_decay=0.999",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument(
        "--local-workers", type=int, default=1, metavar="N", help="processes on this machine (1)"
    )
    # Of a worker that --local-workers started: the command that is to be on record.
    parser.add_argument("--launched-by", default="", help=argparse.SUPPRESS)
    parser.set_defaults(run=_train, wants_arguments=True)


def _train(
    recipe: str | None,
    data: str,
    out: str,
    annotations: list[str],
    set: list[str],
    resume: bool,
    local_workers: int,
    launched_by: str,
    arguments: list[str],
    **flags,
) -> int:
    if local_workers < 1:
        raise ValueError(f"--local-workers must be at least 1. Received: {local_workers}")
    if local_workers > 1:
        return _launch(local_workers, arguments)
    from grw_keras.data.opening import check_exists
    from grw_keras.training import recipe as recipes
    from grw_keras.training import runs
    from grw_keras.training.cluster import cluster_from_environment

    keys = {flag.replace("-", "_"): key for flag, (key, *_) in {**_KEYS, **SPLITTING}.items()}
    changes = {keys[flag]: value for flag, value in flags.items() if value is not None}
    if changes.get("model.weights") == "none":
        changes["model.weights"] = None
    changes |= recipes.assignments(set)
    folder = runs.RunFolder.at(out)
    if recipe is not None:
        base = recipes.read(recipe)
    elif resume and folder.started():
        base = folder.read_recipe()
    elif "model.name" in changes:
        base = recipes.from_dict({"model": {"name": changes["model.name"]}})
    else:
        raise ValueError("Give a recipe, or a model: --model NAME (see grw-keras list)")
    wanted = recipes.override(base, changes)
    cluster = cluster_from_environment()
    # Ahead of TensorFlow's import.
    check_exists(data)
    if cluster is None and folder.started():
        runs.check(folder, wanted, resume=resume)

    from grw_keras.training.run import train

    outcome = train(
        wanted,
        data,
        out,
        annotations=annotations,
        resume=resume,
        cluster=cluster,
        command=launched_by or shlex.join(["grw-keras", *arguments]),
    )
    if outcome.finished:
        print(f"{out}/model: load it by grw_keras.zoo.load({f'{out}/model'!r})")
    return 0


def _launch(workers: int, arguments: list[str]) -> int:
    """The same command in several processes, each of which is one worker."""
    if "TF_CONFIG" in os.environ:
        raise ValueError("--local-workers is for a machine by itself, but TF_CONFIG is set")
    from grw_keras.training.launch import launch_local

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--local-workers")
    _, rest = parser.parse_known_args(arguments)
    rest += ["--launched-by", shlex.join(["grw-keras", *arguments])]
    # -P: a folder of the package's name where it starts, such as a checkout, is not the package.
    return launch_local(workers, [sys.executable, "-P", "-m", "grw_keras.cli", *rest])
