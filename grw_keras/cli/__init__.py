"""grw-keras: video classifiers, from weights and videos to a trained, measured model.

Each command imports what it needs only when it runs. Errors are told in a line; with
GRW_KERAS_TRACEBACK=1 in the environment, with all that led to them.
"""

import argparse
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence

from grw_keras import __version__
from grw_keras.cli import data, edge, models, training, use


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; its status, or 1 with the reason on stderr."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = vars(_parser().parse_args(arguments))
    run: Callable[..., int | None] = options.pop("run")
    if options.pop("wants_arguments", False):
        options["arguments"] = arguments
    # TensorFlow tells of missing GPUs and ended data sets as of errors; what fails raises anyhow.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _told():
        try:
            return run(**options) or 0
        except KeyboardInterrupt:
            print("grw-keras: interrupted", file=sys.stderr)
            return 128 + signal.SIGINT
        except Exception as error:
            reason = _reason(error)
            if reason is None or os.environ.get("GRW_KERAS_TRACEBACK"):
                raise
            print(f"grw-keras: {reason}", file=sys.stderr)
            return 1


def _reason(error: Exception) -> str | None:
    """What to tell of an error that a user can do something about; None of others."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError | ValueError | TypeError | ArithmeticError | RuntimeError):
        return str(error)
    if type(error).__module__.startswith("tensorflow"):
        # From the code that reads clips it brings a traceback, whose last line says what happened.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        told = [line for line in lines if "Error: " in line]
        return told[-1] if told else max(lines or [repr(error)], key=len)
    return None


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Meanwhile what the package logs is shown, on stderr."""
    log = logging.getLogger("grw_keras")
    handler, level, propagate = logging.StreamHandler(), log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False  # libraries set up the root's own handler as they are imported
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="grw-keras", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"grw-keras {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for part in (models, training, use, data, edge):
        part.add_commands(commands)
    return parser
