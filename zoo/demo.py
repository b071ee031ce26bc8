"""Demo: what GRW-smoothing does, on Airplanes, from drawing the data to a stream on a page.

    python zoo/demo.py --out runs/demo

The warm-up example of the paper (section 3, figure 2) on data drawn anew: two equal models, a
MobileNetV3 per frame and one transformer layer over the frames, start from the same weights and see
the same clips in the same order; the second one's embeddings are smoothed. Then a streaming MoViNet
is trained on the same clips, exported to TFLite and run frame by frame. Writes report.html,
results.json, images/ and airplanes.tflite. Two runs with the same arguments start from the same
weights and see the same batches; their numbers still differ a little.

Shape letters: B clips, N frames of a clip, S pixels, D embedding width.
"""

import argparse
import dataclasses
import itertools
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import matplotlib
import numpy as np
import tensorflow as tf
import tf_keras
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from grw_keras import figures, page
from grw_keras.data import airplanes
from grw_keras.evaluation import metrics
from grw_keras.evaluation.evaluating import versions
from grw_keras.export import to_tflite
from grw_keras.lite import StreamSession
from grw_keras.models.classifier import VideoClassifier
from grw_keras.training.concluding import hardware
from grw_keras.trajectories import draw_trajectories
from grw_keras.zoo import registry

SIZE = 48
SMALL = {
    "resolution": SIZE,
    "frames": airplanes.FRAMES,
    "num_classes": len(airplanes.CLASSES),
    "embed_dim": 64,
    "head_depth": 1,  # section 3: a single transformer layer
    "head_heads": 4,
}
GRW_WEIGHT = 0.1  # λ of equation 7
RATE = 1e-3  # chosen by how the plain model learns: at 2e-3 it does so late
BATCH = 20
BN_MOMENTUM = 0.9  # the networks' own, 0.99 and more, are for trainings of many more steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lengths:
    """How much is done: clips and epochs."""

    train: int = 1000
    test: int = 100
    warm_up_epochs: int = 22
    stream_epochs: int = 6


@dataclasses.dataclass(frozen=True, eq=False)
class Clips:
    """Videos uint8 [B, N, S, S, 3] and labels [B]."""

    video: np.ndarray
    labels: np.ndarray

    def shown(self) -> tf.Tensor:
        """As models take them."""
        return tf.constant(self.video.astype(np.float32) / 255)


class Clock:
    """Tells what is going on, and how much time is left: the shares are of a whole run's time."""

    def __init__(self):
        self.start = time.perf_counter()

    def tell(self, done: float, text: str) -> None:
        spent = time.perf_counter() - self.start
        left = f"{spent * (1 - done) / done:4.0f} s left" if done > 0.01 else ""
        print(f"[{done:4.0%}] {text:<78} {left}", flush=True)


class Progress(tf_keras.callbacks.Callback):
    """A line for each epoch."""

    def __init__(self, clock: Clock, name: str, span: tuple[float, float]):
        super().__init__()
        self.clock, self.name, self.span = clock, name, span

    def on_epoch_end(self, epoch, logs=None):
        done, epochs = epoch + 1, self.params["epochs"]
        begin, end = self.span
        accuracies = f"accuracy {logs['accuracy']:4.0%} train {logs['val_accuracy']:4.0%} test"
        text = f"{self.name}: epoch {done}/{epochs}, loss {logs['loss']:.2f}, {accuracies}"
        self.clock.tell(begin + (end - begin) * done / epochs, text)


def train(model, clips: Clips, test: Clips, epochs: int, seed: int, progress) -> list[float]:
    """Trains a model from its first weights; test accuracy after each epoch."""
    for layer in model.batch_norms():
        layer.momentum = BN_MOMENTUM
    steps = len(clips.labels) // BATCH
    rate = tf_keras.optimizers.schedules.CosineDecay(
        0.0, steps * epochs, warmup_target=RATE, warmup_steps=steps
    )
    model.compile(
        tf_keras.optimizers.Adam(rate, global_clipnorm=1.0),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    history = model.fit(
        batches(clips, seed),
        steps_per_epoch=steps,
        epochs=epochs,
        validation_data=(test.shown(), test.labels),
        validation_batch_size=50,
        verbose=0,
        callbacks=[progress],
    )
    return history.history["val_accuracy"]


def batches(clips: Clips, seed: int) -> tf.data.Dataset:
    """Batches without end, each clip turned by quarters, mirrored and played backwards or not: its
    class stays."""
    steps = len(clips.labels) // BATCH

    def steps_without_end():
        for step in itertools.count():
            epoch, place = divmod(step, steps)
            order = np.random.default_rng([seed, epoch]).permutation(len(clips.labels))
            chosen = order[place * BATCH : (place + 1) * BATCH]
            draws = np.random.default_rng([seed, epoch, place]).integers((4, 2, 2), size=(BATCH, 3))
            video = np.stack(
                [varied(clips.video[i], *d) for i, d in zip(chosen, draws, strict=True)]
            )
            yield video.astype(np.float32) / 255, clips.labels[chosen]

    shape = (BATCH, *clips.video.shape[1:])
    signature = (tf.TensorSpec(shape, tf.float32), tf.TensorSpec([BATCH], tf.int64))
    return tf.data.Dataset.from_generator(steps_without_end, output_signature=signature).prefetch(1)


def varied(clip: np.ndarray, quarters: int, mirrored: int, backwards: int) -> np.ndarray:
    """A clip [N, S, S, 3] turned, mirrored, played backwards."""
    clip = np.rot90(clip, quarters, axes=(1, 2))
    clip = clip[:, :, ::-1] if mirrored else clip
    return clip[::-1] if backwards else clip


@dataclasses.dataclass(frozen=True, eq=False)
class WarmUp:
    """A warm-up model after training.

    Args:
        accuracies: on the test clips, after each epoch.
        z: embeddings of the test clips [B, N, D].
    """

    accuracies: Sequence[float]
    z: np.ndarray

    def numbers(self) -> dict[str, float]:
        moves = metrics.smoothness(self.z)
        _, _, variance = metrics.principal_components(self.z)
        return {
            "accuracy": self.accuracies[-1],
            "acceleration_over_speed": moves.acceleration / moves.speed,
            "variance_in_two_components": float(variance.sum()),
        }


def warm_up(weight: float, clips: Clips, test: Clips, epochs: int, seed: int, progress) -> WarmUp:
    """Trains the warm-up model with GRW-smoothing of a weight, λ; 0: without."""
    tf_keras.utils.set_random_seed(seed)
    name = "mobilenet_v3_small_grw" if weight else "mobilenet_v3_small_attention"
    spec = registry.get(name).replace({**SMALL, "pair_input": False, "grw_weight": weight})
    model = VideoClassifier(spec, labels=airplanes.CLASSES)
    accuracies = train(model, clips, test, epochs, seed, progress)
    z = np.concatenate([model.embeddings(part).numpy() for part in tf.split(test.shown(), 2)])
    return WarmUp(accuracies, z)


def figure_two(runs: Mapping[str, WarmUp], labels: np.ndarray) -> Figure:
    """Paths of both models' embeddings side by side, after figure 2 of the paper. Embeddings have
    no unit: each model's are divided by their standard deviation, then both have one scale."""
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(10.6, 5.6), layout="constrained")
        panels = figure.subplots(1, len(runs))
        for axes, (name, run) in zip(panels, runs.items(), strict=True):
            centred = run.z - run.z.mean((0, 1))
            deviation = np.sqrt(np.square(centred).sum(-1).mean())
            draw_trajectories(axes, centred / deviation, labels, airplanes.CLASSES, shown=2)
            axes.set_title(name)
        ends = [abs(end) for axes in panels for end in (*axes.get_xlim(), *axes.get_ylim())]
        for axes in panels:
            axes.set_aspect("equal", adjustable="box")
            axes.set(xlim=(-max(ends), max(ends)), ylim=(-max(ends), max(ends)))
    return figure


def accuracy_curves(runs: Mapping[str, WarmUp]) -> Figure:
    """Test accuracy over the epochs."""
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(5.6, 3.5), layout="constrained")
        axes = figure.subplots()
        for color, (name, run) in zip(("#777777", figures.PALETTE[1]), runs.items(), strict=True):
            epochs = range(1, len(run.accuracies) + 1)
            axes.plot(epochs, run.accuracies, "o-", ms=3, color=color, label=name)
        axes.axhline(1 / len(airplanes.CLASSES), ls=":", color="#777777", label="chance")
        axes.set(xlabel="epoch", ylabel="accuracy on the test clips", ylim=(0, 1.03))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.legend(loc="lower right")
    return figure


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Streamed:
    """A TFLite file over the test clips, frame by frame.

    Args:
        logits: [B, N, classes].
        keras: the model's own, of whole clips [B, classes].
        latency_ms: of each frame.
        size_bytes: of the file.
    """

    logits: np.ndarray
    keras: np.ndarray
    latency_ms: np.ndarray
    size_bytes: int

    def by_frames(self, labels: np.ndarray) -> list[tuple[int, float]]:
        """(frames seen, accuracy)."""
        right = (self.logits.argmax(-1) == labels[:, None]).mean(0)
        return [(frames, float(share)) for frames, share in enumerate(right, 1)]

    def numbers(self, labels: np.ndarray) -> dict[str, float]:
        difference = np.abs(self.logits[:, -1] - self.keras).max() / np.ptp(self.keras)
        return {
            "accuracy": self.by_frames(labels)[-1][1],
            "keras_accuracy": float((self.keras.argmax(-1) == labels).mean()),
            "largest_difference_of_range": float(difference),
            "size_bytes": self.size_bytes,
        }


def stream(out: Path, clips: Clips, test: Clips, epochs: int, seed: int, clock, span) -> Streamed:
    """Trains movinet_a0_stream_grw, exports it, and runs the file."""
    tf_keras.utils.set_random_seed(seed)
    spec = registry.get("movinet_a0_stream_grw").replace(SMALL)
    model = VideoClassifier(spec, labels=airplanes.CLASSES)
    begin, end = span
    trained = begin + 0.9 * (end - begin)
    train(model, clips, test, epochs, seed, Progress(clock, spec.name, (begin, trained)))
    clock.tell(trained, "Exporting to TFLite, and comparing the file with the model")
    file = to_tflite(model, out / "airplanes.tflite", calibration=test.video[:6]).path
    clock.tell((trained + end) / 2, "Streaming the test clips through the file")
    session, logits, latency_ms = StreamSession(file), [], []
    for video in test.video:
        session.reset()
        for frame in video:
            start = time.perf_counter()
            session.step(frame)
            latency_ms.append(1e3 * (time.perf_counter() - start))
            logits.append(session.logits)
    return Streamed(
        logits=np.reshape(logits, (*test.video.shape[:2], -1)),
        keras=np.concatenate([model(part).numpy() for part in tf.split(test.shown(), 2)]),
        latency_ms=np.array(latency_ms),
        size_bytes=file.stat().st_size,
    )


def parts(out: Path, runs: Mapping[str, WarmUp], streamed: Streamed, test: Clips, facts):
    """The page from top to bottom."""
    pictures = page.Pictures(out / "images")
    plain, smoothed = (run.numbers() for run in runs.values())
    ratio = smoothed["acceleration_over_speed"] / plain["acceleration_over_speed"]
    yield "<h1>What GRW-smoothing does: Airplanes</h1>"
    yield (
        "<p>Model airplanes yaw, pitch or roll from a random pose. No single frame tells which: "
        "only how the frames follow each other does. Two equal models learn to tell, a MobileNetV3 "
        "on every frame and one transformer layer over the frames; in the second one GRW-smoothing "
        "keeps the accelerations of the frames' embeddings low.</p>"
    )
    yield page.tiles(
        {
            "accuracy without GRW": f"{plain['accuracy']:.0%}",
            "accuracy with GRW": f"{smoothed['accuracy']:.0%}",
            "acceleration over speed, of the plain model's": f"{ratio:.2f}×",
            "accuracy of the TFLite stream": f"{streamed.by_frames(test.labels)[-1][1]:.0%}",
            "a frame on this machine": f"{np.median(streamed.latency_ms):.2f} ms",
        }
    )
    strips = "".join(
        f"<div>{name}</div>{pictures.strip(test.video[label], f'an airplane: {name}')}"
        for label, name in enumerate(airplanes.CLASSES)
    )
    yield page.section("The clips", f'<div class="card clip">{strips}</div>')
    drawn = pictures.figure("figure2", figure_two(runs, test.labels), "paths of embeddings")
    told = (
        "After the paper's figure 2. Each point is a frame of a test clip, in the plane of the "
        "first two principal components of all test embeddings; numbers count frames. Drawn are "
        "clips that move like the median clip. Embeddings are divided by their standard deviation, "
        "so that both panels have one scale."
    )
    yield page.section("How embeddings move", f'<p class="quiet">{told}</p>{drawn}')
    heading = ["on the test clips", *runs]
    rows = [
        ["accuracy", *(f"{n['accuracy']:.1%}" for n in (plain, smoothed))],
        [
            "mean acceleration over mean speed",
            *(f"{n['acceleration_over_speed']:.3f}" for n in (plain, smoothed)),
        ],
        [
            "variance in two components",
            *(f"{n['variance_in_two_components']:.1%}" for n in (plain, smoothed)),
        ],
    ]
    yield page.table(heading, rows)
    by_frames = figures.accuracy_over_frames(
        streamed.by_frames(test.labels), airplanes.FPS, 1 / len(airplanes.CLASSES)
    )
    curves = pictures.figure("accuracy", accuracy_curves(runs), "accuracy over epochs")
    frames = pictures.figure("stream", by_frames, "accuracy of the stream over frames seen")
    numbers = streamed.numbers(test.labels)
    yield page.section("Training", curves)
    p90_ms = np.percentile(streamed.latency_ms, 90)
    told = page.facts(
        {
            "model": f"movinet_a0_stream_grw at {SIZE} px, trained on the same clips",
            "file": f"airplanes.tflite, {streamed.size_bytes / 1e6:.1f} MB, float32, built-in "
            "operations alone",
            "accuracy": f"{numbers['accuracy']:.1%}; the Keras model's on whole clips: "
            f"{numbers['keras_accuracy']:.1%}",
            "largest difference of a logit": f"{numbers['largest_difference_of_range']:.1e} of the "
            "logits' range, after a clip's last frame",
            "time of a frame": f"{np.median(streamed.latency_ms):.2f} ms, 90 of 100 within "
            f"{p90_ms:.2f} ms: resize, model, softmax; one thread of this machine",
        }
    )
    yield page.section("As a stream", f'<div class="card">{told}</div>{frames}')
    yield page.section("How it was made", f'<div class="card">{page.facts(facts)}</div>')


def facts_of(options: argparse.Namespace, lengths: Lengths, seconds: float) -> dict[str, str]:
    command = shlex.join(["python", *sys.argv])
    told = {
        "data": f"{lengths.train} training and {lengths.test} test clips of {airplanes.FRAMES} "
        f"frames, {SIZE} px, seed {options.seed}; training clips are turned by quarters, mirrored "
        "and played backwards at random",
        "first weights": "random in all models: the paper's warm-up model starts from ImageNet, "
        "and published MoViNet weights are a download, which this demo does without",
        "training": f"Adam, {RATE:g} at most, cosine; {lengths.warm_up_epochs} epochs; T = 5, "
        f"α = 0.5, λ = {GRW_WEIGHT:g} (0 without GRW); movinet: {lengths.stream_epochs} epochs",
        "time": f"{seconds / 60:.1f} min",
        "hardware": hardware(),
        "versions": ", ".join(f"{name} {text}" for name, text in versions().items()),
    }
    return {"command": f"<code>{page.escaped(command)}</code>"} | {
        name: page.escaped(text) for name, text in told.items()
    }


def at_least(minimum: int):
    """An argparse type: an integer of at least `minimum`."""

    def integer(text: str) -> int:
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}. Received: {value}")
        return value

    return integer


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Runs the demo; the numbers that it found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder to write to")
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument("--train-clips", type=at_least(BATCH), default=Lengths.train)
    parser.add_argument("--test-clips", type=at_least(6), default=Lengths.test)
    parser.add_argument("--epochs", type=at_least(1), help="of all models")
    options = parser.parse_args(arguments)
    lengths = Lengths(train=options.train_clips, test=options.test_clips)
    if options.epochs:
        lengths = dataclasses.replace(
            lengths, warm_up_epochs=options.epochs, stream_epochs=options.epochs
        )
    tf.config.experimental.enable_op_determinism()
    clock = Clock()
    clock.tell(0.0, f"Drawing {lengths.train} training and {lengths.test} test clips")
    clips, test = (
        Clips(*airplanes.make(split, size=SIZE, seed=options.seed, count=count))
        for split, count in (("train", lengths.train), ("test", lengths.test))
    )
    runs = {}
    spans = {"without GRW": (0.02, 0.31), "with GRW": (0.31, 0.60)}
    for (name, span), weight in zip(spans.items(), (0.0, GRW_WEIGHT), strict=True):
        progress = Progress(clock, name, span)
        runs[name] = warm_up(weight, clips, test, lengths.warm_up_epochs, options.seed, progress)
    options.out.mkdir(parents=True, exist_ok=True)
    streamed = stream(
        options.out, clips, test, lengths.stream_epochs, options.seed, clock, (0.60, 1.0)
    )
    found = {name: run.numbers() for name, run in runs.items()}
    found["stream"] = streamed.numbers(test.labels)
    (options.out / "results.json").write_text(json.dumps(found, indent=2) + "\n")
    facts = facts_of(options, lengths, time.perf_counter() - clock.start)
    body = parts(options.out, runs, streamed, test, facts)
    report = page.write(options.out / "report.html", "GRW-smoothing on Airplanes", body)
    print(json.dumps(found, indent=2))
    print(f"Open {report}")
    return found


if __name__ == "__main__":
    main()
