"""A MobileNetV3's next frame as a graph for small machines: the application's own layers, rank 4.

Equal to `MobileNetBackbone.step`, but that counters are floats, which delegates can take.
"""

import tensorflow as tf
import tf_keras

from grw_keras import graph
from grw_keras.models.mobilenet import SHIFTED_SHARE, MobileNetBackbone, shift_state
from grw_keras.models.spec import ModelSpec

States = dict[str, tf.Tensor]


class LeanMobileNet:
    """The backbone's next frame.

    Args:
        spec: of a MobileNetV3.
        backbone: whose layers it calls; the converter folds their batch norms.
    """

    def __init__(self, spec: ModelSpec, backbone: MobileNetBackbone):
        self.spec = spec
        self.backbone = backbone

    def step(self, frame, states: States, share) -> tuple[tf.Tensor, States]:
        """As `LeanMovinet.step`; with the official classifier the "features" are logits."""
        del share
        new: States = {}
        if self.spec.pair_input:
            frame = self._paired(frame, states, new)

        def call(node, *args, **kwargs):
            layer = node.layer
            if isinstance(layer, tf_keras.layers.Dropout):
                return args[0]
            if layer.name in self.backbone.shifted:
                x, *others = args
                name, moved = shift_state(layer), x.shape[-1] // SHIFTED_SHARE
                new[name] = x[..., :moved]
                return layer(tf.concat([states[name], x[..., moved:]], axis=-1), *others, **kwargs)
            return layer(*args, **kwargs)

        features, _ = graph.run(self.backbone.cnn, frame * 2.0 - 1.0, call=call)
        return features, new

    def _paired(self, frame, states, new):
        """The frame and the first frame of its window, as six channels."""
        place = states["state_base_frame_place"]
        is_base = tf.nn.relu(1.0 - place)
        base = states["state_base_frame"] * (1.0 - is_base) + frame * is_base
        following = place + 1.0
        new["state_base_frame"] = base
        new["state_base_frame_place"] = following * tf.minimum(self.spec.window - following, 1.0)
        return tf.concat([frame, base], axis=-1)

    def initial_states(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the states, all of them float32 and zero at a stream's start."""
        states = self.backbone.initial_states(1, self.spec.resolution)
        shapes: dict[str, tuple[int, ...]] = {
            name: (1, *state.shape[2:])  # without the axis of time
            for name, state in states.items()
            if not name.endswith("_count")
        }
        return shapes | ({"state_base_frame_place": (1,)} if self.spec.pair_input else {})
