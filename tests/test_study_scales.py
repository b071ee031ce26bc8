"""The two losses' pulls at the embeddings, against differences of their literal formulas."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from grw_keras.models.classifier import VideoClassifier
from grw_keras.zoo import registry
from tests.helpers import literal_loss, literal_terms, script
from tests.store_helpers import ArrayStore
from tests.zoo_helpers import random_clips, randomize

ALPHA, FRAMES = 0.5, 5


@pytest.fixture(scope="module")
def scales():
    return script(Path(__file__).parents[1] / "zoo" / "study_scales.py")


@pytest.fixture(scope="module")
def model():
    small = {"num_classes": 4, "resolution": 32, "frames": FRAMES, "embed_dim": 8, "head_heads": 2}
    return randomize(VideoClassifier(registry.get("mobilenet_v3_small_grw").replace(small)))


def slopes(function, x: np.ndarray, step: float) -> np.ndarray:
    """Central differences by each entry."""
    x = x.astype(np.float64)
    found = np.zeros_like(x)
    for place in np.ndindex(*x.shape):
        more, less = x.copy(), x.copy()
        more[place] += step
        less[place] -= step
        found[place] = (function(more) - function(less)) / (2 * step)
    return found


@pytest.mark.slow
def test_losses_and_their_pulls_are_by_their_formulas(scales, model):
    clips, labels = random_clips(2, FRAMES), np.array([1, 3])
    found = [part.numpy() for part in scales.parts(model, clips, labels)]
    z, entropy, ordering, speed, of_entropy, of_smooth, shrinking = found
    for clip, label, *numbers in zip(
        z, labels, entropy, ordering, speed, of_entropy, of_smooth, shrinking, strict=True
    ):

        def cross_entropy(x, label=label):
            logits = model.classify(tf.constant(x[None], tf.float32))[0]
            return float(tf.reduce_logsumexp(logits) - logits[label])

        def smooth(x):
            return literal_loss(x[None], FRAMES, ALPHA)

        pull = slopes(smooth, clip, 1e-5)
        centred = clip - clip.mean(0)
        along = (pull * centred).sum() / np.linalg.norm(centred)
        expected = [
            cross_entropy(clip),
            *literal_terms(clip),
            np.linalg.norm(slopes(cross_entropy, clip, 3e-2)),
            np.linalg.norm(pull),
            max(along, 0) ** 2 / (pull**2).sum(),
        ]
        np.testing.assert_allclose(numbers, expected, rtol=2e-2)


@pytest.mark.slow
def test_rows_are_of_the_steps_and_of_the_embeddings_as_they_are(scales, model):
    watch = scales.Scales(model, ArrayStore([9] * 3, size=32))
    watch.on_train_begin()
    for batch in range(20):
        watch.on_train_batch_end(batch)
    assert [row["step"] for row in watch.rows] == ["0", "15"]
    first, second = ({k: v for k, v in row.items() if k != "step"} for row in watch.rows)
    assert first == second  # nothing was trained
    assert float(first["acceleration_over_speed"]) > 0
    for row in first.values():
        assert np.isfinite(float(row))
    page = script(Path(__file__).parents[1] / "zoo" / "study_page.py")
    text = list(page.pulls([{"weight": "0.1"} | row for row in watch.rows]))
    assert sum(line.startswith("| 0.1 | ") for line in text) == 2
