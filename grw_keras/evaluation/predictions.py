"""What a model answers to every clip of a store: logits, embeddings, and logits as frames come."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from grw_keras.data.pipeline import OnBad, numbered_batches
from grw_keras.data.samples import Sampling
from grw_keras.data.stores import FrameStore
from grw_keras.models.classifier import VideoClassifier, split_mask

# Clips whose embeddings are kept at most: of A3's 120 frames they take 0.7 GB.
MAX_EMBEDDED = 2048


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictions:
    """Answers to n clips, in the store's order; those whose video turned out bad are left out.

    Attributes:
        logits: [n, classes], float32.
        labels: [n], the true classes.
        mask: [n, N] bool, the frames that are no padding.
        numbers: [n], the clips' numbers in the store.
        embeddings: Z [m, N, D] of the clips `embedded`, or None where the model has none.
        embedded: [m] integers below n: all clips, or, of more than `MAX_EMBEDDED`, evenly spread
            ones.
        by_frames: [len(frames_seen), n, classes]: logits after that many frames, or None.
        frames_seen: what they are after.
    """

    logits: np.ndarray
    labels: np.ndarray
    mask: np.ndarray
    numbers: np.ndarray
    embedded: np.ndarray
    embeddings: np.ndarray | None = None
    by_frames: np.ndarray | None = None
    frames_seen: tuple[int, ...] = ()


class Predictor:
    """Runs a model over the centre clip of each video; traced once for stores of one clip size.

    Args:
        model: any of the zoo.
        frames_seen: after how many frames to ask a streaming model too, each at least 1. A clip
            that ends before has its last answer.

    Raises:
        ValueError: `frames_seen` of a model that can't stream, or below 1.
    """

    def __init__(self, model: VideoClassifier, frames_seen: Sequence[int] = ()):
        if frames_seen and not model.spec.streaming:
            raise ValueError(
                "`frames_seen` needs a model that takes frame after frame. "
                f"Received: {model.spec.name}"
            )
        if any(number < 1 for number in frames_seen):
            raise ValueError(f"`frames_seen` must be >= 1. Received: {tuple(frames_seen)}")
        self.model = model
        self.frames_seen = tuple(frames_seen)
        self._ask = tf.function(self._answers)

    def predict(
        self,
        store: FrameStore,
        sampling: Sampling,
        batch_size: int,
        *,
        processes: int | None = None,
        on_bad: OnBad | None = None,
    ) -> Predictions:
        """The model's answers.

        Under the strategy that the model was made with each replica takes its part of every
        batch; all workers return the same.

        Args:
            store: the clips.
            sampling: with `training=False`.
            batch_size: clips at once, over all replicas.
            processes: that decode, as of `evaluation_batches`.
            on_bad: called with the error of each video that turned out bad.

        Raises:
            ValueError: `frames_seen` beyond a clip's frames; a store without clips; as of
                `evaluation_batches`.
            TooManyBadVideosError: not one video is good.
        """
        if any(number > sampling.frames for number in self.frames_seen):
            raise ValueError(
                f"`frames_seen` must be at most a clip's {sampling.frames} frames. "
                f"Received: {self.frames_seen}"
            )
        strategy = self.model.distribute_strategy

        def batches(context):
            return numbered_batches(
                store,
                sampling,
                batch_size,
                worker=context.input_pipeline_id,
                workers=context.num_input_pipelines,
                replicas=context.num_replicas_in_sync // context.num_input_pipelines,
                processes=processes,
                on_bad=on_bad,
            )

        parts: list[dict[str, np.ndarray]] = []
        stride = -(-len(store.clips) // MAX_EMBEDDED)
        for batch in strategy.distribute_datasets_from_function(batches):
            answers = strategy.run(self._ask, args=(batch,))
            found = {k: strategy.gather(v, axis=0).numpy() for k, v in answers.items()}
            parts.append(_counted(found, stride))
        whole = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        by_frames = whole.get("by_frames")
        return Predictions(
            logits=whole["logits"],
            labels=whole["labels"],
            mask=whole["mask"].astype(bool),
            numbers=whole["numbers"],
            embeddings=whole.get("embeddings"),
            embedded=np.flatnonzero(whole["numbers"] % stride == 0),
            by_frames=None if by_frames is None else np.moveaxis(by_frames, 1, 0),
            frames_seen=self.frames_seen,
        )

    def _answers(self, batch) -> dict[str, tf.Tensor]:
        """Of one replica's batch, each with the clips on the first axis."""
        model = self.model
        inputs, labels, numbers = batch
        video, mask = split_mask(inputs)
        if mask is None:
            mask = tf.ones(tf.shape(video)[:2], tf.bool)
        answers = {**model.answers(inputs), "labels": labels, "numbers": numbers}
        answers["mask"] = tf.cast(mask, tf.int32)  # workers can't gather booleans
        if self.frames_seen:
            of_the_head = "embeddings" in answers and model.spec.placement != "intermediate"
            looks_ahead = model.spec.temporal_shift == "bidirectional"
            if of_the_head and not looks_ahead:
                seen = _by_embeddings(model, answers["embeddings"], mask, self.frames_seen)
            else:
                seen = _by_steps(model, video, mask, self.frames_seen)
            answers["by_frames"] = tf.stack(seen, axis=1)
        return answers


def _counted(found: dict[str, np.ndarray], stride: int) -> dict[str, np.ndarray]:
    """A batch without the clips that don't count; embeddings of every `stride`-th clip alone."""
    numbers = found["numbers"]
    counts = numbers >= 0
    kept = {key: value[counts] for key, value in found.items() if key != "embeddings"}
    if "embeddings" in found:
        kept["embeddings"] = found["embeddings"][counts & (numbers % stride == 0)]
    return kept


def _by_embeddings(model, z, mask, frames_seen) -> list[tf.Tensor]:
    """Causal embeddings don't change as frames come: the head alone is asked again.

    A bidirectional head over the last frames of its window that are no padding; a causal one over
    all frames so far, for its later layers know, by its earlier ones, of more than one window.
    """
    if model.spec.head_attention == "causal":
        return [model.classify(z[:, :seen], mask[:, :seen]) for seen in frames_seen]
    length = tf.reduce_sum(tf.cast(mask, tf.int32), axis=1)
    answers = []
    for seen in frames_seen:
        window = min(model.spec.head_window, seen)
        end = tf.minimum(length, seen)[:, None]
        places = tf.maximum(end - window, 0) + tf.range(window)
        answers.append(model.classify(tf.gather(z, places, batch_dims=1), places < end))
    return answers


def _by_steps(model, video, mask, frames_seen) -> list[tf.Tensor]:
    """Frame by frame; a clip that has ended keeps its last answer."""
    batch, frames, resolution = video.shape[:3]
    states = model.initial_states(batch, resolution)
    logits = tf.zeros([batch, model.spec.num_classes])
    answers = tf.TensorArray(tf.float32, size=frames)

    def step(n, states, logits, answers):
        new, after = model.step(video[:, n : n + 1], states)
        # The official blocks lose the batch size, which a loop's variables must keep.
        states = {name: tf.ensure_shape(after[name], states[name].shape) for name in states}
        logits = tf.where(mask[:, n, None], new, logits)
        return n + 1, states, logits, answers.write(n, logits)

    *_, answers = tf.while_loop(
        lambda n, *_: n < frames, step, (0, states, logits, answers), parallel_iterations=1
    )
    answers = answers.stack()
    return [answers[min(n, frames) - 1] for n in frames_seen]
