"""Kernels on the int8 grid, rounded so that the layers' outputs change least.

Rounding each weight to its nearest grid point leaves errors that add up over correlated inputs, as
those after hard-swish are. Here a row of the kernel is rounded at a time, and the rows after it,
and the bias, make up for the error by least squares over the inputs that calibration saw.

Reference:
    Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
    Transformers, 2023, section 3, https://arxiv.org/abs/2210.17323; the bias is ours.
"""

import functools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from grw_keras.export.graphs import Graph, LeanModel
from grw_keras.export.layers import Affine, Layers

LARGEST = 127  # symmetric int8
DAMPING = 0.01  # of the mean second moment, as in the reference


def rounded_weights(lean: LeanModel, clips: Sequence[np.ndarray]) -> dict[str, Affine]:
    """The pointwise and matrix-product layers of a stream graph, each `rounded`.

    Args:
        lean: the model's lean graphs.
        clips: to calibrate with, each [N, S, S, 3], float32 in [0, 1].
    """
    return {
        name: rounded(lean.layers.weights[name], moments)
        for name, moments in second_moments(lean.stream(), lean.layers, clips).items()
    }


def second_moments(
    graph: Graph, layers: Layers, clips: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """Of the inputs of each matrix product and convolution, and of a constant 1 after them.

    Args:
        graph: of a stream, made of `layers`.
        layers: whose inputs are watched.
        clips: each [N, S, S, 3], streamed one by one.

    Returns:
        By layer: sums of products [n + 1, n + 1], float64, n the inputs of one output.
    """
    seen: dict[str, tf.Tensor] = {}

    def observe(name: str, x: tf.Tensor) -> None:
        if is_depthwise(name):
            return
        kernel = layers.weights[name].kernel
        if kernel.ndim == 4 and kernel.shape[0] > 1:
            stride = [1, 2, 2, 1]  # the stem's, the only such convolution
            x = tf.image.extract_patches(x, [1, *kernel.shape[:2], 1], stride, [1] * 4, "SAME")
        rows = tf.reshape(x, [-1, x.shape[-1]])
        rows = tf.concat([rows, tf.ones_like(rows[:, :1])], axis=1)
        seen[name] = tf.matmul(rows, rows, transpose_a=True)

    @functools.partial(tf.function, autograph=False)
    def step(inputs):
        outputs = graph.compute(inputs)
        return {name: outputs[name] for name in states}, dict(seen)

    moments: dict[str, np.ndarray] = {}
    layers.observer = observe
    try:
        for clip in clips:
            states = {n: tf.zeros(s) for n, s in graph.inputs.items() if n.startswith("state_")}
            for frame in clip:
                states, of_frame = step({"image": tf.constant(frame[None, None]), **states})
                for name, products in of_frame.items():
                    moments[name] = moments.get(name, 0.0) + products.numpy().astype(np.float64)
    finally:
        layers.observer = None
    return moments


def is_depthwise(name: str) -> bool:
    return name.endswith(("/feature", "/feature_temporal"))


def rounded(layer: Affine, moments: np.ndarray) -> Affine:
    """The layer with its kernel on an int8 grid per output, and its bias making up for the rest.

    The largest weight of each output stays, so that whoever finds the grid by it finds this one.

    Args:
        layer: kernel [..., in, out].
        moments: of its inputs, as `second_moments` gives them.
    """
    kernel = layer.kernel.reshape(-1, layer.kernel.shape[-1]).astype(np.float64)
    inputs = len(kernel)
    largest = np.abs(kernel).argmax(0)
    step = np.abs(kernel).max(0) / LARGEST
    step[step == 0] = 1.0
    rows = np.concatenate([kernel, layer.bias[None].astype(np.float64)])
    damped = moments + DAMPING * np.mean(np.diag(moments)) * np.eye(inputs + 1)
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    for i in range(inputs):
        points = np.clip(np.round(rows[i] / step), -LARGEST, LARGEST)
        points = np.where(largest == i, np.sign(kernel[i]) * LARGEST, points)
        error = (rows[i] - points * step) / factor[i, i]
        rows[i] = points * step
        rows[i + 1 :] -= factor[i, i + 1 :, None] * error
    shape = layer.kernel.shape
    return Affine(rows[:-1].reshape(shape).astype(np.float32), rows[-1].astype(np.float32))
