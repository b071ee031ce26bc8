"""Tables of text for the terminal."""

from collections.abc import Iterable, Sequence

from rich.cells import cell_len


def aligned(rows: Iterable[Sequence[str]], sides: str) -> str:
    """Rows as columns of equal width on the screen, where a Chinese letter takes two cells.

    Args:
        rows: at least one, of equally many cells.
        sides: for each column to which side its cells stand, "<" or ">"; the last one goes for all
            columns that follow.

    Example:
        >>> print(aligned([("name", "px", "frames"), ("a0", "172", "50")], "<>"))
        name   px  frames
        a0    172      50
    """
    rows = list(rows)
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    sides = sides.ljust(len(widths), sides[-1])
    lines = []
    for row in rows:
        cells = []
        for cell, side, width in zip(row, sides, widths, strict=True):
            space = " " * (width - cell_len(cell))
            cells.append(cell + space if side == "<" else space + cell)
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
