"""3-D convolutions of base MoViNets on a CPU: the official layer against a sum over time taps.

Two cases, forward + backward: one depthwise layer, and a training step of a whole MoViNet-A0;
beside the latter the step of its stream model, which has no 3-D convolutions. All sides are
measured in one run, each in a process of its own, so that the ratios mean something on any
machine. The first call has the wait for tracing and compiling in it; warm is the median of
repeated calls.

    python benchmarks/base_conv.py                # minutes: a step of the official layers is slow
    python benchmarks/base_conv.py --quick        # toy sizes, to see that it runs
    python benchmarks/base_conv.py --csv benchmarks/results/base_conv.csv
"""

import argparse
import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tf_keras

SHAPES = {
    "layer": "2,10,43,43,80",
    "step": "2,10,172,172,3",
}  # of block1_layer0 in A0; its clips, short
QUICK_SHAPES = {"layer": "1,4,12,12,8", "step": "1,4,32,32,3"}
SIDES = {"layer": ("official", "ours"), "step": ("official", "ours", "stream")}
COLUMNS = ["case", "shape", "side", "first_call_s", "warm_call_ms", "times_as_fast"]
CLASSES = 600
TIME_LIMIT_S = 20.0  # of warm calls, after three


def layer(side: str, channels: int) -> tf_keras.layers.Layer:
    """A depthwise 3 × 3 × 3 convolution, as in most MoViNet blocks."""
    from official.vision.modeling.layers import nn_layers

    from grw_keras.models.conv3d import TapConv3D

    cls = {"official": nn_layers.Conv3D, "ours": TapConv3D}[side]
    return cls(channels, (3, 3, 3), padding="same", groups=channels, use_bias=False)


def model(side: str) -> tf_keras.Model:
    """MoViNet-A0 with the official classifier."""
    if side == "official":
        from official.projects.movinet.modeling import movinet, movinet_model

        backbone = movinet.Movinet("a0", use_sync_bn=False)
        return movinet_model.MovinetClassifier(backbone, num_classes=CLASSES)
    from grw_keras.models.classifier import VideoClassifier
    from grw_keras.zoo import registry

    return VideoClassifier(
        registry.get({"ours": "movinet_a0", "stream": "movinet_a0_stream"}[side])
    )


def layer_call(side: str, shape: tuple[int, ...]) -> Callable[[], object]:
    """Forward and backward through one layer."""
    convolution = layer(side, shape[-1])
    convolution.build(shape)
    x = random_clip(shape)

    @tf.function(autograph=False)
    def gradients():
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.square(convolution(x)))
        return tape.gradient(loss, [x, *convolution.trainable_variables])

    return gradients


def step_call(side: str, shape: tuple[int, ...]) -> Callable[[], object]:
    """One training step of a whole model."""
    classifier = model(side)
    optimizer = tf_keras.optimizers.SGD(1e-3)
    cross_entropy = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    clip, labels = random_clip(shape), tf.range(shape[0])

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            loss = cross_entropy(labels, classifier(clip, training=True))
        variables = classifier.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return step


def random_clip(shape: tuple[int, ...]) -> tf.Tensor:
    return tf.constant(np.random.default_rng(0).random(shape), tf.float32)


def measure(case: str, side: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Seconds of the first call, and the median of the warm ones."""
    call = {"layer": layer_call, "step": step_call}[case](side, shape)

    def seconds() -> float:
        start = time.perf_counter()
        for tensor in tf.nest.flatten(call()):
            tensor.numpy()
        return time.perf_counter() - start

    first = seconds()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < TIME_LIMIT_S and len(times) < 200):
        times.append(seconds())
    return first, median(times)


def in_own_process(case: str, side: str, shape: str) -> tuple[float, float]:
    """`measure` in a fresh process, without a GPU: there our layer is the official one."""
    command = [sys.executable, __file__, "--measure", case, side, shape]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{run.stderr[-2000:]}")
    first, warm = run.stdout.split()[-2:]
    return float(first), float(warm)


def rows_of(case: str, shape: str):
    """The table's lines of one case: every side, beside the official one."""
    official_warm = None
    for side in SIDES[case]:
        first, warm = in_own_process(case, side, shape)
        official_warm = official_warm or warm
        values = [case, shape, side, f"{first:.2f}", f"{1e3 * warm:.4g}"]
        values.append(f"{official_warm / warm:.3g}")
        yield dict(zip(COLUMNS, values, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="toy sizes")
    parser.add_argument("--csv", type=Path, help="write the table there too")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        case, side, shape = arguments.measure
        print(*measure(case, side, tuple(map(int, shape.split(",")))))
        return

    print(f"TensorFlow on {os.cpu_count()} cores")
    print(" ".join(f"{name:>15}" for name in COLUMNS))
    rows = []
    for case, shape in (QUICK_SHAPES if arguments.quick else SHAPES).items():
        for row in rows_of(case, shape):
            rows.append(row)
            print(" ".join(f"{row[name]:>15}" for name in COLUMNS), flush=True)
    if arguments.csv:
        with arguments.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
