"""What the paper prints in its tables 1 to 4, row by row; models of the zoo under their names too.

Reference:
    Smooth Regularization for Efficient Video Recognition, tables 1, 2 and 4 (Kinetics-600) and 3
    (Kinetics-400). The "GFLOPs" are multiply-accumulates of one clip.
"""

import csv
import dataclasses
from pathlib import Path

KINETICS_400_TABLE = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One row of one of the paper's tables; None: a column that the table doesn't have.

    Args:
        table: number in the paper.
        printed: the model's name in the paper.
        model: its name in the zoo; empty where the zoo doesn't have it.
        top1: top-1 accuracy, percent; on Kinetics-400 in table 3, else on Kinetics-600.
        gflops: of one clip, 10⁹ multiply-accumulates.
        memory_mb: memory at inference.
    """

    table: int
    printed: str
    model: str
    top1: float
    gflops: float | None
    memory_mb: float | None

    @property
    def top1_k600(self) -> float | None:
        return None if self.table == KINETICS_400_TABLE else self.top1


def _read() -> tuple[PublishedRow, ...]:
    with Path(__file__).with_name("published.csv").open(encoding="utf-8", newline="") as file:
        return tuple(
            PublishedRow(
                table=int(row["table"]),
                printed=row["model"],
                model=row["zoo_name"],
                top1=float(row["top1"]),
                gflops=float(row["gflops"]) if row["gflops"] else None,
                memory_mb=float(row["memory_mb"]) if row["memory_mb"] else None,
            )
            for row in csv.DictReader(file)
        )


ROWS = _read()


def published(model: str, quantity: str) -> tuple[float, int] | None:
    """A published number of a model on Kinetics-600, and the table that prints it first; None if
    none does.

    Args:
        model: name in the zoo.
        quantity: `"top1_k600"`, `"gflops"` or `"memory_mb"`.

    Raises:
        AttributeError: another quantity.

    Example:
        >>> published("movinet_a2_stream", "gflops")
        (10.3, 4)
    """
    for row in ROWS:
        value = getattr(row, quantity)
        of_k600 = row.table != KINETICS_400_TABLE
        if of_k600 and row.model == model and value is not None:
            return value, row.table
    return None
