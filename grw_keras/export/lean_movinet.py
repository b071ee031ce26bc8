"""A streaming MoViNet's next frame as a graph for small machines: constants, rank 4, no dead parts.

Equal to `MovinetBackbone.step`, but: batch norms and ReZero are folded into the convolutions; the
squeeze-excite state is a running mean under one frame count, not sums under counts of their own;
no tensor has more than four dimensions.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from official.projects.movinet.modeling import movinet

from grw_keras.export.folding import Tensors, convolution
from grw_keras.export.layers import Layers
from grw_keras.models.spec import ModelSpec

States = dict[str, tf.Tensor]
Shapes = dict[str, tuple[int, ...]]

ACTIVATIONS = {
    "hard_swish": lambda x: x * tf.nn.relu6(x + 3.0) * (1 / 6),
    "relu6": tf.nn.relu6,
    "swish": lambda x: x * tf.sigmoid(x),
}


class Gate(NamedTuple):
    """c f(a x + b): a and b go into the convolution before the gate, c into that after it."""

    scale: float
    offset: float
    function: Callable
    factor: float


_GATES = {
    # tf-models rounds the sixth, and official weights were trained on that.
    "hard_sigmoid": Gate(1.0, 3.0, tf.nn.relu6, 0.16667),
    "hard_sigmoid_keras2": Gate(0.2, 0.5, lambda x: tf.minimum(tf.nn.relu(x), 1.0), 1.0),
    "sigmoid": Gate(1.0, 0.0, tf.sigmoid, 1.0),
}


class LeanMovinet:
    """The backbone's next frame.

    Args:
        spec: of a MoViNet that streams.
        tensors: its weights by name, in the convolution form `"2plus1d"`.
        layers: which get the backbone's.
    """

    def __init__(self, spec: ModelSpec, tensors: Tensors, layers: Layers):
        self.spec = spec
        self.layers = layers
        self.activation = ACTIVATIONS[spec.activation]
        self.gate = _GATES[spec.gating_activation]
        blocks = movinet.BLOCK_SPECS[spec.backbone.removeprefix("movinet_")][1:-1]
        self.blocks = {
            f"block{i}_layer{j}": (kernel[0], stride[-1])
            for i, block in enumerate(blocks)
            for j, (kernel, stride) in enumerate(
                zip(block.kernel_sizes, block.strides, strict=True)
            )
        }
        for name in tensors:
            place, conv, leaf = name.removeprefix("backbone/").rpartition("/conv")
            if not (name.startswith("backbone/") and conv and leaf.endswith("/kernel")):
                continue
            block, _, part = place.partition("/")
            suffix, scale = leaf.removesuffix("/kernel"), 1.0
            if part == "projection":
                scale = float(tensors[f"backbone/{block}/rezero/scale"])
            elif part == "se_expand":
                scale = self.gate.scale
            weights = convolution(tensors, f"backbone/{place}", suffix, scale)
            if part == "se_expand":
                weights = weights._replace(bias=weights.bias + np.float32(self.gate.offset))
            elif part == "projection" and spec.se_type != "none":
                weights = weights._replace(kernel=weights.kernel * np.float32(self.gate.factor))
            layers.weights[place + suffix] = weights

    def step(self, frame, states: States, share) -> tuple[tf.Tensor, States]:
        """Features [1, 1, 1, D], pooled over space, of a frame [1, H, W, 3], and the new states.

        Args:
            frame: pixels in [0, 1].
            states: of the frames before.
            share: [1], 1 / (number of frames so far, this one included).
        """
        new: States = {}
        x = self.layers.conv("stem", frame, 2, self.activation)
        for name, (taps, stride) in self.blocks.items():
            x = self._block(name, taps, stride, x, states, new, share)
        x = self.layers.conv("head", x, 1, self.activation)
        with tf.name_scope("pool"):
            return tf.reduce_mean(x, [1, 2], keepdims=True), new

    def _block(self, name, taps, stride, inputs, states, new, share):
        x = self.layers.conv(f"{name}/expansion", inputs, 1, self.activation)
        x = self.layers.depthwise(f"{name}/feature", x, stride, self.activation)
        if taps > 1:
            height, state = x.shape[1], f"state_{name}_stream_buffer"
            with tf.name_scope(f"{name}/buffer"):
                frames = tf.concat([states[state], x], axis=1)
                new[state] = frames[:, height:]
            x = self.layers.over_time(f"{name}/feature_temporal", frames, height, self.activation)
        if self.spec.se_type != "none":
            x = self._excited(name, x, states, new, share)
        x = self.layers.conv(f"{name}/projection", x)
        if f"{name}/skip" in self.layers.weights:
            if stride > 1:
                with tf.name_scope(f"{name}/skip_pool"):
                    inputs = tf.nn.avg_pool2d(inputs, 3, 2, "SAME")
            inputs = self.layers.conv(f"{name}/skip", inputs)
        with tf.name_scope(f"{name}/sum"):
            return x + inputs

    def _excited(self, name, x, states, new, share):
        """Squeeze-excite by this frame's mean over space, and by the frames' so far."""
        with tf.name_scope(f"{name}/se_pool"):
            pooled = tf.reduce_mean(x, [1, 2], keepdims=True)
            if self.spec.se_type != "2d":
                state = f"state_{name}_pool_mean"
                mean = states[state] + (pooled - states[state]) * share
                new[state] = mean
                pooled = mean if self.spec.se_type == "3d" else tf.concat([mean, pooled], axis=-1)
        hidden = self.layers.conv(f"{name}/se_reduce", pooled, 1, self.activation)
        gate = self.layers.conv(f"{name}/se_expand", hidden, 1, self.gate.function)
        with tf.name_scope(f"{name}/se_gate"):
            return x * gate

    def initial_states(self) -> Shapes:
        """Shapes of the states, all of them float32 and zero at a stream's start."""
        shapes: Shapes = {}
        size = -(-self.spec.resolution // 2)
        for name, (taps, stride) in self.blocks.items():
            size = -(-size // stride)
            channels = self.layers.weights[f"{name}/feature"].bias.size
            if taps > 1:
                shapes[f"state_{name}_stream_buffer"] = (1, (taps - 1) * size, size, channels)
            if self.spec.se_type in ("3d", "2plus3d"):
                shapes[f"state_{name}_pool_mean"] = (1, 1, 1, channels)
        return shapes
