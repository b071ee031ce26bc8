"""Official MoViNets with random weights, their variables by canonical name, and damaged files."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from official.projects.movinet.modeling import movinet, movinet_model
from tensorflow.core.protobuf import trackable_object_graph_pb2

from grw_keras.models.names import canonical_name

NUM_CLASSES = 5
GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"


@dataclasses.dataclass(frozen=True)
class Case:
    conv_type: str
    causal: bool
    se_type: str
    activation: str
    gating_activation: str
    use_positional_encoding: bool = False
    classifier_activation: str = "swish"


CASES = {
    "stream": Case("2plus1d", True, "2plus3d", "hard_swish", "hard_sigmoid"),
    "stream_3d_2plus1d": Case("3d_2plus1d", True, "2plus3d", "hard_swish", "hard_sigmoid"),
    "stream_positions": Case("2plus1d", True, "2plus3d", "hard_swish", "hard_sigmoid", True),
    "stream_legacy": Case("3d", True, "3d", "swish", "sigmoid"),
    "relu6": Case("2plus1d", True, "none", "relu6", "relu6", False, "relu6"),
    "base": Case("3d", False, "3d", "swish", "sigmoid"),
    "base_2plus1d": Case("2plus1d", False, "3d", "swish", "sigmoid"),
}
slow_cases = pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("stream", "relu6", "base")),
        *(
            pytest.param(name, marks=pytest.mark.exhaustive)
            for name in ("stream_3d_2plus1d", "stream_positions", "stream_legacy", "base_2plus1d")
        ),
    ],
)


def build(case: Case):
    options = dataclasses.asdict(case)
    activation = options.pop("classifier_activation")
    backbone = movinet.Movinet("a0", use_sync_bn=False, **options)
    return movinet_model.MovinetClassifier(backbone, NUM_CLASSES, activation=activation)


def randomize(model, seed=0):
    """Kernels as wide as initialised, so that the logits stay near 1; nothing else is 0 or 1."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        value = rng.normal(scale=0.3, size=variable.shape)
        if "kernel" in variable.name:
            value *= variable.numpy().std() / 0.3
        elif any(word in variable.name for word in ("variance", "gamma", "scale")):
            value = 0.5 + np.abs(value)
        variable.assign(value)


def expected_tensors(model):
    """The model's variables by canonical name, positional encodings left out."""
    named = {canonical_name(v.name): v.numpy() for v in model.weights}
    named.pop(None, None)
    return {
        name if name.startswith(("classifier/", "logits/")) else f"backbone/{name}": value
        for name, value in named.items()
    }


def assert_same_tensors(actual, expected):
    assert set(actual) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def load_by_name(tensors, model):
    for variable in model.weights:
        name = canonical_name(variable.name)
        is_head = name.startswith(("classifier/", "logits/"))
        variable.assign(tensors[name if is_head else f"backbone/{name}"])


def clip(frames=3, pixels=32):
    return np.random.default_rng(1).uniform(size=(1, frames, pixels, pixels, 3)).astype(np.float32)


def rewrite(source, target, change):
    """Copies a checkpoint with `change` done to its object graph."""
    reader = tf.train.load_checkpoint(str(tf.train.latest_checkpoint(source)))
    tensors = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    graph = trackable_object_graph_pb2.TrackableObjectGraph.FromString(tensors[GRAPH_KEY])
    change(graph)
    tensors[GRAPH_KEY] = graph.SerializeToString()
    tf.raw_ops.SaveV2(
        prefix=str(target),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(tensor) for tensor in tensors.values()],
    )


def fake_movinet(model_id, **changed):
    """Variables with the names and widths of a MoViNet's expansions, and nothing else."""
    blocks = movinet.BLOCK_SPECS[model_id][1:-1]
    widths = {
        f"block{i}_layer{j}": width
        for i, block in enumerate(blocks)
        for j, width in enumerate(block.expand_filters)
    }
    module = tf.Module()
    module.kernels = [
        tf.Variable(tf.zeros([1, 1, 1, width]), name=f"{block}/bneck/expansion/conv2d/kernel")
        for block, width in (widths | changed).items()
    ]
    return module


def save_fake(folder, model_id="a2", name="ckpt"):
    return tf.train.Checkpoint(model=fake_movinet(model_id)).write(folder / name)


def cut(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
