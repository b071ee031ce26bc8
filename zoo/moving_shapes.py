"""Demo: one small video model trained without and with GRW-smoothing, on motion alone.

    python zoo/moving_shapes.py --out runs/demo

After the warm-up example of the paper (section 3, figure 2): the classes differ only in how a
shape moves, so no single frame tells them apart. Two equal models, a CNN per frame and one
transformer layer over the frames, start from the same weights and see the same clips in the
same order; the second one's embeddings are smoothed. Writes moving_shapes.png and .json.
Two runs with the same arguments give the same numbers.

Shape letters: B clips, N frames of a clip, D embedding width, H W pixels.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import PercentFormatter

from grw_keras import GRWRegularizer

CLASSES = ("clockwise", "anticlockwise", "in and out")
SPIN, SWELL = np.array([1, -1, 0]), np.array([0, 0, 1])  # what moves in which class
MODELS = {"without GRW": 0.0, "with GRW": 0.1}  # λ of equation 7; the paper's is 0.1
WINDOW, ALPHA = 5, 0.5  # the paper's T and α
N, SIZE, D, WIDTH = 10, 24, 32, 64
TEST_CLIPS, BATCH = 600, 16
LEARNING_RATE = 2e-3  # fits all training clips, with and without GRW
CLASS_COLORS = ("#0072B2", "#D55E00", "#009E73")  # Okabe and Ito: safe for the colour-blind
MODEL_COLORS = ("#7F7F7F", "#000000")
SHOWN = 2  # clips of each class in the panels of embeddings


def make_paths(labels, rng):
    """Positions [B, N, 2] of the shapes, x right and y down, in pixels from the centre.

    The angle, and the phase of the distance from the centre, start uniform on the circle. A
    class adds ωt to one of them, and a uniform angle plus anything is uniform: in each single
    frame all classes have the same distribution of positions. Only their change tells.
    """
    angle, phase = rng.uniform(0, 2 * np.pi, (2, len(labels), 1))
    turned = 2 * np.pi / rng.uniform(10, 20, (len(labels), 1)) * np.arange(N)
    angle = angle + SPIN[labels, None] * turned
    distance = 5.5 + 3.0 * np.sin(phase + SWELL[labels, None] * turned)
    return distance[..., None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def signed_distance(kind, x, y, radius):
    """Distance to the edge of a disc, square, triangle or cross of circumradius `radius`."""
    disc = np.hypot(x, y) - radius
    square = np.maximum(abs(x), abs(y)) - radius * np.sqrt(0.5)
    triangle = np.maximum(-y, np.sqrt(0.75) * abs(x) + 0.5 * y) - 0.5 * radius
    long, short = radius * np.sqrt(0.9), radius * np.sqrt(0.1)
    bar = np.maximum(abs(x) - long, abs(y) - short)
    cross = np.minimum(bar, np.maximum(abs(y) - long, abs(x) - short))
    return np.choose(kind, [disc, square, triangle, cross])


def make_clips(count, rng):
    """`count` clips [B, N, H, W, 1] in [0, 1] and their labels [B], as many of each class."""
    labels = np.arange(count) % len(CLASSES)

    def draw(low, high):
        return rng.uniform(low, high, (count, 1, 1, 1)).astype(np.float32)

    centre = make_paths(labels, rng)[..., None, None, :].astype(np.float32)
    pixels = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
    x, y = pixels - centre[..., 0], pixels[:, None] - centre[..., 1]
    tilt = draw(0, 2 * np.pi)
    x, y = np.cos(tilt) * x - np.sin(tilt) * y, np.sin(tilt) * x + np.cos(tilt) * y
    kind = rng.integers(4, size=(count, 1, 1, 1))
    inside = np.clip(0.5 - signed_distance(kind, x, y, draw(2.5, 3.5)), 0, 1)
    clips = draw(0.0, 0.4) + draw(0.2, 0.6) * inside
    clips += 0.05 * rng.standard_normal(clips.shape, np.float32)
    return np.clip(clips, 0, 1).astype(np.float32)[..., None], labels


def build_model(weight, steps):
    """Frame CNN, affine map, GRW, one transformer layer: final-layer smoothing (figure 4)."""
    layers = tf_keras.layers
    frames = layers.Input((N, SIZE, SIZE, 1))
    x = tf.reshape(frames, (-1, SIZE, SIZE, 1))
    for filters in (16, 32, 64):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(x)
    z = tf.reshape(layers.Dense(D)(layers.Flatten()(x)), (-1, N, D))
    z = GRWRegularizer(window=WINDOW, alpha=ALPHA, weight=weight)(z)

    x = layers.Dense(WIDTH)(z) + time_code()
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(4, WIDTH // 4)(x, x))
    hidden = layers.Dense(4 * WIDTH, activation="relu")(x)
    x = layers.LayerNormalization()(x + layers.Dense(WIDTH)(hidden))
    x = layers.Dense(len(CLASSES))(layers.GlobalAveragePooling1D()(x))
    model = tf_keras.Model(frames, x)
    rate = tf_keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=LEARNING_RATE, warmup_steps=steps // 10
    )
    model.compile(
        tf_keras.optimizers.Adam(rate, global_clipnorm=1.0),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def time_code():
    """Sines and cosines of the frame number [N, WIDTH], which attention alone cannot see."""
    rate = 100.0 ** (-np.arange(WIDTH // 2) / (WIDTH // 2))
    phase = np.arange(N)[:, None] * rate
    return np.concatenate([np.sin(phase), np.cos(phase)], axis=1).astype(np.float32)


class Progress(tf_keras.callbacks.Callback):
    """Prints ten lines per training instead of one per epoch."""

    def __init__(self, name):
        super().__init__()
        self.name = name
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        done, epochs = epoch + 1, self.params["epochs"]
        if done % max(1, epochs // 10) and done != epochs:
            return
        left = (time.perf_counter() - self.start) / done * (epochs - done)
        print(
            f"  {self.name:<11}  epoch {done:3d}/{epochs}  loss {logs['loss']:6.3f}  "
            f"accuracy {logs['accuracy']:4.0%} train {logs['val_accuracy']:4.0%} test  "
            f"ordering {logs['grw_ordering']:5.2f}  {left:3.0f} s left",
            flush=True,
        )


def train(name, seed, epochs, train_set, test_set):
    """Train one model; its history, its test embeddings [B, N, D] and its numbers."""
    tf_keras.utils.set_random_seed(seed)
    model = build_model(MODELS[name], epochs * -(-len(train_set[1]) // BATCH))
    history = model.fit(
        *train_set,
        batch_size=BATCH,
        epochs=epochs,
        validation_data=test_set,
        validation_batch_size=100,
        verbose=0,
        callbacks=[Progress(name)],
    ).history
    layer = model.get_layer("grw")
    z = tf_keras.Model(model.input, layer.output).predict(test_set[0], batch_size=100, verbose=0)
    terms = layer.terms(z)
    speed = np.linalg.norm(np.diff(z, axis=1), axis=-1).mean()
    acceleration = np.linalg.norm(np.diff(z, 2, axis=1), axis=-1).mean()
    numbers = {
        "test accuracy": history["val_accuracy"][-1],
        "single-frame accuracy": probe_frames(z, test_set[1]),
        "ordering term": float(terms.mean(terms.ordering)),
        "order accuracy": float(np.mean(terms.margin > 0)),
        "|acceleration| / |speed|": float(acceleration / max(speed, 1e-12)),
        "variance in 2 components": float(project(z)[1].sum()),
    }
    return history, z, numbers


def probe_frames(z, labels):
    """Accuracy of a linear classifier of single test embeddings: chance if frames tell nothing.

    Fitted by least squares on every other block of clips and tested on the rest, so that no
    clip is on both sides.
    """
    half = np.arange(len(labels)) // len(CLASSES) % 2 == 0
    z = np.concatenate([z, np.ones_like(z[..., :1])], axis=-1)
    target = np.repeat(np.eye(len(CLASSES))[labels[half]], N, axis=0)
    weights = np.linalg.lstsq(z[half].reshape(len(target), -1), target, rcond=None)[0]
    return float(np.mean((z[~half] @ weights).argmax(-1) == labels[~half, None]))


def project(z):
    """Test embeddings on their first two principal components, and the variance shares."""
    centred = (z - z.mean((0, 1))).reshape(-1, D)
    _, scale, axes = np.linalg.svd(centred, full_matrices=False)
    share = np.square(scale) / np.square(scale).sum()
    return (centred @ axes[:2].T).reshape(*z.shape[:2], 2), share[:2]


def draw(clips, labels, runs, path):
    """Film strips, embedding trajectories of both models, and accuracy over the epochs."""
    figure = Figure(figsize=(13, 7.4), layout="constrained")
    strips, panels = figure.subfigures(2, 1, height_ratios=(1, 2.1))
    strips.suptitle(
        f"One test clip of each class, {WINDOW} frames to a row: no single frame tells the class"
    )
    for label, axes in enumerate(strips.subplots(1, len(CLASSES))):
        draw_strip(axes, clips[np.argmax(labels == label)], label)
    *trajectories, curves = panels.subplots(1, len(runs) + 1)
    for axes, (name, (_, z, numbers)) in zip(trajectories, runs.items(), strict=True):
        draw_trajectories(axes, z, labels)
        ratio = numbers["|acceleration| / |speed|"]
        axes.set_title(f"Embeddings {name}\n|acceleration| / |speed| = {ratio:.2f}")
    draw_curves(curves, runs)
    panels.supxlabel(
        f"Embeddings: first {SHOWN} test clips of each class on the first two principal components "
        f"(share of variance), frames 0 to {N - 1}; each panel scaled to its largest coordinate",
        fontsize=9,
    )
    figure.savefig(path, dpi=110)


def draw_strip(axes, clip, label):
    """The frames of a clip, one window to a row."""
    tiles = np.pad(clip[..., 0], ((0, 0), (1, 1), (1, 1)), constant_values=1)
    strip = np.vstack([np.hstack(row) for row in np.split(tiles, N // WINDOW)])
    axes.imshow(strip, "gray", vmin=0, vmax=1)
    axes.set_title(CLASSES[label], color=CLASS_COLORS[label])
    axes.set_axis_off()


def draw_trajectories(axes, z, labels):
    """The first clips of each class, whatever they look like, as in the paper's figure 2."""
    points, share = project(z)
    shown = [np.nonzero(labels == label)[0][:SHOWN] for label in range(len(CLASSES))]
    points = points / max(np.abs(points[np.concatenate(shown)]).max(), 1e-12)
    halo = [withStroke(linewidth=2.5, foreground="white")]
    for label, clips_of_class in enumerate(shown):
        color = CLASS_COLORS[label]
        for path in points[clips_of_class]:
            axes.plot(*path.T, "o-", color=color, ms=4, lw=1.3, alpha=0.85)
            for frame, inner in ((0, 1), (N - 1, N - 2)):
                away = path[frame] - path[inner]  # outwards, so as not to cover the line
                offset = 8 * away / max(np.hypot(*away), 1e-12)
                axes.annotate(
                    str(frame),
                    path[frame],
                    offset,
                    textcoords="offset points",
                    color=color,
                    ha="center",
                    va="center",
                    weight="bold",
                    path_effects=halo,
                    zorder=3,
                )
        axes.plot([], [], "o-", color=color, ms=4, label=CLASSES[label])
    axes.legend(frameon=False, loc="upper center", ncols=len(CLASSES), fontsize=8, columnspacing=1)
    axes.set(xticks=[], yticks=[], xlim=(-1.15, 1.15), ylim=(-1.15, 1.35), aspect="equal")
    axes.set(xlabel=f"component 1 ({share[0]:.0%})", ylabel=f"component 2 ({share[1]:.0%})")


def draw_curves(axes, runs):
    """Test accuracy over the epochs, each curve named with where it ends."""
    for color, style, (name, (history, _, _)) in zip(
        MODEL_COLORS, ("--", "-"), runs.items(), strict=True
    ):
        accuracy = history["val_accuracy"]
        label = f"{name}: {accuracy[-1]:.1%}"
        axes.plot(range(1, len(accuracy) + 1), accuracy, style, color=color, lw=1.8, label=label)
    axes.axhline(1 / len(CLASSES), ls=":", color="0.6", label=f"chance: {1 / len(CLASSES):.1%}")
    axes.set(title=f"Accuracy on {TEST_CLIPS} test clips", xlabel="epoch", ylim=(0, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)


def report(runs):
    """The numbers of both models side by side."""
    print(f"\n{'on the test clips':<26}" + "".join(f"{name:>14}" for name in runs))
    for key in next(iter(runs.values()))[2]:
        print(f"{key:<26}" + "".join(f"{run[2][key]:>14.3f}" for run in runs.values()))


def at_least(minimum):
    """An argparse type: an integer of at least `minimum`."""

    def integer(text):
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}. Received: {value}")
        return value

    return integer


def main(argv=None):
    """Run the demo; return each model's numbers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder to write to")
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument("--epochs", type=at_least(1), default=60)
    parser.add_argument("--train-clips", type=at_least(len(CLASSES)), default=240)
    arguments = parser.parse_args(argv)

    tf.config.experimental.enable_op_determinism()
    rng = np.random.default_rng(arguments.seed)
    train_set, test_set = make_clips(arguments.train_clips, rng), make_clips(TEST_CLIPS, rng)
    print(f"{arguments.train_clips} training and {TEST_CLIPS} test clips of {N} frames")
    no_order = math.lgamma(WINDOW)  # log (T-1)!
    print(f"loss includes λ · L_smooth; ordering (training): {no_order:.2f} where no order shows")
    runs = {}
    for name in MODELS:
        print(f"Training {name} (λ = {MODELS[name]})", flush=True)
        runs[name] = train(name, arguments.seed, arguments.epochs, train_set, test_set)
    report(runs)

    arguments.out.mkdir(parents=True, exist_ok=True)
    numbers = {name: run[2] for name, run in runs.items()}
    (arguments.out / "moving_shapes.json").write_text(json.dumps(numbers, indent=2) + "\n")
    draw(*test_set, runs, arguments.out / "moving_shapes.png")
    print(f"\nWritten: {arguments.out}/moving_shapes.png and moving_shapes.json")
    return numbers


if __name__ == "__main__":
    main()
