"""Official TF-Vision checkpoints of MoViNets: their weights, and what these tell of the model.

Files as `tf.train.Checkpoint(model=…)` or the Model Garden's trainer write them; the official
ones are listed in https://github.com/tensorflow/models/tree/master/official/projects/movinet
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from official.projects.movinet.modeling.movinet import BLOCK_SPECS

from grw_keras.models.spec import MOVINETS
from grw_keras.zoo.importers import Imported
from grw_keras.zoo.importers.conv_forms import conv_type_of
from grw_keras.zoo.importers.object_graph import ModelVariables, expanded_widths, read_variables

# Official activation and gate for each squeeze-excite: README of the stream and base models, and
# Google's TFLite int8 models, which have no gates.
_SMOOTH = {
    "activation": "swish",
    "classifier_activation": "swish",
    "gating_activation": "sigmoid",
}
_CONVENTION = {
    "2plus3d": {
        "activation": "hard_swish",
        "classifier_activation": "swish",
        "gating_activation": "hard_sigmoid",
    },
    "3d": _SMOOTH,
    "2d": _SMOOTH,
    "none": {"activation": "relu6", "classifier_activation": "relu6"},
}


def read(path) -> Imported:
    """Reads a TF2 checkpoint of an official MoViNet, with or without its classifier.

    Args:
        path: the prefix that the checkpoint's files share, its .index file, or a folder with one
            checkpoint or with a `checkpoint` file that names the last one.

    Returns:
        All variables of the model, in the file's own convolution form. Left out is the state of
        a training: optimizers and their slots, counters, metrics. Activations are not in the
        file: those of `spec` are the official models', as `notes` say.

    Raises:
        FileNotFoundError: no checkpoint at `path`.
        ValueError: several checkpoints, a damaged one, or none of our MoViNets.
    """
    prefix = _prefix(Path(path))
    return interpret(read_variables(prefix), prefix, seen={})


def interpret(
    variables: ModelVariables,
    source: Path,
    seen: Mapping[str, Any],
) -> Imported:
    """The variables with the spec that they and `seen`, fields read otherwise, determine.

    Args:
        variables: as `read_variables` returns them.
        source: the file, for messages.
        seen: fields of the spec.

    Raises:
        ValueError: none of our MoViNets; `source` is named.
    """
    tensors = variables.tensors
    notes: list[str] = []
    conv_type, se_type = conv_type_of(tensors), _se_type(tensors)
    spec: dict[str, Any] = {
        "backbone": _backbone(tensors, source),
        "placement": "none",
    }
    if "classifier/conv/kernel" in tensors:
        spec["head"] = "classifier"
    if conv_type is None:
        raise ValueError(
            f"{source} mixes the weights of several models: its convolution kernels are partly "
            "of rank 4 and partly of rank 5."
        )
    if se_type == "3d" and "se_type" in seen:
        se_type = seen["se_type"]
    elif se_type == "3d":
        notes.append("se_type='3d': assumed, for '2d' has the same weights")
    spec |= {**seen, "conv_type": conv_type, "se_type": se_type}
    if variables.causal is not None:
        spec["streaming"] = variables.causal
    if "logits/conv/kernel" in tensors:
        spec["num_classes"] = int(tensors["logits/conv/kernel"].shape[-1])
    official = {"streaming": conv_type != "3d", **_CONVENTION[se_type]}
    assumed = {field: value for field, value in official.items() if field not in spec}
    if assumed:
        values = ", ".join(f"{field}={value!r}" for field, value in assumed.items())
        notes.append(f"{values}: not in the file, taken from the official models of this form")
    spec |= assumed
    if variables.averages:
        notes.append(
            f"the optimizer holds moving averages of {variables.averages} variables, which are "
            "not read: to have them, save the model after its optimizer's swap_weights()"
        )
    return Imported(tensors=tensors, spec=spec, assumed=tuple(assumed), notes=tuple(notes))


def _prefix(path: Path) -> Path:
    if path.is_dir():
        return _prefix_in(path)
    if path.name.endswith(".index") and path.is_file():
        return path.with_name(path.name.removesuffix(".index"))
    if path.with_name(f"{path.name}.index").is_file():
        return path
    raise FileNotFoundError(
        "A checkpoint is given by its folder, its .index file, or the prefix that its .index and "
        f".data-… files share. Received: {path}, which is none of them"
    )


def _prefix_in(folder: Path) -> Path:
    state = tf.train.get_checkpoint_state(str(folder))
    if state is not None:
        # The file may hold the path of the machine that saved it.
        last = folder / Path(state.model_checkpoint_path).name
        if last.with_name(f"{last.name}.index").is_file():
            return last
    found = sorted(folder.glob("*.index"))
    if not found:
        raise FileNotFoundError(
            f"The folder of a checkpoint holds its .index and .data-… files. Received: {folder} "
            "without a .index file; unpack an archive first"
        )
    if len(found) > 1:
        raise ValueError(
            "The folder holds several checkpoints and no `checkpoint` file that chooses one: give "
            f"one of {', '.join(map(str, found))}. Received: {folder}"
        )
    return found[0].with_suffix("")


def _backbone(tensors: Mapping[str, np.ndarray], source: Path) -> str:
    """The MoViNet whose blocks, all of them, are as wide inside as those of the file."""
    widths: dict[str, int] = {}
    for name, tensor in tensors.items():
        root, block, part = (*name.split("/"), "", "")[:3]
        if root == "backbone" and part == "expansion" and tensor.ndim:
            widths.setdefault(block, tensor.shape[-1])
    for model_id in BLOCK_SPECS:
        if expanded_widths(model_id) == widths:
            if f"movinet_{model_id}" in MOVINETS:
                return f"movinet_{model_id}"
            raise ValueError(
                f"{source} holds a MoViNet-{model_id.upper()}, which is not among our models: "
                f"use one of {', '.join(MOVINETS)}."
            )
    if not widths:
        raise ValueError(
            f"{source} holds no MoViNet: of its {len(tensors)} tensors none is of a MoViNet's "
            f"block. Its first: {', '.join(list(tensors)[:5]) or 'none'}"
        )
    found = ", ".join(f"{block} {width}" for block, width in sorted(widths.items()))
    raise ValueError(
        f"{source} holds a MoViNet, but none of the official ones: only {', '.join(MOVINETS)} can "
        f"be read. The widths of its blocks: {found}"
    )


def _se_type(tensors: Mapping[str, np.ndarray]) -> str:
    """The squeeze-excite form by the first gate's input: the block's width, or twice that."""
    for name, tensor in tensors.items():
        block = name.removesuffix("/se_reduce/conv/kernel")
        expand = tensors.get(f"{block}/se_expand/conv/kernel")
        if block != name and expand is not None:
            return "2plus3d" if tensor.shape[-2] == 2 * expand.shape[-1] else "3d"
    return "none"
