"""The authors' PyTorch snapshots: what they hold, checked, and the spec of their model.

The snapshots hold a MoViNet whose head is the paper's affine map, a layer norm and a transformer
(https://github.com/cmusatyalab/grw-smoothing). Reading them needs neither PyTorch nor the authors'
package.
"""

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from grw_keras.models.spec import MOVINETS
from grw_keras.zoo.importers import Imported
from grw_keras.zoo.importers.torch_archive import SnapshotError, naming, show
from grw_keras.zoo.importers.torch_names import CONVOLUTION, LAYER, convert
from grw_keras.zoo.importers.torch_pickle import Global, Instance, load

VERSION = 10
MAX_WINDOW = 1000  # frames; the authors' windows have 5 and 6
# Layers of the five blocks: the official BLOCK_SPECS,
# https://github.com/tensorflow/models/blob/master/official/projects/movinet/modeling/movinet.py
LAYERS = {
    "movinet_a0": (1, 3, 3, 4, 4),
    "movinet_a1": (2, 4, 5, 6, 7),
    "movinet_a2": (3, 5, 5, 6, 7),
    "movinet_a3": (4, 6, 5, 8, 10),
}
STREAM = {
    "streaming": True,
    "conv_type": "2plus1d",
    "se_type": "2plus3d",
    "activation": "hard_swish",
    "gating_activation": "hard_sigmoid_keras2",
}
BASE = {
    "streaming": False,
    "conv_type": "3d",
    "se_type": "3d",
    "activation": "swish",
    "gating_activation": "sigmoid",
}
_PARAMS_CLASS = "grw_smoothing_models.model.attention.TransformerParams"
_BACKBONE_CLASS = re.compile(
    r"grw_smoothing_models\.backbones\.movinets\.(?P<name>a[0-9][sb])\.(?P=name)_backbone"
    r"\.MovinetBackbone"
)
_CLASSES = re.compile(f"{re.escape(_PARAMS_CLASS)}|{_BACKBONE_CLASS.pattern}")
_KEYS = (
    "model_state", "ema_weights", "num_samples", "transformer_params", "backbone", "T", "version"
)  # fmt: skip
_EMA_PREFIX, _EMA_COUNTER = "module.", "n_averaged"  # of torch.optim.swa_utils.AveragedModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerParams:
    """Sizes of the transformer head.

    Args:
        embed_dim: D, width of Z and of the tokens; a multiple of `num_heads`.
        depth: layers.
        num_heads: attention heads of a layer.
        mlp_dim: hidden width of a layer's feed-forward part.
        num_classes: width of the logits.
    """

    embed_dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    num_classes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A snapshot as it is in the file: PyTorch's names, shapes and dtypes.

    Args:
        model_state: tensors by name.
        ema_weights: their exponential moving averages, each name after "module."; None if the
            file has none.
        num_samples: training samples seen.
        transformer: sizes of the head.
        backbone: "a0s" to "a3b": size, and s for stream or b for base.
        window: T, frames.
        version: of the format.
    """

    model_state: dict[str, np.ndarray]
    ema_weights: dict[str, np.ndarray] | None
    num_samples: int
    transformer: TransformerParams
    backbone: str
    window: int
    version: int


def read(path: str | os.PathLike, *, ema: bool | None = None) -> Imported:
    """The weights of a snapshot of the authors, float32, with the canonical names.

    The MoViNet's are under "backbone/", then come affine, norm, transformer/layer{l}/{
    attention_norm, attention/{query, key, value, output}, mlp_norm, mlp_hidden, mlp_output},
    transformer/norm and logits. A tensor of another name keeps that name, one that is missing is
    left out: comparing with the model's variables is the caller's part.

    Args:
        path: a file of version 10 as the authors' `ActionRecognitionModel.save` writes it.
        ema: True for the averaged weights, False for the plain ones. Default: the averaged ones
            where there are any.

    Raises:
        OSError: the file can't be opened.
        SnapshotError: a ValueError: the file is damaged, hostile or no snapshot, or has no
            averaged weights and `ema` is True.
    """
    snapshot = read_state(path)
    with naming(path):
        state, notes = _choose(snapshot, ema)
        spec = _spec(snapshot, state)
        return Imported(
            tensors=convert(state, snapshot.transformer.num_heads), spec=spec, notes=notes
        )


def read_state(path: str | os.PathLike) -> Snapshot:
    """A snapshot as it is in the file; its arrays are read-only.

    Raises:
        OSError: the file can't be opened.
        SnapshotError: the file is damaged, hostile or no snapshot of version 10.
    """
    root = load(path, _CLASSES)
    with naming(path):
        if type(root) is not dict:
            raise SnapshotError(f"a snapshot is a dict. Received: {show(root)}")
        if "version" in root and not _is_count(root["version"], VERSION, VERSION):
            raise SnapshotError(
                f"a snapshot must have version {VERSION}: re-save it with the authors' current "
                f"code. Received: version={show(root['version'])}"
            )
        missing = [key for key in _KEYS if key not in root]
        if missing:
            raise SnapshotError(f"the snapshot has no {', '.join(missing)}")
        ema = root["ema_weights"]
        return Snapshot(
            model_state=_state(root, "model_state"),
            ema_weights=None if ema is None else _state(root, "ema_weights"),
            num_samples=_count(root["num_samples"], "num_samples", least=0),
            transformer=_params(root["transformer_params"]),
            backbone=_backbone(root["backbone"]),
            window=_count(root["T"], "T", most=MAX_WINDOW),
            version=VERSION,
        )


def _choose(snapshot: Snapshot, ema: bool | None) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The state that was asked for, under the plain names, and what to say about it."""
    if ema is False:
        return snapshot.model_state, ()
    if snapshot.ema_weights is None:
        if ema:
            raise SnapshotError(
                "the snapshot has no averaged weights: read the plain ones with ema=False. "
                "Received: ema=True"
            )
        return snapshot.model_state, ("The snapshot has no EMA weights: these are the plain ones.",)
    averaged = {k: v for k, v in snapshot.ema_weights.items() if k != _EMA_COUNTER}
    strays = [key for key in averaged if not key.startswith(_EMA_PREFIX)]
    if strays:
        raise SnapshotError(f"names of ema_weights start with module. Received: {show(strays)}")
    return {key.removeprefix(_EMA_PREFIX): tensor for key, tensor in averaged.items()}, ()


def _spec(snapshot: Snapshot, state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    backbone = f"movinet_{snapshot.backbone[:2]}"
    if backbone not in MOVINETS:
        raise SnapshotError(
            f"the backbone must be one of {', '.join(MOVINETS)}. Received: {snapshot.backbone}"
        )
    options = STREAM if snapshot.backbone[2] == "s" else BASE
    _check_backbone(backbone, "conv2d" if options["streaming"] else "conv3d", state)
    params = snapshot.transformer
    _check_head(params, MOVINETS[backbone], state)
    return {
        "backbone": backbone,
        **options,
        "head": "transformer",
        "placement": "final",
        "embed_dim": params.embed_dim,
        "head_depth": params.depth,
        "head_heads": params.num_heads,
        "head_mlp": params.mlp_dim,
        "num_classes": params.num_classes,
        "window": snapshot.window,
    }


def _check_backbone(backbone: str, kernel: str, state: Mapping[str, np.ndarray]) -> None:
    """The tensors must be those of the class that the file names."""
    found = [match for match in map(CONVOLUTION.fullmatch, state) if match]
    blocks = {(int(m["block"]), int(m["layer"])) for m in found if m["block"]}
    expected = {(i, j) for i, layers in enumerate(LAYERS[backbone]) for j in range(layers)}
    if blocks != expected:
        wrong = [f"b{i}_l{j}" for i, j in sorted(blocks ^ expected)]
        raise SnapshotError(
            f"the file says {backbone}, which has {len(expected)} blocks. Missing or one too many: "
            f"{show(wrong)}"
        )
    other = [m.string for m in found if m["conv"] not in (None, kernel)]
    if other:
        raise SnapshotError(
            f"the kernels of this backbone are {kernel}. Received: {show(other[0])}"
        )
    for match in found:
        if match["end"] == "conv7" and match["weight"]:
            width = state[match.string].shape[:1]
            if width != (MOVINETS[backbone],):
                raise SnapshotError(
                    f"the file says {backbone}, whose conv7 has {MOVINETS[backbone]} outputs. "
                    f"Received: {match.string} of shape {state[match.string].shape}"
                )


def _check_head(params: TransformerParams, features: int, state: Mapping[str, np.ndarray]) -> None:
    """The sizes become a model: no larger one than the file's tensors would fill."""
    layers = {match["layer"] for match in map(LAYER.fullmatch, state) if match}
    if len(layers) != params.depth:
        raise SnapshotError(
            f"transformer_params.depth must be the number of layers in the file, {len(layers)}. "
            f"Received: {show(params.depth)}"
        )
    width = params.embed_dim
    layer = 4 * width * width + 2 * width * params.mlp_dim
    claimed = width * (features + params.num_classes) + params.depth * layer
    held = sum(math.prod(tensor.shape) for tensor in state.values())
    if claimed > held:
        raise SnapshotError(
            f"transformer_params claim a head of {show(claimed)} weights, but the snapshot holds "
            f"only {held:,}. Received: {show(dataclasses.astuple(params))}"
        )


def _state(root: Mapping[str, Any], field: str) -> dict[str, np.ndarray]:
    state = root[field]
    if type(state) is not dict or not state:
        raise SnapshotError(f"{field} must be a dict of tensors. Received: {show(state)}")
    for key, tensor in state.items():
        if not isinstance(tensor, np.ndarray):
            raise SnapshotError(f"{field}[{show(key)}] must be a tensor. Received: {show(tensor)}")
    return state


def _params(value: Any) -> TransformerParams:
    names = [field.name for field in dataclasses.fields(TransformerParams)]
    if not isinstance(value, Instance) or value.cls != _PARAMS_CLASS:
        raise SnapshotError(
            f"transformer_params must be TransformerParams. Received: {show(value)}"
        )
    if sorted(value.attributes) != sorted(names):
        raise SnapshotError(
            f"transformer_params must have {', '.join(names)}. "
            f"Received: {show(sorted(value.attributes))}"
        )
    params = TransformerParams(
        **{name: _count(value.attributes[name], f"transformer_params.{name}") for name in names}
    )
    if params.embed_dim % params.num_heads:
        raise SnapshotError(
            "transformer_params: embed_dim must be a multiple of num_heads. Received: "
            f"embed_dim={show(params.embed_dim)}, num_heads={show(params.num_heads)}"
        )
    return params


def _backbone(value: Any) -> str:
    found = _BACKBONE_CLASS.fullmatch(value.name) if isinstance(value, Global) else None
    if not found:
        raise SnapshotError(f"backbone must be a MovinetBackbone class. Received: {show(value)}")
    return found["name"]


def _count(value: Any, name: str, *, least: int = 1, most: float = math.inf) -> int:
    if not _is_count(value, least, most):
        limit = "" if most == math.inf else f" and at most {most}"
        raise SnapshotError(
            f"{name} must be an integer of at least {least}{limit}. Received: {show(value)}"
        )
    return value


def _is_count(value: Any, least: int, most: float) -> bool:
    return type(value) is int and least <= value <= most
