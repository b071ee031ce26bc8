"""VideoClassifier: a ModelSpec in, a trainable tf_keras model out."""

from collections.abc import Mapping, Sequence

import tensorflow as tf
import tf_keras

from grw_keras.losses import as_float
from grw_keras.models import accumulation, pretrained
from grw_keras.models.causal_head import CausalTransformerHead
from grw_keras.models.head import TransformerHead
from grw_keras.models.mobilenet import FrameAverage, MobileNetBackbone
from grw_keras.models.movinet import MovinetBackbone, MovinetClassifierHead
from grw_keras.models.optimizer import TwoRates, paper_optimizer, unwrapped
from grw_keras.models.randomness import Randomness
from grw_keras.models.spec import FEATURE_WIDTHS, ModelSpec
from grw_keras.models.streaming import StreamSession
from grw_keras.normalization import pool_space
from grw_keras.regularizer import GRWRegularizer
from grw_keras.tracing import TracedOnce

States = dict[str, tf.Tensor]


@tf_keras.saving.register_keras_serializable("grw_keras")
class VideoClassifier(TracedOnce):
    """Classifies clips; every model of the zoo is one.

    Its backbone makes features of every frame; its head makes logits of them. In training
    GRW-smoothing adds its loss where the spec places it. `step` runs the same layers one frame
    at a time; `to_streaming` wraps that in a session.

    Args:
        spec: what to build.
        labels: one name for each class.

    Input shape: [B, N, H, W, 3], float, pixels in [0, 1], H = W, any N; in training of a smoothed
        model N must be at least the spec's window. `mask`, bool [B, N], leaves frames out of the
        transformer head and of the loss; for `fit` and `evaluate` the input may be a dictionary
        of "video" and "mask".

    Output shape: logits [B, classes], float32.

    Raises:
        TypeError: pixels that are integers.
        ValueError: frames that are no squares, labels that don't fit.
    """

    def __init__(
        self, spec: ModelSpec, labels: Sequence[str] | None = None, name: str | None = None
    ):
        super().__init__(name=name or spec.name)
        self.spec = spec
        self.labels = labels
        self.accumulate = 1
        self.randomness = Randomness(spec.seed, name="randomness")
        movinet = spec.family == "movinet"
        backbone = MovinetBackbone if movinet else MobileNetBackbone
        self.backbone = backbone(spec, self.randomness, name="backbone")
        self.regularizer = _regularizer(spec)
        if spec.head == "transformer":
            final = self.regularizer if spec.placement == "final" else None
            causal = spec.head_attention == "causal"
            head = CausalTransformerHead if causal else TransformerHead
            self.head = head(spec, self.randomness, final, name="head")
            self.head(tf_keras.Input([None, FEATURE_WIDTHS[spec.backbone]]))
        elif movinet:
            self.head = MovinetClassifierHead(spec, self.randomness, name="head")
        else:
            self.head = FrameAverage(spec, name="head")
        self.built = True  # all parts are; tracing the whole model again would take seconds
        self.set_batch_norm_frozen(spec.frozen_batch_norm)

    @property
    def labels(self) -> tuple[str, ...] | None:
        """One name for each class, or None."""
        return None if self._labels is None else tuple(self._labels)

    @labels.setter
    def labels(self, labels: Sequence[str] | None):
        if isinstance(labels, str) or any({*"\r\n"} & {*str(label)} for label in labels or ()):
            raise ValueError(
                f"`labels` must be a sequence of names of one line each. Received: {labels!r}"
            )
        if labels is not None and len(labels) != self.spec.num_classes:
            raise ValueError(
                f"`labels` must be {self.spec.num_classes} names, one for each class. "
                f"Received: {len(labels)}"
            )
        self._labels = None if labels is None else tuple(map(str, labels))

    def call(self, inputs, training=None, mask=None):
        inputs, mask = split_mask(inputs, mask)
        check_clip(inputs)
        features = self.backbone(tf.cast(inputs, self.compute_dtype), training=training)
        if self.regularizer is not None and "smoothed" in features:
            self.regularizer(features["smoothed"], training=training, mask=mask)
        logits = self.head(features["features"], mask=mask, training=training)
        if training:
            self.randomness.advance()
        return tf.cast(logits, tf.float32)

    def train_step(self, data):
        """One update; of the mean over `accumulate` micro-batches, see `compile_for_training`."""
        if self.accumulate == 1:
            return super().train_step(data)
        return accumulation.train_step(self, data, self.accumulate)

    def test_step(self, data):
        """Measures the smoothness of what it sees too: `val_grw_…` in `fit`'s history."""
        if self.regularizer is None:
            return super().test_step(data)
        self._clear_losses()  # of the last training step, as a call of the model would
        inputs, labels, weights = tf_keras.utils.unpack_x_y_sample_weight(data)
        clips, mask = split_mask(inputs)
        logits, z = self._logits_and_z(clips, mask)
        self.regularizer.update_metrics(*_with_whole_window(z, mask, self.spec.window))
        self.compute_loss(clips, labels, logits, weights)
        return self.compute_metrics(clips, labels, logits, weights)

    def answers(self, inputs) -> dict[str, tf.Tensor]:
        """For evaluation: "logits" [B, classes], and, where the model has a transformer head or is
        smoothed, "embeddings": Z [B, N, D], or what the loss smooths in the backbone.

        Args:
            inputs: clips, or a dictionary of "video" and "mask".
        """
        logits, z = self._logits_and_z(*split_mask(inputs))
        return {"logits": logits} if z is None else {"logits": logits, "embeddings": z}

    def _logits_and_z(self, clips, mask) -> tuple[tf.Tensor, tf.Tensor | None]:
        check_clip(clips)
        features = self.backbone(tf.cast(clips, self.compute_dtype), training=False)
        if self.spec.head == "transformer" and self.spec.placement != "intermediate":
            z = self.head.embed(features["features"])
            return tf.cast(self.head.classify(z, mask), tf.float32), z
        logits = self.head(features["features"], mask=mask, training=False)
        z = features.get("smoothed")
        return tf.cast(logits, tf.float32), None if z is None else pool_space(as_float(z))

    def embeddings(self, clips, training: bool = False) -> tf.Tensor:
        """Z of every frame, [B, N, D]: what GRW-smoothing acts on in the final placement.

        Raises:
            ValueError: the model has the official classifier, which has no Z.
        """
        self._require_transformer("embeddings")
        check_clip(clips)
        features = self.backbone(tf.cast(clips, self.compute_dtype), training=training)
        return self.head.embed(features["features"])

    def classify(self, embeddings, mask=None) -> tf.Tensor:
        """Logits [B, classes] of Z [B, N, D]."""
        self._require_transformer("classify")
        return tf.cast(self.head.classify(embeddings, mask), tf.float32)

    def _require_transformer(self, method: str) -> None:
        if self.spec.head != "transformer":
            raise ValueError(
                f"`{method}` needs a transformer head, as in '…_grw' and '…_attention'. "
                f"Received: {self.spec.name}"
            )

    def initial_states(self, batch_size: int = 1, resolution: int | None = None) -> States:
        """All-zero states, which start a stream of frames [batch_size, 1, H, W, 3].

        Args:
            batch_size: streams that run side by side.
            resolution: H = W in pixels; default: the spec's.

        Raises:
            ValueError: the model can't stream.
        """
        if not self.spec.streaming:
            raise ValueError(
                "Each frame's features depend on the whole clip, so this model can't run frame by "
                f"frame: use a '…_stream' or MobileNetV3 model. Received: {self.spec.name}"
            )
        if self.compute_dtype != "float32":
            raise ValueError(
                "Streams run in float32, for sums over long streams drift in less: save the model "
                "and load it without a mixed-precision policy. "
                f"Received: a model that computes in {self.compute_dtype}"
            )
        resolution = self.spec.resolution if resolution is None else resolution
        for name, value in (("batch_size", batch_size), ("resolution", resolution)):
            if type(value) is not int or value < 1:
                raise ValueError(f"`{name}` must be a positive integer. Received: {value!r}")
        states = self.backbone.initial_states(batch_size, resolution)
        return {**states, **self.head.initial_states(batch_size)}

    def step(self, frame, states: States) -> tuple[tf.Tensor, States]:
        """Logits [B, classes] after one more frame [B, 1, H, W, 3], and the states after it.

        After N ≤ `head_window` frames they are the clip graph's logits of those N frames. Later a
        bidirectional head answers for the last `head_window` embeddings, a causal one as the clip
        graph does to all frames so far. Two-sided TSM streams with
        shifts from the past alone (Lin et al., section 3.4), as its `"causal"` clip graph.
        """
        of_head = self.head.initial_states(1).keys()
        features, backbone = self.backbone.step(
            frame,
            {name: state for name, state in states.items() if name not in of_head},
        )
        logits, head = self.head.step(features, {name: states[name] for name in of_head})
        return tf.cast(logits, tf.float32), {**backbone, **head}

    def to_streaming(self, resolution: int | None = None) -> StreamSession:
        """A `StreamSession`: frames in, one at a time, probabilities out."""
        return StreamSession(self, resolution)

    def batch_norms(self) -> list[tf_keras.layers.BatchNormalization]:
        """The backbone's batch norms, in the order of its layers."""
        return [
            module
            for module in self.backbone.submodules
            if isinstance(module, tf_keras.layers.BatchNormalization)
        ]

    def set_batch_norm_frozen(self, frozen: bool) -> None:
        """Frozen: training neither changes the batch norms nor uses a batch's own statistics.

        Compile the model again after a change.
        """
        for layer in self.batch_norms():
            layer.trainable = not frozen
        self.spec = self.spec.replace({"frozen_batch_norm": frozen})

    def named_weights(self) -> dict[str, tf.Variable]:
        """The weights that make up the trained model, by name (`grw_keras.models.names`).

        The counters of training, `random_step` and the regulariser's, are not among them.
        """
        return {**self.backbone.named_weights(), **self.head.named_weights()}

    def compile_for_training(
        self, steps: int | None = None, *, accumulate: int = 1, **kwargs
    ) -> None:
        """Compiles with the paper's loss and learning rates, and top-1 and top-5 accuracy.

        Args:
            steps: of the whole training, for the cosine; None: constant learning rates.
            accumulate: micro-batches that a batch is cut into, which take turns in memory; the
                step is the whole batch's, but that batch norm sees each by itself.
            **kwargs: of `compile`, instead of or beside those.
        """
        if type(accumulate) is not int or accumulate < 1:
            raise ValueError(f"`accumulate` must be a positive integer. Received: {accumulate!r}")
        self.accumulate = accumulate
        metrics = [tf_keras.metrics.SparseCategoricalAccuracy(name="accuracy")]
        if self.spec.num_classes > 5:
            metrics.append(tf_keras.metrics.SparseTopKCategoricalAccuracy(5, name="top5"))
        defaults = {
            "loss": tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            "metrics": metrics,
        }
        if "optimizer" not in kwargs:
            defaults["optimizer"] = paper_optimizer(steps)
        self.compile(**{**defaults, **kwargs})

    def compile(self, optimizer="rmsprop", *args, **kwargs):
        """As of any tf_keras model; an optimiser of two rates is told which variables are the
        backbone's."""
        inner = unwrapped(optimizer)
        if isinstance(inner, TwoRates) and not inner.knows_backbone:
            inner.name_backbone(self.backbone.weights)
        if self.spec.frozen_batch_norm:  # setting `trainable` of a whole part would thaw them
            self.set_batch_norm_frozen(True)
        super().compile(optimizer, *args, **kwargs)

    def compile_from_config(self, config):
        # Keras asks whoever overrides `compile` for this too.
        self.compile(**tf_keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def get_config(self):
        return {"spec": self.spec.to_dict(), "labels": self.labels, "name": self.name}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        del custom_objects
        spec = ModelSpec.from_dict(config["spec"])
        return cls(spec, labels=config["labels"], name=config["name"])

    def save_pretrained(self, folder) -> None:
        """Writes weights, spec, labels and a card to a folder that `zoo.load` reads."""
        pretrained.save_pretrained(self, folder)


def loss_normalization(spec: ModelSpec) -> str | None:
    """What the smoothed embeddings go through before the loss: `normalization` of
    `GRWRegularizer`."""
    if spec.placement == "intermediate":
        return "batch"
    return {"z": None, "layer_norm": "layer"}[spec.loss_input]


def _regularizer(spec: ModelSpec) -> GRWRegularizer | None:
    if spec.placement == "none":
        return None
    return GRWRegularizer(
        window=spec.window,
        alpha=spec.alpha,
        weight=spec.grw_weight,
        orderings=spec.orderings,
        normalization=loss_normalization(spec),
        # Replicas count windows together: masks may leave them different numbers.
        synchronized=True,
        seed=spec.seed,
        name="grw",
    )


def _with_whole_window(z, mask, window: int) -> tuple[tf.Tensor, tf.Tensor]:
    """z [B, N, …] padded to `window` frames at least, and the mask of its own frames [B, N']."""
    frames = tf.shape(z)[1]
    lacking = tf.maximum(window - frames, 0)
    padding = [[0, 0], [0, lacking], *[[0, 0]] * (len(z.shape) - 2)]
    if mask is None:
        mask = tf.ones(tf.shape(z)[:2], tf.bool)
    return tf.pad(z, padding), tf.pad(tf.cast(mask, tf.bool), padding[:2])


def split_mask(inputs, mask=None):
    """Clips and their mask, of clips or of a dictionary of "video" and "mask".

    Raises:
        ValueError: a dictionary of other keys.
    """
    if not isinstance(inputs, Mapping):
        return inputs, mask
    if inputs.keys() != {"video", "mask"}:
        raise ValueError(
            "A dictionary of inputs must have the keys 'video' and 'mask'. "
            f"Received: {sorted(inputs)}"
        )
    return inputs["video"], inputs["mask"]


def check_clip(clip) -> None:
    """Raises where a batch of clips can't be one: TypeError, ValueError."""
    dtype = getattr(clip, "dtype", None)
    if dtype is None or not tf.as_dtype(dtype).is_floating:
        raise TypeError(
            "Clips must be float tensors with pixels in [0, 1]: divide uint8 pixels by 255. "
            f"Received: {dtype or type(clip).__name__}"
        )
    shape = tuple(clip.shape)
    if len(shape) != 5 or shape[-1] not in (3, None):
        raise ValueError(f"Clips must have shape [B, N, H, W, 3]. Received: {shape}")
    if None not in shape[2:4] and shape[2] != shape[3]:
        raise ValueError(f"Frames must be squares, H = W. Received: {shape}")
