"""Every authors' case one by one through both exact modes; the table of errors is committed.

WRITE_TABLES=1 make test-all rewrites tests/results/accuracy.csv.
"""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from grw_keras import grw_loss
from tests.helpers import value_and_grad

pytestmark = pytest.mark.exhaustive
TABLE = Path(__file__).parent / "results" / "accuracy.csv"
KEYS = ("kind", "T", "D", "orderings")
ERRORS = ("loss_error", "authors_loss_error", "gradient_error", "authors_gradient_error")


def relative(values, expected, floor):
    return float(np.abs(values - expected).max() / max(floor, np.abs(expected).max()))


def errors_of(fixture, case, orderings):
    """Largest errors against the authors' float64, ours and their own float32's."""
    z = fixture[f"Z/{fixture['case_Z'][case]:03d}"]
    alpha = float(fixture["case_alpha"][case])
    loss, gradient = value_and_grad(
        lambda z: grw_loss(z, window=z.shape[1], alpha=alpha, orderings=orderings), z
    )
    expected = fixture["loss64"][case]
    errors = {
        "loss_error": relative(loss, expected, 1.0),
        "authors_loss_error": relative(fixture["loss32"][case], expected, 1.0),
    }
    truth, theirs = f"g64/{case:04d}", f"g32/{case:04d}"
    if truth in fixture:
        errors["gradient_error"] = relative(gradient, fixture[truth], 1e-5)
        if theirs in fixture:
            errors["authors_gradient_error"] = relative(fixture[theirs], fixture[truth], 1e-5)
    return errors


@pytest.fixture(scope="module")
def table(shared):
    """Worst errors by kind of input, T, D and mode: {key: {error: value}}."""
    rows: dict[tuple, dict[str, float]] = {}
    with np.load(shared / "fixtures" / "grw_loss.npz") as archive:
        fixture = dict(archive)
    for orderings in ("all", "exact"):
        for case, kind in enumerate(fixture["case_kind"]):
            shape = int(fixture["case_T"][case]), int(fixture["case_D"][case])
            worst = rows.setdefault((str(kind), *shape, orderings), {})
            for name, error in errors_of(fixture, case, orderings).items():
                worst[name] = max(error, worst.get(name, 0.0))
    return rows


def test_every_case_is_as_exact_as_float32_allows(table):
    assert len(table) == 2 * (5 * 4 + 9 * 3)
    for key, errors in table.items():
        assert errors["loss_error"] <= 1e-5, key
        assert errors["gradient_error"] <= 1e-4, key


def test_the_committed_table_tells_the_same(table):
    if os.environ.get("WRITE_TABLES"):
        with TABLE.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*KEYS, *ERRORS])
            for key, errors in sorted(table.items()):
                writer.writerow([*key, *(f"{errors.get(name, np.nan):.1e}" for name in ERRORS)])
    with TABLE.open() as file:
        committed = {tuple(row[key] for key in KEYS): row for row in csv.DictReader(file)}
    assert len(committed) == len(table)
    for key, errors in table.items():
        row = committed[tuple(map(str, key))]
        for name, error in errors.items():  # other processors round differently
            assert float(row[name]) / 10 - 1e-6 <= error <= 10 * float(row[name]) + 1e-6, (
                key,
                name,
            )
