"""GRW-smoothing on real video: a study of many short runs on UT-Interaction, which resumes.

    python zoo/study.py --data ut_interaction --weights movinet_a0_stream_k600_int8.tflite
    python zoo/study.py --data … --weights … --repeat NAME     # one row again, to compare

Four models (official classifier, attention only, intermediate and final GRW-smoothing) start from
the same Kinetics-600 weights and are fine-tuned on one set of UT-Interaction, to be tested on the
other, whose actors are others. Every run is made of the parts of `grw-keras train`, in a process of
its own, with deterministic operations on one thread, so that its row does not depend on how many
run beside it; the row is appended to zoo/results/study.csv as it ends, and runs that have a row are
not done again. Learning rates, and λ of the smoothed models, are chosen on the training set alone:
a fifth of its sequences is held out, and the cross-entropy on them decides.
"""

import argparse
import csv
import dataclasses
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# TensorFlow takes other kernels on CPUs that it holds to be newer: rows would depend on the CPU.
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"

import numpy as np
import tensorflow as tf
import tf_keras

from grw_keras import csv_table
from grw_keras.data.stores import FrameStore
from grw_keras.evaluation import metrics
from grw_keras.evaluation.evaluating import frames_to_ask, order_accuracy, sampling_of
from grw_keras.evaluation.predictions import Predictor
from grw_keras.evaluation.results import summarize
from grw_keras.models.classifier import VideoClassifier
from grw_keras.training import determinism, objective, recipe
from grw_keras.training.assembly import expected_spec, make_feed, make_model, open_run_data

FOLDS = ("set1", "set2")  # the set that is trained on
MODELS = {
    "official classifier": "movinet_a0_stream",
    "attention only": "movinet_a0_stream_attention",
    "intermediate GRW": "movinet_a0_stream_intermediate",
    "final GRW": "movinet_a0_stream_grw",
}
SMOOTHED = ("intermediate GRW", "final GRW")
SEEDS, FEW_SEEDS = range(5), range(2)
EPOCHS = 10  # of all training clips, the paper's on K400; with fewer clips as many steps
HELD_OUT = 0.2  # of the sequences, in tuning
RATE_FACTORS = (0.3, 1.0, 3.0)  # of the paper's learning rates
WEIGHTS = (0.03, 0.1, 0.3)  # λ, in tuning
CSV = Path(__file__).parent / "results" / "study.csv"

Row = Mapping[str, str]
Watch = Callable[[VideoClassifier, FrameStore], tf_keras.callbacks.Callback]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One training and its test.

    Args:
        part: of the study: tuning, main, …
        model: one of `MODELS`.
        fold: the set that is trained on; the other is the test.
        seed: of everything random, the choice of a part of the clips included.
        share: of the training clips, (0, 1].
        frames: of a clip, and of its test.
        rate: factor of the paper's learning rates.
        window, alpha, weight, orderings, loss_input: as in `ModelSpec`.
    """

    part: str
    model: str
    fold: str
    seed: int = 0
    share: float = 1.0
    frames: int = 10
    rate: float = 1.0
    window: int = 5
    alpha: float = 0.5
    weight: float = 0.1
    orderings: str = "auto"
    loss_input: str = "z"

    @property
    def name(self) -> str:
        """What tells it from all other runs."""
        values = dataclasses.asdict(self).items()
        return ",".join(f"{key}={value}".replace(" ", "_") for key, value in values)

    def recipe(self, weights: Path) -> recipe.Recipe:
        """From the weights on."""
        changes = {
            "model.weights": str(weights),
            "model.spec.frames": self.frames,
            "data.workers": 0,
            "training.epochs": round(EPOCHS / self.share),
            "training.backbone_rate": [1e-4 * self.rate, 1e-6 * self.rate],
            "training.head_rate": [1e-3 * self.rate, 1e-5 * self.rate],
            "training.seed": self.seed,
        }
        if self.model in SMOOTHED:
            spec = {"grw_weight": self.weight, "window": self.window, "alpha": self.alpha}
            spec["orderings"] = self.orderings
            if self.model == "final GRW":
                spec["loss_input"] = self.loss_input
            changes |= {f"model.spec.{key}": value for key, value in spec.items()}
        return recipe.override(recipe.from_dict({"model": {"name": MODELS[self.model]}}), changes)


def plan(rows: Sequence[Row]) -> Iterator[Run]:
    """All runs that can be said by now: what is tuned waits for its tuning's rows."""
    for fold in FOLDS:
        for model in MODELS:
            yield from tuning(model, fold, rows)
    chosen = {
        (model, fold): best
        for model in MODELS
        for fold in FOLDS
        if (best := tuned(model, fold, rows)) is not None
    }

    def each(part: str, seeds: Sequence[int], models: Sequence[str] = tuple(MODELS), **changes):
        for seed in seeds:
            for fold in FOLDS:
                for model in models:
                    if (model, fold) in chosen:
                        best = chosen[model, fold]
                        yield dataclasses.replace(best, part=part, seed=seed, **changes)

    yield from each("main", SEEDS)
    yield from each("share", SEEDS, share=0.25)  # where a prior should show most
    yield from each("share", FEW_SEEDS, share=0.5)
    half = {"share": 0.5, "models": ("final GRW",)}
    for window, orderings in ((3, "auto"), (10, "exact"), (10, "sampled")):
        yield from each("window", FEW_SEEDS, window=window, orderings=orderings, **half)
    for alpha in (0.0, 0.25, 1.0):
        yield from each("alpha", FEW_SEEDS, alpha=alpha, **half)
    for weight in (0.0, 0.01, 0.1, 1.0):
        yield from each("weight", FEW_SEEDS, weight=weight, **half)
    yield from each("loss input", FEW_SEEDS, loss_input="layer_norm", **half)
    for frames in (5, 3):
        yield from each("frames", FEW_SEEDS, frames=frames, window=min(5, frames))


def tuning(model: str, fold: str, rows: Sequence[Row]) -> Iterator[Run]:
    """At most five runs on the training set alone: three rates, then λ at the best of them."""
    first = [Run(part="tuning", model=model, fold=fold, rate=rate) for rate in RATE_FACTORS]
    yield from first
    best = least_entropy(first, rows)
    if model in SMOOTHED and best is not None:
        for weight in WEIGHTS:
            yield dataclasses.replace(best, weight=weight)


def tuned(model: str, fold: str, rows: Sequence[Row]) -> Run | None:
    """The tuning run with the least cross-entropy on held-out sequences, once all are done."""
    return least_entropy(list(tuning(model, fold, rows)), rows)


def least_entropy(runs: Sequence[Run], rows: Sequence[Row]) -> Run | None:
    found = {row["name"]: float(row["nll"]) for row in rows}
    if any(run.name not in found for run in runs):
        return None
    return min(runs, key=lambda run: found[run.name])


def clip_list(run: Run, data: Path) -> list[tuple[str, str, str]]:
    """(path, label, split) of the run's clips.

    A share of the training clips is one of each class; in tuning a fifth of the sequences
    validates. Both are chosen by the seed.
    """
    listed = []
    rng = np.random.default_rng([run.seed, FOLDS.index(run.fold)])
    videos = sorted(path for path in data.glob("*/*") if path.suffix == ".avi")
    own = [path for path in videos if path.name.startswith(run.fold)]
    for label in sorted({path.parent.name for path in own}):
        of_class = [path for path in own if path.parent.name == label]
        kept = rng.permutation(len(of_class))[: round(run.share * len(of_class))]
        listed += [(of_class[index], label, "train") for index in sorted(kept)]
    if run.part == "tuning":
        sequences = sorted({_sequence(path) for path, _, _ in listed})
        held = set(rng.permutation(sequences)[: round(HELD_OUT * len(sequences))])
        listed = [
            (path, label, "test" if _sequence(path) in held else split)
            for path, label, split in listed
        ]
    else:
        others = [path for path in videos if not path.name.startswith(run.fold)]
        listed += [(path, path.parent.name, "test") for path in others]
    return [(str(path.resolve()), label, split) for path, label, split in listed]


def _sequence(path: Path) -> str:
    return re.search(r"seq\d+", path.name)[0]


def carry_out(run: Run, data: Path, weights: Path, watch: Watch | None = None) -> dict[str, str]:
    """Trains and tests; the run's row. To be called in a process that has done nothing else.

    Args:
        run: what to do.
        data: folder of the videos.
        weights: file to start from.
        watch: makes a callback of the training, of the model and the store of its clips.
    """
    start = time.perf_counter()
    wanted = run.recipe(weights)
    tf_keras.utils.set_random_seed(run.seed)
    determinism.one_thread()
    with determinism.same_bits(), tempfile.TemporaryDirectory() as folder:
        clips = Path(folder, "clips.csv")
        with clips.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("path", "label", "split"), *clip_list(run, data)])
        opened = open_run_data(wanted, expected_spec(wanted), clips, Path(folder))
        model = make_model(wanted, opened.clips.labels)
        feed = make_feed(wanted, model.spec, opened, tf.distribute.get_strategy())
        steps = feed.plan.steps(wanted.training.epochs)
        objective.compile_model(model, wanted.training, steps)
        callbacks = [] if watch is None else [watch(model, opened.stores["train"])]
        model.fit(feed.batches(0), steps_per_epoch=steps, verbose=0, callbacks=callbacks)
        measured = test(model, opened.stores["test"])
    return {
        "name": run.name,
        **{key: str(value) for key, value in dataclasses.asdict(run).items()},
        **measured,
        "seconds": f"{time.perf_counter() - start:.0f}",
    }


def test(model: VideoClassifier, store: FrameStore) -> dict[str, str]:
    """A model's numbers on clips; what it has none of is empty."""
    spec = model.spec
    predictor = Predictor(model, frames_to_ask(spec.frames))
    found = predictor.predict(store, sampling_of(spec), batch_size=4, processes=0)
    scores = summarize(found.logits, found.labels, store.clips.labels)
    numbers = {key: scores[key] for key in ("top1", "nll", "ece")}
    numbers |= {"mean_speed": None, "mean_acceleration": None}
    if found.embeddings is not None:
        moves = metrics.smoothness(found.embeddings)
        numbers |= {"mean_speed": moves.speed, "mean_acceleration": moves.acceleration}
    numbers["order_accuracy"] = order_accuracy(found, spec)
    by_frames = " ".join(
        f"{frames}:{metrics.top_k(logits, found.labels):.4f}"
        for frames, logits in zip(found.frames_seen, found.by_frames, strict=True)
    )
    return {
        **{key: "" if value is None else f"{value:.6g}" for key, value in numbers.items()},
        "accuracy_by_frames": by_frames,
    }


def carry_out_all(path: Path, jobs: int, most: int | None, *given) -> None:
    """Carries out runs that have no row yet, so many at once, and appends their rows.

    Two runs of one thread each do half as much again as one run on two cores.
    """
    context = multiprocessing.get_context("spawn")
    started = 0
    running: dict[Future, str] = {}
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
        while True:
            rows = csv_table.read(path)
            taken = {row["name"] for row in rows} | set(running.values())
            left = [run for run in plan(rows) if run.name not in taken]
            while left and len(running) < jobs and started != most:
                run = left.pop(0)
                running[pool.submit(carry_out, run, *given)] = run.name
                started += 1
            if not running:
                return
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                del running[done]
                row = done.result()
                append(path, [row])
                print(f"{row['name']}: top-1 {row['top1']}, {row['seconds']} s", flush=True)


def append(path: Path, rows: Sequence[Row]) -> None:
    csv_table.append(path, list(rows[0]), rows)


def repeat(name: str, rows: Sequence[Row], data: Path, weights: Path) -> bool:
    """Carries out one row's run again, and tells every cell that differs."""
    (before,) = [row for row in rows if row["name"] == name] or [None]
    if before is None:
        raise SystemExit(f"No row has this name. Received: {name}")
    (run,) = [run for run in plan(rows) if run.name == name]
    again = carry_out(run, data, weights)
    changed = [key for key in again if key != "seconds" and again[key] != before[key]]
    for key in changed:
        print(f"{key}: {before[key]} → {again[key]}")
    print("The row is the same" if not changed else f"{len(changed)} cells differ")
    return not changed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of CLASS/setS_seqNN_ID.avi"
    )
    parser.add_argument("--weights", type=Path, required=True, help="Kinetics-600 TFLite file")
    parser.add_argument("--csv", type=Path, default=CSV, help="rows of runs that are done")
    parser.add_argument("--most", type=int, help="runs to do now; default: all")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, of one thread each")
    parser.add_argument("--repeat", metavar="NAME", help="do one row again and compare")
    options = parser.parse_args(arguments)
    if not any(options.data.glob("*/set*_seq*.avi")):
        parser.error(f"--data must hold CLASS/setS_seqNN_ID.avi. Received: {options.data}")
    if not options.weights.is_file():
        parser.error(f"--weights must be a file. Received: {options.weights}")
    if options.repeat:
        return (
            0
            if repeat(options.repeat, csv_table.read(options.csv), options.data, options.weights)
            else 1
        )
    carry_out_all(options.csv, options.jobs, options.most, options.data, options.weights)
    return 0


if __name__ == "__main__":
    sys.exit(main())
