"""The paper's head: affine Z, then a small transformer; over whole clips or a rolling window."""

import math

import tensorflow as tf
import tf_keras

from grw_keras.models.pooling import mean_over_frames
from grw_keras.models.randomness import Drop, Randomness
from grw_keras.models.spec import ModelSpec

EPSILON = 1e-5  # of the authors' LayerNorms
MAX_WAVELENGTH = 10_000.0  # of the position table
States = dict[str, tf.Tensor]


def position_table(length, width: int, dtype=tf.float32) -> tf.Tensor:
    """[length, width]: row t is [sin(t ω), cos(t ω)], ω_k = 10000^(-k / (width/2 - 1)).

    Args:
        length: rows, an integer or a scalar tensor.
        width: even.
    """
    half = width // 2
    exponents = tf.range(half, dtype=tf.float32) / max(half - 1, 1)
    frequencies = tf.exp(-math.log(MAX_WAVELENGTH) * exponents)
    angles = tf.cast(tf.range(length), tf.float32)[:, None] * frequencies
    return tf.cast(tf.concat([tf.sin(angles), tf.cos(angles)], axis=-1), dtype)


class TransformerBlock(tf_keras.layers.Layer):
    """x + attention(norm(x)), then x + mlp(norm(x)); exact GELU."""

    def __init__(self, width: int, heads: int, mlp: int, attention=None, **kwargs):
        super().__init__(**kwargs)
        layers = tf_keras.layers
        self.attention_norm = layers.LayerNormalization(epsilon=EPSILON, name="attention_norm")
        self.attention = attention or layers.MultiHeadAttention(
            heads, width // heads, name="attention"
        )
        self.mlp_norm = layers.LayerNormalization(epsilon=EPSILON, name="mlp_norm")
        self.mlp_hidden = layers.Dense(mlp, name="mlp_hidden")
        self.mlp_output = layers.Dense(width, name="mlp_output")

    def call(self, x, attention_mask=None):
        normed = self.attention_norm(x)
        x = x + self.attention(normed, normed, attention_mask=attention_mask)
        return x + self.mlp(x)

    def mlp(self, x):
        hidden = tf.nn.gelu(self.mlp_hidden(self.mlp_norm(x)), approximate=False)
        return self.mlp_output(hidden)

    def named_weights(self, prefix: str) -> dict[str, tf.Variable]:
        named: dict[str, tf.Variable] = {}
        for part in ("attention_norm", "mlp_norm", "mlp_hidden", "mlp_output"):
            named |= leaves(f"{prefix}/{part}", getattr(self, part))
        return named | self.attention_weights(f"{prefix}/attention")

    def attention_weights(self, prefix: str) -> dict[str, tf.Variable]:
        named: dict[str, tf.Variable] = {}
        for variable in self.attention.weights:
            projection, leaf = variable.name.partition(":")[0].split("/")[-2:]
            named[f"{prefix}/{projection.removeprefix('attention_')}/{leaf}"] = variable
        return named


class TransformerHead(tf_keras.layers.Layer):
    """Z = affine(features), GRW-smoothed in training; then LayerNorm, positions, transformer
    blocks over all frames, LayerNorm, the mean over frames, and the logits.

    Args:
        spec: of a model with head="transformer".
        randomness: the model's.
        regularizer: takes Z in whole clips and returns it; None for no smoothing.

    Reference:
        Figure 4 and section 4 of the paper; details as in the authors' models.
    """

    def __init__(self, spec: ModelSpec, randomness: Randomness, regularizer=None, **kwargs):
        super().__init__(**kwargs)
        layers = tf_keras.layers
        self.width = spec.embed_dim
        self.window = spec.head_window
        self.affine = layers.Dense(spec.embed_dim, name="affine")
        self.regularizer = regularizer
        self.norm = layers.LayerNormalization(epsilon=EPSILON, name="norm")
        self.blocks = [self.block(spec, i) for i in range(spec.head_depth)]
        self.final_norm = layers.LayerNormalization(epsilon=EPSILON, name="transformer_norm")
        self.dropout = Drop(spec.dropout, randomness, 0, name="dropout")
        self.logits = layers.Dense(spec.num_classes, name="logits")

    def block(self, spec: ModelSpec, index: int) -> TransformerBlock:
        return TransformerBlock(
            spec.embed_dim, spec.head_heads, spec.head_mlp, name=f"layer{index}"
        )

    def embed(self, features):
        """Z, [B, N, D]."""
        return self.affine(features)

    def call(self, features, mask=None):
        """Logits [B, classes] of features [B, N, D']; frames where `mask` [B, N] is False are
        left out."""
        z = self.embed(features)
        if self.regularizer is not None:
            z = self.regularizer(z, mask=mask)
        return self.classify(z, mask)

    def classify(self, z, mask=None):
        """Logits [B, classes] of Z [B, N, D]."""
        x = self.norm(z)
        x = x + position_table(tf.shape(x)[1], self.width, x.dtype)
        attention_mask = None if mask is None else tf.cast(mask, tf.bool)[:, None, :]
        for block in self.blocks:
            x = block(x, attention_mask=attention_mask)
        return self.logits(self.dropout(mean_over_frames(self.final_norm(x), mask)))

    def step(self, features, states: States) -> tuple[tf.Tensor, States]:
        """Logits of the last `window` frames, after one more: features [B, 1, D'].

        The window is in order of time and fills from the left; once full, it shifts.
        """
        z = self.embed(features)
        frames, seen = states["state_head_window"], states["state_head_frame_count"]
        place = tf.range(self.window)[:, None]
        filling = tf.where(place == seen, z, frames)
        shifted = tf.concat([frames[:, 1:], z], axis=1)
        frames = tf.where(seen < self.window, filling, shifted)
        seen = tf.minimum(seen + 1, self.window)
        mask = tf.repeat((tf.range(self.window) < seen)[None], tf.shape(z)[0], axis=0)
        states = {"state_head_window": frames, "state_head_frame_count": seen}
        return self.classify(frames, mask), states

    def initial_states(self, batch_size: int) -> States:
        return {
            "state_head_window": tf.zeros([batch_size, self.window, self.width]),
            "state_head_frame_count": tf.zeros([1], tf.int32),
        }

    def named_weights(self) -> dict[str, tf.Variable]:
        named = {
            **leaves("affine", self.affine),
            **leaves("norm", self.norm),
            **leaves("transformer/norm", self.final_norm),
            **leaves("logits", self.logits),
        }
        for i, block in enumerate(self.blocks):
            named |= block.named_weights(f"transformer/layer{i}")
        return named


def leaves(prefix: str, layer: tf_keras.layers.Layer) -> dict[str, tf.Variable]:
    """A layer's own weights, `prefix/kernel` and the like."""
    return {f"{prefix}/{v.name.partition(':')[0].split('/')[-1]}": v for v in layer.weights}
