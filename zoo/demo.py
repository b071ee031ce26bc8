"""Demo: what GRW-smoothing does, on Airplanes, from drawing the data to a stream on a page.

    python zoo/demo.py --out runs/demo

The warm-up example of the paper (section 3, figure 2) on data drawn anew: two equal models, a
MobileNetV3 per frame and one transformer layer over the frames, start from the same weights and see
the same clips in the same order; the second one's embeddings are smoothed. Beside them a streaming
MoViNet is trained on the same clips, exported to TFLite and run frame by frame. Writes report.html,
results.json, images/ and airplanes.tflite. Two runs with the same arguments find the same numbers
on the same machine, but for times.
"""

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import queue
import shlex
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import demo_training as training
from demo_page import parts
from demo_training import BATCH, CLIP_NORM, GRW_WEIGHT, RATE, SIZE, Clips

from grw_keras import page
from grw_keras.data import airplanes
from grw_keras.evaluation.evaluating import versions
from grw_keras.training.concluding import hardware

SILENCE_S = 20  # after which the demo shows that it is at work
# Of all work, by name.
SHARES = {"stream": 0.30, "without GRW": 0.35, "with GRW": 0.35}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lengths:
    """How much is done: clips and epochs."""

    train: int = 1000
    test: int = 100
    warm_up_epochs: int = 28
    stream_epochs: int = 6


class Clock:
    """Tells what is going on, and how much time is left by the speed since every training has told
    of itself: they start slowly."""

    def __init__(self):
        self.start = self.told = time.perf_counter()
        self.done = dict.fromkeys(SHARES, 0.0)
        self.reference: tuple[float, float] | None = None  # when, and what was done by then

    def tell(self, name: str, done: float, text: str) -> None:
        self.done[name] = done
        whole = sum(SHARES[name] * done for name, done in self.done.items())
        self.told = now = time.perf_counter()
        left = ""
        if self.reference is None:
            self.reference = (now, whole) if all(self.done.values()) else None
        elif whole > self.reference[1]:
            then, before = self.reference
            left = f" {(now - then) * (1 - whole) / (whole - before):4.0f} s left"
        print(f"[{whole:4.0%}] {f'{name}: {text}':<78}{left}", flush=True)

    def wait(self) -> None:
        """Shows that time goes by where nothing is told, as while models are compiled."""
        now = time.perf_counter()
        if now - self.told >= SILENCE_S:
            self.told = now
            print(f"[…] at work since {now - self.start:.0f} s", flush=True)


class Teller:
    """Tells the clock of another process how far this one is."""

    def __init__(self, messages, name: str):
        self.messages, self.name = messages, name

    def __call__(self, done: float, text: str) -> None:
        self.messages.put((self.name, done, text))


def train_all(clips: Clips, test: Clips, lengths: Lengths, seed: int, file: Path, clock: Clock):
    """The trainings' results by name, each from a process of its own; all at once, so that none
    ends long after the others."""
    jobs = {
        "stream": (training.stream, lengths.stream_epochs, file),
        "without GRW": (training.warm_up, lengths.warm_up_epochs, 0.0),
        "with GRW": (training.warm_up, lengths.warm_up_epochs, GRW_WEIGHT),
    }
    context = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        messages = stack.enter_context(context.Manager()).Queue()
        futures = {}
        for name, (function, epochs, last) in jobs.items():
            pool = stack.enter_context(ProcessPoolExecutor(1, context))
            teller = Teller(messages, name)
            futures[name] = pool.submit(function, clips, test, epochs, seed, teller, last)
        while not (messages.empty() and all(future.done() for future in futures.values())):
            try:
                clock.tell(*messages.get(timeout=0.5))
            except queue.Empty:
                clock.wait()
        return {name: future.result() for name, future in futures.items()}


def facts_of(options: argparse.Namespace, lengths: Lengths, seconds: float) -> dict[str, str]:
    command = shlex.join(["python", *sys.argv])
    told = {
        "data": f"{lengths.train} training and {lengths.test} test clips of {airplanes.FRAMES} "
        f"frames, {SIZE} px, seed {options.seed}; training clips are turned by quarters, mirrored "
        "and played backwards at random",
        "first weights": "random in all models: the paper's warm-up model starts from ImageNet, "
        "and published MoViNet weights are a download, which this demo does without",
        "training": f"Adam, {RATE:g} at most, cosine, clipped at norm {CLIP_NORM:g}; T = 5, "
        f"α = 0.5, λ = {GRW_WEIGHT:g} (0 without GRW); {lengths.warm_up_epochs} epochs; "
        f"movinet: {lengths.stream_epochs} epochs",
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
    clock = Clock()
    print(f"Drawing {lengths.train} training and {lengths.test} test clips", flush=True)
    clips, test = (
        Clips(*airplanes.make(split, size=SIZE, seed=options.seed, count=count))
        for split, count in (("train", lengths.train), ("test", lengths.test))
    )
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "airplanes.tflite"
    print("Training three models at once; they are compiled before their first epoch", flush=True)
    runs = train_all(clips, test, lengths, options.seed, file, clock)
    streamed = runs.pop("stream")
    found = {name: run.numbers() for name, run in runs.items()}
    found["stream"] = streamed.numbers(test.labels)
    (options.out / "results.json").write_text(json.dumps(found, indent=2) + "\n")
    seconds = time.perf_counter() - clock.start
    facts = facts_of(options, lengths, seconds)
    body = parts(options.out, runs, streamed, test, facts, lengths.stream_epochs)
    report = page.write(options.out / "report.html", "GRW-smoothing on Airplanes", body)
    print(json.dumps(found, indent=2))
    print(f"{seconds / 60:.1f} min. Open {report}")
    return found


if __name__ == "__main__":
    main()
