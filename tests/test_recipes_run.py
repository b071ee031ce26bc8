"""A dry run of every recipe: two steps on made-up clips, through all that a real run goes through.

The steps run eagerly on the family's smallest backbone at few pixels, for tracing takes longer
than all else; that leaves a recipe its head, smoothing, clips, optimiser and average. Recipes
that come to the same model share one build. The other runs are compiled and have each recipe's
own backbone: all but the quickest are exhaustive, and so are the recipes of larger backbones, which
differ from the smallest one's in numbers.
"""

import dataclasses
import functools
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from grw_keras import zoo
from grw_keras.data.clips import Clip, ClipSet
from grw_keras.data.opening import Opened
from grw_keras.data.stores import MemoryStore
from grw_keras.data.transforms import evaluation_clip
from grw_keras.models.classifier import VideoClassifier
from grw_keras.models.spec import ModelSpec
from grw_keras.training import distribution, objective, recipe, run
from grw_keras.training.listening import Listener
from grw_keras.training.recipe import Recipe
from grw_keras.training.trainer import Trainer
from grw_keras.zoo import registry
from tests.zoo_helpers import SIZE, randomize

FILES = sorted((Path(__file__).parents[1] / "zoo" / "recipes").glob("*.yaml"))
SMALLEST = {"movinet": "movinet_a0", "mobilenet": "mobilenet_v3_small"}
LABELS = tuple(f"class {number}" for number in range(6))
BATCH_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
STEPS, BATCH, SPARE_FRAMES = 2, 4, 3


def case(path: Path, *marks):
    """A recipe; those of one kind of model are in one group, for their builds are shared."""
    spec = registry.get(recipe.read(path).model.name)
    group = pytest.mark.xdist_group(f"recipes of {spec.family}, streaming {spec.streaming}")
    return pytest.param(path, id=path.stem, marks=[group, *marks])


EAGER = [
    case(path) if path.stem == "finetune_folder" else case(path, pytest.mark.exhaustive)
    for path in FILES
]
COMPILED = [case(path, pytest.mark.exhaustive) for path in FILES]


@functools.cache
def built(spec: ModelSpec) -> tuple[VideoClassifier, list[np.ndarray]]:
    """A model without dead branches, and its variables as they were."""
    model = randomize(VideoClassifier(spec))
    return model, [variable.numpy() for variable in model.variables]


def shared_load(name, weights, *, num_classes, ema, compile, **changes) -> VideoClassifier:
    """Stands in for `zoo.load`: the model that was built for the same spec, as new."""
    assert weights is None
    assert ema is None
    assert not compile
    model, start = built(registry.get(name).replace({**changes, "num_classes": num_classes}))
    for variable, value in zip(model.variables, start, strict=True):
        variable.assign(value)
    return model


class MadeUp:
    """A `FrameStore` of noise."""

    def __init__(self, clips: ClipSet, frames: int, *, fps: float, size: int):
        rng = np.random.default_rng(0)
        shape = (len(clips), frames, size, size, 3)
        self.frames = rng.integers(0, 256, shape, np.uint8)
        self.clips, self.fps, self.size = clips, fps, size

    def available(self, index: int) -> int:
        return len(self.frames[index])

    def read(self, index: int, frames: np.ndarray) -> np.ndarray:
        return self.frames[index][frames]


class Weights(Listener):
    """Keeps a model's weights, as they are and after each step."""

    def __init__(self, model: VideoClassifier):
        self.model = model
        self.kept: list[dict[str, np.ndarray]] = []
        self.on_step(0, 0.0)

    def on_step(self, step: int, waited_s: float) -> None:
        self.kept.append({k: v.numpy() for k, v in self.model.named_weights().items()})

    def on_loss(self, step: int, loss: float) -> None:
        """The row of the epoch has it."""

    def on_epoch(self, row) -> None:
        """The trainer's outcome has it."""


@dataclasses.dataclass
class DryRun:
    """What two steps of a recipe left behind; `weights` are those before and after each step."""

    wanted: Recipe
    store: MadeUp
    model: VideoClassifier
    trainer: Trainer
    weights: list[dict[str, np.ndarray]]

    def change(self, name: str, before: int = 0, after: int = STEPS) -> float:
        """The largest change of a weight between two steps."""
        return float(np.abs(self.weights[after][name] - self.weights[before][name]).max())


def small(path: Path, *, own_backbone: bool) -> Recipe:
    """A recipe whose clips, batch and backbone are small, from random weights."""
    wanted = recipe.read(path)
    window = run.expected_spec(wanted).window
    changes: dict[str, Any] = {
        "model.weights": None,
        "model.num_classes": None,
        "model.spec.resolution": SIZE,
        "model.spec.frames": 2 * window,
        "training.batch_size": BATCH,
        "training.epochs": 1,
    }
    if not own_backbone:
        changes["model.spec.backbone"] = SMALLEST[registry.get(wanted.model.name).family]
    return recipe.override(wanted, changes)


def dry_run(wanted: Recipe, folder: Path) -> DryRun:
    """As `run.train` does it, from data that is there."""
    tf_keras.utils.set_random_seed(wanted.training.seed)
    spec = run.expected_spec(wanted)
    names = zip(range(STEPS * BATCH), itertools.cycle(LABELS))
    clips = ClipSet(tuple(Clip(f"{n}.mp4", label) for n, label in names), LABELS)
    store = MadeUp(clips, spec.frames + SPARE_FRAMES, fps=spec.fps, size=spec.resize)
    strategy = distribution.strategy()
    opened = Opened(clips=clips, stores={"train": MemoryStore(store, 0)}, bad={})
    with objective.precision(wanted.training.precision), strategy.scope():
        model = run.make_model(wanted, LABELS)
    feed = run.make_feed(wanted, model.spec, opened, strategy)
    with strategy.scope():
        objective.compile_model(model, wanted.training, feed.plan.steps(wanted.training.epochs))
    weights = Weights(model)
    trainer = Trainer(
        *(model, feed, wanted.training, folder),
        strategy=strategy,
        identity={},
        listeners=[weights],
    )
    assert trainer.run().finished
    return DryRun(wanted, store, model, trainer, weights.kept)


def check_clips(done: DryRun) -> None:
    """Every clip once; where nothing is augmented, the centre of some stretch of its frames."""
    spec, augmentation = done.model.spec, done.wanted.data.augmentation
    seen = []
    for videos, labels in itertools.islice(done.trainer.feed.batches(0), STEPS):
        assert videos.shape == (BATCH, spec.frames, spec.resolution, spec.resolution, 3)
        for video, label in zip(videos.numpy(), labels.numpy(), strict=True):
            plain = [clip for clip in range(len(done.store.clips)) if is_plain(done, clip, video)]
            assert bool(plain) == (augmentation is None)
            assert all(done.store.clips.clips[clip].label == LABELS[label] for clip in plain)
            seen += plain
    assert sorted(seen) == (list(range(STEPS * BATCH)) if augmentation is None else [])


def is_plain(done: DryRun, clip: int, video: np.ndarray) -> bool:
    spec = done.model.spec
    centres = evaluation_clip(done.store.frames[clip], spec.resolution) / np.float32(255)
    stretches = [centres[k : k + spec.frames] for k in range(SPARE_FRAMES + 1)]
    return any(np.allclose(video, stretch, atol=1e-6) for stretch in stretches)


def check_rates(done: DryRun) -> None:
    """A step of Adam is as long as its learning rate, so the rates show in the weights."""
    settings, (row,) = done.wanted.training, done.trainer.outcome.history
    backbone = done.model.backbone.named_weights()
    parts = {"backbone_rate": backbone, "head_rate": done.weights[0].keys() - backbone.keys()}
    for rate, names in parts.items():
        first, last = getattr(settings, rate)
        trained = [name for name in names if "/moving_" not in name]
        assert max(done.change(name, 0, 1) for name in trained) == pytest.approx(first, rel=0.02)
        # The second and last of two steps is half way down the cosine.
        assert row[rate] == pytest.approx((first + last) / 2, rel=1e-5)
        assert max(done.change(name, 1, 2) for name in trained) < 1.01 * row[rate]


def check_what_moved(done: DryRun) -> None:
    """All but frozen batch norms, and the bias of attention keys: what is added to all keys alike
    changes no attention, so its gradient is zero or rounding."""
    names = done.weights[0]
    still = {name for name in names if not done.change(name)}
    keys = {name for name in names if name.endswith("attention/key/bias")}
    frozen = {
        name
        for name in done.model.backbone.named_weights()
        if name.rpartition("/")[-1] in BATCH_NORM and done.wanted.training.frozen_batch_norm
    }
    assert still - keys == frozen


def check_average(done: DryRun) -> None:
    decay, average = done.wanted.training.ema_decay, done.trainer.average
    assert (average is None) == (decay is None)
    if average is None or decay is None:
        return
    expected = done.weights[0]
    for number, weights in enumerate(done.weights[1:]):
        kept = min(decay, (1 + number) / (10 + number))
        expected = {k: kept * expected[k] + (1 - kept) * weights[k] for k in weights}
    with done.trainer.exported():
        for name, variable in done.model.named_weights().items():
            np.testing.assert_allclose(variable.numpy(), expected[name], rtol=1e-4, atol=1e-6)


def assert_trained_as_told(done: DryRun) -> None:
    settings, model = done.wanted.training, done.model
    (row,) = done.trainer.outcome.history
    assert row["step"] == STEPS
    assert all(math.isfinite(value) for value in row.values()), row
    smoothed = model.spec.placement != "none"
    assert ("grw_ordering" in row) == smoothed
    assert (row["loss"] > row["cross_entropy"] + 1e-3) == smoothed
    # It counts forward passes: of each step one for each micro-batch.
    assert int(model.randomness.step) == STEPS * settings.accumulate
    assert model.optimizer.global_clipnorm == settings.clip_norm
    assert model.labels == LABELS
    check_clips(done)
    check_rates(done)
    check_what_moved(done)
    check_average(done)


@pytest.fixture
def shared_builds(monkeypatch):
    monkeypatch.setattr(zoo, "load", shared_load)


@pytest.fixture
def eagerly():
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


# TensorFlow says that tf.data runs compiled all the same.
@pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions")
@pytest.mark.slow
@pytest.mark.parametrize("path", EAGER)
@pytest.mark.usefixtures("shared_builds", "eagerly")
def test_two_steps_of_every_recipe(path, tmp_path):
    assert_trained_as_told(dry_run(small(path, own_backbone=False), tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("path", COMPILED)
@pytest.mark.usefixtures("shared_builds")
def test_two_compiled_steps_of_every_recipe_with_its_own_backbone(path, tmp_path):
    assert_trained_as_told(dry_run(small(path, own_backbone=True), tmp_path))


@pytest.mark.parametrize("path", [case(path) for path in FILES])
def test_over_the_whole_recipe_rates_fall_from_its_first_to_its_last(path):
    settings = recipe.read(path).training
    steps = 7 * settings.epochs
    optimizer = objective.optimizer(settings, steps)
    schedule = optimizer._learning_rate
    for step, place in {0: 0, steps: 1}.items():
        rate = float(schedule(step))
        assert rate == pytest.approx(settings.backbone_rate[place], rel=1e-4)
        assert rate * optimizer.head_factor == pytest.approx(settings.head_rate[place], rel=1e-4)
