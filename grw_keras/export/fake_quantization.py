"""Quantisation-aware fine-tuning: training that sees weights and activations as int8 files do.

A layer's class is exchanged for a subclass of it, as `torch.nn.utils.parametrize` does: the layer
keeps its variables under their names, and what it computes with is their int8 image. Gradients pass
straight through. Nothing is kept from call to call, so nothing is saved, and replicas need not
agree.

Reference:
    Jacob et al., Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference, 2018, section 3, https://arxiv.org/abs/1712.05877.
"""

import dataclasses
from typing import Any

import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

from grw_keras.models.classifier import VideoClassifier
from grw_keras.models.head import TransformerHead

BITS = 8
_CONVOLUTIONS = (tf_keras.layers.Conv2D, tf_keras.layers.Conv3D, tf_keras.layers.DepthwiseConv2D)
_PRODUCTS = (tf_keras.layers.Dense, tf_keras.layers.EinsumDense)
_ON_GRID = tfmot.quantization.keras.quantizers.LastValueQuantizer(
    num_bits=BITS, per_axis=True, symmetric=True, narrow_range=True
)


def quantization_aware(model: VideoClassifier) -> VideoClassifier:
    """The model, which from now on computes with what its int8 file will know; compile it again.

    In pointwise convolutions, the stem and the heads' matrix products, kernels are on the int8 grid
    max|w| / 127 of each output, and inputs on the asymmetric grid of each pixel or row, of the
    stem of each frame, as LiteRT quantises them. The MoViNets of `_relu6` have depthwise
    convolutions in int8 too, and the inputs of their backbone share a grid: the batch's, where
    files have one by calibration.

    The first stages too, which files keep in float: it was measured so.

    Batch norm and ReZero scale a kernel's outputs, and the grid with them; layer norms, which files
    fold into the kernels after them, scale inputs, and are taken into account. Weights by name,
    `step` and `save_pretrained` stay as they are, the latter with the float weights; before
    exporting comes `settled`.

    Args:
        model: changed in place.

    Raises:
        ValueError: a model that computes in less than float32.
    """
    if model.compute_dtype != "float32":
        raise ValueError(
            "`model` must compute in float32, for bfloat16 rounds the grid itself: load it without "
            f"a mixed-precision policy. Received: {model.compute_dtype}"
        )
    norms = _folded_norms(model.head)
    for part, static in ((model.backbone, model.spec.relu6), (model.head, False)):
        for layer in part.submodules:
            known = isinstance(layer, (*_CONVOLUTIONS, *_PRODUCTS))
            if known and not isinstance(layer, FakeQuantized) and (static or not _depthwise(layer)):
                _treat(layer, static, norms.get(layer))
    return model


def settled(model: VideoClassifier) -> VideoClassifier:
    """The model after `quantization_aware` training as a plain one: its kernels are those that it
    computed with, which its int8 file holds without further rounding; compile it again.

    Args:
        model: changed in place.
    """
    for layer in model.submodules:
        if isinstance(layer, FakeQuantized):
            layer.variable.assign(layer.fake_kernel())
            layer.__class__ = layer.plain
    return model


class FakeQuantized(tf_keras.layers.Layer):
    """Goes before a layer's own class.

    Attributes:
        plain: that class.
        int8: what becomes of kernel and input.
    """

    plain: type
    int8: "_Int8"

    @property
    def variable(self) -> tf.Variable:
        """The kernel in float."""
        return vars(self)[self.int8.attribute]

    def fake_kernel(self) -> tf.Tensor:
        return tf.grad_pass_through(self.int8.kernel)(self.variable)

    def call(self, inputs, *args, **kwargs):
        fake = tf.grad_pass_through(self.int8.inputs)(inputs)
        return super().call(fake, *args, **kwargs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Int8:
    """What int8 makes of a layer.

    Args:
        attribute: under which the layer has its kernel.
        outputs: of the kernel, its last axes.
        axes: of the inputs that share a grid; None: all.
        norm: the layer norm before it that the file folds into it.
    """

    attribute: str
    outputs: int
    axes: tuple[int, ...] | None
    norm: tf_keras.layers.LayerNormalization | None

    def kernel(self, kernel) -> tf.Tensor:
        scale = tf.ones([1]) if self.norm is None else self.norm.gamma
        folded = tf.reshape(kernel, [-1, self.outputs]) * scale[:, None]
        ranges = {"min_var": _Passing, "max_var": _Passing}
        on_grid = _ON_GRID(folded, training=True, weights=ranges)
        return tf.reshape(tf.math.divide_no_nan(on_grid, scale[:, None]), kernel.shape)

    def inputs(self, x) -> tf.Tensor:
        if self.norm is None:
            return on_input_grid(x, self.axes)
        scale, offset = self.norm.gamma, self.norm.beta
        standardised = tf.math.divide_no_nan(x - offset, scale)
        return on_input_grid(standardised, self.axes) * scale + offset


class _Passing:
    """For the quantiser's variables: a kernel's range is always that of the kernel as it is."""

    @staticmethod
    def assign(value, name):
        del name
        return value


def on_input_grid(x, axes: tuple[int, ...] | None) -> tf.Tensor:
    """The nearest of 256 points from the least to the largest value, zero among them."""
    low = tf.minimum(tf.reduce_min(x, axes, keepdims=True), 0.0)
    high = tf.maximum(tf.reduce_max(x, axes, keepdims=True), 0.0)
    largest = 2**BITS - 1
    step = (high - low) / largest
    zero = tf.round(tf.math.divide_no_nan(-low, step))
    points = tf.round(tf.math.divide_no_nan(x, step)) + zero
    return (tf.clip_by_value(points, 0.0, largest) - zero) * step


def _treat(layer, static: bool, norm) -> None:
    attribute = "depthwise_kernel" if hasattr(layer, "depthwise_kernel") else "kernel"
    shape = getattr(layer, attribute).shape
    if _depthwise(layer):
        output_axes = 2  # [..., C, 1], and in three dimensions [..., 1, C]
    else:
        output_axes = 1 if isinstance(layer, _CONVOLUTIONS) else len(layer.bias.shape)
    if not isinstance(layer, _CONVOLUTIONS):
        shared = len(shape) - output_axes
    else:
        shared = 1 if all(size == 1 for size in layer.kernel_size) else 3
    int8 = _Int8(
        attribute=attribute,
        outputs=shape[-output_axes:].num_elements(),
        axes=None if static else tuple(range(-shared, 0)),
        norm=norm,
    )
    plain = type(layer)
    own: dict[str, Any] = {"plain": plain, "int8": int8}
    own[attribute] = property(FakeQuantized.fake_kernel)
    layer.__class__ = type(f"FakeQuantized{plain.__name__}", (FakeQuantized, plain), own)


def _depthwise(layer) -> bool:
    is_convolution = isinstance(layer, _CONVOLUTIONS)
    return is_convolution and (hasattr(layer, "depthwise_kernel") or layer.groups > 1)


def _folded_norms(head) -> dict[tf_keras.layers.Layer, tf_keras.layers.LayerNormalization]:
    """By layer, the norm before it."""
    if not isinstance(head, TransformerHead):
        return {}
    norms = {head.logits: head.final_norm}
    for block in head.blocks:
        norms[block.mlp_hidden] = block.mlp_norm
        for layer in block.attention.submodules:
            if layer.name in ("query", "key", "value"):
                norms[layer] = block.attention_norm
    return norms
