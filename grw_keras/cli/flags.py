"""Flags that several commands have."""

from typing import Any

DATA = "folder, .csv list, prepared records or tfds:NAME"
# Each stands for one key of the recipe.
SPLITTING: dict[str, tuple[str, Any, str]] = {
    "holdout": ("data.holdout", float, "share of the training clips to set aside (none)"),
    "group-regex": ("data.group_regex", str, "what it matches in a name stays on one side"),
    "test-regex": ("data.test_regex", str, "names that it is found in are the test clips"),
    "max-bad-share": (
        "data.max_bad_share",
        float,
        "share of unreadable videos to put up with (0.05)",
    ),
}


def add_annotations(parser) -> None:
    """Adds the flag of Kinetics' annotation files."""
    parser.add_argument(
        "--annotations",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="of Kinetics, CSV",
    )


def add_split(parser, default: str, use: str) -> None:
    """Adds the flag that chooses a split."""
    choices = ["train", "validation", "test"]
    parser.add_argument("--split", default=default, choices=choices, help=f"{use} ({default})")
