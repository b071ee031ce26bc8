"""The heads of the zoo's models as graphs for small machines: constants, batch 1.

Rows, one a frame, are [n, 1, 1, width]: matrix products are 1 × 1 convolutions of them.
"""

import tensorflow as tf

from grw_keras.export.folding import Tensors, dense, pointwise
from grw_keras.export.layers import Layers
from grw_keras.export.lean_movinet import ACTIVATIONS, Shapes, States
from grw_keras.models.causal_head import MASKED
from grw_keras.models.head import EPSILON, position_table
from grw_keras.models.spec import ModelSpec


def standardised(x):
    """Each row less its mean, over its standard deviation."""
    centred = x - tf.reduce_mean(x, -1, keepdims=True)
    variance = tf.reduce_mean(tf.square(centred), -1, keepdims=True)
    return centred * tf.math.rsqrt(variance + EPSILON)


class LeanClassifier:
    """The official classifier, on the running mean of the features."""

    def __init__(self, spec: ModelSpec, tensors: Tensors, layers: Layers):
        self.layers = layers
        self.activation = ACTIVATIONS[spec.classifier_activation]
        for name in ("classifier", "logits"):
            layers.weights[name] = pointwise(tensors, name)

    def step(self, features, states: States, count, share) -> tuple[tf.Tensor, States]:
        """Logits [1, 1, 1, classes] of the features [1, 1, 1, D] of one more frame.

        Args:
            features: of the frame.
            states: of the frames before.
            count: [1], number of frames so far, this one included.
            share: [1], 1 / count.
        """
        del count
        before = states["state_head_pool_mean"]
        mean = before + (features - before) * share
        hidden = self.activation(self.layers.matmul("classifier", mean))
        return self.layers.matmul("logits", hidden), {"state_head_pool_mean": mean}

    def initial_states(self) -> Shapes:
        width, _ = self.layers.weights["classifier"].kernel.shape
        return {"state_head_pool_mean": (1, 1, 1, width)}


class LeanFrameAverage:
    """The running mean of the frames' logits."""

    def __init__(self, spec: ModelSpec):
        self.num_classes = spec.num_classes

    def step(self, features, states: States, count, share) -> tuple[tf.Tensor, States]:
        """As `LeanClassifier.step`; the features are the frame's logits."""
        del count
        before = states["state_head_mean"]
        mean = before + (features - before) * share
        return mean, {"state_head_mean": mean}

    def initial_states(self) -> Shapes:
        return {"state_head_mean": (1, 1, 1, self.num_classes)}


class LeanTransformer:
    """What the transformer heads share: the affine map, and a block's parts."""

    def __init__(self, spec: ModelSpec, tensors: Tensors, layers: Layers):
        self.spec = spec
        self.tensors = tensors
        self.layers = layers
        self.window, self.width, self.heads = spec.head_window, spec.embed_dim, spec.head_heads
        weights = layers.weights
        weights["affine"] = dense(tensors, "affine")
        for layer in range(spec.head_depth):
            block = f"transformer/layer{layer}"
            norm, head_width = f"{block}/attention_norm", self.width // self.heads
            for name, scale in (("query", head_width**-0.5), ("key", 1.0), ("value", 1.0)):
                part = f"{block}/attention/{name}"
                weights[part] = dense(tensors, part, norm=norm, outputs=2, scale=scale)
            part = f"{block}/attention/output"
            weights[part] = dense(tensors, part)
            part = f"{block}/mlp_hidden"
            weights[part] = dense(tensors, part, norm=f"{block}/mlp_norm")
            weights[f"{block}/mlp_output"] = dense(tensors, f"{block}/mlp_output")
        weights["logits"] = dense(tensors, "logits", norm="transformer/norm")

    def embed(self, features):
        """Z of features."""
        return self.layers.matmul("affine", features)

    def normed(self, z):
        return standardised(z) * self.tensors["norm/gamma"] + self.tensors["norm/beta"]

    def projections(self, layer: int, x) -> list[tf.Tensor]:
        """Queries (scaled), keys and values, each [heads, n, d], of n rows."""
        x = standardised(x)
        split = [-1, self.heads, self.width // self.heads]
        projected = (
            self.layers.matmul(f"transformer/layer{layer}/attention/{name}", x)
            for name in ("query", "key", "value")
        )
        return [tf.transpose(tf.reshape(part, split), [1, 0, 2]) for part in projected]

    def merged(self, layer: int, attended):
        """n rows of the heads' answers [heads, n, d]."""
        x = tf.reshape(tf.transpose(attended, [1, 0, 2]), [-1, 1, 1, self.width])
        return self.layers.matmul(f"transformer/layer{layer}/attention/output", x)

    def mlp(self, layer: int, x):
        block = f"transformer/layer{layer}"
        hidden = self.layers.matmul(f"{block}/mlp_hidden", standardised(x))
        return self.layers.matmul(f"{block}/mlp_output", tf.nn.gelu(hidden, approximate=False))


class LeanBidirectional(LeanTransformer):
    """The paper's head over the rolling window of the last W embeddings."""

    def step(self, features, states: States, count, share) -> tuple[tf.Tensor, States]:
        """As `LeanClassifier.step`; the window fills from the left, then shifts."""
        del share
        z = self.embed(features)
        frames, places = states["state_head_window"], self._places()
        full = tf.minimum(tf.nn.relu(count - self.window), 1.0)
        newest = tf.nn.relu(1.0 - tf.abs(places - (count - 1.0)))
        filled = frames + tf.reshape(newest, [-1, 1, 1, 1]) * z
        shifted = tf.concat([frames[1:], z], axis=0)
        frames = filled + full * (shifted - filled)
        seen = tf.minimum(count, float(self.window))
        return self.classify(frames, seen), {"state_head_window": frames}

    def classify(self, window, seen):
        """Logits of W embeddings, of which the first `seen`, [1], count."""
        unseen = tf.minimum(tf.nn.relu(self._places() + 1.0 - seen), 1.0)
        x = self.normed(window) + position_table(self.window, self.width)[:, None, None]
        for layer in range(self.spec.head_depth):
            q, k, v = self.projections(layer, x)
            scores = tf.matmul(q, k, transpose_b=True) + unseen * MASKED
            x = x + self.merged(layer, tf.matmul(tf.nn.softmax(scores), v))
            x = x + self.mlp(layer, x)
        x = tf.reshape(standardised(x), [self.window, self.width])
        mean = tf.matmul((1.0 - unseen)[None], x) / seen
        return self.layers.matmul("logits", tf.reshape(mean, [1, 1, 1, self.width]))

    def _places(self):
        return tf.range(self.window, dtype=tf.float32)

    def initial_states(self) -> Shapes:
        return {"state_head_window": (self.window, 1, 1, self.width)}


class LeanCausal(LeanTransformer):
    """The causal head: each frame once, with the keys and values of those before it."""

    def step(self, features, states: States, count, share) -> tuple[tf.Tensor, States]:
        """As `LeanClassifier.step`; the newest frame stands last."""
        del share
        seen = tf.minimum(count, float(self.window))
        oldest_first = tf.range(self.window, dtype=tf.float32)
        unseen = tf.minimum(tf.nn.relu(self.window - seen - oldest_first), 1.0)
        x = self.normed(self.embed(features))
        new: States = {}
        for layer in range(self.spec.head_depth):
            q, k, v = self.projections(layer, x)
            keys, values = (
                tf.concat([states[name][:, 1:], row], axis=1)
                for name, row in zip(self._names(layer), (k, v), strict=True)
            )
            new |= dict(zip(self._names(layer), (keys, values), strict=True))
            bias = self.tensors[f"transformer/layer{layer}/attention/distance_bias"][:, None, ::-1]
            scores = tf.matmul(q, keys, transpose_b=True) + (bias + unseen * MASKED)
            x = x + self.merged(layer, tf.matmul(tf.nn.softmax(scores), values))
            x = x + self.mlp(layer, x)
        outputs = tf.concat([states["state_head_outputs"][1:], standardised(x)], axis=0)
        new["state_head_outputs"] = outputs
        mean = tf.reduce_sum(outputs, 0, keepdims=True) / seen
        return self.layers.matmul("logits", mean), new

    def _names(self, layer: int) -> list[str]:
        return [f"state_head_layer{layer}_{part}" for part in ("keys", "values")]

    def initial_states(self) -> Shapes:
        kept = (self.heads, self.window, self.width // self.heads)
        shapes = {n: kept for i in range(self.spec.head_depth) for n in self._names(i)}
        return {**shapes, "state_head_outputs": (self.window, 1, 1, self.width)}
