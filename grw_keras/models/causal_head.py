"""The paper's head made causal: a frame attends to the window of frames that ends with it."""

import tensorflow as tf
import tf_keras

from grw_keras.models.head import States, TransformerBlock, TransformerHead, leaves
from grw_keras.models.pooling import mean_over_frames
from grw_keras.models.randomness import Randomness
from grw_keras.models.spec import ModelSpec

MASKED = -1e9  # added to a score: its weight is 0 in float32


class WindowAttention(tf_keras.layers.Layer):
    """Multi-head attention of each frame to the last `window` frames, itself included.

    Scores are q·k / √width + b, where b is learned for each head and each distance in time: what
    is relative alone stays true while the window slides.

    Args:
        heads: h.
        width: d of a head.
        window: W, frames.
    """

    def __init__(self, heads: int, width: int, window: int, **kwargs):
        super().__init__(**kwargs)
        self.heads, self.width, self.window = heads, width, window
        self.projections = {
            name: tf_keras.layers.EinsumDense(
                "bnd,dhk->bnhk", (None, heads, width), bias_axes="hk", name=name
            )
            for name in ("query", "key", "value")
        }
        self.merge = tf_keras.layers.EinsumDense(
            "bnhk,hkd->bnd", (None, heads * width), bias_axes="d", name="output"
        )
        self.distance_bias = self.add_weight(
            name="distance_bias", shape=[heads, window], initializer="zeros"
        )

    def call(self, x, places, mask):
        """[B, N, D] of frames [B, N, D].

        Args:
            x: the frames.
            places: [B, N], integers: number of each frame among those that count.
            mask: [B, N], bool: the frames that count.
        """
        q, k, v = (self.projections[name](x) for name in ("query", "key", "value"))
        distance = places[:, :, None] - places[:, None, :]
        seen = (distance >= 0) & (distance < self.window) & mask[:, None, :]
        bias = tf.gather(self.distance_bias, tf.clip_by_value(distance, 0, self.window - 1), axis=1)
        scores = tf.einsum("bqhk,bshk->bhqs", q, k) * self.width**-0.5
        scores += tf.transpose(tf.cast(bias, scores.dtype), [1, 0, 2, 3])
        weights = _softmax(scores, seen[:, None])
        return self.merge(tf.einsum("bhqs,bshk->bqhk", weights, v))

    def step(self, x, keys, values, seen):
        """The next frame [B, 1, D], with the keys and values [B, h, W, d] after it, newest last.

        Args:
            x: the frame.
            keys, values: of the frames before.
            seen: bool [W]: which of the rows after it are frames.
        """
        q, k, v = (self.projections[name](x) for name in ("query", "key", "value"))
        keys = tf.concat([keys[:, :, 1:], tf.transpose(k, [0, 2, 1, 3])], axis=2)
        values = tf.concat([values[:, :, 1:], tf.transpose(v, [0, 2, 1, 3])], axis=2)
        scores = tf.einsum("bqhk,bhsk->bhqs", q, keys) * self.width**-0.5
        scores += self.distance_bias[:, None, ::-1]
        weights = _softmax(scores, seen)
        return self.merge(tf.einsum("bhqs,bhsk->bqhk", weights, values)), keys, values

    def named_weights(self, prefix: str) -> dict[str, tf.Variable]:
        named = {f"{prefix}/distance_bias": self.distance_bias}
        for name, layer in {**self.projections, "output": self.merge}.items():
            named |= leaves(f"{prefix}/{name}", layer)
        return named


class CausalBlock(TransformerBlock):
    """x + attention(norm(x)), then x + mlp(norm(x)), of frames or of the next frame."""

    def __init__(self, width: int, heads: int, mlp: int, window: int, **kwargs):
        attention = WindowAttention(heads, width // heads, window, name="attention")
        super().__init__(width, heads, mlp, attention, **kwargs)

    def call(self, x, places, mask):  # type: ignore[override]
        x = x + self.attention(self.attention_norm(x), places, mask)
        return x + self.mlp(x)

    def step(self, x, keys, values, seen):
        attended, keys, values = self.attention.step(self.attention_norm(x), keys, values, seen)
        x = x + attended
        return x + self.mlp(x), keys, values

    def attention_weights(self, prefix: str) -> dict[str, tf.Variable]:
        return self.attention.named_weights(prefix)


class CausalTransformerHead(TransformerHead):
    """As `TransformerHead`, but that each frame attends to the last `head_window` frames alone,
    without positions, and the logits are of the mean over the last `head_window` outputs.

    In a stream each frame is worked on once: keys, values and outputs of the frames before it are
    kept, newest last. It takes the bidirectional head's weights, of its MLPs the strongest hidden
    units (`grw_keras.zoo.matching`), and is fine-tuned from there.
    """

    def block(self, spec: ModelSpec, index: int) -> CausalBlock:
        return CausalBlock(
            spec.embed_dim, spec.head_heads, spec.head_mlp, spec.head_window, name=f"layer{index}"
        )

    def __init__(self, spec: ModelSpec, randomness: Randomness, regularizer=None, **kwargs):
        super().__init__(spec, randomness, regularizer, **kwargs)
        self.heads = spec.head_heads

    def classify(self, z, mask=None):
        """Logits [B, classes] of Z [B, N, D]."""
        mask = tf.ones(tf.shape(z)[:2], tf.bool) if mask is None else tf.cast(mask, tf.bool)
        places = tf.cumsum(tf.cast(mask, tf.int32), axis=1)
        x = self.norm(z)
        for block in self.blocks:
            x = block(x, places, mask)
        last = mask & (places > places[:, -1:] - self.window)
        return self.logits(self.dropout(mean_over_frames(self.final_norm(x), last)))

    def step(self, features, states: States) -> tuple[tf.Tensor, States]:
        """Logits after one more frame: features [B, 1, D']."""
        seen = tf.minimum(states["state_head_frame_count"] + 1, self.window)
        new = {"state_head_frame_count": seen}
        is_frame = tf.range(self.window) >= self.window - seen
        x = self.norm(self.embed(features))
        for i, block in enumerate(self.blocks):
            names = [f"state_head_layer{i}_{part}" for part in ("keys", "values")]
            x, *kept = block.step(x, *(states[name] for name in names), is_frame)
            new |= dict(zip(names, kept, strict=True))
        outputs = tf.concat([states["state_head_outputs"][:, 1:], self.final_norm(x)], axis=1)
        new["state_head_outputs"] = outputs
        mean = tf.reduce_sum(outputs, axis=1) / tf.cast(seen, outputs.dtype)
        return self.logits(mean), new

    def initial_states(self, batch_size: int) -> States:
        kept = [batch_size, self.heads, self.window, self.width // self.heads]
        states = {
            f"state_head_layer{i}_{part}": tf.zeros(kept)
            for i in range(len(self.blocks))
            for part in ("keys", "values")
        }
        return {
            **states,
            "state_head_outputs": tf.zeros([batch_size, self.window, self.width]),
            "state_head_frame_count": tf.zeros([1], tf.int32),
        }


def _softmax(scores, seen):
    """Over the last axis, where `seen`; frames that see nothing get equal weights, not NaN."""
    masked = max(MASKED, float(scores.dtype.min))  # float16 would make an infinity of it
    return tf.nn.softmax(tf.where(seen, scores, tf.constant(masked, scores.dtype)))
