"""What attach refuses."""

import keras
import pytest
import tf_keras

from grw_keras import GRWRegularizer, attach
from grw_keras.losses import ShortClipError
from tests.attached_models import layers, small_cnn


class OwnStep(tf_keras.Model):
    def train_step(self, data):
        return {}


def test_a_model_with_its_own_train_step_is_refused():
    video = tf_keras.Input((None, 8))
    with pytest.raises(TypeError, match="overrides `train_step`"):
        attach(OwnStep(video, layers.Dense(2, name="z")(video)), "z", window=3)


def test_an_attached_model_and_a_layer_object_are_refused():
    base = small_cnn()
    with pytest.raises(TypeError, match="attached already"):
        attach(attach(base, "bn", window=3), "conv", window=3)
    with pytest.raises(TypeError, match="must be a name"):
        attach(base, base.get_layer("conv"), window=3)


def test_a_wholly_frozen_model_is_refused():
    base = small_cnn()
    base.trainable = False
    with pytest.raises(RuntimeError, match="no gradient"):
        attach(base, "frames", window=3)


def test_unknown_endpoint_lists_the_candidates_and_the_closest():
    with pytest.raises(ValueError, match=r"Did you mean 'conv'") as error:
        attach(small_cnn(), "covn", window=3)
    for line in ("conv [?, ?, ?, ?, 4]", "frames [?, ?, 4]"):
        assert f"\n  {line}" in str(error.value)
    assert "logits" not in str(error.value).partition("endpoints of shape")[2]


def test_an_unknown_endpoint_is_told_before_a_name_that_is_taken():
    video = tf_keras.Input((None, 8))
    z = GRWRegularizer(window=3)(layers.Dense(4, name="dense")(video))
    model = tf_keras.Model(video, z)
    with pytest.raises(ValueError, match="Did you mean 'dense'"):
        attach(model, "dens", window=3)
    with pytest.raises(ValueError, match="another regulariser of that name"):
        attach(model, "dense", window=3)


@pytest.mark.parametrize(
    ("model", "endpoint", "options", "error", "message"),
    [
        (small_cnn, "logits", {}, ValueError, r"logits \[\?, 3\]"),
        (small_cnn, "conv", {"placement": "middle"}, ValueError, r"placement='middle'"),
        (small_cnn, "conv", {"window": 1}, ValueError, r"window=1"),
        (small_cnn, "conv", {"lambda_": 1}, TypeError, r"lambda_"),
    ],
)
def test_bad_arguments_are_refused(model, endpoint, options, error, message):
    with pytest.raises(error, match=message):
        attach(model(), endpoint, **options)


def test_ambiguous_names_are_refused_with_the_full_paths():
    one, two = small_cnn("one"), small_cnn("two")
    video = tf_keras.Input((None, 16, 16, 3))
    model = tf_keras.Model(video, one(video) + two(video))
    with pytest.raises(ValueError, match=r"ambiguous: use one of 'one/conv', 'two/conv'"):
        attach(model, "conv", window=3)
    assert attach(model, "two/conv", window=3).base_model is model


def test_a_layer_or_nested_model_called_twice_is_refused():
    video = tf_keras.Input((None, 8))
    layer = layers.Dense(8, name="twice")
    model = tf_keras.Model(video, layer(layer(video)))
    with pytest.raises(ValueError, match=r"called several times.*'twice', called 2 times"):
        attach(model, "twice", window=3)
    siamese = tf_keras.Model(video, layers.Add()([model(video), model(2.0 * video)]))
    with pytest.raises(ValueError, match="called several times"):
        attach(siamese, f"{model.name}/twice", window=3)


class OwnCall(tf_keras.Model):
    def call(self, inputs):
        return inputs


def test_a_nested_model_with_its_own_call_hides_only_itself():
    video = tf_keras.Input((None, 8))
    z = layers.Dense(4, name="z")(video)
    assert attach(tf_keras.Model(video, OwnCall()(z)), "z", window=3).regularizer.window == 3


@pytest.mark.parametrize(
    "make_model", [OwnCall, lambda: tf_keras.Sequential([layers.Dense(2)]), lambda: "no model"]
)
def test_models_without_a_graph_are_refused(make_model):
    with pytest.raises(TypeError, match="functional tf_keras model"):
        attach(make_model(), "dense")


def test_a_functional_model_with_its_own_call_is_refused():
    class Doubled(tf_keras.Model):
        def call(self, inputs, training=None, mask=None):
            return 2 * super().call(inputs, training, mask)

    video = tf_keras.Input((None, 8))
    with pytest.raises(TypeError, match="without a `call` of its own"):
        attach(Doubled(video, layers.Dense(2)(video)), "dense")


def test_a_keras_3_model_is_refused_with_the_way_out():
    video = keras.Input((None, 8))
    with pytest.raises(TypeError, match=r"grw_keras\.keras3\.GRWRegularizer"):
        attach(keras.Model(video, keras.layers.Dense(2)(video)), "dense")


def test_a_loss_without_gradient_is_refused():
    base = small_cnn()
    for name in ("conv", "bn"):
        base.get_layer(name).trainable = False
    with pytest.raises(RuntimeError, match="no gradient"):
        attach(base, "frames", window=3)


def test_a_frame_pooled_endpoint_is_refused_with_the_remedy():
    with pytest.raises(ShortClipError, match="average_pooling_type='2d'"):
        attach(small_cnn(time_stride=100), "frames", window=3)
