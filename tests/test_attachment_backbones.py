"""attach on the official MoViNet and on a stock MobileNetV3."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from official.projects.movinet.modeling import movinet, movinet_model

from grw_keras import attach
from tests.attached_models import CROSS_ENTROPY, LABELS, layers, standardized
from tests.helpers import literal_loss


def movinet_backbone(pooling="2d", **options):
    """The official A0-Stream builder with the paper's settings."""
    return movinet.Movinet(
        model_id="a0",
        causal=True,
        conv_type="2plus1d",
        se_type="2plus3d",
        activation="hard_swish",
        gating_activation="hard_sigmoid",
        use_positional_encoding=False,
        use_external_states=False,
        average_pooling_type=pooling,
        **options,
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("endpoint", ["block2_layer1", "head"])
def test_official_movinet_trains_with_the_regulariser(endpoint):
    base = movinet_backbone()
    before = base.get_weights()
    attached = attach(base, endpoint)
    for one, other in zip(before, base.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    clips = np.random.default_rng(1).random((2, 5, 32, 32, 3)).astype(np.float32)

    features = {}
    with tf.GradientTape() as tape:
        features.update(attached(clips, training=True)[0])
        loss = tf.add_n(attached.regularizer.losses)
    pooled = features[endpoint].numpy().mean(axis=(2, 3))
    expected = 0.1 * literal_loss(standardized(pooled), 5, 0.5)
    assert float(loss) == pytest.approx(expected, rel=1e-3)
    stem = base.get_layer("stem").trainable_variables
    assert all(g is not None for g in tape.gradient(loss, stem))


@pytest.mark.exhaustive
def test_official_movinet_classifier_is_searched_inside():
    backbone = movinet_backbone("3d")
    classifier = movinet_model.MovinetClassifier(backbone, num_classes=3, output_states=False)
    attached = attach(classifier, "block3_layer0", window=3)
    attached.compile(tf_keras.optimizers.SGD(0.1), CROSS_ENTROPY)
    clips = np.random.default_rng(1).random((2, 3, 32, 32, 3)).astype(np.float32)
    history = attached.fit(clips, LABELS[:2], verbose=0).history
    assert np.isfinite(history["loss"][0])
    assert np.isfinite(history["grw_ordering"][0])


@pytest.mark.exhaustive
def test_stock_mobilenet_v3_in_time_distributed():
    cnn = tf_keras.applications.MobileNetV3Small(
        input_shape=(32, 32, 3),
        include_top=False,
        weights=None,
        pooling="avg",
        include_preprocessing=False,
    )
    video = tf_keras.Input((None, 32, 32, 3))
    z = layers.TimeDistributed(cnn, name="frames")(video)
    logits = layers.Dense(3)(layers.GlobalAveragePooling1D()(z))
    base = tf_keras.Model(video, logits)
    before = base.get_weights()
    attached = attach(base, "frames", window=3)
    for one, other in zip(before, base.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    attached.compile(tf_keras.optimizers.Adam(1e-3), CROSS_ENTROPY)
    clips = np.random.default_rng(1).random((4, 6, 32, 32, 3)).astype(np.float32)
    history = attached.fit(clips, LABELS, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert np.isfinite(history["grw_ordering"]).all()
