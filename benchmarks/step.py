"""GRW's share of a training step of MoViNet-A0-S, the loss alone, and what XLA does to both.

The step with GRW-smoothing is `movinet_a0_stream_grw`'s, the one without is
`movinet_a0_stream_attention`'s: the same model from the same weights, but for the loss. Both run
in one process on the same batch, in pairs whose order is random, so that what else the machine
does falls on both alike. The share is the mean difference of a pair over the mean step with GRW,
both without the pairs whose difference is among the smallest or largest tenth, which other
processes make. Its bound is the 95th percentile of that over 10,000 resamples of the pairs
(bootstrap).

    python benchmarks/step.py --csv benchmarks/results/step.csv
    python benchmarks/step.py --xla                          # compiling takes minutes more
    python benchmarks/step.py --pairs 3 --size 44            # to see that it runs
"""

import argparse
import csv
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from grw_keras import grw_loss, zoo
from grw_keras.training import objective
from grw_keras.training.recipe import TrainingPart

WITH, WITHOUT = "movinet_a0_stream_grw", "movinet_a0_stream_attention"
CLASSES = 6
WIDTH = 480  # of A0's embeddings
WARM_UP = 3  # calls that are not timed
TRIM = 0.1
RESAMPLES = 10_000
LOSS_CALLS = 300
Row = tuple[str, str, float]
Call = Callable[[], dict[str, Any]]


def step_calls(batch: int, frames: int, size: int, *, xla: bool = False) -> dict[str, Call]:
    """A whole training step with and without GRW, as a recipe's defaults compile it."""
    rng = np.random.default_rng(0)
    clips = tf.constant(rng.random((batch, frames, size, size, 3)), tf.float32)
    labels = tf.range(batch) % CLASSES
    calls, weights = {}, None
    for name in (WITH, WITHOUT):
        model = zoo.load(name, weights=None, num_classes=CLASSES, compile=False)
        weights = weights or {key: v.numpy() for key, v in model.named_weights().items()}
        for key, variable in model.named_weights().items():
            variable.assign(weights[key])
        objective.compile_model(model, TrainingPart(), steps=100_000)
        calls[name] = compiled(model.train_step, (clips, labels), xla=xla)
    return calls


def loss_call(batch: int, frames: int, *, xla: bool) -> Call:
    """Forward and backward through the loss alone."""
    z = tf.constant(np.random.default_rng(0).normal(0, 0.1, (batch, frames, WIDTH)), tf.float32)

    def gradient(z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            loss = grw_loss(z)
        return {"loss": loss, "gradient": tape.gradient(loss, z)}

    return compiled(gradient, z, xla=xla)


def compiled(function, argument, *, xla: bool) -> Call:
    """A call that runs the traced function and waits for what it gives."""
    traced = tf.function(function, jit_compile=xla, autograph=False)  # as the trainer does

    def call():
        return {name: value.numpy() for name, value in traced(argument).items()}

    return call


def seconds(call: Call) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def timed_pairs(first: Call, second: Call, pairs: int, *, progress: bool = False) -> np.ndarray:
    """Seconds [pairs, 2] of two calls that take turns, which goes first being random."""
    for call in (first, second) * WARM_UP:
        call()
    order, times = random.Random(0), np.empty((pairs, 2))
    for pair in range(pairs):
        for side in order.sample((0, 1), 2):
            times[pair, side] = seconds((first, second)[side])
        if progress and (pair + 1) % 50 == 0:
            print(f"{pair + 1} of {pairs} pairs", flush=True)
    return times


def share(times: np.ndarray) -> float:
    """How much of the first side's time is more than the second's, without the outermost pairs."""
    differences = times[:, 0] - times[:, 1]
    cut = int(TRIM * len(times))
    kept = np.argsort(differences)[cut : len(times) - cut]
    return float(differences[kept].mean() / times[kept, 0].mean())


def upper_bound(times: np.ndarray) -> float:
    """The 95th percentile of the share over resamples of the pairs."""
    rng = np.random.default_rng(0)
    count = len(times)
    shares = [share(times[rng.integers(count, size=count)]) for _ in range(RESAMPLES)]
    return float(np.quantile(shares, 0.95))


def measure_steps(arguments) -> list[Row]:
    """GRW's share of the step."""
    calls = step_calls(arguments.batch, arguments.frames, arguments.size)
    times = timed_pairs(calls[WITH], calls[WITHOUT], arguments.pairs, progress=True)
    with_ms, without_ms = 1e3 * np.median(times, axis=0)
    return [
        ("step with GRW", "ms", with_ms),
        ("step without", "ms", without_ms),
        ("pairs", "", len(times)),
        ("GRW's share", "%", 100 * share(times)),
        ("GRW's share, upper 95 % bound", "%", 100 * upper_bound(times)),
    ]


def measure_loss(arguments) -> list[Row]:
    """The loss alone, as traced and by XLA in turns."""
    shape = (arguments.batch, arguments.frames)
    graph, xla = loss_call(*shape, xla=False), loss_call(*shape, xla=True)
    times = timed_pairs(graph, xla, min(LOSS_CALLS, 10 * arguments.pairs))
    graph_ms, xla_ms = 1e3 * np.median(times, axis=0)
    return [
        ("loss alone", "ms", graph_ms),
        ("loss alone, XLA", "ms", xla_ms),
        ("loss: XLA times as fast", "", graph_ms / xla_ms),
    ]


def measure_xla(arguments, step_ms: float) -> list[Row]:
    """The whole step by XLA. Few calls do: on a CPU it is several times slower."""
    shape = (arguments.batch, arguments.frames, arguments.size)
    call = step_calls(*shape, xla=True)[WITH]
    first_s = seconds(call)
    xla_ms = 1e3 * median(seconds(call) for _ in range(arguments.xla_calls))
    return [
        ("step with GRW, XLA: first call", "s", first_s),
        ("step with GRW, XLA", "ms", xla_ms),
        ("step: XLA times as fast", "", step_ms / xla_ms),
    ]


def show(rows: list[Row]) -> None:
    for name, unit, value in rows:
        print(f"{name:<32} {value:>10.4g} {unit}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=200, help="more, where the bound is wide")
    parser.add_argument("--batch", type=int, default=4, help="clips of a step")
    parser.add_argument("--frames", type=int, default=10, help="of a clip")
    parser.add_argument("--size", type=int, default=172, help="of the frames, pixels")
    parser.add_argument("--xla", action="store_true", help="the whole step by XLA too")
    parser.add_argument("--xla-calls", type=int, default=5, help="timed calls of that")
    parser.add_argument("--csv", type=Path, help="write the table there too")
    arguments = parser.parse_args()
    print(
        f"TensorFlow on {os.cpu_count()} cores, {len(tf.config.list_physical_devices('GPU'))} GPUs"
    )
    rows = measure_loss(arguments)
    show(rows)
    step = measure_steps(arguments)
    show(step)
    rows += step
    if arguments.xla:
        xla = measure_xla(arguments, step[0][2])
        show(xla)
        rows += xla
    if arguments.csv:
        arguments.csv.parent.mkdir(parents=True, exist_ok=True)
        with arguments.csv.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["quantity", "unit", "value"])
            writer.writerows((name, unit, f"{value:.4g}") for name, unit, value in rows)


if __name__ == "__main__":
    main()
