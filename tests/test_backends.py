"""Runs the backend-neutral tests once more on JAX, and on PyTorch where it is installed."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Dynamic programmes of many steps, which JAX compiles one by one; they are the same at any length.
LONG = "exact and (long_windows or strictly_likeliest or 1.0-5 or 1.0-6 or 1.0-7)"
NEUTRAL = ["tests/test_losses.py", "tests/test_normalization.py", "tests/test_keras3.py"]

pytestmark = pytest.mark.skipif(
    os.environ["KERAS_BACKEND"] != "tensorflow", reason="runs from the TensorFlow session only"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "choice", [f"not ({LONG})", pytest.param("", marks=pytest.mark.exhaustive)], ids=["most", "all"]
)
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_same_tests_pass_on(backend, choice, shared):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-rp",
            "-k",
            choice,
            *NEUTRAL,
        ],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    passed = re.findall(r"^PASSED ([^:]+)::", run.stdout, re.MULTILINE)
    assert set(passed) == set(NEUTRAL)
