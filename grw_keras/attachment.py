"""Put a GRW regulariser on any layer's output of an existing tf_keras video model."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import tensorflow as tf
import tf_keras
from tf_keras.src.engine.functional import Functional

from grw_keras import graph
from grw_keras.losses import ShortClipError
from grw_keras.proof import POOLED, prove
from grw_keras.regularizer import GRWRegularizer
from grw_keras.tracing import TracedOnce

NORMALIZATION = {"intermediate": "batch", "final": None}  # figure 3, figure 4
STATE_PREFIX = "state_"  # of the official MoViNet's stream buffers among its outputs


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


class GRWModel(TracedOnce):
    """A functional model whose endpoint passes through a `GRWRegularizer` in training.

    Outputs, weights and their order are the base model's (the weights that the regulariser
    has, if any, come last). In evaluation the regulariser adds no loss but its metrics are
    updated; in inference it takes no part. `save`, `save_weights` and `load_weights`, and with
    them `ModelCheckpoint`, are the base model's.

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
        outputs, z = self._with_endpoint(inputs, mask)
        self.regularizer(z, training=training)
        return outputs

    def test_step(self, data):
        x, y, sample_weight = tf_keras.utils.unpack_x_y_sample_weight(data)
        self._clear_losses()  # of the last training step, as a call of the model would
        outputs, z = self._with_endpoint(x)
        self.regularizer.update_metrics(z, getattr(z, "_keras_mask", None))
        self.compute_loss(x, y, outputs, sample_weight)
        return self.compute_metrics(x, y, outputs, sample_weight)

    def save(self, *args, **kwargs):
        """Saves the base model, which can be loaded without the regulariser."""
        self.base_model.save(*args, **kwargs)

    def save_weights(self, *args, **kwargs):
        """Saves the base model's weights."""
        self.base_model.save_weights(*args, **kwargs)

    def load_weights(self, *args, **kwargs):
        """Loads the base model's weights."""
        return self.base_model.load_weights(*args, **kwargs)


def attach(
    model, endpoint: str, placement: str = "intermediate", *, example=None, **options
) -> GRWModel:
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
        example: an input to prove it with, for models that take no random video: what the
            model is called with, a tensor or a structure of tensors.
        **options: arguments of `GRWRegularizer`.

    Returns:
        A `GRWModel`, to be compiled and fitted.

    Raises:
        TypeError: `model` is no functional tf_keras model, or overrides its methods.
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
    _check_model(model)
    found = _find(model, endpoint, regularizer.window)
    _check_name(model, regularizer.name)
    regularizer.build(found.tensor.shape)
    attached = GRWModel(model, found, regularizer)
    prove(attached, found, example)
    return attached


def endpoints(model) -> list[Endpoint]:
    """The endpoints of a functional `model` that `attach` takes, in the model's order."""
    return [e for e in _outputs(model) if _is_video(e.tensor)]


def _is_video(tensor) -> bool:
    return tensor.shape.rank in (3, 5) and tensor.dtype.is_floating


def _outputs(model, nodes=(), prefix="") -> list[Endpoint]:
    """Every layer's first output, then the named model outputs; nested models searched."""
    found = []
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if node.is_input:
                continue
            path = prefix + node.layer.name
            found.append(Endpoint(path, nodes, tf.nest.flatten(node.outputs)[0]))
            if _runs_its_graph(node.layer):
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


def _runs_its_graph(model) -> bool:
    """Whether calling `model` does nothing but run a graph of layers that can be read."""
    if isinstance(model, tf_keras.Sequential):
        return model._graph_initialized and type(model).call is tf_keras.Sequential.call
    return isinstance(model, Functional) and type(model).call is Functional.call


def _check_model(model) -> None:
    if isinstance(model, GRWModel):
        raise TypeError(
            "The model has a regulariser attached already; for another endpoint attach to its "
            f"`base_model` and add up the losses in your own loop. Received: {model!r}"
        )
    if isinstance(model, keras.Model):
        raise TypeError(
            "attach takes tf_keras models; put a grw_keras.keras3.GRWRegularizer into a Keras 3 "
            f"model where it is built. Received: {model!r}"
        )
    if not isinstance(model, tf_keras.Model) or not _runs_its_graph(model):
        raise TypeError(
            "attach needs a functional tf_keras model (tf_keras.Model(inputs, outputs), or a "
            "sequential one that is built) without a `call` of its own, because it reads the "
            "model's graph. Put a GRWRegularizer into the model's own code instead. "
            f"Received: {model!r}"
        )
    for method in ("train_step", "test_step", "compute_loss"):
        if getattr(type(model), method) is not getattr(tf_keras.Model, method):
            raise TypeError(
                f"The model overrides `{method}`, which the attached model would not call. Put a "
                f"GRWRegularizer into the model's own code instead. Received: {model!r}"
            )


def _check_name(model, name: str) -> None:
    if any(metric.name.startswith(f"{name}_") for metric in model.metrics):
        raise ValueError(
            "The model holds metrics of another regulariser of that name: pass a name of its own "
            f"to this one. Received: name={name!r}"
        )


def _find(model, name: str, window: int) -> Endpoint:
    if not isinstance(name, str):
        raise TypeError(f"`endpoint` must be a name. Received: endpoint={name!r}")
    matches = [e for e in _outputs(model) if e.path == name or e.path.endswith(f"/{name}")]
    if not matches:
        usable = endpoints(model)
        names = {part for e in usable for part in (e.path, e.path.rpartition("/")[2])}
        close = difflib.get_close_matches(name, sorted(names))
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        listing = "\n  ".join(map(str, usable)) or "none"
        raise ValueError(
            f"`endpoint` must name a layer or an output of the model.{hint} Received: "
            f"endpoint={name!r}. Its endpoints of shape [B, N, D] or [B, N, H, W, D]:\n  {listing}"
        )
    matches = [e for e in matches if e.path == name] or matches
    if len({(*map(id, e.nodes), id(e.tensor)) for e in matches}) > 1:
        paths = sorted({e.path for e in matches})
        if len(paths) == 1:
            raise ValueError(
                "A layer or nested model that is called several times can't be an endpoint. "
                f"Received: endpoint={name!r}, called {len(matches)} times"
            )
        raise ValueError(
            f"`endpoint` is ambiguous: use one of {', '.join(map(repr, paths))}. "
            f"Received: endpoint={name!r}"
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


class _NestedTap(tf_keras.layers.Layer):
    """Calls a nested model's tap as the nested model would be called: `training`, `mask`, scope."""

    def __init__(self, model, endpoint: Endpoint):
        super().__init__(name=model.name, autocast=False)
        self._run = _tap(model, endpoint)

    def call(self, inputs, training=None, mask=None):
        return self._run(inputs, mask)


def _tap(model, endpoint: Endpoint) -> Callable:
    """A function of (inputs, mask) that runs `model`: (its outputs, the endpoint's value).

    It walks the graph as the model's own `call` does, through the same layers, and does so
    inside each nested model on the way to the endpoint. A functional model of two outputs would
    not do: it leaves out nodes that lead to no output, `add_loss` among them, and can't reach
    into nested models without calling, and so changing, the layers around them.
    """
    nested_node, *deeper = endpoint.nodes or (None,)
    if nested_node is not None:
        nested = _NestedTap(nested_node.layer, endpoint._replace(nodes=tuple(deeper)))

    def run(inputs, mask=None):
        from_nested = None

        def call(node, *args, **kwargs):
            nonlocal from_nested
            if node is not nested_node:
                return node.layer(*args, **kwargs)
            outputs, from_nested = nested(*args, **kwargs)
            return outputs

        outputs, values = graph.run(model, inputs, mask, call=call)
        if nested_node is None:
            return outputs, values[str(id(endpoint.tensor))][0]
        return outputs, from_nested

    return run
