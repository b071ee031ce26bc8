"""MobileNetV3 on every frame: plain, over (frame, base frame) pairs, or with temporal shifts."""

import tensorflow as tf
import tf_keras

from grw_keras import graph
from grw_keras.models.pooling import mean_over_frames
from grw_keras.models.randomness import Drop, Randomness
from grw_keras.models.spec import ModelSpec

SHIFTED_SHARE = 8  # TSM moves 1/8 of the channels each way (Lin et al. 2019, section 4.1)
_CLASSIFIER = {"Conv_2": "classifier/conv", "Logits": "logits/conv"}
States = dict[str, tf.Tensor]

_BUILDERS = {
    "mobilenet_v3_small": tf_keras.applications.MobileNetV3Small,
    "mobilenet_v3_large": tf_keras.applications.MobileNetV3Large,
}


def base_frame_indices(frames, window: int) -> tf.Tensor:
    """[N]: for each frame the first frame of its window of `window` frames."""
    return tf.range(frames) // window * window


def shift_channels(x, temporal_shift: str):
    """TSM on clips [B, N, H, W, C]: an eighth of the channels comes from the frame before, and,
    two-sided, another eighth from the frame after; zeros beyond the ends.

    Reference:
        Lin et al., TSM: Temporal Shift Module for Efficient Video Understanding, section 3.
    """
    share = x.shape[-1] // SHIFTED_SHARE
    before = tf.pad(x[:, :-1, ..., :share], [[0, 0], [1, 0], [0, 0], [0, 0], [0, 0]])
    if temporal_shift == "causal":
        return tf.concat([before, x[..., share:]], axis=-1)
    after = tf.pad(x[:, 1:, ..., share : 2 * share], [[0, 0], [0, 1], [0, 0], [0, 0], [0, 0]])
    return tf.concat([before, after, x[..., 2 * share :]], axis=-1)


def residual_inputs(cnn: tf_keras.Model) -> frozenset[str]:
    """Names of the first convolution of every residual block: where TSM shifts its input."""
    names = {layer.name for layer in cnn.layers}
    blocks = [name.removesuffix("Add") for name in names if name.endswith("/Add")]
    return frozenset(
        f"{block}expand" if f"{block}expand" in names else f"{block}depthwise" for block in blocks
    )


def shift_state(layer: tf_keras.layers.Layer) -> str:
    """Name of the state that holds the channels which a shifted layer takes from the past."""
    return f"state_{layer.name.replace('/', '_')}_shift"


class MobileNetBackbone(tf_keras.layers.Layer):
    """The tf_keras application, frame by frame.

    With the transformer head it gives pooled features, with the official classifier the logits
    of every frame. Its input is mapped from [0, 1] to [-1, 1], as its ImageNet weights want.
    """

    def __init__(self, spec: ModelSpec, randomness: Randomness, **kwargs):
        super().__init__(**kwargs)
        self.pair_input = spec.pair_input
        self.window = spec.window
        self.temporal_shift = spec.temporal_shift
        classifier = spec.head == "classifier"
        self.cnn = _BUILDERS[spec.backbone](
            input_shape=(None, None, spec.stem_channels),
            include_top=classifier,
            weights=None,
            pooling=None if classifier else "avg",
            classes=spec.num_classes,
            classifier_activation=None,
            dropout_rate=spec.dropout,
            include_preprocessing=False,
        )
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            for layer in self.cnn.layers:
                if isinstance(layer, tf_keras.layers.BatchNormalization):
                    layer.synchronized, layer.fused = True, False
        self.dropout = Drop(spec.dropout, randomness, 0, name="dropout")
        self.shifted = residual_inputs(self.cnn) if spec.temporal_shift != "none" else frozenset()
        self.tapped = None
        if spec.placement == "intermediate":
            # Layers of one input, which is what is smoothed; sums and products have two.
            layers = self.cnn.layers[1:]
            names = [layer.name for layer in layers if not isinstance(layer.input, list)]
            if spec.endpoint not in names:
                raise ValueError(
                    f"`endpoint` must be one of {', '.join(names)}. Received: {spec.endpoint!r}"
                )
            self.tapped = spec.endpoint

    def call(self, clip, training=None):
        """Of clips [B, N, H, W, 3]: "features" [B, N, D]; for intermediate smoothing "smoothed"
        [B, N, H', W', D'] too."""
        if self.pair_input:
            base = tf.gather(clip, base_frame_indices(tf.shape(clip)[1], self.window), axis=1)
            clip = tf.concat([clip, base], axis=-1)
        return self._run(clip, lambda layer, x: shift_channels(x, self.temporal_shift))

    def step(self, frame, states: States) -> tuple[tf.Tensor, States]:
        """Features of the next frame [B, 1, H, W, 3]; shifts reach back alone, for no frame after
        it is known yet."""
        new = dict(states)
        if self.pair_input:
            seen = states["state_base_frame_count"]
            base = tf.where(seen % self.window == 0, frame, states["state_base_frame"])
            new |= {"state_base_frame": base, "state_base_frame_count": (seen + 1) % self.window}
            frame = tf.concat([frame, base], axis=-1)

        def shift(layer, x):
            share = x.shape[-1] // SHIFTED_SHARE
            before = states[shift_state(layer)]
            new[shift_state(layer)] = x[..., :share]
            return tf.concat([before, x[..., share:]], axis=-1)

        return self._run(frame, shift)["features"], new

    def _run(self, clip, shift) -> dict[str, tf.Tensor]:
        """The CNN on every frame, with `shift(layer, x)` before each shifted layer."""
        shape = tf.shape(clip)
        outputs = {}

        def call(node, *args, **kwargs):
            layer = node.layer
            if layer.name == self.tapped:
                outputs["smoothed"] = self._as_clip(args[0], shape)
            if isinstance(layer, tf_keras.layers.Dropout):
                return self.dropout(*args)
            if layer.name in self.shifted:
                x, *others = args
                moved = shift(layer, self._as_clip(x, shape))
                return layer(tf.reshape(moved, tf.shape(x)), *others, **kwargs)
            return layer(*args, **kwargs)

        frames = tf.reshape(clip, [-1, shape[2], shape[3], clip.shape[-1]]) * 2.0 - 1.0
        features, _ = graph.run(self.cnn, frames, call=call)
        outputs["features"] = self._as_clip(features, shape)
        return outputs

    @staticmethod
    def _as_clip(x, clip_shape):
        """[B·N, …] to [B, N, …]."""
        shape = tf.concat([clip_shape[:2], tf.shape(x)[1:]], axis=0)
        clip = tf.reshape(x, shape)
        clip.set_shape([None, None, *x.shape[1:]])
        return clip

    def initial_states(self, batch_size: int, resolution: int) -> States:
        frame = tf.zeros([batch_size, 1, resolution, resolution, 3])
        states = {}
        if self.pair_input:
            states["state_base_frame"] = frame
            states["state_base_frame_count"] = tf.zeros([1], tf.int32)

        def note(layer, x):
            share = x.shape[-1] // SHIFTED_SHARE
            states[shift_state(layer)] = tf.zeros_like(x[..., :share])
            return x

        if self.shifted:
            self._run(tf.concat([frame, frame], axis=-1) if self.pair_input else frame, note)
        return states

    def named_weights(self) -> dict[str, tf.Variable]:
        named = {}
        for variable in self.cnn.weights:
            layer, _, leaf = variable.name.partition(":")[0].rpartition("/")
            prefix = _CLASSIFIER.get(layer, f"backbone/{layer}")
            named[f"{prefix}/{leaf.removeprefix('depthwise_')}"] = variable
        return named


class FrameAverage(tf_keras.layers.Layer):
    """The mean of the frames' logits: how an image classifier labels a clip."""

    def __init__(self, spec: ModelSpec, **kwargs):
        super().__init__(**kwargs)
        self.num_classes = spec.num_classes

    def call(self, features, mask=None):
        """[B, classes] of [B, N, classes]; frames where `mask` [B, N] is False are left out."""
        return mean_over_frames(features, mask)

    def step(self, features, states: States) -> tuple[tf.Tensor, States]:
        count = states["state_head_frame_count"] + 1
        mean = states["state_head_mean"]
        mean = mean + (features[:, 0] - mean) / tf.cast(count, mean.dtype)
        return mean, {"state_head_mean": mean, "state_head_frame_count": count}

    def initial_states(self, batch_size: int) -> States:
        return {
            "state_head_mean": tf.zeros([batch_size, self.num_classes]),
            "state_head_frame_count": tf.zeros([1], tf.int32),
        }

    def named_weights(self) -> dict[str, tf.Variable]:
        return {}
