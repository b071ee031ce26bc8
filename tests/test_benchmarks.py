"""What the benchmark compares with is the same loss."""

import numpy as np
import pytest

from benchmarks.loss import literal_loss, literal_orderings
from grw_keras import grw_loss


@pytest.mark.parametrize("window", [5, 9])
def test_the_literal_side_computes_the_same_loss(window):
    z = np.random.default_rng(0).normal(size=(4, window, 6)).astype(np.float32)
    rows = literal_orderings(window)
    literal = float(literal_loss(z, rows))
    assert float(grw_loss(z, window=window, orderings=rows)) == pytest.approx(literal, rel=1e-5)
