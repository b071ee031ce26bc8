"""The layers that lean graphs are made of: constants by name, and a look at what enters them."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

# Gives each layer's name and input to whoever calibrates.
Observer = Callable[[str, tf.Tensor], None]


class Affine(NamedTuple):
    """Kernel, [..., in, out] or depthwise [h, w, C, 1], and bias of a layer."""

    kernel: np.ndarray
    bias: np.ndarray


class Layers:
    """Layers by name; a layer's operations stand in the file under its name.

    Attributes:
        weights: kernel and bias of each; may be replaced before a graph is traced.
        observer: told of each layer's input, in eager runs.
    """

    def __init__(self):
        self.weights: dict[str, Affine] = {}
        self.observer: Observer | None = None

    def conv(self, name: str, x, stride: int = 1, activation: Callable = tf.identity):
        """A 2-D convolution of [1, H, W, C], SAME padding, then an activation."""
        kernel, bias = self._taken(name, x)
        with tf.name_scope(name):
            return activation(tf.nn.conv2d(x, kernel, stride, "SAME") + bias)

    def depthwise(self, name: str, x, stride: int, activation: Callable):
        """A depthwise convolution of [1, H, W, C], SAME padding, then an activation."""
        kernel, bias = self._taken(name, x)
        with tf.name_scope(name):
            x = tf.nn.depthwise_conv2d(x, kernel, [1, stride, stride, 1], "SAME")
            return activation(x + bias)

    def over_time(self, name: str, frames, height: int, activation: Callable):
        """A depthwise convolution [taps, 1, C, 1] over `taps` frames, [1, taps · H, W, C].

        The frames stand one below the other, and the kernel's taps a frame's height apart: so
        nothing has to be reshaped, which runtimes do by copying.
        """
        kernel, bias = self._taken(name, frames)
        with tf.name_scope(name):
            ones = [1, 1, 1, 1]
            x = tf.nn.depthwise_conv2d(frames, kernel, ones, "VALID", dilations=[height, 1])
            return activation(x + bias)

    def matmul(self, name: str, x):
        """A matrix product of n rows, [n, 1, 1, in], as a 1 × 1 convolution of n pixels.

        FULLY_CONNECTED with an int8 scale for each output came to the runtimes late: tflite-runtime
        2.14 takes such a file and answers nonsense. CONV_2D has always had them.
        """
        kernel, bias = self._taken(name, x)
        with tf.name_scope(name):
            return tf.nn.conv2d(x, kernel[None, None], 1, "VALID") + bias

    def _taken(self, name: str, x) -> Affine:
        if self.observer is not None:
            self.observer(name, x)
        return self.weights[name]
