"""The graphs that files are made of: signatures and what they compute."""

import dataclasses
from collections.abc import Callable, Sequence

import tensorflow as tf

from grw_keras.export.layers import Layers
from grw_keras.export.lean_heads import (
    LeanBidirectional,
    LeanCausal,
    LeanClassifier,
    LeanFrameAverage,
)
from grw_keras.export.lean_mobilenet import LeanMobileNet
from grw_keras.export.lean_movinet import LeanMovinet
from grw_keras.models import pretrained
from grw_keras.models.classifier import VideoClassifier
from grw_keras.models.spec import ModelSpec
from grw_keras.zoo.importers.conv_forms import convert_conv_type

Shapes = dict[str, tuple[int, ...]]
COUNT = "state_frame_count"


@dataclasses.dataclass(frozen=True)
class Graph:
    """What a file computes.

    Args:
        inputs: shape of each input, all float32.
        compute: a dictionary of inputs in, a dictionary of outputs out.
        variables: that it reads; none where all is constant.
    """

    inputs: Shapes
    compute: Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]]
    variables: Sequence[tf.Variable] = ()


def check_streams(spec: ModelSpec) -> None:
    """Sees that a model can run frame by frame.

    Raises:
        ValueError: it can't.
    """
    if not spec.streaming:
        raise ValueError(
            "Each frame's features depend on the whole clip, so this model can't run frame by "
            "frame, and its whole clips need AvgPool3D, which TFLite lacks: use a '…_stream' or "
            f"MobileNetV3 model. Received: {spec.name}"
        )


class LeanModel:
    """A model's backbone and head as lean graphs, with its weights as they are now.

    Raises:
        ValueError: the model can't stream, or not with the convolutions of files.
    """

    def __init__(self, model: VideoClassifier):
        spec = model.spec
        check_streams(spec)
        if spec.family == "movinet" and spec.conv_type == "3d":
            raise ValueError(
                "A file's convolutions over space and over time are apart: train a model of "
                f"conv_type='2plus1d'. Received: {spec.conv_type!r}"
            )
        self.spec = spec
        self.layers = Layers()
        self.variables = [] if spec.family == "movinet" else model.backbone.weights
        tensors = pretrained.weights_of(model)
        self.backbone: LeanMovinet | LeanMobileNet
        self.head: LeanBidirectional | LeanCausal | LeanClassifier | LeanFrameAverage
        if spec.family == "movinet":
            tensors = convert_conv_type(tensors, "2plus1d")
            self.backbone = LeanMovinet(spec, tensors, self.layers)
        else:
            self.backbone = LeanMobileNet(spec, model.backbone)
        if spec.head == "transformer":
            head = LeanCausal if spec.head_attention == "causal" else LeanBidirectional
            self.head = head(spec, tensors, self.layers)
        elif spec.family == "movinet":
            self.head = LeanClassifier(spec, tensors, self.layers)
        else:
            self.head = LeanFrameAverage(spec)

    def stream(self) -> Graph:
        """One frame in, logits out."""

        def compute(inputs):
            count = inputs[COUNT] + 1.0
            share = 1.0 / count
            features, backbone = self._features(inputs, share)
            logits, head = self.head.step(features, inputs, count, share)
            return {"logits": _row(logits), **backbone, **head, COUNT: count}

        states = {**self.backbone.initial_states(), **self.head.initial_states(), COUNT: (1,)}
        return Graph({**self._image(), **states}, compute, self.variables)

    def embed(self) -> Graph:
        """One frame in, its embedding out."""
        head = self._bidirectional()

        def compute(inputs):
            count = inputs[COUNT] + 1.0
            features, backbone = self._features(inputs, 1.0 / count)
            return {"embedding": _row(head.embed(features)), **backbone, COUNT: count}

        states = {**self.backbone.initial_states(), COUNT: (1,)}
        return Graph({**self._image(), **states}, compute, self.variables)

    def classify(self) -> Graph:
        """A window of embeddings in, logits out."""
        head = self._bidirectional()

        def compute(inputs):
            window = tf.reshape(inputs["window"], [head.window, 1, 1, head.width])
            return {"logits": _row(head.classify(window, inputs["frame_count"]))}

        return Graph({"window": (1, head.window, head.width), "frame_count": (1,)}, compute)

    def _bidirectional(self) -> LeanBidirectional:
        if not isinstance(self.head, LeanBidirectional):
            raise ValueError(
                "`split_head` is for the bidirectional transformer head, whose work it leaves to "
                f"the client's choice; the other heads are cheap. Received: {self.spec.name}"
            )
        return self.head

    def _features(self, inputs, share):
        _, _, height, width, channels = inputs["image"].shape
        frame = tf.reshape(inputs["image"], [1, height, width, channels])
        features, states = self.backbone.step(frame, inputs, share)
        return tf.reshape(features, [1, 1, 1, features.shape[-1]]), states

    def _image(self) -> Shapes:
        return {"image": (1, 1, self.spec.resolution, self.spec.resolution, 3)}


def _row(x):
    """[1, width] of [1, 1, 1, width]."""
    return tf.reshape(x, [1, x.shape[-1]])


def whole_clip_graph(model: VideoClassifier) -> Graph:
    """A clip of the spec's length in, logits out: the model's own clip graph."""
    spec = model.spec

    def compute(inputs):
        return {"logits": model(inputs["clip"], training=False)}

    clip = (1, spec.frames, spec.resolution, spec.resolution, 3)
    return Graph({"clip": clip}, compute, model.weights)
