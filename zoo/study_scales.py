"""Why GRW-smoothing does what it does in the study: both losses and their pulls as it trains.

    python zoo/study_scales.py --data ut_interaction --weights movinet_a0_stream_k600_int8.tflite

The study's final GRW, tuned as it was, on set1 with several λ. Before the first step, and then some
times, all training clips are gone through as in evaluation: both losses, how strongly each pulls at
Z, and how Z moves. Rows go to zoo/results/study_scales.csv, after each run; runs that have rows are
not done again.
"""

import argparse
import dataclasses
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import study
import tensorflow as tf
import tf_keras

from grw_keras import csv_table
from grw_keras.data.pipeline import evaluation_batches
from grw_keras.data.stores import FrameStore
from grw_keras.evaluation import metrics
from grw_keras.evaluation.evaluating import sampling_of
from grw_keras.models.classifier import VideoClassifier

CSV = study.CSV.with_name("study_scales.csv")
WEIGHTS = (0.0, 0.03, 0.1, 0.3, 1.0)  # λ
STEPS = (0, 15, 50, 100, 150)
BATCH = 4


class Scales(tf_keras.callbacks.Callback):
    """Measures before the first step and after those of `STEPS`; a row each."""

    def __init__(self, model: VideoClassifier, store: FrameStore):
        super().__init__()
        self.measured, self.store = model, store
        self.rows: list[dict[str, str]] = []
        self._parts = tf.function(lambda clips, labels: parts(model, clips, labels))

    def on_train_begin(self, logs=None):
        self.measure(0)

    def on_train_batch_end(self, batch, logs=None):
        if batch + 1 in STEPS:
            self.measure(batch + 1)

    def measure(self, step: int) -> None:
        sampling = sampling_of(self.measured.spec)
        found = [
            [part.numpy() for part in self._parts(clips, labels)]
            for clips, labels in evaluation_batches(self.store, sampling, BATCH, processes=0)
        ]
        z, *numbers = (np.concatenate(part) for part in zip(*found, strict=True))
        names = (
            "cross_entropy",
            "ordering",
            "speed",
            "pull_cross_entropy",
            "pull_grw",
            "shrinking",
        )
        row = dict(zip(names, (values.mean() for values in numbers), strict=True))
        moves = metrics.smoothness(z)
        row |= {
            "rms_z": np.sqrt(np.mean(z**2)),
            "mean_speed": moves.speed,
            "acceleration_over_speed": moves.ratio,
        }
        self.rows.append({"step": str(step)} | {k: f"{v:.5g}" for k, v in row.items()})


def parts(model: VideoClassifier, clips, labels) -> tuple[tf.Tensor, ...]:
    """Of each clip: Z [B, N, D]; then, [B] each, cross-entropy, ordering and speed term, the norms
    of the gradients by Z of the cross-entropy and of L_smooth, and the share of the latter's square
    that only shrinks Z to its mean over the clip's frames."""
    z = model.embeddings(clips)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(z)
        logits = model.classify(z)
        entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.reshape(labels, [-1]), logits)
        terms = model.regularizer.terms(z)
        smooth = terms.ordering + model.spec.alpha * terms.speed
        smooth = tf.reduce_mean(smooth, axis=1)
    of_entropy, of_smooth = (_flat(tape.gradient(loss, z)) for loss in (entropy, smooth))
    centred = _flat(z - tf.reduce_mean(z, axis=1, keepdims=True))
    along = tf.reduce_sum(of_smooth * centred, axis=1) / tf.norm(centred, axis=1)
    shrinking = tf.square(tf.maximum(along, 0.0)) / tf.reduce_sum(tf.square(of_smooth), axis=1)
    means = (tf.reduce_mean(terms.ordering, axis=1), tf.reduce_mean(terms.speed, axis=1))
    pulls = (tf.norm(of_entropy, axis=1), tf.norm(of_smooth, axis=1))
    return (z, entropy, *means, *pulls, shrinking)


def _flat(x) -> tf.Tensor:
    return tf.reshape(x, [tf.shape(x)[0], -1])


def carry_out(run: study.Run, data: Path, weights: Path) -> list[dict[str, str]]:
    """The rows of one run, in a process of its own."""
    callbacks: list[Scales] = []

    def watch(model, store):
        callbacks.append(Scales(model, store))
        return callbacks[0]

    tested = study.carry_out(run, data, weights, watch)
    known = {"fold": run.fold, "rate": f"{run.rate:g}", "weight": f"{run.weight:g}"}
    return [known | row | {"test_top1": tested["top1"]} for row in callbacks[0].rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="as of study.py")
    parser.add_argument("--weights", type=Path, required=True, help="as of study.py")
    options = parser.parse_args()
    tuned = study.tuned("final GRW", "set1", csv_table.read(study.CSV))
    if tuned is None:
        parser.error("tune final GRW first: python zoo/study.py")
    done = {row["weight"] for row in csv_table.read(CSV)}
    runs = [
        dataclasses.replace(tuned, part="scales", weight=weight)
        for weight in WEIGHTS
        if f"{weight:g}" not in done
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context, max_tasks_per_child=1) as pool:
        futures = [pool.submit(carry_out, run, options.data, options.weights) for run in runs]
        for future in futures:
            study.append(CSV, future.result())


if __name__ == "__main__":
    main()
