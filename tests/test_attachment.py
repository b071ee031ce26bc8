"""attach on small models: the loss, training, and what is left as it was."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from grw_keras import GRWRegularizer, attach, grw_loss
from grw_keras.attachment import GRWModel, endpoints
from grw_keras.losses import ShortClipError
from tests.attached_models import CLIPS, CROSS_ENTROPY, LABELS, layers, small_cnn, standardized
from tests.helpers import literal_loss


def nested_model():
    """The small CNN's features two models deep, with a branch round the nested models."""
    inner = small_cnn("inner")
    features = tf_keras.Model(inner.input, inner.get_layer("frames").output, name="features")
    clip = tf_keras.Input((None, None, None, 3))
    middle = tf_keras.Model(clip, features(2.0 * clip), name="middle")
    video = tf_keras.Input((None, 16, 16, 3), name="video")
    brightness = layers.Lambda(lambda x: tf.reduce_mean(x, [2, 3]), name="brightness")(video)
    x = layers.Concatenate(name="joined")([middle(video), brightness])
    logits = layers.Dense(3)(layers.GlobalAveragePooling1D()(x))
    return tf_keras.Model(video, {"logits": logits, "embedding": x}, name="outer")


def test_the_loss_is_that_of_the_endpoint_in_training_mode():
    base = small_cnn()
    base.get_layer("drop").rate = 0.0
    attached = attach(base, "conv", window=3, weight=2.0, alpha=0.25)
    features = base.get_layer("conv")(CLIPS).numpy().mean(axis=(2, 3))
    outputs = attached(CLIPS, training=True)
    (loss,) = attached.regularizer.losses
    expected = 2.0 * literal_loss(standardized(features), 3, 0.25)
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(outputs, base(CLIPS, training=True), atol=1e-6)


def test_final_placement_takes_the_features_as_they_are():
    base = small_cnn()
    attached = attach(base, "conv", "final", window=3, weight=1.0)
    attached(CLIPS, training=True)
    features = base.get_layer("conv")(CLIPS).numpy().mean(axis=(2, 3))
    expected = literal_loss(features, 3, 0.5)
    assert float(attached.regularizer.losses[0]) == pytest.approx(expected, rel=1e-4)


def test_the_base_models_own_losses_and_outputs_are_kept():
    base = small_cnn()
    attached = attach(base, "bn", window=3, weight=0.0)
    assert isinstance(attached, GRWModel)
    assert attached.base_model is base
    base(CLIPS, training=False)
    expected = sorted(float(loss) for loss in base.losses)
    np.testing.assert_array_equal(attached(CLIPS), base(CLIPS))
    found = sorted(float(loss) for loss in attached.losses)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    attached(CLIPS, training=True)
    assert len(attached.losses) == len(expected) + 1 == 3
    for one, other in zip(attached.weights, base.weights, strict=True):
        assert one is other


class Stateful(layers.Layer):
    """Counts its training calls and draws noise from a generator of its own."""

    def __init__(self):
        super().__init__(name="stateful")
        self.calls = tf.Variable(0, trainable=False)
        self.generator = tf.random.Generator.from_seed(1)

    def call(self, x, training=None):
        if not training:
            return x
        self.calls.assign_add(1)
        return x + self.generator.normal(tf.shape(x))


def test_attaching_leaves_everything_as_it_was():
    cnn = small_cnn()
    video = tf_keras.Input((None, None, None, 3))
    stateful = Stateful()
    base = tf_keras.Model(video, cnn(stateful(video)))
    variables = (*base.variables, stateful.generator.state)
    before = [variable.numpy() for variable in variables]
    tf.random.set_seed(5)
    first = tf.random.uniform([3]).numpy()
    tf.random.set_seed(5)
    attached = attach(base, "frames", window=3, warmup_steps=10, normalization="affine")
    np.testing.assert_array_equal(tf.random.uniform([3]), first)
    for value, variable in zip(before, variables, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    base(CLIPS, training=True)  # which does change all of these kinds
    changed = [(v.numpy() != b).any() for b, v in zip(before, variables, strict=True)]
    assert sum(changed) == 4  # batch norm's mean and variance, the counter, the generator
    assert int(attached.regularizer.step) == 0
    assert all(np.isnan(float(metric.result())) for metric in attached.regularizer.metrics)
    assert attached.regularizer.losses == []
    assert len(cnn.get_layer("conv")._inbound_nodes) == 1


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_fit_trains_the_base_model_and_evaluate_measures_without_the_loss(jit_compile):
    base = small_cnn()
    plain = small_cnn()
    attached = attach(base, "bn", window=3)
    for model in (attached, plain):
        optimizer = tf_keras.optimizers.Adam(1e-2)
        model.compile(optimizer, CROSS_ENTROPY, metrics=["accuracy"], jit_compile=jit_compile)
    start = plain.evaluate(CLIPS, LABELS, verbose=0, return_dict=True)
    found = attached.evaluate(CLIPS, LABELS, verbose=0, return_dict=True)
    for name, value in start.items():
        assert found[name] == pytest.approx(value, rel=1e-5)
    base_features = tf_keras.Model(base.input, base.get_layer("bn").output)(CLIPS)
    z = standardized(base_features.numpy().mean(axis=(2, 3)))
    expected = float(grw_loss(z, window=3, alpha=0.0))
    assert found["grw_ordering"] == pytest.approx(expected, rel=1e-4)

    before = base.get_weights()
    history = attached.fit(CLIPS, LABELS, epochs=3, verbose=0, validation_data=(CLIPS, LABELS))
    assert np.isfinite(history.history["val_grw_order_accuracy"]).all()
    assert np.abs(base.get_weights()[0] - before[0]).max() > 1e-3
    np.testing.assert_allclose(attached.predict(CLIPS, verbose=0), base(CLIPS), atol=1e-5)


@pytest.mark.slow
def test_the_training_step_is_traced_once(monkeypatch):
    traced = []
    step = tf_keras.Model.train_step
    monkeypatch.setattr(
        tf_keras.Model, "train_step", lambda self, data: traced.append(0) or step(self, data)
    )
    attached = attach(small_cnn(), "bn", window=3)
    attached.compile("adam", CROSS_ENTROPY)
    attached.fit(CLIPS, LABELS, epochs=2, verbose=0)
    assert len(traced) == 1


@pytest.mark.slow
@pytest.mark.parametrize("run_eagerly", [False, True])
def test_validation_after_training_adds_no_smoothness_loss(run_eagerly):
    base = small_cnn()
    attached = attach(base, "bn", window=3, weight=100.0)
    attached.compile(tf_keras.optimizers.SGD(0.0), CROSS_ENTROPY, run_eagerly=run_eagerly)
    base.compile("sgd", CROSS_ENTROPY)
    found = attached.fit(CLIPS, LABELS, verbose=0, validation_data=(CLIPS, LABELS)).history
    expected = base.evaluate(CLIPS, LABELS, verbose=0)
    assert found["val_loss"][0] == pytest.approx(expected, rel=1e-5)
    assert found["loss"][0] > 10 * expected


def test_a_layer_deep_in_nested_models_is_found_and_regularised():
    base = nested_model()
    paths = [endpoint.path for endpoint in endpoints(base)]
    assert "middle/features/conv" in paths
    assert "brightness" in paths
    attached = attach(base, "conv", window=3, weight=1.0)
    assert attach(base, "features/conv", window=3).base_model is base
    outputs = attached(CLIPS, training=True)
    conv = base.get_layer("middle").get_layer("features").get_layer("conv")
    features = conv(2.0 * CLIPS).numpy().mean(axis=(2, 3))
    expected = literal_loss(standardized(features), 3, 0.5)
    assert float(attached.regularizer.losses[0]) == pytest.approx(expected, rel=1e-4)
    assert set(outputs) == {"logits", "embedding"}
    inference = base(CLIPS)
    for name, value in attached(CLIPS).items():
        np.testing.assert_array_equal(value, inference[name])


def test_a_nested_model_keeps_the_arguments_it_is_called_with():
    inner_input = tf_keras.Input((None, 8))
    normed = layers.BatchNormalization(name="bn")(layers.Dense(4, name="z")(inner_input))
    inner = tf_keras.Model(inner_input, layers.Dropout(0.5)(normed), name="frozen")
    video = tf_keras.Input((None, 8))
    x = inner(video, training=False)  # the idiom for fine-tuning on a frozen backbone
    base = tf_keras.Model(video, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))
    attached = attach(base, "z", window=3)
    clips = CLIPS[:, :, 0, :8, 0]
    expected = base(clips, training=True)
    np.testing.assert_allclose(attached(clips, training=True), expected, rtol=1e-6)
    np.testing.assert_array_equal(inner.get_layer("bn").moving_mean, 0)
    assert len(attached.regularizer.losses) == 1


def masked_model():
    video = tf_keras.Input((None, 8))
    z = layers.Dense(4, bias_initializer="ones", name="z")(layers.Masking()(video))
    return tf_keras.Model(video, layers.Dense(3)(layers.GlobalAveragePooling1D()(z)))


@pytest.mark.slow
def test_padding_counts_neither_in_training_nor_in_validation():
    clips = CLIPS[:, :, 0, :8, 0].copy()
    clips[1:, 3:] = 0.0
    base = masked_model()
    attached = attach(base, "z", "final", window=3)
    attached.compile(tf_keras.optimizers.SGD(0.0), CROSS_ENTROPY)
    found = attached.fit(clips, LABELS, verbose=0, validation_data=(clips, LABELS)).history
    z = base.get_layer("z")(clips)
    valid = np.stack([z[0, :3], z[0, 3:], *z[1:, :3]])
    expected = float(grw_loss(valid, window=3, alpha=0.0))
    assert found["grw_ordering"][0] == pytest.approx(expected, rel=1e-5)
    assert found["val_grw_ordering"][0] == pytest.approx(expected, rel=1e-5)


def test_a_mask_passed_to_the_model_reaches_the_base_model_and_the_loss():
    clips = CLIPS[:, :, 0, :8, 0]
    mask = np.ones((4, 6), bool)
    mask[:, 3:] = False
    video = tf_keras.Input((None, 8))
    z = layers.Dense(4, name="z")(video)
    base = tf_keras.Model(video, layers.Dense(3)(layers.GlobalAveragePooling1D()(z)))
    attached = attach(base, "z", "final", window=3, weight=1.0)
    outputs = attached(clips, training=True, mask=tf.constant(mask))
    expected = base(clips, training=True, mask=tf.constant(mask))
    np.testing.assert_allclose(outputs, expected, rtol=1e-6)
    loss = literal_loss(base.get_layer("z")(clips).numpy()[:, :3], 3, 0.5)
    assert float(attached.regularizer.losses[0]) == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("kind", ["uint8", "grey", "mask input", "dict"])
def test_models_with_other_inputs_get_a_fitting_trial(kind):
    if kind == "uint8":
        inputs = tf_keras.Input((None, 8, 8, 3), dtype="uint8")
        x = layers.Rescaling(1 / 255)(inputs)
    elif kind == "grey":
        inputs = tf_keras.Input((None, 8, 8))
        x = layers.Reshape((-1, 8, 8, 1))(inputs)
    else:
        video, keep = tf_keras.Input((None, 8, 8, 3)), tf_keras.Input((None,), dtype="bool")
        x = video * tf.cast(keep, tf.float32)[..., None, None, None]
        inputs = {"video": video, "keep": keep} if kind == "dict" else [video, keep]
    # uint8 zeros carry no gradient to a kernel, so that there is a bias
    z = layers.TimeDistributed(layers.Conv2D(4, 3), name="z")(x)
    base = tf_keras.Model(inputs, layers.GlobalAveragePooling3D()(z))
    assert attach(base, "z", window=3).base_model is base


def test_an_example_stands_in_where_no_trial_fits():
    length = 12  # the model takes no other, but does not say so
    video = tf_keras.Input((None, 4))
    z = layers.Dense(4, name="z")(tf.reshape(video, (-1, length, 4)))
    base = tf_keras.Model(video, z + tf.ones((1, length, 1)) * video)
    with pytest.raises(ValueError, match=r"pass `example`"):
        attach(base, "z", window=5)
    example = np.random.default_rng(0).random((1, 12, 4)).astype(np.float32)
    assert attach(base, "z", window=5, example=example).base_model is base


def test_checkpoints_are_the_base_models(tmp_path):
    video = tf_keras.Input((None, 8))
    z = layers.Dense(4, name="z")(video)
    base = tf_keras.Model(video, layers.Dense(3)(layers.GlobalAveragePooling1D()(z)))
    attached = attach(base, "z", window=3, normalization="affine")
    attached.compile("sgd", CROSS_ENTROPY)
    clips = CLIPS[:, :, 0, :8, 0]
    checkpoints = [
        tf_keras.callbacks.ModelCheckpoint(str(tmp_path / "model.keras")),
        tf_keras.callbacks.ModelCheckpoint(
            str(tmp_path / "base.weights.h5"), save_weights_only=True
        ),
    ]
    attached.fit(clips, LABELS, verbose=0, callbacks=checkpoints)
    trained = base(clips).numpy()
    loaded = tf_keras.models.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_allclose(loaded(clips), trained, rtol=1e-6)
    for model in (base, attached):
        base.set_weights([np.zeros_like(w) for w in base.get_weights()])
        model.load_weights(tmp_path / "base.weights.h5")
        np.testing.assert_allclose(base(clips), trained, rtol=1e-6)


def test_a_second_regulariser_needs_a_name_of_its_own():
    video = tf_keras.Input((None, 8))
    z = GRWRegularizer(window=3)(layers.Dense(4, name="first")(video))
    base = tf_keras.Model(video, layers.Dense(4, name="second")(z))
    with pytest.raises(ValueError, match="name='grw'"):
        attach(base, "second", window=3)
    attached = attach(base, "second", window=3, name="grw2")
    attached.compile("sgd", "mse")
    clips = CLIPS[:, :, 0, :8, 0]
    history = attached.fit(clips, clips[..., :4], verbose=0).history
    assert {"grw_ordering", "grw2_ordering"} <= set(history)


def test_an_output_key_is_an_endpoint():
    attached = attach(nested_model(), "embedding", window=3)
    attached(CLIPS, training=True)
    assert len(attached.regularizer.losses) == 1


def test_a_model_that_thins_out_time_gets_a_longer_trial_clip():
    attached = attach(small_cnn(time_stride=3), "frames", window=4)
    clips = np.zeros((1, 12, 32, 32, 3), np.float32)
    attached(clips, training=True)
    assert len(attached.regularizer.losses) == 1
    with pytest.raises(ShortClipError, match="N=3 frames, window=4"):
        attached(clips[:, :9], training=True)


def test_a_sequential_model_is_taken():
    model = tf_keras.Sequential([tf_keras.Input((None, 8)), layers.Dense(4, name="z")])
    assert attach(model, "z", "final", window=3).base_model is model


@pytest.mark.slow
def test_under_a_strategy_two_replicas_equal_one(two_replicas):
    weights = []
    for scope in (contextlib.nullcontext(), two_replicas.scope()):
        with scope:
            tf_keras.utils.set_random_seed(2)
            video = tf_keras.Input((None, 8))
            x = layers.Dense(4, name="z")(video)
            x = layers.BatchNormalization(synchronized=True)(x)
            base = tf_keras.Model(video, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))
            model = attach(base, "z", window=3, synchronized=True)
            model.compile(tf_keras.optimizers.SGD(0.1), CROSS_ENTROPY)
        clips = CLIPS[:, :, 0, :8, 0] + CLIPS[:, :, 1, :8, 0]
        data = tf.data.Dataset.from_tensor_slices((clips, LABELS)).batch(4).repeat(3)
        model.fit(data, verbose=0)
        weights.append(base.get_weights())
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(two, one, rtol=0, atol=1e-5)
