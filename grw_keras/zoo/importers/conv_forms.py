"""The three forms of a MoViNet's convolutions, read off tensors and turned into one another.

| tensor | `2plus1d` | `3d_2plus1d` | `3d` |
| --- | --- | --- | --- |
| `conv/kernel` | (h, w, I, O) | (1, h, w, I, O) | (t, h, w, I, O) |
| depthwise `conv/kernel` | (h, w, C, 1) | (1, h, w, 1, C) | (t, h, w, 1, C) |
| depthwise `conv_temporal/kernel` | (t, 1, C, 1) | (t, 1, 1, 1, C) | none |
"""

from collections.abc import Mapping

import numpy as np

from grw_keras.models.spec import CHOICES

_SPATIAL, _TEMPORAL = "/conv/kernel", "/conv_temporal/kernel"
_DEPTHWISE = "/feature/"


def conv_type_of(tensors: Mapping[str, np.ndarray]) -> str | None:
    """`"2plus1d"`, `"3d_2plus1d"` or `"3d"`; None without kernels, or with some of rank 4 and 5.

    Args:
        tensors: by canonical name (`grw_keras.models.names`).
    """
    kernels = _kernels(tensors)
    ranks = {kernel.ndim for kernel in kernels.values()}
    if ranks == {4}:
        return "2plus1d"
    if ranks == {5}:
        return "3d_2plus1d" if any(n.endswith(_TEMPORAL) for n in kernels) else "3d"
    return None


def convert_conv_type(tensors: Mapping[str, np.ndarray], conv_type: str) -> dict[str, np.ndarray]:
    """The same weights for a model of another convolution form; no value changes.

    `3d_2plus1d` and `2plus1d` are the same function. A `3d` kernel over t > 1 frames has no
    batch norm and activation between space and time, so it is neither of them.

    Args:
        tensors: by canonical name; those that are no convolution kernels pass unchanged.
        conv_type: of the result, one of `ModelSpec`'s.

    Raises:
        ValueError: unknown `conv_type`, kernels of no form, or kernels over time that exist only
            in one of the two forms.

    Reference:
        tools/convert_3d_2plus1d.py in official/projects/movinet of
        https://github.com/tensorflow/models

    Example:
        >>> kernels = {"stem/conv/kernel": np.ones([1, 3, 3, 3, 8])}
        >>> convert_conv_type(kernels, "2plus1d")["stem/conv/kernel"].shape
        (3, 3, 3, 8)
    """
    if conv_type not in CHOICES["conv_type"]:
        raise ValueError(
            f"`conv_type` must be one of {', '.join(map(repr, CHOICES['conv_type']))}. "
            f"Received: conv_type={conv_type!r}"
        )
    present = conv_type_of(tensors)
    if present is None:
        ranks = {name: f"{name} {kernel.shape}" for name, kernel in _kernels(tensors).items()}
        odd = [text for name, text in ranks.items() if tensors[name].ndim != 4]
        raise ValueError(
            "`tensors` must hold a MoViNet's convolution kernels, all of rank 4 or all of rank 5. "
            f"Received: {len(ranks)} kernels, not of rank 4 are: {', '.join(odd) or 'none'}"
        )
    if present == conv_type:
        return dict(tensors)
    if "3d" in (present, conv_type):
        _refuse_kernels_over_time(tensors, present, conv_type)
    convert = _to_planes if conv_type == "2plus1d" else _to_volumes
    return dict(tensors) | {
        name: convert(name, kernel)
        for name, kernel in _kernels(tensors).items()
        if kernel.ndim == (5 if conv_type == "2plus1d" else 4)
    }


def _kernels(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {n: t for n, t in tensors.items() if n.endswith((_SPATIAL, _TEMPORAL))}


def _refuse_kernels_over_time(tensors: Mapping[str, np.ndarray], present: str, wanted: str):
    over_time = [
        f"{name} {kernel.shape}"
        for name, kernel in _kernels(tensors).items()
        if name.endswith(_TEMPORAL) or (present == "3d" and kernel.shape[0] > 1)
    ]
    if over_time:
        raise ValueError(
            f"Weights of conv_type={present!r} can't become {wanted!r}: only one of the two "
            "forms has a batch norm and an activation between space and time. Build the model "
            f"with conv_type={present!r}. Received kernels over time: {', '.join(over_time)}"
        )


def _to_planes(name: str, kernel: np.ndarray) -> np.ndarray:
    plane = kernel[:, 0] if name.endswith(_TEMPORAL) else kernel[0]
    return plane.swapaxes(-1, -2) if _DEPTHWISE in name else plane


def _to_volumes(name: str, kernel: np.ndarray) -> np.ndarray:
    kernel = kernel.swapaxes(-1, -2) if _DEPTHWISE in name else kernel
    return kernel[:, None] if name.endswith(_TEMPORAL) else kernel[None]
