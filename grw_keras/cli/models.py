"""grw-keras list, describe, convert."""

from pathlib import Path


def add_commands(commands) -> None:
    """Adds this module's commands to the parser's."""
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


def _list(pattern: str) -> None:
    from grw_keras import zoo

    print(zoo.list_models(pattern))


def _describe(name: str) -> None:
    from grw_keras import zoo

    print(zoo.describe(name))


def _convert(file: str, out: str, plain: bool, labels: str | None) -> None:
    names = None
    if labels is not None:
        try:
            names = Path(labels).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"--labels must be a text file in UTF-8, one name a line. Received: {labels}"
            ) from error
    from grw_keras import zoo

    model = zoo.convert(file, out, ema=False if plain else None, labels=names)
    print(f"{model.spec.name}, {model.spec.num_classes} classes: {out}")
    print(f"load it by grw_keras.zoo.load({out!r})")
