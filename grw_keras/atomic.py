"""Files that readers see whole: as they were before, or as they are after."""

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text beside the file, then puts it in its place; a failure leaves nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
