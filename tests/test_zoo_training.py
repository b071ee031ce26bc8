"""The zoo's models learn, are saved and loaded bit for bit, and train on two replicas as on one."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from filelock import FileLock

from grw_keras import zoo
from grw_keras.models.classifier import VideoClassifier
from grw_keras.models.optimizer import TwoRateAdam, paper_optimizer
from grw_keras.models.randomness import Drop, Randomness
from grw_keras.zoo import registry
from tests.helpers import literal_terms
from tests.zoo_helpers import random_clips, randomize

FRAMES = 6
MODELS_TABLE = Path(__file__).parent / "results" / "models.csv"


def learn(name: str) -> tuple[VideoClassifier, list[float]]:
    """A model of four classes after three steps on one batch, and the losses before each."""
    model = zoo.load(name, weights=None, num_classes=4)
    # A tenth of the paper's rates: those are for trained backbones, not for random ones.
    model.compile_for_training(optimizer=TwoRateAdam(1e-5), run_eagerly=True)
    clips, labels = random_clips(4, FRAMES), tf.range(4)
    losses = [
        model.train_on_batch(clips, labels, reset_metrics=True, return_dict=True)["loss"]
        for _ in range(3)
    ]
    return model, losses


def check_saved(model: VideoClassifier, folder) -> None:
    """What is loaded equals what was saved, bit for bit, as clips and as a stream."""
    model.labels = ("walk", "run", "Käse schneiden", "jump")
    model.save_pretrained(folder)
    loaded = zoo.load(folder)
    assert loaded.spec == model.spec
    assert loaded.labels == model.labels
    weights = loaded.named_weights()
    assert weights.keys() == model.named_weights().keys()
    for key, variable in model.named_weights().items():
        np.testing.assert_array_equal(weights[key].numpy(), variable.numpy())
    clips = random_clips(1, FRAMES)
    np.testing.assert_array_equal(loaded(clips), model(clips))
    if model.spec.streaming:
        frame = clips[0, 0].numpy()
        np.testing.assert_array_equal(
            loaded.to_streaming(32).step(frame), model.to_streaming(32).step(frame)
        )


@pytest.mark.slow
def test_three_steps_lower_the_loss_and_are_saved_bit_for_bit(tmp_path):
    """Of a small model here, of all of them in the exhaustive test."""
    model, losses = learn("mobilenet_v3_small_grw")
    assert losses[2] < losses[0]
    check_saved(randomize(model), tmp_path / "model")


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", registry.specs())
def test_every_registered_model_learns_and_is_saved(name, tmp_path):
    model, losses = learn(name)
    assert losses[2] < losses[0]
    check_saved(model, tmp_path / "model")
    if os.environ.get("WRITE_TABLES"):
        add_row(MODELS_TABLE, name, [len(model.named_weights()), *(f"{x:.4f}" for x in losses)])


def add_row(table: Path, name: str, values: list) -> None:
    """Puts a model's row in the table, in the registry's order."""
    with FileLock(f"{table}.lock"):
        rows = {}
        if table.exists():
            with table.open(newline="") as file:
                rows = {row[0]: row for row in list(csv.reader(file))[1:]}
        rows[name] = [name, *values]
        with table.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["name", "tensors", "loss_0", "loss_1", "loss_2"])
            writer.writerows(rows[n] for n in registry.specs() if n in rows)
    Path(f"{table}.lock").unlink(missing_ok=True)


def test_the_table_of_models_is_whole():
    with MODELS_TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == list(registry.specs())
    assert all(float(row["loss_2"]) < float(row["loss_0"]) for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v3_small_grw",
        pytest.param("mobilenet_v3_small_intermediate", marks=pytest.mark.exhaustive),
    ],
)
def test_training_is_traced_once_and_validation_is_of_the_cross_entropy_alone(name, monkeypatch):
    traced = []
    step = VideoClassifier.train_step
    monkeypatch.setattr(
        VideoClassifier, "train_step", lambda self, data: traced.append(0) or step(self, data)
    )
    model = zoo.load(name, weights=None, num_classes=4)
    data = tf.data.Dataset.from_tensor_slices((random_clips(4, FRAMES), tf.range(4))).batch(4)
    history = model.fit(data, validation_data=data, epochs=2, verbose=0).history
    logits = model(random_clips(4, FRAMES))
    cross_entropy = model.loss(tf.range(4), logits)
    assert history["val_loss"][-1] == pytest.approx(float(cross_entropy), rel=1e-4)
    assert np.isfinite(history["val_grw_ordering"]).all()
    assert len(traced) == 1


@pytest.mark.exhaustive
def test_fit_and_evaluate_take_a_dataset():
    model = zoo.load("mobilenet_v3_small_grw", weights=None, num_classes=4)
    data = tf.data.Dataset.from_tensor_slices((random_clips(4, FRAMES), tf.range(4))).batch(2)
    cross_entropy = float(model.loss(tf.range(4), model(random_clips(4, FRAMES))))
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
    assert before["loss"] == pytest.approx(cross_entropy, rel=1e-3)


@pytest.mark.exhaustive
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
@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v3_small_grw",
        *(
            pytest.param(name, marks=pytest.mark.exhaustive)
            for name in ("movinet_a0_intermediate", "movinet_a0_stream_grw")
        ),
    ],
)
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


@pytest.mark.slow
@pytest.mark.parametrize("saved", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_the_zoo_trains_its_backbone_slowly(saved, tmp_path):
    model = zoo.load("mobilenet_v3_small_grw", weights=None, num_classes=4)
    if saved:  # Keras's own file keeps the optimiser, which is told again what is the backbone
        model.save(tmp_path / "model.keras")
        clips, original = random_clips(1, FRAMES), model
        model = tf_keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(model(clips), original(clips))
    model.run_eagerly = True  # one step takes less time than it takes to trace it
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


@pytest.mark.slow
def test_replicas_draw_their_own_numbers(two_replicas):
    with two_replicas.scope():
        drop = Drop(0.5, Randomness(seed=0), 0)
    drawn = two_replicas.run(tf.function(lambda: drop(tf.ones([64]), training=True)))
    first, second = two_replicas.experimental_local_results(drawn)
    assert np.any(first.numpy() != second.numpy())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param("movinet_a0_stream", marks=pytest.mark.exhaustive), "mobilenet_v3_small_grw"],
)
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


@pytest.mark.slow
def test_the_official_stochastic_depth_is_replaced():
    model = zoo.load("movinet_a0_stream_relu6", weights=None, stochastic_depth=0.2)
    drops = [m for m in model.backbone.submodules if isinstance(m, Drop)]
    # Official rates rise linearly to the last block's.
    np.testing.assert_allclose([d.rate for d in drops], 0.2 * np.arange(1, 16) / 15)
    assert len({d.layer_index for d in drops}) == 15
    assert not [m for m in model.submodules if type(m).__name__ in ("StochasticDepth", "Dropout")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy", [pytest.param("mixed_float16", marks=pytest.mark.exhaustive), "mixed_bfloat16"]
)
def test_models_train_in_mixed_precision_and_stream_in_float32(policy, tmp_path):
    tf_keras.mixed_precision.set_global_policy(policy)
    try:
        model = zoo.load("mobilenet_v3_small_grw", weights=None, num_classes=4)
        wrapped = tf_keras.mixed_precision.LossScaleOptimizer(
            paper_optimizer(), dynamic=False, initial_scale=1.0
        )
        model.compile_for_training(optimizer=wrapped, run_eagerly=True)
        before = model.named_weights()["backbone/Conv_1/kernel"].numpy()
        loss = model.train_on_batch(random_clips(2, FRAMES), tf.range(2), return_dict=True)["loss"]
        moved = np.max(np.abs(model.named_weights()["backbone/Conv_1/kernel"] - before))
        with pytest.raises(ValueError, match="Streams run in float32"):
            model.to_streaming(32)
        model.save_pretrained(tmp_path)
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    assert np.isfinite(loss)
    assert moved == pytest.approx(1e-4, rel=0.05)  # the backbone's rate, behind loss scaling too
    assert zoo.load(tmp_path).to_streaming(32).step(np.zeros((32, 32, 3))).shape == (4,)


def test_an_optimizer_that_knows_no_backbone_does_not_train():
    variable = tf.Variable(1.0)
    with pytest.raises(ValueError, match="Say which variables are the backbone's"):
        paper_optimizer().apply_gradients([(tf.constant(1.0), variable)])


@pytest.mark.exhaustive
def test_a_run_resumes_from_a_checkpoint_as_if_it_had_not_stopped(tmp_path):
    def step(model):
        model.train_on_batch(random_clips(2, FRAMES), tf.range(2))
        return {key: v.numpy() for key, v in model.named_weights().items()}

    model = zoo.load("mobilenet_v3_small_grw", weights=None, num_classes=4, dropout=0.5)
    step(model)
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(tmp_path / "ckpt")
    expected = step(model)
    other = zoo.load("mobilenet_v3_small_grw", weights=None, num_classes=4, dropout=0.5)
    resumed = tf.train.Checkpoint(model=other, optimizer=other.optimizer)
    resumed.restore(tf.train.latest_checkpoint(tmp_path))
    for key, value in step(other).items():
        np.testing.assert_allclose(value, expected[key], atol=1e-7, err_msg=key)


@pytest.mark.slow
def test_frozen_batch_norms_stay_frozen_when_the_backbone_thaws():
    model = zoo.load("mobilenet_v3_small_grw", None, num_classes=4, frozen_batch_norm=True)
    model.backbone.trainable = False
    model.backbone.trainable = True
    model.compile_for_training(run_eagerly=True)
    mean = model.named_weights()["backbone/Conv/BatchNorm/moving_mean"]
    before = mean.numpy()
    model.train_on_batch(random_clips(2, FRAMES), tf.range(2))
    np.testing.assert_array_equal(mean.numpy(), before)
