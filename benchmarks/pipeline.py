"""Clips a second from videos and from caches, and how long training waits for them.

Everything is of the model's frame rate and size, in one run, and sides take turns. First the clips
of a training epoch, at random places of their videos, as bytes: by our loader with several numbers
of worker processes, beside plain loops of PyAV and OpenCV, which decode each video up to the clip's
last frame on one thread; and by the whole pipeline, as batches of floats. Then the same clips from
memory, from a disk cache and from prepared records. Then training steps of MoViNet-A0-S on them,
and on videos decoded at each step: the share of time in which the step waits for its batch. Numbers
are medians over rounds.

    python -m benchmarks.pipeline --videos my_videos/ --csv benchmarks/results/pipeline.csv
    python -m benchmarks.pipeline --videos my_videos/ --clips 12 --rounds 1 --steps 6 --size 44
"""

import argparse
import csv
import functools
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cv2
import numpy as np
import tensorflow as tf
import tf_keras

from benchmarks.decode import opencv, plain_pyav
from grw_keras import zoo
from grw_keras.data.clips import ClipSet
from grw_keras.data.folder_source import from_folder
from grw_keras.data.pipeline import training_batches
from grw_keras.data.record_store import RecordStore
from grw_keras.data.records import prepare
from grw_keras.data.samples import Loader, Plan, Sampling
from grw_keras.data.sampling import clip_indices, sample_rng
from grw_keras.data.scan import scan
from grw_keras.data.stores import DiskStore, FrameStore, MemoryStore, VideoStore
from grw_keras.data.transforms import evaluation_clip
from grw_keras.data.workers import AHEAD, default_workers, in_order
from grw_keras.training import objective
from grw_keras.training.listening import Listener
from grw_keras.training.recipe import TrainingPart
from grw_keras.training.trainer import Feed, Trainer

MODEL = "movinet_a0_stream_grw"
PROCESSES = (0, 1, 2)
BATCH = 4
MARGIN = 200 / 172  # by which frames are larger than the centre that is cut out of them
SETTLING_STEPS = 8  # not counted: they are traced, or find what was read ahead
Row = tuple[str, str, float]


def videos(arguments) -> VideoStore:
    """As many clips as there are whole batches, evenly spread over the folder."""
    clips = from_folder(arguments.videos)
    scanned = scan(clips, default_workers())
    clips = scanned.good(clips)
    count = min(arguments.clips or len(clips), len(clips)) // BATCH * BATCH
    if not count:
        raise SystemExit(f"{arguments.videos} needs at least {BATCH} readable videos")
    clips = clips.subset(np.linspace(0, len(clips) - 1, count).round().astype(int).tolist())
    resize = round(arguments.size * MARGIN)
    return VideoStore(clips, scanned.infos, fps=arguments.fps, size=resize)


def stream(store: FrameStore, frames: int, size: int, processes: int | None, start_step=0):
    """The pipeline's own batches, as training gets them."""
    sampling = Sampling(frames=frames, resolution=size, training=True)
    return iter(
        training_batches(store, sampling, BATCH, start_step=start_step, processes=processes)
    )


def rate(store: FrameStore, frames: int, size: int, processes: int | None) -> tuple[float, float]:
    """Clips a second in batches of floats, over one epoch in full swing, and seconds until the
    first batch."""
    epoch = len(store.clips) // BATCH
    settling = _settling(processes)
    begin_s = time.perf_counter()
    batches = stream(store, frames, size, processes, start_step=-settling % epoch)
    return timed(batches, settling, epoch, begin_s, BATCH)


def loader_rate(store: FrameStore, frames: int, size: int, processes: int) -> tuple[float, float]:
    """The same of clips of bytes, as worker processes give them."""
    sampling = Sampling(frames=frames, resolution=size, training=True)
    epoch = len(store.clips)
    plan = Plan(clips=epoch, batch_size=BATCH)
    settling = _settling(processes)
    begin_s = time.perf_counter()
    places = plan.places(-settling % (epoch // BATCH))
    clips = in_order(Loader(store, sampling), places, processes)
    return timed(clips, settling * BATCH, epoch, begin_s, 1)


def _settling(processes: int | None) -> int:
    """Steps after which as much is read ahead as at the end."""
    return 1 + AHEAD * (default_workers() if processes is None else processes) // BATCH


def timed(
    items: Iterator, settling: int, count: int, begin_s: float, clips_each: int
) -> tuple[float, float]:
    """Clips a second of `count` items after `settling` ones, and seconds until the first."""
    next(items)
    first_s = time.perf_counter() - begin_s
    for _ in range(settling - 1):
        next(items)
    begin_s = time.perf_counter()
    for _ in range(count):
        next(items)
    return count * clips_each / (time.perf_counter() - begin_s), first_s


def plain_rate(reader: Callable, store: VideoStore, frames: int, size: int) -> float:
    """Clips a second of a loop over the same clips."""
    begin_s = time.perf_counter()
    for index, clip in enumerate(store.clips.clips):
        rng = sample_rng(0, 0, index)
        wanted, where = np.unique(
            clip_indices(store.available(index), frames, rng=rng)[0], return_inverse=True
        )
        video = reader(Path(clip.path), wanted / store.fps, store.size)
        evaluation_clip(video[where], size)
    return len(store.clips) / (time.perf_counter() - begin_s)


def decoding(store: VideoStore, arguments) -> list[Row]:
    """Clips of training from their videos: ours beside plain loops."""
    frames = arguments.frames
    sides: dict[str, Callable[[], tuple[float, ...]]] = {
        "plain PyAV": lambda: (plain_rate(plain_pyav, store, frames, arguments.size),),
        "OpenCV": lambda: (plain_rate(opencv, store, frames, arguments.size),),
    }
    for processes in PROCESSES:
        sides[f"ours, {processes} processes"] = functools.partial(
            loader_rate, store, frames, arguments.size, processes
        )
    sides["ours, 2 processes, to batches of floats"] = functools.partial(
        rate, store, frames, arguments.size, 2
    )
    measured = in_turns(sides, arguments.rounds)
    plain = [value for (value,) in measured["plain PyAV"]]
    rows = []
    for name, values in measured.items():
        rates = [value[0] for value in values]
        ratio = median(a / b for a, b in zip(rates, plain, strict=True))
        rows += [
            (f"decoding, {name}", "clips/s", median(rates)),
            (f"decoding, {name}: ratio to plain PyAV", "", ratio),
        ]
    for processes in PROCESSES:
        first_s = median(value[1] for value in measured[f"ours, {processes} processes"])
        rows.append((f"first batch, {processes} processes", "s", first_s))
    return rows


def in_turns(sides: Mapping[str, Callable], rounds: int) -> dict[str, list]:
    """What each side gives in each round; every other round goes backwards."""
    measured: dict[str, list] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            measured[name].append(sides[name]())
    return measured


def stores(store: VideoStore, folder: Path) -> dict[str, FrameStore]:
    """The same frames in memory, on disk, as records, and as they are."""
    workers = default_workers()
    prepare(store.clips, folder / "records", fps=store.fps, size=store.size, workers=workers)
    return {
        "memory": MemoryStore(store, workers),
        "disk cache": DiskStore(store, folder / "frames", workers),
        "records": RecordStore(folder / "records", "train"),
        "videos": store,
    }


def reading(sources: dict[str, FrameStore], arguments) -> list[Row]:
    """Short clips from each store, with as many processes as training would start."""
    sides = {
        name: functools.partial(rate, store, arguments.frames, arguments.size, None)
        for name, store in sources.items()
    }
    return [
        (f"{arguments.frames} frames from {name}", "clips/s", median(value[0] for value in values))
        for name, values in in_turns(sides, arguments.rounds).items()
    ]


class Waits(Listener):
    """Keeps, for each step, what the trainer says of its wait, and when it was done."""

    def __init__(self):
        self.waited_s: list[float] = []
        self.done_s: list[float] = []

    def on_step(self, step: int, waited_s: float) -> None:
        self.waited_s.append(waited_s)
        self.done_s.append(time.perf_counter())

    def on_loss(self, step: int, loss: float) -> None:
        """Of no interest here."""

    def on_epoch(self, row: Mapping[str, float]) -> None:
        """Of no interest here."""

    def share(self, first: int, last: int) -> tuple[float, float]:
        """Share of the time waited, and seconds of a step, over the steps from first to last."""
        elapsed_s = self.done_s[last] - self.done_s[first - 1]
        waited_s = sum(self.waited_s[first : last + 1])
        return waited_s / elapsed_s, elapsed_s / (last + 1 - first)


def waiting(sources: dict[str, FrameStore], arguments, folder: Path) -> list[Row]:
    """One training that changes its source every few steps, so that it is traced once."""
    each = SETTLING_STEPS + arguments.steps
    blocks = [name for _ in range(arguments.rounds) for name in sources]
    clips = sources["memory"].clips

    def batches(start_step: int) -> Iterator:
        for block in blocks:
            part = stream(sources[block], arguments.frames, arguments.size, None)
            yield from itertools.islice(part, each)
            del part  # its processes end

    plan = Plan(clips=each * len(blocks) * BATCH, batch_size=BATCH)
    names = [str(number) for number in range(plan.clips)]
    waits = Waits()
    train(clips, Feed(batches=batches, plan=plan, names=names), arguments, folder, waits)
    measured: dict[str, list] = {name: [] for name in sources}
    for number, block in enumerate(blocks):
        first = number * each + SETTLING_STEPS
        measured[block].append(waits.share(first, first + arguments.steps - 1))
    rows = []
    for name, values in measured.items():
        rows += [
            (f"training from {name}: waiting", "%", 100 * median(v[0] for v in values)),
            (f"training from {name}: step", "ms", 1e3 * median(v[1] for v in values)),
        ]
    return rows


def train(clips: ClipSet, feed: Feed, arguments, folder: Path, listener: Listener) -> None:
    model = zoo.load(
        *(MODEL, arguments.weights),
        num_classes=len(clips.labels),
        compile=False,
        frozen_batch_norm=True,
    )
    settings = TrainingPart(epochs=1, batch_size=BATCH, checkpoint_every_s=1e9)
    objective.compile_model(model, settings, feed.plan.steps(1))
    strategy = tf.distribute.get_strategy()
    trainer = Trainer(
        *(model, feed, settings, folder), strategy=strategy, identity={}, listeners=[listener]
    )
    trainer.run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--videos", type=Path, required=True, help="a folder of class folders")
    parser.add_argument("--clips", type=int, help="how many of them; default: all")
    parser.add_argument("--fps", type=float, default=5.0, help="of the frames")
    parser.add_argument("--size", type=int, default=172, help="of the model's input, pixels")
    parser.add_argument("--frames", type=int, default=10, help="of a clip of training")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--steps", type=int, default=30, help="counted in a turn; 0: no training")
    parser.add_argument("--weights", help="of the model that trains; default: random")
    parser.add_argument("--csv", type=Path, help="write the table there too")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    tf_keras.utils.set_random_seed(0)
    store = videos(arguments)
    print(f"{len(store.clips)} videos, {default_workers()} CPUs", flush=True)
    rows = show(decoding(store, arguments))
    with tempfile.TemporaryDirectory() as folder:
        sources = stores(store, Path(folder))
        rows += show(reading(sources, arguments))
        if arguments.steps:
            rows += show(waiting(sources, arguments, Path(folder) / "run"))
    if arguments.csv:
        arguments.csv.parent.mkdir(parents=True, exist_ok=True)
        with arguments.csv.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["quantity", "unit", "value"])
            writer.writerows((name, unit, f"{value:.4g}") for name, unit, value in rows)


def show(rows: list[Row]) -> list[Row]:
    for name, unit, value in rows:
        print(f"{name:<48} {value:>9.4g} {unit}", flush=True)
    return rows


if __name__ == "__main__":
    main()
