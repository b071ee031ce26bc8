"""Proves that a regulariser attached to a model adds its loss, and leaves no trace of the proof."""

import tensorflow as tf

from grw_keras.losses import ShortClipError

TRIAL_SIZES = (32, 64, 128, 224, 320)  # pixels, tried in turn where the model leaves them open
TRIAL_LENGTHS = (1, 2, 4, 8, 16)  # windows, tried in turn in case the model thins out time
POOLED = (
    "The endpoint must keep the frames apart, at least a window of them; is it pooled or thinned "
    "out over time? Use an earlier layer or a smaller window. (For its head, build the official "
    "MoViNet with average_pooling_type='2d'.)"
)


def prove(attached, endpoint, example=None) -> None:
    """Raise unless a training call adds the loss, with a gradient; put every variable back.

    Args:
        attached: a model with a `base_model` and a `regularizer`.
        endpoint: where the regulariser is, as messages are to show it.
        example: an input of the model; default: the smallest that it takes.

    Raises:
        RuntimeError: no loss, no gradient, or no finite loss.
        ValueError: no trial input fits the model.
    """
    strategy = tf.distribute.get_strategy()
    trainable = attached.trainable_variables

    def step(inputs):
        with tf.GradientTape() as tape:
            attached(inputs, training=True)
            added = attached.regularizer.losses
            arrived = bool(added) and all(any(a is b for b in attached.losses) for a in added)
            loss = tf.add_n(added) if arrived else None
        if not arrived:
            raise RuntimeError(
                "The regulariser's loss did not reach the model's losses in a training call. "
                f"Received: endpoint {endpoint}"
            )
        gradients = [g for g in tape.gradient(loss, trainable) if g is not None]
        if not gradients:
            raise RuntimeError(
                "The regulariser's loss has no gradient with respect to any trainable weight: "
                "all layers before the endpoint are frozen or stop the gradient. "
                f"Received: endpoint {endpoint}"
            )
        return loss

    @tf.function
    def run(inputs):
        return strategy.run(step, (inputs,))

    if example is None:
        inputs, traced = _trace(run, attached)
    else:
        inputs = tf.nest.map_structure(tf.convert_to_tensor, example)
        traced = run.get_concrete_function(inputs)
    before = [(handle, _read(handle)) for handle in traced.captured_inputs if _is_variable(handle)]
    try:
        losses = strategy.experimental_local_results(traced(inputs))
    finally:
        for handle, value in before:
            tf.raw_ops.AssignVariableOp(resource=handle, value=value)
        attached._clear_losses()  # the trace's, which no one could read
    if not all(bool(tf.math.is_finite(loss)) for loss in losses):
        raise RuntimeError(
            "The regulariser's loss is not finite on the trial input. "
            f"Received: losses={[float(loss) for loss in losses]}, endpoint {endpoint}"
        )


def _trace(function, attached):
    """Compile `function` for the smallest input that the model takes; return (input, function)."""
    window = attached.regularizer.window
    error: Exception | None = None
    for size in TRIAL_SIZES:
        for windows in TRIAL_LENGTHS:
            inputs = [_trial_input(t, windows * window, size) for t in attached.base_model.inputs]
            inputs = tf.nest.pack_sequence_as(attached.base_model.input, inputs)
            try:
                return inputs, function.get_concrete_function(inputs)
            except ShortClipError as short:
                error = short
            except (ValueError, tf.errors.InvalidArgumentError) as unfit:
                error = unfit
                break
        if isinstance(error, ShortClipError):
            frames = tuple(n * window for n in TRIAL_LENGTHS)
            raise ShortClipError(f"{POOLED} Received: window={window}, tried frames={frames}")
    shapes = ", ".join(f"{spec.name} {spec.shape}" for spec in attached.base_model.inputs)
    cause = str(error).strip().rpartition("\n")[2]
    raise ValueError(
        "The model could not be run on trial inputs; pass `example`, an input that it takes. "
        f"Received: inputs {shapes}, tried {window} frames of {TRIAL_SIZES} pixels where these "
        f"are open, the last time {type(error).__name__}: {cause}"
    ) from error


def _trial_input(tensor, frames: int, size: int):
    """Values for an input [B, N, ...] of the model: random reals, zero integers, true bools."""
    open_sizes = [1, frames] + [size] * tensor.shape.rank
    sizes = zip(tensor.shape, open_sizes, strict=False)
    shape = [unknown if known is None else known for known, unknown in sizes]
    if tensor.dtype.is_floating:
        return tf.cast(tf.random.stateless_uniform(shape, (0, 0)), tensor.dtype)
    return tf.ones(shape, tensor.dtype) if tensor.dtype.is_bool else tf.zeros(shape, tensor.dtype)


def _is_variable(handle) -> bool:
    return handle.dtype == tf.resource and bool(handle._handle_data.shape_and_type)


def _read(handle):
    dtype = tf.as_dtype(handle._handle_data.shape_and_type[0].dtype)
    return tf.identity(tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype))
