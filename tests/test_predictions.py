"""A model's answers to a store, and the numbers made of them."""

import datetime
import platform
import types

import numpy as np
import pytest
import tensorflow as tf

from grw_keras import zoo
from grw_keras.data.samples import Loader, Sampling
from grw_keras.evaluation import evaluating, predictions
from grw_keras.evaluation.evaluating import (
    evaluate,
    frames_to_ask,
    order_accuracy,
    sampling_of,
    validation_row,
    versions,
)
from grw_keras.evaluation.predictions import Predictions, Predictor
from grw_keras.normalization import EPSILON
from grw_keras.zoo import registry
from tests.helpers import literal_orderings
from tests.store_helpers import LABELS, ArrayStore
from tests.zoo_helpers import SIZE, randomize

pytestmark = pytest.mark.xdist_group("predictions")  # they share what is dear to make

N, WINDOW = 6, 4
LENGTHS = (6, 3, 9, 1, 7)


class NoiseStore(ArrayStore):
    """Frames of noise, each with a colour of its own."""

    def read(self, index, frames):
        super().read(index, frames)
        rng = np.random.default_rng(index)
        shape = (self.lengths[index], self.size, self.size, 3)
        noise = rng.random(shape) * rng.random((shape[0], 1, 1, 3))
        return (255 * noise).astype(np.uint8)[frames]


@pytest.fixture(scope="module")
def store():
    return NoiseStore(LENGTHS, size=37)


def small(name="mobilenet_v3_small_grw", **changes):
    spec = {"num_classes": 4, "frames": N, "resolution": SIZE, **changes}
    return zoo.load(name, weights=None, **spec)


@pytest.fixture(scope="module")
def transformer():
    """A transformer head over windows shorter than the clips."""
    return randomize(small(head_window=WINDOW))


@pytest.fixture(scope="module")
def causal():
    """A causal head whose second layer knows, by the first, of frames before its own window."""
    return randomize(small(head_window=WINDOW, head_attention="causal"))


@pytest.fixture(scope="module")
def averaging():
    return randomize(small("mobilenet_v3_small"))


@pytest.fixture(scope="module")
def shifting():
    """Its embeddings look a frame ahead in a clip, and can't in its stream."""
    return randomize(small("mobilenet_v3_small_attention", temporal_shift="bidirectional"))


def sampling(short="loop") -> Sampling:
    return Sampling(frames=N, resolution=SIZE, short=short)


def one_by_one(store, short):
    """Clips [1, N, H, W, 3] and masks [1, N], read each by itself."""
    load = Loader(store, sampling(short))
    for index in range(len(store.clips)):
        sample = load((0, index))
        yield tf.constant(sample.video[None] / np.float32(255)), tf.constant(sample.mask[None])


# What fills short clips, and how many clips are asked at once: 5 are no multiple of any.
CASES = [
    ("transformer", "pad", 3),
    ("causal", "pad", 3),
    ("averaging", "loop", 8),
]
SEEN = (1, 2, 4, 5, 6)


@pytest.fixture(scope="module")
def predictors(transformer, causal, averaging):
    """Traced once for all tests."""
    return {
        "transformer": Predictor(transformer, SEEN),
        "causal": Predictor(causal, SEEN),
        "averaging": Predictor(averaging, SEEN),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "short", "batch_size"), CASES)
def test_answers_are_those_of_each_clip_by_itself_and_of_its_stream(
    predictors, store, kind, short, batch_size
):
    model = predictors[kind].model
    found = predictors[kind].predict(store, sampling(short), batch_size, processes=0)
    assert found.numbers.tolist() == [0, 1, 2, 3, 4]
    assert found.labels.tolist() == [0, 1, 0, 1, 0]
    assert found.frames_seen == SEEN
    assert (found.embeddings is None) == (kind == "averaging")
    session = model.to_streaming()
    for index, (clip, mask) in enumerate(one_by_one(store, short)):
        np.testing.assert_array_equal(found.mask[index], mask[0])
        wanted = model(clip, mask=mask)[0]
        np.testing.assert_allclose(found.logits[index], wanted, rtol=1e-4, atol=1e-4)
        if kind != "averaging":
            z = model.embeddings(clip)[0]
            np.testing.assert_allclose(found.embeddings[index], z, rtol=1e-4, atol=1e-4)
        session.reset()
        last: list[np.ndarray] = []
        for frame, is_there in zip(clip[0], mask[0], strict=True):
            last.append(session.step(frame) if is_there else last[-1])
        for row, number in zip(found.by_frames[:, index], SEEN, strict=True):
            np.testing.assert_allclose(tf.nn.softmax(row), last[number - 1], rtol=1e-3, atol=1e-4)
    assert np.ptp(found.logits, axis=0).min() > 1e-3
    assert np.ptp(found.by_frames, axis=0).max() > 1e-2


@pytest.mark.slow
def test_answers_after_some_frames_know_none_that_follow(shifting, store):
    found = Predictor(shifting, SEEN).predict(store, sampling(), 5, processes=0)
    session = shifting.to_streaming()
    for index, (clip, _) in enumerate(one_by_one(store, "loop")):
        session.reset()
        wanted = np.array([session.step(frame) for frame in clip[0]])[np.array(SEEN) - 1]
        answers = tf.nn.softmax(found.by_frames[:, index])
        np.testing.assert_allclose(answers, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_answers_after_some_frames_are_the_clip_graphs_of_those(predictors, store):
    found = predictors["averaging"].predict(store, sampling("pad"), 8, processes=0)
    np.testing.assert_allclose(found.by_frames[-1], found.logits, rtol=1e-4, atol=1e-4)
    for index, (clip, mask) in enumerate(one_by_one(store, "pad")):
        wanted = predictors["averaging"].model(clip[:, :4], mask=mask[:, :4])[0]
        np.testing.assert_allclose(found.by_frames[2, index], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_clips_of_bad_videos_are_left_out_and_told(predictors, store):
    torn, told = NoiseStore(LENGTHS, size=37, bad=[1, 4]), []
    ask = predictors["averaging"].predict
    found = ask(torn, sampling("pad"), 8, processes=0, on_bad=told.append)
    whole = ask(store, sampling("pad"), 8, processes=0)
    assert found.numbers.tolist() == [0, 2, 3]
    assert [error.path for error in told] == ["1.mp4", "4.mp4"]
    assert found.labels.tolist() == [0, 0, 1]
    np.testing.assert_array_equal(found.mask, whole.mask[[0, 2, 3]])
    np.testing.assert_allclose(found.logits, whole.logits[[0, 2, 3]], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.by_frames, whole.by_frames[:, [0, 2, 3]], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_of_many_clips_evenly_spread_embeddings_are_kept(predictors, store, monkeypatch):
    ask = predictors["transformer"].predict
    whole = ask(store, sampling("pad"), 3, processes=0)
    assert whole.embedded.tolist() == [0, 1, 2, 3, 4]
    monkeypatch.setattr(predictions, "MAX_EMBEDDED", 3)
    found = ask(NoiseStore(LENGTHS, size=37, bad=[1]), sampling("pad"), 3, processes=0)
    assert found.numbers.tolist() == [0, 2, 3, 4]
    assert found.embedded.tolist() == [0, 1, 3]
    np.testing.assert_allclose(found.embeddings, whole.embeddings[[0, 2, 4]], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_two_replicas_give_the_same_answers(transformer, store, two_replicas):
    with two_replicas.scope():
        model = small(head_window=WINDOW)
        for name, variable in model.named_weights().items():
            variable.assign(transformer.named_weights()[name])
    torn = NoiseStore(LENGTHS, size=37, bad=[2])
    one, two = (
        Predictor(m).predict(torn, sampling("pad"), 4, processes=0) for m in (transformer, model)
    )
    for field in ("numbers", "labels", "mask", "embedded"):
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field))
    for field in ("logits", "embeddings"):
        answer = getattr(one, field)  # rounding is of the largest numbers' size
        atol = 2e-4 * max(1, np.max(np.abs(answer)))
        np.testing.assert_allclose(getattr(two, field), answer, rtol=1e-4, atol=atol)


@pytest.mark.parametrize(
    ("seen", "message"),
    [((0, 2), "`frames_seen` must be >= 1"), ((7,), "`frames_seen` must be at most a clip's 6")],
)
def test_frames_that_no_clip_has_are_refused(averaging, store, seen, message):
    with pytest.raises(ValueError, match=message):
        Predictor(averaging, seen).predict(store, sampling(), 2)


# The numbers


@pytest.mark.parametrize("short", ["loop", "pad"])
def test_order_accuracy_compares_every_ordering_of_every_window(transformer, short):
    rng = np.random.default_rng(0)
    window, count = transformer.spec.window, 300  # more than are compared at once
    z = np.cumsum(rng.normal(size=(count, 2 * window, 3)), axis=1).astype(np.float32)
    mask = np.ones(z.shape[:2], bool)
    if short == "pad":
        mask[::2, window + 2 :] = False
    found = predictions_of(z, mask)
    right = []
    for clip, there in zip(z.astype(np.float64), mask, strict=True):
        for part in (slice(0, window), slice(window, 2 * window)):
            if there[part].all():
                right.append(is_likeliest(clip[part]))
    assert len(right) == (600 if short == "loop" else 450)
    assert 0.05 < np.mean(right) < 0.95
    assert order_accuracy(found, transformer.spec) == pytest.approx(np.mean(right), abs=1e-6)


def is_likeliest(frames) -> bool:
    energies = [
        np.sum(np.diff(frames[order], 2, axis=0) ** 2) for order in literal_orderings(len(frames))
    ]
    return energies[0] < min(energies[1:])


def predictions_of(z, mask) -> Predictions:
    count = len(z)
    return Predictions(
        logits=np.eye(4, dtype=np.float32)[np.arange(count) % 4],
        labels=np.zeros(count, np.int64),
        mask=mask,
        numbers=np.arange(count),
        embeddings=z,
        embedded=np.arange(count),
    )


def test_order_accuracy_is_of_what_the_loss_takes(transformer):
    spec = transformer.spec.replace({"loss_input": "layer_norm"})
    rng = np.random.default_rng(1)
    z = np.cumsum(rng.normal(size=(200, spec.window, 3)), axis=1).astype(np.float32)
    z *= rng.uniform(1, 10, (200, spec.window, 1))  # which a layer norm takes back
    found = predictions_of(z, np.ones(z.shape[:2], bool))
    scaled = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + EPSILON)
    wanted = np.mean([is_likeliest(clip) for clip in scaled.astype(np.float64)])
    assert wanted != np.mean([is_likeliest(clip) for clip in z.astype(np.float64)])
    assert order_accuracy(found, spec) == pytest.approx(wanted, abs=1e-6)


def test_there_is_no_order_accuracy_without_a_whole_window(transformer):
    spec = transformer.spec
    short = predictions_of(np.zeros([2, spec.window - 1, 3]), np.ones([2, spec.window - 1], bool))
    masked = predictions_of(np.zeros([2, spec.window, 3]), np.zeros([2, spec.window], bool))
    assert order_accuracy(short, spec) is None
    assert order_accuracy(masked, spec) is None


@pytest.mark.parametrize("frames", [1, 2, 7, 10, 50, 120])
def test_frames_to_ask_rise_to_all(frames):
    asked = frames_to_ask(frames)
    assert list(asked) == sorted(set(asked))
    assert asked[0] == 1
    assert asked[-1] == frames
    assert len(asked) <= 8


def literal_numbers(logits, labels) -> tuple[float, float]:
    logits = logits.astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    top1 = np.mean(logits.argmax(1) == labels)
    return top1, -np.mean(np.log(probabilities[range(len(labels)), labels]))


@pytest.mark.slow
def test_a_validation_row_holds_what_the_model_has(predictors, store):
    smooth = ["val_grw_acceleration", "val_grw_order_accuracy"]
    for kind, short, size, more in (
        ("transformer", "loop", 2, smooth),
        ("averaging", "pad", 8, []),
    ):
        predictor = predictors[kind]
        row = validation_row(predictor, store, sampling(short), size, processes=0)
        assert list(row) == ["val_top1", "val_cross_entropy", *more]
        found = predictor.predict(store, sampling(short), size, processes=0)
        numbers = literal_numbers(found.logits, found.labels)
        assert (row["val_top1"], row["val_cross_entropy"]) == pytest.approx(numbers, abs=1e-5)
        if more:
            bends = np.diff(found.embeddings.astype(np.float64), 2, axis=1)
            wanted = np.linalg.norm(bends, axis=-1).mean()
            assert row["val_grw_acceleration"] == pytest.approx(wanted, rel=1e-4)
            wanted = np.mean([is_likeliest(z[:5]) for z in found.embeddings.astype(np.float64)])
            assert row["val_grw_order_accuracy"] == pytest.approx(wanted)


@pytest.mark.slow
def test_of_many_clips_a_row_measures_the_movement_of_some_from_first_to_last(
    predictors, store, monkeypatch
):
    predictor = predictors["transformer"]
    found = predictor.predict(store, sampling("pad"), 3, processes=0)
    asked = []

    def smoothness(z, mask, f=evaluating.metrics.smoothness):
        asked.append((z, mask))
        return f(z, mask)

    monkeypatch.setattr(evaluating.metrics, "smoothness", smoothness)
    for most, some in ((3, [0, 2, 4]), (5, [0, 1, 2, 3, 4]), (256, [0, 1, 2, 3, 4])):
        monkeypatch.setattr(evaluating, "MAX_MEASURED", most)
        validation_row(predictor, store, sampling("pad"), 3, processes=0)
        z, mask = asked.pop()
        np.testing.assert_allclose(z, found.embeddings[some], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(mask, found.mask[some])


@pytest.mark.slow
def test_an_evaluation_is_what_its_answers_say(transformer):
    torn = NoiseStore(LENGTHS, size=37, bad=[3])
    known = [evaluating.BadVideo("0.mp4", "it was torn before")]
    evaluation, found = evaluate(
        transformer,
        torn,
        data="d",
        split="test",
        weights="w",
        command="c",
        short="pad",
        batch_size=3,
        processes=0,
        bad=known,
    )
    assert found.numbers.tolist() == [0, 1, 2, 4]
    top1, nll = literal_numbers(found.logits, found.labels)
    assert (evaluation.clips, evaluation.top1) == (4, top1)
    assert evaluation.nll == pytest.approx(nll, abs=1e-5)
    confusion = np.zeros([4, 4], int)
    for label, row in zip(found.labels, found.logits, strict=True):
        confusion[label, row.argmax()] += 1
    assert evaluation.confusion == tuple(map(tuple, confusion.tolist()))
    assert [c.label for c in evaluation.per_class] == list(LABELS)
    assert evaluation.accuracy_by_frames == tuple(
        (frames, np.mean(logits.argmax(1) == found.labels))
        for frames, logits in zip(frames_to_ask(N), found.by_frames, strict=True)
    )
    assert [bad.path for bad in evaluation.bad_videos] == ["0.mp4", "3.mp4"]
    assert len(known) == 1
    spec = transformer.spec
    assert (evaluation.model, evaluation.frames, evaluation.fps) == (spec.name, N, spec.fps)
    assert (evaluation.resolution_px, evaluation.top5) == (SIZE, None)
    assert (evaluation.data, evaluation.split, evaluation.weights) == ("d", "test", "w")
    assert evaluation.gmacs > 0
    assert evaluation.mean_speed > 0
    assert evaluation.order_accuracy == order_accuracy(found, spec)
    datetime.datetime.fromisoformat(evaluation.date)
    assert evaluation.command == "c"
    assert evaluation.versions["tensorflow"] == tf.__version__


def test_versions_of_packages_that_are_not_installed_are_left_out(monkeypatch):
    monkeypatch.setattr(evaluating, "PACKAGES", ("numpy", "no-such-package"))
    assert versions() == {"python": platform.python_version(), "numpy": np.__version__}


def test_the_models_sampling_is_its_specs(transformer):
    assert sampling_of(transformer.spec, "pad") == sampling("pad")


@pytest.mark.parametrize("labels", [LABELS[:3], (*LABELS[::-1],)])
def test_other_classes_than_the_models_are_refused(averaging, labels, monkeypatch):
    monkeypatch.setattr(averaging, "labels", LABELS)
    other = NoiseStore(LENGTHS, size=37)
    other.clips = type(other.clips)((), labels)
    with pytest.raises(ValueError, match=rf"labels=model\.labels\. Received: {len(labels)} cl"):
        evaluate(averaging, other, data="d", split="test", weights="w")


def test_a_model_that_cannot_stream_is_not_asked_frame_by_frame():
    model = types.SimpleNamespace(spec=registry.get("movinet_a0"))
    with pytest.raises(ValueError, match=r"takes frame after frame\. Received: movinet_a0"):
        Predictor(model, [2])
