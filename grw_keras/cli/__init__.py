"""grw-keras: video classifiers, from weights and videos to a trained, measured model.

Each command imports what it needs only when it runs.
"""

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence

from grw_keras.cli import data, models, training, use


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; its status, or 1 with the reason on stderr."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    run: Callable[..., int | None] = options.pop("run")
    with _told():
        try:
            return run(**options) or 0
        except (OSError, ValueError, TypeError, ArithmeticError) as error:
            print(f"grw-keras: {error}", file=sys.stderr)
            return 1


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
    for part in (models, training, use, data):
        part.add_commands(commands)
    return parser
