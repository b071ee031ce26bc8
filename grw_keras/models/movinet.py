"""Official MoViNets as per-frame feature extractors, for whole clips and frame by frame."""

import contextlib
import itertools
import threading
import types

import tensorflow as tf
import tf_keras
from official.projects.movinet.modeling import movinet, movinet_layers

from grw_keras.models.conv3d import TapConv3D
from grw_keras.models.names import by_canonical_name
from grw_keras.models.randomness import Drop, Randomness
from grw_keras.models.spec import FEATURE_WIDTHS, ModelSpec

States = dict[str, tf.Tensor]
_building = threading.Lock()


def hard_sigmoid_keras2(x):
    """Keras 2's: clip(0.2 x + 0.5, 0, 1), where tf-models and Keras 3 have relu6(x + 3) / 6."""
    return tf.clip_by_value(0.2 * x + 0.5, 0.0, 1.0)


_GATES = {
    "hard_sigmoid": "hard_sigmoid",
    "hard_sigmoid_keras2": hard_sigmoid_keras2,
    "sigmoid": "sigmoid",
}


@contextlib.contextmanager
def _official_layers(**replacements):
    """Layers that the official builder makes meanwhile; it has no argument for them.

    Its module gets a namespace of its own: changed in place, `nn_layers.Conv3D` would be its own
    subclass's base class by name.
    """
    with _building:
        official = movinet_layers.nn_layers
        movinet_layers.nn_layers = types.SimpleNamespace(**{**vars(official), **replacements})
        try:
            yield
        finally:
            movinet_layers.nn_layers = official


class MovinetBackbone(tf_keras.layers.Layer):
    """An official `Movinet` whose head pools space alone, or space and time for its classifier.

    Args:
        spec: of a MoViNet.
        randomness: the model's.
    """

    def __init__(self, spec: ModelSpec, randomness: Randomness, **kwargs):
        super().__init__(**kwargs)
        self.per_frame = spec.head == "transformer"
        indices = itertools.count(1)
        with _official_layers(
            Conv3D=TapConv3D,
            StochasticDepth=lambda rate, **kwargs: Drop(
                rate, randomness, next(indices), per_sample=True, **kwargs
            ),
        ):
            self.movinet = movinet.Movinet(
                spec.backbone.removeprefix("movinet_"),
                causal=spec.streaming,
                conv_type=spec.conv_type,
                se_type=spec.se_type,
                activation=spec.activation,
                gating_activation=_GATES[spec.gating_activation],
                use_positional_encoding=False,
                use_sync_bn=tf.distribute.get_strategy().num_replicas_in_sync > 1,
                stochastic_depth_drop_rate=spec.stochastic_depth,
                average_pooling_type="2d" if self.per_frame else "3d",
                output_states=True,
            )
        self.stages = self.movinet.layers[1:]
        self.tapped = None
        if spec.placement == "intermediate":
            names = [stage.name for stage in self.stages]
            if spec.endpoint not in names[1:]:
                raise ValueError(
                    f"`endpoint` must be one of {', '.join(names[1:])}. Received: {spec.endpoint!r}"
                )
            self.tapped = names[names.index(spec.endpoint) - 1]

    def call(self, clip):
        """Of clips [B, N, H, W, 3]: "features" [B, N, D], or [B, 1, 1, 1, D] for the official
        classifier; for intermediate smoothing "smoothed" [B, N, H', W', D'] too."""
        endpoints, _ = self.movinet({"image": clip})
        outputs = {"features": self._features(endpoints["head"])}
        if self.tapped:
            outputs["smoothed"] = endpoints[self.tapped]
        return outputs

    def step(self, frame, states: States) -> tuple[tf.Tensor, States]:
        """Features of the next frame [B, 1, H, W, 3], through the clip graph's own layers."""
        x, stored = frame, states
        for stage in self.stages:
            x, stored = stage(x, states=stored)
        return self._features(x), {name: stored[name] for name in states}

    def _features(self, pooled):
        return pooled[:, :, 0, 0] if self.per_frame else pooled

    def initial_states(self, batch_size: int, resolution: int) -> States:
        states = self.movinet.init_states([batch_size, 1, resolution, resolution, 3])
        if self.per_frame:
            states = {k: v for k, v in states.items() if not k.startswith("state_head_pool")}
        return states

    def named_weights(self) -> dict[str, tf.Variable]:
        return {f"backbone/{n}": v for n, v in by_canonical_name(self.movinet.weights).items()}


class MovinetClassifierHead(tf_keras.layers.Layer):
    """The official classifier: a hidden layer and the logits, on features pooled over the clip."""

    def __init__(self, spec: ModelSpec, randomness: Randomness, **kwargs):
        super().__init__(**kwargs)
        blocks = movinet.BLOCK_SPECS[spec.backbone.removeprefix("movinet_")]
        with _official_layers(Conv3D=TapConv3D):
            self.classifier = movinet_layers.ClassifierHead(
                head_filters=blocks[-1].head_filters,
                num_classes=spec.num_classes,
                dropout_rate=spec.dropout,
                conv_type=spec.conv_type,
                activation=spec.classifier_activation,
                kernel_regularizer=None,
                name="classifier_head",
            )
            self.classifier(tf_keras.Input([1, 1, 1, FEATURE_WIDTHS[spec.backbone]]))
        self.classifier._dropout = Drop(spec.dropout, randomness, 0, name="dropout")

    def call(self, features, mask=None):
        if mask is not None:
            raise ValueError(
                "The official classifier averages over all frames of a clip: give it whole clips "
                "of one length, or use head='transformer'. Received: a mask"
            )
        return self.classifier(features)

    def step(self, features, states: States) -> tuple[tf.Tensor, States]:
        return self.classifier(features), states

    def initial_states(self, batch_size: int) -> States:
        del batch_size
        return {}

    def named_weights(self) -> dict[str, tf.Variable]:
        return by_canonical_name(self.classifier.weights)
