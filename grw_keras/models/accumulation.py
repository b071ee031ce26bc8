"""Gradient accumulation: one step of a batch whose micro-batches take turns in memory."""

import tensorflow as tf
import tf_keras

from grw_keras import backend


def train_step(model, data, parts: int):
    """A tf_keras `train_step` whose update is that of the mean of the micro-batches' gradients.

    It is the whole batch's update, but for what standardises over the batch, which sees one
    micro-batch at a time: batch norms, and the loss of intermediate smoothing. A mask may leave
    the micro-batches different numbers of windows: each one's GRW loss counts as its share of them.

    Args:
        model: a `VideoClassifier`.
        data: as of tf_keras; batches of a size that `parts` divides.
        parts: micro-batches, >= 2.

    Raises:
        ValueError, InvalidArgumentError: `parts` does not divide the batch.
    """
    micro_batches = tf.nest.map_structure(lambda x: _cut(x, parts), data)
    shares = _shares(model, data, parts)
    variables = model.trainable_variables

    def gradients_of(part):
        inputs, labels, weights = tf_keras.utils.unpack_x_y_sample_weight(
            tf.nest.map_structure(lambda x: x[part], micro_batches)
        )
        with tf.GradientTape() as tape:
            logits = model(inputs, training=True)
            loss = model.compiled_loss(
                labels,
                logits,
                weights,
                regularization_losses=[loss * shares[part] for loss in model.losses],
            )
            mean = loss / parts
        pairs = model.optimizer.compute_gradients(mean, variables, tape=tape)
        model.compute_metrics(inputs, labels, logits, weights)
        return [
            tf.zeros_like(variable) if gradient is None else tf.convert_to_tensor(gradient)
            for gradient, variable in pairs
        ]

    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        total = _sum_in_a_loop(gradients_of, variables, parts)
    else:
        total = _sum_unrolled(gradients_of, parts)
    model.optimizer.apply_gradients(zip(total, variables, strict=True))
    return model.get_metrics_result()


def _cut(x, parts: int):
    """[B, …] as [parts, B / parts, …]."""
    if x.shape[0] is not None and x.shape[0] % parts:
        raise ValueError(
            f"A batch must be a multiple of its {parts} micro-batches. Received: {x.shape[0]} clips"
        )
    return tf.reshape(x, [parts, tf.shape(x)[0] // parts, *x.shape[1:]])


def _shares(model, data, parts: int) -> tf.Tensor:
    """[parts]: the number of windows in each micro-batch over the mean number."""
    inputs = tf_keras.utils.unpack_x_y_sample_weight(data)[0]
    if model.regularizer is None or not isinstance(inputs, dict):
        return tf.ones([parts])
    window = model.regularizer.window
    mask = tf.cast(inputs["mask"], tf.bool)
    count = tf.shape(mask)[1] // window
    whole = tf.reduce_all(tf.reshape(mask[:, : count * window], [-1, count, window]), axis=2)
    windows = tf.reduce_sum(tf.reshape(tf.cast(whole, tf.float32), [parts, -1]), axis=1)
    windows = backend.mean_over_replicas(windows)
    return tf.math.divide_no_nan(windows, tf.reduce_mean(windows))


def _sum_in_a_loop(gradients_of, variables, parts: int) -> list[tf.Tensor]:
    """Traced once, so that many micro-batches cost no more time to start."""

    def add(part, total):
        return part + 1, [s + g for s, g in zip(total, gradients_of(part), strict=True)]

    start = [tf.zeros_like(variable) for variable in variables]
    _, total = tf.while_loop(
        lambda part, total: part < parts, add, (0, start), parallel_iterations=1
    )
    return total


def _sum_unrolled(gradients_of, parts: int) -> list[tf.Tensor]:
    """One after the other by control dependencies: replicas can't meet inside a tf.while_loop."""
    total = gradients_of(0)
    for part in range(1, parts):
        with tf.control_dependencies(total):
            total = [s + g for s, g in zip(total, gradients_of(part), strict=True)]
    return total
