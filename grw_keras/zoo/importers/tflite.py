"""Weights out of TFLite files of official streaming MoViNets, found by the graph's structure.

The graph is followed from the logits back to the image; no tensor's name is looked at, since
converters change them. Constants that converters moved out of a convolution are folded back.
"""

import dataclasses
import os

import numpy as np
from official.projects.movinet.modeling.movinet import BLOCK_SPECS

from grw_keras.models.names import BATCH_NORM_EPSILON
from grw_keras.models.spec import MOVINETS
from grw_keras.zoo.importers import Imported
from grw_keras.zoo.importers.tflite_convolution import (
    Convolution,
    activated,
    behind_constants,
    linear,
    refuse,
)
from grw_keras.zoo.importers.tflite_graph import Graph, TFLiteError, read_graph
from grw_keras.zoo.importers.tflite_layers import Block, block, running_mean, variable_sum

_KNOWN = {model: BLOCK_SPECS[model.removeprefix("movinet_")] for model in MOVINETS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Network:
    """A streaming MoViNet's layers, each with its weights."""

    stem: Convolution
    blocks: tuple[Block, ...]
    head: Convolution
    classifier: Convolution
    logits: Convolution


def read(path: str | os.PathLike) -> Imported:
    """The weights of an official streaming MoViNet, with the canonical names.

    Quantised weights are multiplied out. Batch norms, which converters fold into the
    convolutions, become the identity plus the bias: gamma 1, beta the bias, moving mean 0, moving
    variance 1 - epsilon. Kernels have the shapes of the official builder's variables in conv_type
    "2plus1d".

    Args:
        path: a TFLite file that takes one frame [1, 1, H, W, 3] and states in each call and
            returns logits and states; float, float16, dynamic-range or fully quantised.

    Returns:
        The backbone's tensors under "backbone/", then classifier and logits; what the graph says
        of the spec; labels, if the file carries one for each class.

    Raises:
        OSError: the file can't be opened.
        TFLiteError: a ValueError: the file is damaged or isn't such a model, and where not.
    """
    graph = read_graph(path)
    try:
        return _imported(graph)
    except TFLiteError as error:
        raise TFLiteError(
            f"{path} can't be read as an official streaming MoViNet: {error}"
        ) from error


def _imported(graph: Graph) -> Imported:
    image = _image(graph)
    network = _network(graph, image)
    backbone = _identify(network)
    tensors = _folded("backbone/stem", network.stem)
    for name, found in zip(_block_names(backbone), network.blocks, strict=True):
        tensors |= _block_tensors(f"backbone/{name}", found)
    tensors |= _folded("backbone/head", network.head)
    tensors |= _plain("classifier", network.classifier)
    tensors |= _plain("logits", network.logits)
    spec = {
        "backbone": backbone,
        "streaming": True,
        "conv_type": "2plus1d",
        "head": "classifier",
        "classifier_activation": network.classifier.activation,
        "placement": "none",
        "num_classes": network.logits.kernel.shape[-1],
        **_shared(network),
    }
    shape, free = graph.tensors[image].shape, graph.tensors[image].free
    if not {len(shape) - 3, len(shape) - 2} & set(free):
        spec["resolution"] = shape[-2]
    return Imported(
        tensors=tensors,
        spec=spec,
        labels=_labels(graph, spec["num_classes"]),
        notes=_notes(network),
    )


def _block_names(backbone: str) -> list[str]:
    stages = _KNOWN[backbone][1:-1]
    return [
        f"block{i}_layer{j}" for i, stage in enumerate(stages) for j in range(len(stage.strides))
    ]


def _image(graph: Graph) -> int:
    """The input that is a frame; the others are states."""
    shapes = {i: graph.tensors[i].shape for i in graph.inputs}
    images = [i for i, shape in shapes.items() if len(shape) in (4, 5) and shape[-1] == 3]
    if len(images) != 1:
        raise TFLiteError(
            "it must have one input that is an image, [1, 1, H, W, 3]. Received: inputs "
            f"{', '.join(str(shape) for shape in shapes.values()) or 'none'}"
        )
    (image,) = images
    shape = shapes[image]
    if (len(shape) == 5 and (shape[1] != 1 or 1 in graph.tensors[image].free)) or len(shapes) == 1:
        raise TFLiteError(
            "it is a graph for whole clips: one for streams takes a single frame and states. "
            "Convert the model with use_external_states=True and an input [1, 1, H, W, 3]. "
            f"Received: an image input {shape} and {len(shapes) - 1} states"
        )
    if shape[-3] != shape[-2]:
        raise TFLiteError(f"its image input must be a square, H = W. Received: {shape}")
    return image


def _network(graph: Graph, image: int) -> _Network:
    logits = linear(graph, _logits(graph), "the logits")
    classifier = activated(graph, logits.input, "the classifier's hidden layer")
    pooled = running_mean(graph, classifier.input)
    if pooled is None:
        raise refuse(
            graph, classifier.input, "the head's mean over space and all frames so far, a state,"
        )
    head = activated(graph, pooled, "the head's projection")
    x, blocks = head.input, []
    while (add := variable_sum(graph, x)) is not None:
        blocks.append(block(graph, add))
        x = blocks[-1].input
    stem = activated(graph, x, "the stem or the sum that ends a block")
    if graph.source(stem.input) != image:
        raise refuse(graph, stem.input, "the image")
    return _Network(
        stem=stem, blocks=tuple(blocks[::-1]), head=head, classifier=classifier, logits=logits
    )


def _logits(graph: Graph) -> int:
    """The one output that a linear layer makes, perhaps below a softmax; others are states."""
    found = []
    for output in graph.outputs:
        op = graph.producer(output)
        tensor = op.inputs[0] if op is not None and op.name == "SOFTMAX" else output
        op = behind_constants(graph, tensor)
        if op is not None and op.name in ("CONV_2D", "FULLY_CONNECTED"):
            found.append(tensor)
    if len(found) != 1:
        made = sorted({op.name if (op := graph.producer(o)) else "INPUT" for o in graph.outputs})
        raise TFLiteError(
            "one output must be the logits, made by CONV_2D or FULLY_CONNECTED. Received: "
            f"{len(found)} such outputs; outputs are made by {', '.join(made)}"
        )
    return found[0]


def _identify(network: _Network) -> str:
    """The backbone whose official block specs the layers have.

    Raises:
        TFLiteError: none has them; tells what was found and how the closest one differs.
    """
    found = [
        f"stem {network.stem.shape}",
        *(layer.layout for layer in network.blocks),
        f"head {network.head.shape}, {network.classifier.shape}",
    ]
    known = {model: _official_layout(specs) for model, specs in _KNOWN.items()}
    for model, layout in known.items():
        if found == layout:
            return model

    def differences(model: str) -> list[str]:
        rows = zip(found, known[model], strict=False)
        return [f"{got} where it has {due}" for got, due in rows if got != due]

    closest = min(known, key=lambda m: (len(differences(m)), abs(len(known[m]) - len(found))))
    sizes = ", ".join(f"{model} ({len(layout) - 2} blocks)" for model, layout in known.items())
    raise TFLiteError(
        f"its layers are those of no known model: {sizes}. Closest is {closest}. Received: "
        f"{len(found) - 2} blocks; {'; '.join(differences(closest)) or 'the rest is the same'}"
    )


def _official_layout(specs) -> list[str]:
    """The rows that `_identify` compares, from the official block specs."""
    stem, *stages, head = specs
    side, stride = stem.kernel_size[1], stem.strides[1]
    rows = [f"stem 3->{stem.filters} {side}x{side} stride {stride}"]
    width = stem.filters
    for stage in stages:
        layers = zip(stage.expand_filters, stage.kernel_sizes, stage.strides, strict=True)
        for expanded, (frames, side, _), (_, stride, _) in layers:
            rows.append(
                f"{width}->{expanded}->{stage.base_filters} {frames}x{side}x{side} "
                f"stride {stride}, skip {_official_skip(width, stage.base_filters, stride)}"
            )
            width = stage.base_filters
    hidden = f"{head.project_filters}->{head.head_filters} 1x1 stride 1"
    return [*rows, f"head {width}->{head.project_filters} 1x1 stride 1, {hidden}"]


def _official_skip(width: int, base_filters: int, stride: int) -> str:
    if stride > 1:
        return f"pool, {width}->{base_filters}"
    return "identity" if width == base_filters else f"{width}->{base_filters}"


def _shared(network: _Network) -> dict[str, str]:
    """What all blocks have in common: activation, squeeze-excite type, gate."""
    activations = {network.stem.activation, network.head.activation}
    gates = [layer.excite for layer in network.blocks if layer.excite is not None]
    for layer in network.blocks:
        inner = [layer.expansion, layer.spatial, layer.temporal]
        activations |= {part.activation for part in inner if part is not None}
    found = {
        "activation": activations | {gate.reduce.activation for gate in gates},
        "se_type": {layer.excite.se_type if layer.excite else "none" for layer in network.blocks},
        "gating_activation": {gate.activation for gate in gates},
    }
    mixed = {field: sorted(values) for field, values in found.items() if len(values) > 1}
    if mixed:
        raise TFLiteError(f"its layers must be alike. Received: {mixed}")
    return {field: values.pop() for field, values in found.items() if values}


def _block_tensors(prefix: str, found: Block) -> dict[str, np.ndarray]:
    tensors = _folded(f"{prefix}/expansion", found.expansion)
    tensors |= _folded(f"{prefix}/feature", found.spatial)
    if found.temporal is not None:
        tensors |= _folded(f"{prefix}/feature", found.temporal, "_temporal")
    if found.excite is not None:
        tensors |= _plain(f"{prefix}/se_reduce", found.excite.reduce)
        tensors |= _plain(f"{prefix}/se_expand", found.excite.expand)
    tensors |= _folded(f"{prefix}/projection", found.projection)
    if found.skip is not None:
        tensors |= _folded(f"{prefix}/skip", found.skip)
    rezero = 1.0 if found.rezero is None else found.rezero
    return tensors | {f"{prefix}/rezero/scale": np.array(rezero, np.float32)}


def _plain(prefix: str, convolution: Convolution) -> dict[str, np.ndarray]:
    return {
        f"{prefix}/conv/kernel": convolution.kernel.astype(np.float32),
        f"{prefix}/conv/bias": convolution.bias.astype(np.float32),
    }


def _folded(prefix: str, convolution: Convolution, suffix: str = "") -> dict[str, np.ndarray]:
    """A convolution and a batch norm that adds the bias; epsilon makes its variance 1."""
    beta = convolution.bias.astype(np.float32)
    return {
        f"{prefix}/conv{suffix}/kernel": convolution.kernel.astype(np.float32),
        f"{prefix}/bn{suffix}/gamma": np.ones_like(beta),
        f"{prefix}/bn{suffix}/beta": beta,
        f"{prefix}/bn{suffix}/moving_mean": np.zeros_like(beta),
        f"{prefix}/bn{suffix}/moving_variance": np.full_like(beta, 1 - BATCH_NORM_EPSILON),
    }


def _labels(graph: Graph, num_classes: int) -> tuple[str, ...] | None:
    """The lines of the one appended text that has as many as there are classes."""
    lines = [tuple(text.strip().splitlines()) for text in graph.files.values()]
    fitting = [tuple(map(str.strip, names)) for names in lines if len(names) == num_classes]
    return fitting[0] if len(fitting) == 1 else None


def _notes(network: _Network) -> tuple[str, ...]:
    convolutions = [network.stem, network.head, network.classifier, network.logits]
    for layer in network.blocks:
        convolutions += layer.convolutions
    stored = [convolution.stored for convolution in convolutions]
    notes = [
        f"{stored.count(kind)} of {len(stored)} kernels were stored as {kind.lower()} and are "
        "back in float32, with that type's rounding"
        for kind in sorted(set(stored) - {"FLOAT32"})
    ]
    notes.append(
        "batch norms were folded into the convolutions: here they only add biases, and stay "
        "frozen, which suits fine-tuning; zoo.reestimate_batch_norm makes them trainable"
    )
    if all(layer.rezero is None for layer in network.blocks):
        notes.append("ReZero scales were folded into the projections: here they are 1")
    return tuple(notes)
