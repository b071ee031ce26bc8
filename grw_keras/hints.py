"""What to say of a name that is unknown."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """A question with the closest of the known names and a space after it; empty if none is close.

    Example:
        >>> did_you_mean("epoch", ["epochs", "seed"])
        "Did you mean 'epochs'? "
    """
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"Did you mean {close[0]!r}? " if close else ""
