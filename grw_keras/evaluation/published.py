"""What the paper prints of its models, row by row, under the zoo's names.

Reference:
    Smooth Regularization for Efficient Video Recognition, tables 1, 2 and 4 (Kinetics-600). The
    "GFLOPs" are multiply-accumulates of one clip. Rows of models that the zoo doesn't have are
    left out.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One row of one of the paper's tables; None: a column that the table doesn't have.

    Args:
        model: name in the zoo.
        table: number in the paper.
        top1_k600: top-1 accuracy on Kinetics-600, percent.
        gflops: of one clip, 10⁹ multiply-accumulates.
        memory_mb: memory at inference.
    """

    model: str
    table: int
    top1_k600: float
    gflops: float | None = None
    memory_mb: float | None = None


def _rows(table: int, column: str, text: str) -> tuple[PublishedRow, ...]:
    """Rows of "model top-1 value" lines."""
    rows = []
    for line in text.strip().splitlines():
        model, top1, value = line.split()
        columns: dict[str, Any] = {"top1_k600": float(top1), column: float(value)}
        rows.append(PublishedRow(model=model, table=table, **columns))
    return tuple(rows)


ROWS = (
    *_rows(
        1,
        "gflops",
        """
        movinet_a0_stream_grw   78.4   2.7
        movinet_a0              72.3   2.7
        mobilenet_v3_small      61.3   2.8
        mobilenet_v3_small_tsm  65.5   2.8
        movinet_a1_stream_grw   81.9   6.0
        movinet_a1              76.7   6.0
        movinet_a2              78.6  10.3
        mobilenet_v3_large      68.1  11.0
        mobilenet_v3_large_tsm  71.4  11.0
        movinet_a2_stream_grw   83.3  11.3
        movinet_a3_grw          85.6  56.4
        movinet_a3              81.8  56.9
        """,
    ),
    *_rows(
        2,
        "memory_mb",
        """
        mobilenet_v3_small      61.3  29
        mobilenet_v3_small_grw  67.3  30
        movinet_a0_stream_grw   78.4  53
        movinet_a0_stream       72.0  53
        movinet_a1_stream_grw   81.9  67
        movinet_a1_stream       76.4  67
        movinet_a2_stream_grw   83.3  78
        movinet_a2_stream       78.4  78
        """,
    ),
    *_rows(
        4,
        "gflops",
        """
        movinet_a2_stream_grw           83.3  11.3
        movinet_a2_stream_intermediate  80.8  10.3
        movinet_a2_stream_attention     79.3  11.3
        movinet_a2_stream               78.4  10.3
        """,
    ),
)


def published(model: str, quantity: str) -> tuple[float, int] | None:
    """A published number of a model and the table that prints it first; None if none does.

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
        if row.model == model and value is not None:
            return value, row.table
    return None
