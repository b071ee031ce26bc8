"""The rows of a CSV file with a header, each with its line for error messages."""

import csv
import os
from collections.abc import Iterator, Sequence

from grw_keras.hints import did_you_mean


def csv_rows(
    path: str | os.PathLike[str], required: Sequence[str], optional: Sequence[str] | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields (line, {column: cell}) of every row that is not blank.

    UTF-8 with or without a byte order mark, any line ends, quoted cells.

    Args:
        path: of the file.
        required: columns that must be there.
        optional: columns that may be there besides; None: any.

    Raises:
        ValueError: another header, a row of another length, not CSV, or not UTF-8.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        header: list[str] = []
        try:
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if not header:
                    header = [cell.strip() for cell in cells]
                    _check_header(path, header, required, optional)
                    continue
                if len(cells) != len(header):
                    raise ValueError(
                        f"{path}, line {reader.line_num}: a row must have a cell for each of the "
                        f"{len(header)} columns; quote cells that have a comma in them. "
                        f"Received: {len(cells)} cells, {','.join(cells)!r}"
                    )
                yield reader.line_num, dict(zip(header, cells, strict=True))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} must be a UTF-8 file. Received: {error}") from error
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: not CSV: {error}") from error
        if not header:
            raise ValueError(
                f"{path} must begin with a header that has the columns {', '.join(required)}. "
                "Received: an empty file"
            )


def _check_header(path, header, required, optional) -> None:
    known = [*required, *(optional or ())]
    given = f"Received: {', '.join(header)!r} in {path}"
    for column in header:
        if optional is not None and column not in known:
            hint = did_you_mean(column.lower(), known)
            raise ValueError(
                f"Unknown column {column!r}. {hint}The header must be a line of some of "
                f"{', '.join(known)}, with commas between. {given}"
            )
    for column in required:
        if column not in header:
            raise ValueError(f"The header must have the column {column!r}. {given}")
    if len(set(header)) < len(header):
        raise ValueError(f"The header must have each column once. {given}")
