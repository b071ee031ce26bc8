"""The demo's page, with the picture of the paper's figure 2."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from demo_training import GRW_WEIGHT, SIZE, Clips, Streamed, WarmUp
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from grw_keras import figures, page
from grw_keras.data import airplanes
from grw_keras.trajectories import draw_trajectories

Numbers = Mapping[str, float]


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


def parts(
    out: Path,
    runs: Mapping[str, WarmUp],
    streamed: Streamed,
    test: Clips,
    facts: Mapping[str, str],
    stream_epochs: int,
) -> Iterator[str]:
    """The page from top to bottom."""
    pictures = page.Pictures(out / "images")
    plain, smoothed = (run.numbers() for run in runs.values())
    yield "<h1>What GRW-smoothing does: Airplanes</h1>"
    yield (
        "<p>Model airplanes yaw, pitch or roll from a random pose. No single frame tells which: "
        "only how the frames follow each other does. Two equal models learn to tell, a MobileNetV3 "
        "on every frame and one transformer layer over the frames; in the second one GRW-smoothing "
        "keeps the accelerations of the frames' embeddings low. Its weight λ is chosen for a path "
        f"that is clearly smoother, {GRW_WEIGHT:g}; the default is the paper's, which saw accuracy "
        "drop at 1 on other data.</p>"
    )
    yield tiles(plain, smoothed, streamed)
    yield page.section("The clips", example_clips(test, pictures))
    drawn = pictures.figure("figure2", figure_two(runs, test.labels), "paths of embeddings")
    yield page.section("How embeddings move", figure_with_reading(drawn))
    yield comparison(tuple(runs), plain, smoothed)
    curves = pictures.figure("accuracy", accuracy_curves(runs), "accuracy over epochs")
    yield page.section("Training", curves)
    yield page.section("As a stream", stream(streamed, test.labels, pictures, stream_epochs))
    yield page.section("How it was made", f'<div class="card">{page.facts(facts)}</div>')


def tiles(plain: Numbers, smoothed: Numbers, streamed: Streamed) -> str:
    """The numbers that count."""
    moves = [f"{n['acceleration_over_speed']:.2f}" for n in (smoothed, plain)]
    return page.tiles(
        {
            "accuracy with GRW": f"{smoothed['accuracy']:.0%}",
            "accuracy without GRW": f"{plain['accuracy']:.0%}",
            "acceleration over speed with GRW, and without": " / ".join(moves),
            "size of the TFLite stream": f"{streamed.size_bytes / 1e6:.1f} MB",
            "a frame of it on this machine": f"{np.median(streamed.latency_ms):.2f} ms",
        }
    )


def example_clips(test: Clips, pictures: page.Pictures) -> str:
    """Frames of one clip of each class."""
    strips = "".join(
        f"<div>{name}</div>{pictures.strip(test.video[label], f'an airplane: {name}')}"
        for label, name in enumerate(airplanes.CLASSES)
    )
    told = (
        f"A test clip of each class: {page.STRIP_FRAMES} of its {airplanes.FRAMES} frames, "
        f"{SIZE} pixels wide as the models see them."
    )
    return f'<p class="quiet">{told}</p><div class="card clip">{strips}</div>'


def figure_with_reading(drawn: str) -> str:
    """Figure 2 between what it is and how it is read."""
    told = (
        "After the paper's figure 2. Each point is a frame of a test clip, in the plane of the "
        "first two principal components of all test embeddings; numbers count frames. Drawn are "
        "two clips of each class, those that move most like the median clip. Embeddings are "
        "divided by their standard deviation, so that both panels have one scale."
    )
    reading = (
        "How to read it: follow one path by its numbers. A smooth one walks on, each step about "
        "as the step before; one that is not smooth leaps to and fro between frames that follow "
        "each other. The outline of the grey cloud, all other frames, says nothing of that: a "
        "narrow one only means that the model uses few directions. The first row below measures "
        "what the eye follows, over all test clips and all directions: the mean change of a step "
        "over the mean length of a step. The last row says how much of the embeddings' variance "
        "the plane shows."
    )
    return f'<p class="quiet">{told}</p>{drawn}<p>{reading}</p>'


def comparison(names: Sequence[str], plain: Numbers, smoothed: Numbers) -> str:
    """The numbers beside figure 2."""
    shown = {
        "mean acceleration over mean speed": ("acceleration_over_speed", ".3f"),
        "accuracy": ("accuracy", ".1%"),
        "share of variance in the plane of the figure": ("variance_in_two_components", ".1%"),
    }
    rows = [
        [title, *(format(numbers[key], form) for numbers in (plain, smoothed))]
        for title, (key, form) in shown.items()
    ]
    return page.table(["on the test clips", *names], rows)


def stream(streamed: Streamed, labels: np.ndarray, pictures: page.Pictures, epochs: int) -> str:
    """What the TFLite file is and answers."""
    why = (
        "The way from a model to a phone, at a small size: movinet_a0_stream_grw, from random "
        f"weights, trained for only {epochs} epochs so that this page is soon there. Its "
        "accuracy is that of a short training; what counts here is that the file answers frame by "
        "frame as the model does on whole clips."
    )
    numbers = streamed.numbers(labels)
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
    by_frames = figures.accuracy_over_frames(
        streamed.by_frames(labels), airplanes.FPS, 1 / len(airplanes.CLASSES)
    )
    frames = pictures.figure("stream", by_frames, "accuracy of the stream over frames seen")
    return f'<p>{why}</p><div class="card">{told}</div>{frames}'
