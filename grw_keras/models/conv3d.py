"""The official Conv3D as a sum over time taps of 2-D convolutions, for machines without a GPU."""

import tensorflow as tf
from official.vision.modeling.layers import nn_layers


class TapConv3D(nn_layers.Conv3D):
    """The official layer, same variables and values, fast on CPUs.

    The official one compiles a depthwise `tf.nn.conv3d` by XLA, which CPUs run tens of times
    slower than the 2-D convolutions that it is a sum of: y_t = Σ_k conv2d(x_{t+k}, kernel_k).
    With a GPU or a TPU at hand the layer runs the official way.
    """

    def call(self, inputs):
        if tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("TPU"):
            return super().call(inputs)
        return self.sum_of_taps(inputs)

    def sum_of_taps(self, inputs):
        """[B, N, H, W, C] to [B, N', H', W', F]."""
        if self.padding == "causal":
            inputs = tf.pad(inputs, self._compute_causal_padding(inputs))
            padding = "VALID"
        elif self.padding == "same":
            total = self.kernel_size[0] - 1
            inputs = tf.pad(
                inputs, [[0, 0], [total // 2, total - total // 2], [0, 0], [0, 0], [0, 0]]
            )
            padding = "SAME"
        else:
            padding = "VALID"
        kernel = tf.cast(self.kernel, inputs.dtype)
        frames = tf.shape(inputs)[1] - self.kernel_size[0] + 1
        outputs = sum(
            self._convolve(inputs[:, tap : tap + frames], kernel[tap], padding)
            for tap in range(self.kernel_size[0])
        )
        return outputs if self.bias is None else outputs + tf.cast(self.bias, outputs.dtype)

    def _convolve(self, frames, kernel, padding: str):
        """One tap: the 2-D convolution of every frame."""
        shape = tf.shape(frames)
        flat = tf.reshape(frames, [-1, shape[2], shape[3], frames.shape[-1]])
        if self.groups == 1:
            flat = tf.nn.conv2d(flat, kernel, self.strides[1:], padding)
        else:
            strides = (1, *self.strides[1:], 1)
            flat = tf.nn.depthwise_conv2d(
                flat, tf.transpose(kernel, [0, 1, 3, 2]), strides, padding
            )
        out = tf.shape(flat)
        return tf.reshape(flat, [shape[0], shape[1], out[1], out[2], self.filters])
