"""Models and clips of the tests of attach."""

import numpy as np
import tensorflow as tf
import tf_keras

from grw_keras.normalization import EPSILON

layers = tf_keras.layers
CLIPS = np.random.default_rng(0).random((4, 6, 16, 16, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 0])
CROSS_ENTROPY = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def small_cnn(name="cnn", time_stride=1):
    """Functional: batch norm, dropout, an add_loss and a regularised kernel, all with state."""
    tf_keras.utils.set_random_seed(1)
    video = tf_keras.Input((None, None, None, 3), name="video")
    x = layers.Conv3D(4, (1, 3, 3), strides=(time_stride, 2, 2), name="conv")(video)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.Dropout(0.5, name="drop")(x)
    pooled = layers.Lambda(lambda x: tf.reduce_mean(x, [2, 3]), name="frames")(x)
    x = layers.GlobalAveragePooling1D(name="clip")(pooled)
    logits = layers.Dense(3, kernel_regularizer="l2", name="logits")(x)
    model = tf_keras.Model(video, logits, name=name)
    model.add_loss(0.001 * tf.reduce_sum(tf.square(pooled)))
    return model


def standardized(features):
    frames = features.reshape(-1, features.shape[-1]).astype(np.float64)
    scaled = (features - frames.mean(0)) / np.sqrt(frames.var(0) + EPSILON)
    return scaled / np.sqrt(features.shape[-1])
