"""The scale that GRW-smoothing settles at: theorem 1 of the paper, measured.

For each window length T the loss with α = 1 is minimised over one-dimensional configurations
0 = z_1 <= … <= z_T = R, and the optimal radius R is printed and drawn against T√(ln T) and the
bound of the proof with its constants, R <= √(2 (T-1) (ln (T-1)! + (T-1)/2)).

    python benchmarks/scale.py --png benchmarks/results/scale.png
"""

import argparse
import math
import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from scipy.optimize import OptimizeResult, minimize

from grw_keras import grw_loss

WINDOWS = range(3, 13)
STARTS = (0.3, 1.0, 2.0)  # speeds of the uniform configurations that the search starts from


def loss_and_slope(steps: np.ndarray) -> tuple[float, np.ndarray]:
    """The loss in float64 and its gradient for z = 0, s_1, s_1 + s_2, …"""
    steps = tf.constant(steps)
    with tf.GradientTape() as tape:
        tape.watch(steps)
        z = tf.concat([[0.0], tf.cumsum(steps)], axis=0)[None, :, None]
        loss = grw_loss(z, window=z.shape[1], alpha=1.0, orderings="exact")
    return float(loss), tape.gradient(loss, steps).numpy()


def smallest_loss(window: int) -> OptimizeResult:
    """The minimum over non-negative steps; `x` holds the T - 1 steps, whose sum is R."""
    bounds = [(0.0, None)] * (window - 1)
    starts = [np.full(window - 1, speed) for speed in STARTS]
    found = [minimize(loss_and_slope, start, jac=True, bounds=bounds) for start in starts]
    return min(found, key=lambda result: result.fun)


def bound(window: int) -> float:
    """The proof's bound on R: propositions 1 and 2 with their constants."""
    return math.sqrt(2 * (window - 1) * (math.lgamma(window) + (window - 1) / 2))


def draw(radii: dict[int, float], path: Path) -> None:
    """R and its bound against T√(ln T)."""
    from matplotlib.figure import Figure

    scale = [window * math.sqrt(math.log(window)) for window in radii]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(scale, [bound(w) for w in radii], "--", color="0.45", label="bound of theorem 1")
    axes.plot(scale, radii.values(), "o-", color="#0072B2", label="R of the minimum")
    for x, (window, radius) in zip(scale, radii.items(), strict=True):
        axes.annotate(str(window), (x, radius), (0, 7), textcoords="offset points", ha="center")
    axes.set(xlabel="T √(ln T)", ylabel="radius R", ylim=(0, None))
    axes.set_title("Optimal radius of a window of T frames (labels: T), α = 1", fontsize=10)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--png", type=Path, help="draw the figure there")
    arguments = parser.parse_args()
    print(f"{'T':>3} {'loss':>8} {'R':>7} {'bound':>7} {'R / T√(ln T)':>13}")
    radii = {}
    for window in WINDOWS:
        result = smallest_loss(window)
        radii[window] = radius = float(result.x.sum())
        ratio = radius / (window * math.sqrt(math.log(window)))
        print(f"{window:>3} {result.fun:>8.3f} {radius:>7.3f} {bound(window):>7.3f} {ratio:>13.3f}")
    if arguments.png:
        draw(radii, arguments.png)


if __name__ == "__main__":
    main()
