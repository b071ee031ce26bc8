"""What to say of a name that is unknown."""

import difflib
from collections.abc import Iterable
from pathlib import Path


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """A question with the closest of the known names and a space after it; empty if none is close.

    Example:
        >>> did_you_mean("epoch", ["epochs", "seed"])
        "Did you mean 'epochs'? "
    """
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"Did you mean {close[0]!r}? " if close else ""


def did_you_mean_path(path: Path) -> str:
    """As `did_you_mean`, of a path that isn't there, with what lies in its folder."""
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    close = difflib.get_close_matches(path.name, [other.name for other in beside], n=1)
    return f"Did you mean '{path.parent / close[0]}'? " if close else ""
