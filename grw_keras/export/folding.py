"""Norms folded into the layers beside them, from a model's weights by name."""

from collections.abc import Mapping

import numpy as np

from grw_keras.export.layers import Affine
from grw_keras.models.names import BATCH_NORM_EPSILON

Tensors = Mapping[str, np.ndarray]


def convolution(tensors: Tensors, prefix: str, part: str = "", scale: float = 1.0) -> Affine:
    """The convolution `prefix/conv{part}` with its batch norm, if it has one, times a factor.

    Args:
        tensors: a model's weights by name (`grw_keras.models.names`).
        prefix: of the convolution block.
        part: `""` or `"_temporal"`.
        scale: what the result is multiplied by, as ReZero does.
    """
    kernel = tensors[f"{prefix}/conv{part}/kernel"].astype(np.float64)
    if f"{prefix}/bn{part}/gamma" not in tensors:
        bias = tensors[f"{prefix}/conv{part}/bias"].astype(np.float64)
        return _single(kernel * scale, bias * scale)
    gamma, beta, mean, variance = (
        tensors[f"{prefix}/bn{part}/{leaf}"].astype(np.float64)
        for leaf in ("gamma", "beta", "moving_mean", "moving_variance")
    )
    factor = scale * gamma / np.sqrt(variance + BATCH_NORM_EPSILON)
    depthwise = prefix.endswith("/feature")
    return _single(
        kernel * (factor[:, None] if depthwise else factor), scale * beta - mean * factor
    )


def pointwise(tensors: Tensors, prefix: str) -> Affine:
    """A 1 × 1 convolution without batch norm as a matrix product."""
    kernel, bias = convolution(tensors, prefix)
    return Affine(kernel.reshape(kernel.shape[-2:]), bias)


def dense(
    tensors: Tensors, prefix: str, *, norm: str | None = None, outputs: int = 1, scale: float = 1.0
) -> Affine:
    """A matrix product [in, out] times a factor.

    Args:
        tensors: a model's weights by name.
        prefix: of the layer; an attention's kernel, [in, heads, d] or [heads, d, out], is
            flattened.
        norm: of the layer norm before it, whose scale and offset go into the kernel: the input is
            then what is only standardised.
        outputs: how many of the kernel's last axes are outputs.
        scale: the factor.
    """
    kernel = tensors[f"{prefix}/kernel"].astype(np.float64)
    kernel = kernel.reshape(-1, int(np.prod(kernel.shape[-outputs:])))
    bias = tensors[f"{prefix}/bias"].astype(np.float64).reshape(-1)
    if norm is not None:
        gamma, beta = (tensors[f"{norm}/{leaf}"].astype(np.float64) for leaf in ("gamma", "beta"))
        kernel, bias = gamma[:, None] * kernel, beta @ kernel + bias
    return _single(kernel * scale, bias * scale)


def _single(kernel: np.ndarray, bias: np.ndarray) -> Affine:
    return Affine(kernel.astype(np.float32), bias.astype(np.float32))
