"""grw-keras: models for video recognition, their cost, and their weights.

Each command imports what it needs only when it runs.
"""

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; 0, or 1 with the reason on stderr."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    run: Callable[..., None] = options.pop("run")
    with _told():
        try:
            run(**options)
        except (OSError, ValueError, TypeError) as error:
            print(f"grw-keras: {error}", file=sys.stderr)
            return 1
    return 0


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Meanwhile what the package logs is shown, on stderr."""
    log = logging.getLogger("grw_keras")
    handler, level = logging.StreamHandler(), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="grw-keras", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="all models, with cost and published accuracy")
    listing.add_argument("pattern", nargs="?", default="*", help="e.g. '*_stream_grw'")
    listing.set_defaults(run=_list)

    description = commands.add_parser("describe", help="one model: spec, cost, weights")
    description.add_argument("name", help="a model's name, or a folder of save_pretrained")
    description.set_defaults(run=_describe)

    conversion = commands.add_parser("convert", help="foreign weights to a folder of our own form")
    conversion.add_argument(
        "file", help="a snapshot (.pt), an official checkpoint, SavedModel or TFLite file"
    )
    conversion.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    conversion.add_argument(
        "--plain",
        action="store_true",
        help="of a snapshot, the plain weights instead of the averaged ones",
    )
    conversion.add_argument("--labels", metavar="FILE", help="names of the classes, one a line")
    conversion.set_defaults(run=_convert)
    return parser


def _list(pattern: str) -> None:
    from grw_keras import zoo

    print(zoo.list_models(pattern))


def _describe(name: str) -> None:
    from grw_keras import zoo

    print(zoo.describe(name))


def _convert(file: str, out: str, plain: bool, labels: str | None) -> None:
    names = Path(labels).read_text(encoding="utf-8").splitlines() if labels else None
    from grw_keras import zoo

    model = zoo.convert(file, out, ema=False if plain else None, labels=names)
    print(f"{model.spec.name}, {model.spec.num_classes} classes: {out}")
    print(f"load it by grw_keras.zoo.load({out!r})")


if __name__ == "__main__":
    sys.exit(main())
