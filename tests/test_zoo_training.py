"""The zoo's models learn, are saved and loaded bit for bit, and train on two replicas as on one."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from grw_keras import zoo
from grw_keras.models.classifier import VideoClassifier
from grw_keras.models.optimizer import TwoRateAdam, paper_optimizer
from grw_keras.models.randomness import Drop, Randomness
from grw_keras.zoo import registry
from tests.helpers import literal_terms
from tests.zoo_helpers import random_clips, randomize

FRAMES = 6
# One model for each family and placement.
SAMPLE = [
    *(f"movinet_a0_stream{variant}" for variant in ("", "_grw", "_intermediate", "_attention")),
    *(f"movinet_a0{variant}" for variant in ("", "_grw", "_intermediate", "_attention")),
    "movinet_a0_stream_relu6_grw",
    *(f"mobilenet_v3_small{v}" for v in ("", "_tsm", "_grw", "_intermediate", "_attention")),
]


def steps_lower_the_loss(name: str) -> bool:
    model = zoo.load(name, weights=None, num_classes=4)
    model.compile_for_training(run_eagerly=True)
    clips, labels = random_clips(4, FRAMES), tf.range(4)
    losses = [
        model.train_on_batch(clips, labels, reset_metrics=True, return_dict=True)["loss"]
        for _ in range(3)
    ]
    return losses[2] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_three_steps_lower_the_loss(name):
    assert steps_lower_the_loss(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_a_saved_model_is_loaded_bit_for_bit(name, tmp_path):
    labels = ("walk", "run", "Käse schneiden", "jump")
    model = randomize(zoo.load(name, weights=None, num_classes=4, dropout=0.25))
    model.labels = labels
    model.save_pretrained(tmp_path / "model")
    loaded = zoo.load(tmp_path / "model")
    assert loaded.spec == model.spec
    assert loaded.labels == labels
    weights = loaded.named_weights()
    assert weights.keys() == model.named_weights().keys()
    for key, variable in model.named_weights().items():
        np.testing.assert_array_equal(weights[key], variable)
    clips = random_clips(1, FRAMES)
    np.testing.assert_array_equal(loaded(clips), model(clips))
    if model.spec.streaming:
        frame = np.asarray(clips[0, 0])
        np.testing.assert_array_equal(
            loaded.to_streaming(32).step(frame), model.to_streaming(32).step(frame)
        )


def test_fit_and_evaluate_take_a_dataset():
    model = zoo.load("mobilenet_v3_small_grw", weights=None, num_classes=4)
    data = tf.data.Dataset.from_tensor_slices((random_clips(4, FRAMES), tf.range(4))).batch(2)
    before = model.evaluate(data, verbose=0, return_dict=True)
    history = model.fit(data, epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert {"accuracy", "grw_ordering", "grw_speed"} <= history.keys()
    # Evaluation measures the same smoothness as training, and takes clips of any length.
    clips = random_clips(4, FRAMES)
    measured = model.evaluate(clips, tf.range(4), verbose=0, return_dict=True)
    terms = [literal_terms(z[:5]) for z in model.embeddings(clips).numpy()]
    assert measured["grw_ordering"] == pytest.approx(np.mean(terms, axis=0)[0], rel=1e-3)
    short = model.evaluate(clips[:, :3], tf.range(4), verbose=0, return_dict=True)
    assert np.isfinite(short["loss"])
    assert np.isnan(short["grw_ordering"])
    assert before["loss"] == pytest.approx(np.log(4), rel=0.5)


@pytest.mark.slow
def test_a_step_on_two_replicas_is_the_step_on_one(two_replicas):
    clips, labels = random_clips(4, FRAMES, size=64), tf.range(4)
    spec = registry.get("mobilenet_v3_small_grw").replace({"num_classes": 4})
    initial, results = {}, []
    for strategy in (tf.distribute.get_strategy(), two_replicas):
        with strategy.scope():
            model = VideoClassifier(spec)
            model.compile_for_training(optimizer=tf_keras.optimizers.SGD(1e-3))
        for layer in model.batch_norms():
            layer.fused = False  # the fused one's running variance has another divisor
        for key, variable in model.named_weights().items():
            variable.assign(initial.setdefault(key, variable.numpy()))
        model.fit(tf.data.Dataset.from_tensor_slices((clips, labels)).batch(4), verbose=0)
        results.append({key: v.numpy() for key, v in model.named_weights().items()})
    one, two = results
    for key in one:
        np.testing.assert_allclose(two[key], one[key], atol=1e-5, err_msg=key)
    moved = [np.max(np.abs(one[key] - initial[key])) for key in one if key.endswith("/kernel")]
    assert np.median(moved) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_a_model_is_built_on_two_replicas(name, two_replicas):
    with two_replicas.scope():
        model = zoo.load(name, weights=None, num_classes=4)
    variables = [*model.named_weights().values(), model.randomness.step]
    assert all(isinstance(v, tf.distribute.DistributedValues) for v in variables)


def test_the_learning_rates_are_the_papers():
    backbone, head = tf.Variable([1.0, 1.0]), tf.Variable([1.0, 1.0])
    for steps, (slow, fast) in {None: (1e-4, 1e-3), 1: (1e-4, 1e-3)}.items():
        before = backbone.numpy(), head.numpy()
        optimizer = paper_optimizer(steps)
        optimizer.name_backbone([backbone])
        gradient = tf.constant([0.3, -2.0])
        optimizer.apply_gradients([(gradient, backbone), (gradient, head)])
        # Adam's first step is the learning rate times the gradient's sign.
        np.testing.assert_allclose(backbone - before[0], [-slow, slow], rtol=1e-2)
        np.testing.assert_allclose(head - before[1], [-fast, fast], rtol=1e-2)
    schedule = paper_optimizer(100)._learning_rate
    rates = [float(schedule(step)) for step in (0, 50, 100)]
    np.testing.assert_allclose(rates, [1e-4, (1e-4 + 1e-6) / 2, 1e-6], rtol=1e-5)


@pytest.mark.parametrize("saved", [False, True])
def test_the_zoo_trains_its_backbone_slowly(saved, tmp_path):
    model = zoo.load("mobilenet_v3_small_grw", weights=None, num_classes=4)
    if saved:  # Keras's own file keeps the optimiser, which is told again what is the backbone
        model.save(tmp_path / "model.keras")
        clips, original = random_clips(1, FRAMES), model
        model = tf_keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(model(clips), original(clips))
    before = {key: v.numpy() for key, v in model.named_weights().items()}
    model.train_on_batch(random_clips(2, FRAMES), tf.range(2))
    moved = {k: np.max(np.abs(v - before[k])) for k, v in model.named_weights().items()}
    assert moved["backbone/Conv_1/kernel"] == pytest.approx(1e-4, rel=0.05)
    for key in ("affine/kernel", "transformer/layer0/attention/query/kernel", "logits/kernel"):
        assert moved[key] == pytest.approx(1e-3, rel=0.05)


@pytest.mark.parametrize("steps", [0, -3, 2.5])
def test_steps_that_are_none_are_refused(steps):
    with pytest.raises(ValueError, match="`steps`"):
        paper_optimizer(steps)


def test_the_optimizer_refuses_a_factor_that_is_none():
    with pytest.raises(ValueError, match="head_factor"):
        TwoRateAdam(head_factor=0)


@pytest.mark.parametrize(("per_sample", "shape"), [(False, (50, 40)), (True, (2000, 3))])
def test_dropping_keeps_the_expected_value(per_sample, shape):
    randomness = Randomness(seed=3)
    drop = Drop(0.25, randomness, 0, per_sample=per_sample)
    x = tf.ones(shape)
    dropped = drop(x, training=True).numpy()
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.75)}
    assert np.mean(dropped == 0) == pytest.approx(0.25, abs=0.03)
    assert (np.ptp(dropped, axis=1).max() == 0) == per_sample
    np.testing.assert_array_equal(drop(x, training=False), x)


def test_random_layers_depend_on_seed_step_and_place_alone():
    def draw(seed, step, place):
        randomness = Randomness(seed=seed)
        randomness.step.assign(step)
        return Drop(0.5, randomness, place)(tf.ones([64]), training=True).numpy()

    first = draw(1, 5, 0)
    np.testing.assert_array_equal(draw(1, 5, 0), first)
    for other in ((2, 5, 0), (1, 6, 0), (1, 5, 1)):
        assert np.any(draw(*other) != first)


def test_replicas_draw_their_own_numbers(two_replicas):
    with two_replicas.scope():
        drop = Drop(0.5, Randomness(seed=0), 0)
    drawn = two_replicas.run(tf.function(lambda: drop(tf.ones([64]), training=True)))
    first, second = two_replicas.experimental_local_results(drawn)
    assert np.any(first.numpy() != second.numpy())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["movinet_a0_stream", "mobilenet_v3_small_grw"])
def test_a_run_can_be_repeated_and_resumed(name):
    clips = random_clips(2, FRAMES)
    model = zoo.load(name, weights=None, num_classes=4, dropout=0.5, stochastic_depth=0.5, seed=7)
    randomize(model)
    # Batch norm's running statistics don't matter here: training uses the batch's own.
    outputs = [model(clips, training=True).numpy() for _ in range(3)]
    assert int(model.randomness.step) == 3
    assert np.any(outputs[0] != outputs[1])
    model.randomness.step.assign(1)
    np.testing.assert_allclose(model(clips, training=True), outputs[1], atol=1e-6)
    np.testing.assert_array_equal(model(clips), model(clips))


def test_the_official_stochastic_depth_is_replaced():
    model = zoo.load("movinet_a0_stream_relu6", weights=None, stochastic_depth=0.2)
    drops = [m for m in model.backbone.submodules if isinstance(m, Drop)]
    # Official rates rise linearly to the last block's.
    np.testing.assert_allclose([d.rate for d in drops], 0.2 * np.arange(1, 14) / 13)
    assert len({d.layer_index for d in drops}) == 13
    assert not [m for m in model.submodules if type(m).__name__ in ("StochasticDepth", "Dropout")]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("name", ["mobilenet_v3_small_grw", "mobilenet_v3_small_tsm"])
def test_models_train_and_stream_in_mixed_precision(name, policy):
    tf_keras.mixed_precision.set_global_policy(policy)
    try:
        model = zoo.load(name, weights=None, num_classes=4)
        clips = random_clips(2, FRAMES)
        assert np.isfinite(model.train_on_batch(clips, tf.range(2))[0])
        session = model.to_streaming(32)
        for frame in np.asarray(clips[0]):
            probabilities = session.step(frame)
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    assert probabilities.dtype == np.float32
    if model.spec.temporal_shift == "none":
        expected = tf.nn.softmax(model(clips[:1]))[0]
        np.testing.assert_allclose(probabilities, expected, atol=0.05)
