"""The GRW loss against a literal implementation: time and memory, forward + backward.

Literal means what equations 2 to 6 say and the authors' code does: gather the frames of every
window in every ordering, difference them twice, sum the squares. Both sides are measured in one
run, eagerly and compiled (XLA on TensorFlow and JAX), so that the ratios mean something on any
machine. Time is the median of repeated calls. Memory is the peak of one warm call above what the
process held before it, each in a process of its own.

    python benchmarks/loss.py                        # TensorFlow, on the CPU or a GPU
    KERAS_BACKEND=jax python benchmarks/loss.py      # JAX; TensorFlow need not be installed
    python benchmarks/loss.py --cases 80,5,480 --csv results.csv
"""

import argparse
import csv
import ctypes
import functools
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import ops

from grw_keras import grw_loss
from grw_keras.orderings import ENUMERATED_WINDOW, resolve

CASES = ["80,5,480", "80,6,744", "80,7,640", "80,10,480"]  # windows, T, D
SIDES = ("literal", "ours")
MODES = ("eager", "compiled")
COLUMNS = ["windows", "T", "D", "literal_orderings", "mode", "literal_ms", "ours_ms", "faster"]
COLUMNS += ["literal_mb", "ours_mb", "smaller"]
TIME_LIMIT_S = 8.0  # per measurement, after three calls


def literal_loss(z, orderings, alpha=0.5):
    """Equation 6 by gathering every ordering: z [W, T, D], orderings [K, T]."""
    permuted = ops.take(z, orderings, axis=1)  # [W, K, T, D]
    velocities = permuted[:, :, 1:] - permuted[:, :, :-1]
    accelerations = velocities[:, :, 1:] - velocities[:, :, :-1]
    logits = -0.5 * ops.sum(ops.square(accelerations), axis=(2, 3))
    ordering = ops.logsumexp(logits, axis=1) - logits[:, 0]
    speed = 0.5 * ops.sum(ops.square(z[:, 1:] - z[:, :-1]), axis=(1, 2))
    return ops.mean(ordering + alpha * speed)


def loss_function(side: str, window: int):
    """The loss of one side as a function of z alone, each side at its default orderings."""
    if side == "literal":
        return functools.partial(literal_loss, orderings=literal_orderings(window))
    return functools.partial(grw_loss, window=window)


def literal_orderings(window: int) -> np.ndarray:
    """As the paper: all up to T = 7, 1,000 sampled above."""
    return resolve("all" if window <= ENUMERATED_WINDOW else "sampled", window)


def gradient_step(function, mode: str):
    """A function of z that runs forward and backward and waits for the result."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        def step(z):
            with tf.GradientTape() as tape:
                tape.watch(z)
                loss = function(z)
            return loss, tape.gradient(loss, z)

        if mode == "compiled":
            step = tf.function(step, jit_compile=True)
        return lambda z: [x.numpy() for x in step(z)]
    if backend == "jax":
        import jax

        step = jax.value_and_grad(function)
        if mode == "compiled":
            step = jax.jit(step)
        return lambda z: jax.block_until_ready(step(z))
    raise SystemExit("This benchmark runs on the tensorflow and jax backends of Keras.")


def embeddings(case: str):
    shape = tuple(map(int, case.split(",")))
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return ops.convert_to_tensor(values * 0.1), shape[1]


def time_ms(case: str, side: str, mode: str) -> float:
    """Median milliseconds of a warm call."""
    z, window = embeddings(case)
    step = gradient_step(loss_function(side, window), mode)
    step(z)
    times: list[float] = []
    while len(times) < 3 or (sum(times) < TIME_LIMIT_S and len(times) < 200):
        start = time.perf_counter()
        step(z)
        times.append(time.perf_counter() - start)
    return 1e3 * median(times)


def peak_mb(case: str, side: str, mode: str) -> float:
    """Peak memory of one warm call above what was in use before it, in MB."""
    z, window = embeddings(case)
    step = gradient_step(loss_function(side, window), mode)
    step(z)
    step(z)
    on_device = device_peak()
    if on_device is not None:
        return on_device / 1e6
    ctypes.CDLL(None).malloc_trim(0)
    before = memory_kb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the high-water mark
    step(z)
    return (memory_kb("VmHWM") - before) / 1e3


def memory_kb(name: str) -> int:
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1])


def device_peak() -> int | None:
    """Peak bytes above those in use on a GPU; None on a CPU."""
    if keras.backend.backend() == "jax":
        import jax

        stats = jax.devices()[0].memory_stats()
        return stats and stats["peak_bytes_in_use"] - stats["bytes_in_use"]
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        return None
    info = tf.config.experimental.get_memory_info("GPU:0")
    return info["peak"] - info["current"]


def in_own_process(measure, *arguments: str) -> float:
    """The result of `measure` in a fresh process; for memory, one that hoards no freed pages."""
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if measure is peak_mb:
        environment |= {
            "MALLOC_MMAP_THRESHOLD_": "65536",
            "MALLOC_TRIM_THRESHOLD_": "0",
            "TF_ENABLE_ONEDNN_OPTS": "0",  # whose allocator keeps all it ever had
        }
    command = [sys.executable, __file__, "--measure", measure.__name__, *arguments]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{run.stderr[-2000:]}")
    return float(run.stdout.split()[-1])


def measure_case(case: str, mode: str) -> dict:
    """One row of the table."""
    windows, window, width = map(int, case.split(","))
    times = [in_own_process(time_ms, case, side, mode) for side in SIDES]
    memory = [in_own_process(peak_mb, case, side, mode) for side in SIDES]
    values = [windows, window, width, len(literal_orderings(window)), mode]
    values += [*times, times[0] / times[1], *memory, memory[0] / max(memory[1], 0.1)]
    return dict(zip(COLUMNS, values, strict=True))


def device_name() -> str:
    if keras.backend.backend() == "jax":
        import jax

        return f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores"
    return f"TensorFlow on {os.cpu_count()} cores"


def cell(value) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if value < 100 else f"{value:.0f}"
    return str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", default=CASES, metavar="W,T,D")
    parser.add_argument("--csv", type=Path, help="write the table there too")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure, *rest = arguments.measure
        print({"time_ms": time_ms, "peak_mb": peak_mb}[measure](*rest))
        return

    print(f"Keras backend {keras.backend.backend()}, {device_name()}")
    print(" ".join(f"{name:>{max(len(name), 8)}}" for name in COLUMNS))
    rows = []
    for case in arguments.cases:
        for mode in MODES:
            row = measure_case(case, mode)
            rows.append(row)
            print(
                " ".join(f"{cell(row[name]):>{max(len(name), 8)}}" for name in COLUMNS), flush=True
            )
    if arguments.csv:
        with arguments.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows({k: cell(v) for k, v in row.items()} for row in rows)


if __name__ == "__main__":
    main()
