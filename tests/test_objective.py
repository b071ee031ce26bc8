"""Optimisers, losses and precision against their formulas."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from grw_keras.training import objective, state
from grw_keras.training.recipe import TrainingPart
from tests.training_programs import CLASSES, Tiny

STEPS = 6
RATES = {"backbone_rate": [1e-2, 1e-4], "head_rate": [5e-2, 5e-4]}
SHAPES = {"backbone/kernel": (2, 3), "backbone/bias": (3,), "kernel": (3, 2), "bias": (2,)}


def literal_training(start, gradients, *, adam, weight_decay=0.0, clip_norm=None):
    """In float64; decoupled decay, of kernels alone, at each one's own rate."""
    weights = {name: value.astype(np.float64) for name, value in start.items()}
    moments = dict.fromkeys(start, (0.0, 0.0))
    for step, gradient in enumerate(gradients):
        fall = 0.01 + 0.99 * (1 + math.cos(math.pi * step / STEPS)) / 2
        norm = math.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradient.values()))
        scale = 1.0 if clip_norm is None else min(1.0, clip_norm / norm)
        for name, weight in weights.items():
            rate = fall * (1e-2 if name.startswith("backbone") else 5e-2)
            g = scale * gradient[name].astype(np.float64)
            if weight.ndim > 1:
                weight = weight - rate * weight_decay * weight
            if adam:
                m, v = moments[name]
                moments[name] = m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
                m, v = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
                g = m / (np.sqrt(v) + 1e-7)
            weights[name] = weight - rate * g
    return weights


@pytest.mark.parametrize("clip_norm", [None, 1.5])
@pytest.mark.parametrize(
    ("name", "weight_decay"), [("adam", 0.0), ("adamw", 0.3), ("sgd", 0.0), ("sgd", 0.3)]
)
def test_each_group_has_its_rate_and_kernels_decay(name, weight_decay, clip_norm):
    rng = np.random.default_rng(0)
    draw = {k: rng.normal(size=shape).astype(np.float32) for k, shape in SHAPES.items()}
    gradients = [
        {k: rng.normal(size=shape).astype(np.float32) for k, shape in SHAPES.items()}
        for _ in range(STEPS)
    ]
    settings = TrainingPart(**RATES, optimizer=name, weight_decay=weight_decay, clip_norm=clip_norm)
    optimizer = objective.optimizer(settings, STEPS)
    variables = {k: tf.Variable(value) for k, value in draw.items()}
    optimizer.name_backbone([variables["backbone/kernel"], variables["backbone/bias"]])
    for gradient in gradients:
        optimizer.apply_gradients(
            [(tf.constant(gradient[k]), variable) for k, variable in variables.items()]
        )
    expected = literal_training(
        draw, gradients, adam=name != "sgd", weight_decay=weight_decay, clip_norm=clip_norm
    )
    for k, variable in variables.items():
        change = np.abs(expected[k] - draw[k]).max()
        np.testing.assert_allclose(variable, expected[k], atol=1e-4 * change + 1e-6, err_msg=k)


def test_rates_that_fall_otherwise_are_refused():
    with pytest.raises(ValueError, match=r"`training.head_rate` must be falling by the same fact"):
        TrainingPart(backbone_rate=[1e-4, 1e-6], head_rate=[1e-3, 1e-4])


def test_rates_may_stay_as_they_are_or_fall_to_zero():
    for rates in (
        {"backbone_rate": [1e-4, 1e-4], "head_rate": [1e-2, 1e-2]},
        {"backbone_rate": [1e-4, 0.0], "head_rate": [1e-2, 0.0]},
    ):
        optimizer = objective.optimizer(TrainingPart(**rates), STEPS)
        assert optimizer.head_factor == pytest.approx(100)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothed_cross_entropy_is_that_of_smoothed_labels(smoothing):
    rng = np.random.default_rng(0)
    logits = tf.constant(rng.normal(scale=5, size=(7, 5)), tf.float32)
    labels = rng.integers(0, 5, 7)
    weights = rng.random(7).astype(np.float32)
    ours = objective.SmoothedCrossEntropy(smoothing)
    theirs = tf_keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing)
    expected = theirs(tf.one_hot(labels, 5), logits, weights)
    for shape in ([7], [7, 1]):
        found = ours(tf.reshape(labels, shape), logits, weights)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    half = ours(labels, tf.cast(logits, tf.float16))
    assert half.dtype == tf.float32
    again = tf_keras.losses.deserialize(tf_keras.losses.serialize(ours))
    assert again.label_smoothing == smoothing


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, 2])
def test_label_smoothing_is_a_share(smoothing):
    with pytest.raises(ValueError, match=r"`label_smoothing` must be in \[0, 1\)"):
        objective.SmoothedCrossEntropy(smoothing)


@pytest.mark.parametrize(("classes", "accuracies"), [(CLASSES, {"top1"}), (6, {"top1", "top5"})])
def test_metrics_split_the_loss(classes, accuracies):
    model = Tiny()
    model.spec = model.spec.replace({"num_classes": classes})
    objective.compile_model(model, TrainingPart(label_smoothing=0.1), STEPS)
    state.build(model, (1, classes))
    grw = {"grw_ordering", "grw_speed", "grw_order_accuracy", "grw_acceleration"}
    assert {m.name for m in model.metrics} == {"loss", "cross_entropy"} | accuracies | grw
    logits = np.random.default_rng(0).normal(size=(4, classes)).astype(np.float32)
    labels = np.arange(4) % 3
    values = model.compute_metrics(None, tf.constant(labels), tf.constant(logits), None)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    # The metric is of the labels themselves: comparable between recipes.
    assert float(values["cross_entropy"]) == pytest.approx(
        -log_p[range(4), labels].mean(), rel=1e-5
    )
    assert float(values["top1"]) == (logits.argmax(axis=1) == labels).mean()


@pytest.mark.slow
def test_all_variables_are_made_before_the_first_step():
    """Or a checkpoint could not be put back before it."""
    model = Tiny()
    objective.compile_model(model, TrainingPart(precision="float16"), STEPS)
    state.build(model, (1, CLASSES))
    before = [*state.variables(model)]
    model.fit(tf.zeros([2, 6, 8, 8, 3]), tf.zeros([2]), verbose=0)
    assert [*state.variables(model)] == before
    assert [name for name in before if name.startswith("loss_scale")] != []
    assert len([name for name in before if name.startswith("optimizer")]) >= 1 + 2 * 7


@pytest.mark.parametrize(
    ("name", "policy"),
    [("float32", "float32"), ("bfloat16", "mixed_bfloat16"), ("float16", "mixed_float16")],
)
def test_precision_is_of_the_models_made_meanwhile(name, policy):
    before = tf_keras.mixed_precision.global_policy().name
    with objective.precision(name):
        layer = tf_keras.layers.Dense(2)
        model = Tiny()
    assert layer.dtype_policy.name == policy
    assert tf_keras.mixed_precision.global_policy().name == before
    objective.compile_model(model, TrainingPart(precision=name), STEPS)
    scaled = isinstance(model.optimizer, tf_keras.mixed_precision.LossScaleOptimizer)
    assert scaled == (name == "float16")
    assert model(tf.zeros([1, 6, 8, 8, 3])).dtype == tf.float32
    assert {v.dtype for v in model.trainable_variables} == {tf.float32}


def test_precision_is_put_back_after_an_error():
    before = tf_keras.mixed_precision.global_policy().name
    with pytest.raises(RuntimeError, match="within"), objective.precision("bfloat16"):
        raise RuntimeError("within")
    assert tf_keras.mixed_precision.global_policy().name == before
