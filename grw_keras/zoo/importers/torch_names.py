"""Tensors of the authors' PyTorch model under the canonical names, transposed for TensorFlow."""

import re
from collections.abc import Iterator, Mapping

import numpy as np

from grw_keras.zoo.importers.torch_archive import SnapshotError, show

_COUNTER = ".num_batches_tracked"  # of training, of no use afterwards
_ENCODER = r"video_backbone\._encoder\."
_BLOCK = r"blocks\.b(?P<block>[0-9]{1,2})_l(?P<layer>[0-9]{1,2})\."
CONVOLUTION = re.compile(
    rf"{_ENCODER}(?:(?P<end>conv1|conv7)\.conv_1|{_BLOCK}(?:(?P<part>expand|deep|se\.fc1|se\.fc2"
    r"|project|res\.[01])\.conv_1|(?P<temporal>deep\.conv_2)))\.(?:(?P<conv>conv2d|conv3d)\."
    r"(?P<weight>weight|bias)|norm\.(?P<statistic>weight|bias|running_mean|running_var))"
)
_REZERO = re.compile(rf"{_ENCODER}{_BLOCK}alpha")
LAYER = re.compile(r"attention\.transformer\.layers\.(?P<layer>[0-9]{1,2})\.(?P<rest>.*)")
_PLACES = {
    "conv1": "stem",
    "conv7": "head",
    "expand": "expansion",
    "deep": "feature",
    "se.fc1": "se_reduce",
    "se.fc2": "se_expand",
    "project": "projection",
    "res.0": "skip",  # of a block that only changes the width: no pool before the convolution
    "res.1": "skip",
}
_STATISTICS = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
_LINEAR = {"weight": "kernel", "bias": "bias"}
_NORM = {"weight": "gamma", "bias": "beta"}
_TOP = {
    "video_backbone._encoder.classifier": ("affine", _LINEAR),
    "ln": ("norm", _NORM),
    "attention.transformer.norm": ("transformer/norm", _NORM),
    "attention.linear_head": ("logits", _LINEAR),
}
_IN_LAYER = {
    "0": ("attention_norm", _NORM),
    "2.net.0": ("mlp_norm", _NORM),
    "2.net.1": ("mlp_hidden", _LINEAR),
    "2.net.3": ("mlp_output", _LINEAR),
}
_CONV2D, _DEPTHWISE2D, _CONV3D = (2, 3, 1, 0), (2, 3, 0, 1), (2, 3, 4, 1, 0)


def convert(state: Mapping[str, np.ndarray], num_heads: int) -> dict[str, np.ndarray]:
    """PyTorch's tensors under the canonical names, transposed for TensorFlow, as float32.

    Args:
        state: a `model_state`, or `ema_weights` without the prefix "module.".
        num_heads: attention heads of the transformer.

    Raises:
        SnapshotError: a tensor can't be transposed, holds no floating-point numbers, or two have
            the same canonical name.
    """
    tensors: dict[str, np.ndarray] = {}
    for key, tensor in state.items():
        if key.endswith(_COUNTER):
            continue
        for name, values in _converted(key, tensor, num_heads):
            if name == key and "/" in key:  # PyTorch's names have none, ours all
                raise SnapshotError(f"{show(key)} is no name of a PyTorch tensor")
            if name in tensors:
                raise SnapshotError(f"{key} is the second tensor for {name}")
            if name != key and values.dtype.kind != "f":
                raise SnapshotError(f"{key} must hold floats. Received: dtype={values.dtype}")
            # A copy, so that neither the file's storages nor its odd strides live on.
            dtype = values.dtype if name == key else np.float32
            tensors[name] = np.array(values, dtype, order="C")
    return tensors


def _converted(key: str, tensor: np.ndarray, num_heads: int) -> Iterator[tuple[str, np.ndarray]]:
    """(canonical name, transposed tensor) pairs of one PyTorch tensor."""
    layer = LAYER.fullmatch(key)
    if layer and layer["rest"].startswith("1."):
        yield from _attention(
            key, f"transformer/layer{layer['layer']}/attention", tensor, num_heads
        )
        return
    convolution = CONVOLUTION.fullmatch(key)
    if convolution:
        name, axes = _convolution(convolution)
    else:
        name, axes = _dense(key, layer)
    yield name, _transpose(key, tensor, axes) if axes else tensor


def _convolution(found: re.Match[str]) -> tuple[str, tuple[int, ...] | None]:
    place = "feature" if found["temporal"] else _PLACES[found["end"] or found["part"]]
    block = "" if found["end"] else f"block{found['block']}_layer{found['layer']}/"
    half = "_temporal" if found["temporal"] else ""
    prefix = f"backbone/{block}{place}"
    if found["statistic"]:
        return f"{prefix}/bn{half}/{_STATISTICS[found['statistic']]}", None
    if found["weight"] == "bias":
        return f"{prefix}/conv{half}/bias", None
    planar = _DEPTHWISE2D if place == "feature" else _CONV2D
    return f"{prefix}/conv{half}/kernel", _CONV3D if found["conv"] == "conv3d" else planar


def _dense(key: str, layer: re.Match[str] | None) -> tuple[str, tuple[int, ...] | None]:
    """Of the parts outside the convolutions; an unknown key keeps its name."""
    rezero = _REZERO.fullmatch(key)
    if rezero:
        return f"backbone/block{rezero['block']}_layer{rezero['layer']}/rezero/scale", None
    module, _, weight = (layer["rest"] if layer else key).rpartition(".")
    prefix, names = (_IN_LAYER if layer else _TOP).get(module, ("", {}))
    if weight not in names:
        return key, None
    if layer:
        prefix = f"transformer/layer{layer['layer']}/{prefix}"
    return f"{prefix}/{names[weight]}", (1, 0) if names[weight] == "kernel" else None


def _attention(
    key: str, prefix: str, tensor: np.ndarray, num_heads: int
) -> Iterator[tuple[str, np.ndarray]]:
    """PyTorch packs query, key and value; a head is a group of neighbouring output rows."""
    match key.rpartition(".1.")[2]:
        case "in_proj_weight":
            matrix = _transpose(key, tensor, (1, 0))
            _check_multiple(key, matrix.shape[1], 3 * num_heads)
            shape = (len(matrix), num_heads, -1)
            for name, part in zip(("query", "key", "value"), np.split(matrix, 3, 1), strict=True):
                yield f"{prefix}/{name}/kernel", part.reshape(shape)
        case "in_proj_bias":
            vector = _transpose(key, tensor, (0,))
            _check_multiple(key, len(vector), 3 * num_heads)
            for name, part in zip(("query", "key", "value"), np.split(vector, 3), strict=True):
                yield f"{prefix}/{name}/bias", part.reshape(num_heads, -1)
        case "out_proj.weight":
            matrix = _transpose(key, tensor, (1, 0))
            _check_multiple(key, len(matrix), num_heads)
            yield f"{prefix}/output/kernel", matrix.reshape(num_heads, -1, matrix.shape[1])
        case "out_proj.bias":
            yield f"{prefix}/output/bias", tensor
        case _:
            yield key, tensor


def _transpose(key: str, tensor: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    if tensor.ndim != len(axes):
        raise SnapshotError(f"{key} must have {len(axes)} axes. Received: shape={tensor.shape}")
    return tensor.transpose(axes)


def _check_multiple(key: str, width: int, factor: int) -> None:
    if width % factor:
        raise SnapshotError(
            f"{key} can't be divided among the attention heads: its width must be a multiple of "
            f"{factor}. Received: {width}"
        )
