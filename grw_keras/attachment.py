"""Put a GRW regulariser on any layer's output of an existing tf_keras video model."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import tensorflow as tf
import tf_keras
from tf_keras.src.engine.functional import Functional

from grw_keras.losses import ShortClipError
from grw_keras.regularizer import GRWRegularizer

NORMALIZATION = {"intermediate": "batch", "final": None}  # figure 3, figure 4
STATE_PREFIX = "state_"  # of the official MoViNet's stream buffers among its outputs
TRIAL_SIZES = (32, 64, 128, 224, 320)  # pixels, tried in turn where the model leaves them open
TRIAL_LENGTHS = (1, 2, 4, 8, 16)  # windows, tried in turn in case the model thins out time


POOLED = (
    "The endpoint must keep the frames apart, at least a window of them; is it pooled over time? "
    "(For its head, build the official MoViNet with average_pooling_type='2d'.)"
)


class Endpoint(NamedTuple):
    """A layer's output inside a model, perhaps in models nested in it.

    Attributes:
        path: names of the nested models and of the layer or output, joined by "/".
        nodes: the graph nodes that call the nested models, outermost first.
        tensor: the symbolic output.
    """

    path: str
    nodes: tuple[Any, ...]
    tensor: Any

    def __str__(self) -> str:
        shape = ", ".join("?" if size is None else str(size) for size in self.tensor.shape)
        return f"{self.path} [{shape}]"


class GRWModel(tf_keras.Model):
    """A functional model whose endpoint passes through a `GRWRegularizer` in training.

    Outputs, weights and their order are the base model's (the weights that the regulariser
    has, if any, come last). In evaluation the regulariser adds no loss but its metrics are
    updated; in inference it takes no part. Save and export `base_model`.

    Attributes:
        base_model: the model passed to `attach`, untouched.
        regularizer: the `GRWRegularizer`.
    """

    def __init__(self, base_model, endpoint: Endpoint, regularizer: GRWRegularizer):
        super().__init__(name=f"{base_model.name}_{regularizer.name}")
        self.base_model = base_model
        self.regularizer = regularizer
        self._with_endpoint = _tap(base_model, endpoint)

    def call(self, inputs, training=None, mask=None):
        if not training:
            return self.base_model(inputs, training=training, mask=mask)
        outputs, z = self._with_endpoint(inputs)
        self.regularizer(z, training=training)
        return outputs

    def test_step(self, data):
        x, y, sample_weight = tf_keras.utils.unpack_x_y_sample_weight(data)
        self._clear_losses()  # of the last training step, as a call of the model would
        outputs, z = self._with_endpoint(x)
        self.regularizer.update_metrics(z)
        self.compute_loss(x, y, outputs, sample_weight)
        return self.compute_metrics(x, y, outputs, sample_weight)


def attach(model, endpoint: str, placement: str = "intermediate", **options) -> GRWModel:
    """Put GRW-smoothing on the output of a layer of `model`, without cloning or changing it.

    The result trains the very layers of `model`: what `fit` learns is in `model` too. Before it
    is returned, one `training=True` call on the smallest legal input proves that the loss
    arrives and has a gradient; weights, statistics and counters are put back afterwards.

    Args:
        model: a functional (or built sequential) tf_keras model.
        endpoint: name of a layer, or key of a dict output, whose first output is [B, N, D] or
            [B, N, H, W, D]; also inside nested models, there as "nested/layer" if the name
            alone is ambiguous.
        placement: `"intermediate"` standardises the features for the loss (figure 3);
            `"final"` takes them as they are, for an endpoint that is the learnable affine map
            of figure 4.
        **options: arguments of `GRWRegularizer`.

    Returns:
        A `GRWModel`, to be compiled and fitted.

    Raises:
        TypeError: `model` is no functional tf_keras model.
        ValueError: unknown or ambiguous endpoint, one of the wrong shape, bad options, or no
            input size on which the model runs.
        RuntimeError: the loss does not arrive.

    Reference:
        Section 3.2 of the paper, figures 3 and 4.

    Example:
        >>> video = tf_keras.Input((None, 32, 32, 3))
        >>> cnn = tf_keras.layers.Conv2D(8, 3, strides=2)
        >>> features = tf_keras.layers.TimeDistributed(cnn, name="frames")(video)
        >>> pooled = tf_keras.layers.GlobalAveragePooling3D()(features)
        >>> model = tf_keras.Model(video, tf_keras.layers.Dense(2)(pooled))
        >>> grw_model = attach(model, "frames", window=5)
        >>> grw_model.compile("adam", tf_keras.losses.SparseCategoricalCrossentropy(True))
    """
    if placement not in NORMALIZATION:
        raise ValueError(
            f"`placement` must be one of {', '.join(map(repr, NORMALIZATION))}. "
            f"Received: placement={placement!r}"
        )
    regularizer = GRWRegularizer(**{"normalization": NORMALIZATION[placement], **options})
    found = _find(model, endpoint, regularizer.window)
    regularizer.build(found.tensor.shape)
    attached = GRWModel(model, found, regularizer)
    _prove(attached)
    return attached


def endpoints(model) -> list[Endpoint]:
    """The endpoints of `model` that a regulariser can be attached to, in the model's order."""
    return [e for e in _outputs(model) if _is_video(e.tensor)]


def _is_video(tensor) -> bool:
    return tensor.shape.rank in (3, 5) and tensor.dtype.is_floating


def _outputs(model, nodes=(), prefix="") -> list[Endpoint]:
    """Every layer's first output, then the named model outputs; nested models searched."""
    _check_functional(model)
    found = []
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if node.is_input:
                continue
            path = prefix + node.layer.name
            found.append(Endpoint(path, nodes, tf.nest.flatten(node.outputs)[0]))
            if isinstance(node.layer, Functional):
                found += _outputs(node.layer, (*nodes, node), f"{path}/")
    known = {(e.path, id(e.tensor)) for e in found}
    return found + [
        Endpoint(prefix + key, nodes, tensor)
        for key, tensor in _named(model.output)
        if (prefix + key, id(tensor)) not in known and not key.startswith(STATE_PREFIX)
    ]


def _named(outputs) -> list[tuple[str, Any]]:
    """The (key, tensor) pairs of all dicts in a structure of outputs."""
    if isinstance(outputs, Mapping):
        tensors = [(key, t) for key, t in outputs.items() if not tf.nest.is_nested(t)]
        return tensors + [pair for value in outputs.values() for pair in _named(value)]
    if isinstance(outputs, (list, tuple)):
        return [pair for value in outputs for pair in _named(value)]
    return []


def _check_functional(model) -> None:
    if isinstance(model, keras.Model):
        raise TypeError(
            "attach takes tf_keras models; put a grw_keras.keras3.GRWRegularizer into a Keras 3 "
            f"model where it is built. Received: {model!r}"
        )
    runs_graph = isinstance(model, Functional) and getattr(model, "_graph_initialized", True)
    own_call = runs_graph and type(model).call not in (Functional.call, tf_keras.Sequential.call)
    if not runs_graph or own_call:
        kind = "overrides `call`" if own_call else "is not a functional tf_keras model"
        raise TypeError(
            f"attach needs a functional tf_keras model (tf_keras.Model(inputs, outputs), or a "
            f"sequential one that is built), because it reads the model's graph; this one {kind}. "
            f"Put a GRWRegularizer into the model's own code instead. Received: {model!r}"
        )


def _find(model, name: str, window: int) -> Endpoint:
    outputs = _outputs(model)
    matches = [e for e in outputs if e.path == name or e.path.endswith(f"/{name}")]
    if not matches:
        usable = [e for e in outputs if _is_video(e.tensor)]
        names = {part for e in usable for part in (e.path, e.path.rpartition("/")[2])}
        close = difflib.get_close_matches(name, sorted(names))
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        listing = "\n  ".join(map(str, usable)) or "none"
        raise ValueError(
            f"`endpoint` must name a layer or an output of the model.{hint} Received: "
            f"endpoint={name!r}. Its endpoints of shape [B, N, D] or [B, N, H, W, D]:\n  {listing}"
        )
    exact = [e for e in matches if e.path == name]
    matches = exact or matches
    if len({id(e.tensor) for e in matches}) > 1:
        raise ValueError(
            f"endpoint={name!r} is ambiguous: use one of {', '.join(map(str, matches))}; a layer "
            "that is called several times can't be an endpoint"
        )
    endpoint = matches[0]
    if not _is_video(endpoint.tensor):
        raise ValueError(
            "The endpoint must output [B, N, D] or, channels last, [B, N, H, W, D]. "
            f"Received: {endpoint}"
        )
    length = endpoint.tensor.shape[1]
    if length is not None and length < window:
        raise ShortClipError(f"{POOLED} Received: window={window}, endpoint {endpoint}")
    return endpoint


def _tap(model, endpoint: Endpoint) -> Callable:
    """A function of inputs that runs `model` and returns (its outputs, the endpoint's value).

    It walks the graph of `model` as the model's own `call` does, through the same layers, and
    does the same inside each nested model on the way to the endpoint.
    """
    nested_node, *deeper = endpoint.nodes or (None,)
    if nested_node is not None:
        nested = _tap(nested_node.layer, endpoint._replace(nodes=tuple(deeper)))

    def run(inputs):
        values: dict[str, list] = {}

        def store(tensor_ids, tensors):
            for tensor_id, tensor in zip(tensor_ids, tensors, strict=True):
                values[tensor_id] = [tensor] * (model._tensor_usage_count[tensor_id] + 1)

        references = model.inputs
        given = model._flatten_to_reference_inputs(inputs)
        store(
            [str(id(reference)) for reference in references],
            map(model._conform_to_reference_input, given, references),
        )
        tapped = None
        for depth in sorted(model._nodes_by_depth, reverse=True):
            for node in model._nodes_by_depth[depth]:
                if node.is_input or any(i not in values for i in node.flat_input_ids):
                    continue
                args, kwargs = node.map_arguments(values)
                if node is nested_node:
                    outputs, tapped = nested(args[0])
                else:
                    outputs = node.layer(*args, **kwargs)
                store(node.flat_output_ids, tf.nest.flatten(outputs))
        if nested_node is None:
            tapped = values[str(id(endpoint.tensor))][0]
        results = [values[str(id(tensor))].pop() for tensor in model.outputs]
        return tf.nest.pack_sequence_as(model.output, results), tapped

    return run


def _prove(attached: GRWModel) -> None:
    """Raise unless a training call adds the loss, with a gradient; put every variable back."""
    strategy = tf.distribute.get_strategy()
    trainable = attached.base_model.trainable_variables

    def step(inputs):
        with tf.GradientTape() as tape:
            attached(inputs, training=True)
            added = attached.regularizer.losses
            arrived = bool(added) and all(any(a is b for b in attached.losses) for a in added)
            loss = tf.add_n(added) if arrived else None
        if not arrived:
            raise RuntimeError(
                "The regulariser's loss did not reach the model's losses in a training call. "
                f"Received: endpoint of {attached.base_model!r}"
            )
        gradients = [g for g in tape.gradient(loss, trainable) if g is not None]
        if trainable and not gradients:
            raise RuntimeError(
                "The regulariser's loss has no gradient with respect to any trainable weight: "
                "all layers before the endpoint are frozen or stop the gradient. "
                f"Received: model {attached.base_model!r}"
            )
        return loss

    inputs, traced = _trace(lambda inputs: strategy.run(step, (inputs,)), attached)
    before = [(handle, _read(handle)) for handle in traced.captured_inputs if _is_variable(handle)]
    try:
        losses = strategy.experimental_local_results(traced(inputs))
    finally:
        for handle, value in before:
            tf.raw_ops.AssignVariableOp(resource=handle, value=value)
        attached._clear_losses()  # the trace's, which no one could read
    if not all(bool(tf.math.is_finite(loss)) for loss in losses):
        raise RuntimeError(
            "The regulariser's loss is not finite on random input. "
            f"Received: losses={[float(loss) for loss in losses]}"
        )


def _trace(function, attached: GRWModel):
    """Compile `function` for the smallest input that the model takes; return (input, function)."""
    window = attached.regularizer.window
    error: Exception | None = None
    for size in TRIAL_SIZES:
        for windows in TRIAL_LENGTHS:
            inputs = [_trial_input(t, windows * window, size) for t in attached.base_model.inputs]
            inputs = tf.nest.pack_sequence_as(attached.base_model.input, inputs)
            try:
                return inputs, tf.function(function).get_concrete_function(inputs)
            except ShortClipError as short:
                error = short
            except (ValueError, tf.errors.InvalidArgumentError) as unfit:
                error = unfit
                break
        if isinstance(error, ShortClipError):
            frames = tuple(n * window for n in TRIAL_LENGTHS)
            raise ShortClipError(f"{POOLED} Received: window={window}, tried frames={frames}")
    raise ValueError(
        "The model could not be run on a trial input of the smallest sizes. "
        f"Received: inputs {[str(spec) for spec in attached.base_model.inputs]}, tried "
        f"{window} frames and, where the size is open, {TRIAL_SIZES} pixels"
    ) from error


def _trial_input(tensor, frames: int, size: int):
    """Values for an input of the model: random video or embeddings, zeros for anything else."""
    is_video = _is_video(tensor)
    open_sizes = [1, frames, size, size, size] if is_video else [1] * tensor.shape.rank
    known_sizes = zip(tensor.shape, open_sizes, strict=False)
    shape = [unknown if known is None else known for known, unknown in known_sizes]
    if is_video:
        return tf.cast(tf.random.stateless_uniform(shape, (0, 0)), tensor.dtype)
    return tf.zeros(shape, tensor.dtype)


def _is_variable(handle) -> bool:
    return handle.dtype == tf.resource and bool(handle._handle_data.shape_and_type)


def _read(handle):
    dtype = tf.as_dtype(handle._handle_data.shape_and_type[0].dtype)
    return tf.identity(tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype))
