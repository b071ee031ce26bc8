import ast
import struct
import zipfile

import numpy as np
import pytest

from grw_keras.models.names import canonical_name
from grw_keras.zoo.importers import torch_checkpoint, torch_pickle
from grw_keras.zoo.importers.torch_archive import SnapshotError
from grw_keras.zoo.importers.torch_checkpoint import read, read_state
from grw_keras.zoo.importers.torch_names import convert
from tests.test_torch_pickle import Trusting

FAMILIES = ("a0s", "a1s", "a2s", "a3b")
PARAMS_CLASS = "grw_smoothing_models.model.attention.TransformerParams"
ENCODER = "video_backbone._encoder."
_NORM = ("gamma", "beta")


def listed(shared, family) -> dict[str, np.ndarray]:
    """Zeros of the names and shapes that PyTorch listed for a model."""
    lines = (shared / "fixtures" / f"state_dict_keys_{family}.txt").read_text().splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    return {key: np.zeros(ast.literal_eval(shape), dtype) for key, shape, dtype in rows}


def expected_head(d, classes, features, depth=2) -> dict[str, tuple]:
    """The head's variables as they are specified, 8 attention heads, hidden width 4 D."""
    shapes = {"affine/kernel": (features, d), "affine/bias": (d,), "logits/kernel": (d, classes)}
    shapes |= {"logits/bias": (classes,), "norm/gamma": (d,), "norm/beta": (d,)}
    shapes |= {"transformer/norm/gamma": (d,), "transformer/norm/beta": (d,)}
    for layer in range(depth):
        p = f"transformer/layer{layer}"
        shapes |= {f"{p}/{n}_norm/{w}": (d,) for n in ("attention", "mlp") for w in _NORM}
        for name in ("query", "key", "value"):
            shapes[f"{p}/attention/{name}/kernel"] = (d, 8, d // 8)
            shapes[f"{p}/attention/{name}/bias"] = (8, d // 8)
        shapes[f"{p}/attention/output/kernel"] = (8, d // 8, d)
        shapes[f"{p}/attention/output/bias"] = (d,)
        shapes |= {f"{p}/mlp_hidden/kernel": (d, 4 * d), f"{p}/mlp_hidden/bias": (4 * d,)}
        shapes |= {f"{p}/mlp_output/kernel": (4 * d, d), f"{p}/mlp_output/bias": (d,)}
    return shapes


@pytest.mark.parametrize("family", FAMILIES)
def test_every_listed_tensor_has_a_canonical_name_of_its_own(shared, family):
    state = listed(shared, family)
    tensors = convert(state, 8)
    counters = sum(key.endswith("num_batches_tracked") for key in state)
    packed = sum("in_proj" in key for key in state)
    assert len(tensors) == len(state) - counters + 2 * packed
    assert not set(tensors) & set(state)
    assert sum(t.size for t in tensors.values()) + counters == sum(t.size for t in state.values())
    classes, width = state["attention.linear_head.weight"].shape
    head = {n: t.shape for n, t in tensors.items() if not n.startswith("backbone/")}
    assert head == expected_head(width, classes, width)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    ["a0s", *(pytest.param(f, marks=pytest.mark.exhaustive) for f in ("a1s", "a2s", "a3b"))],
)
def test_backbone_has_the_names_and_shapes_of_the_official_builder(shared, family):
    from official.projects.movinet.modeling.movinet import Movinet

    stream = family[2] == "s"
    options = {"conv_type": "2plus1d", "se_type": "2plus3d"} if stream else {"conv_type": "3d"}
    model = Movinet(model_id=family[:2], causal=stream, use_positional_encoding=False, **options)
    official = {f"backbone/{canonical_name(v.name)}": tuple(v.shape) for v in model.variables}
    converted = convert(listed(shared, family), 8)
    assert official == {n: t.shape for n, t in converted.items() if n.startswith("backbone/")}


class _Raw:
    """Single elements of a fixture, unpacked from the bytes of its storages."""

    def __init__(self, path, field):
        self._zip = zipfile.ZipFile(path)
        (self._pickle,) = (n for n in self._zip.namelist() if n.endswith("/data.pkl"))
        with self._zip.open(self._pickle) as file:
            self.places = Trusting(file).load()[field]

    def element(self, key, index) -> float:
        storage, offset, _, strides = self.places[key]
        at = offset + sum(i * stride for i, stride in zip(index, strides, strict=True))
        data = self._zip.read(self._pickle.replace("data.pkl", f"data/{storage}"))
        return struct.unpack_from("<f", data, 4 * at)[0]


def packed_index(width, heads=8):
    """Of an element of PyTorch's packed (3 E, E) matrix: which matrix, and where in it."""

    def index(row, column=None):
        part, row = divmod(row, width)
        place = divmod(row, width // heads)
        name = ("query", "key", "value")[part]
        return name, place if column is None else (column, *place)

    return index


# PyTorch's name, the canonical name, and the element of the second that element [...] of the
# first is.
PLACES = {
    "a0s": [
        ("conv1.conv_1.conv2d.weight", "stem/conv/kernel", lambda o, i, h, w: (h, w, i, o)),
        ("conv7.conv_1.norm.weight", "head/bn/gamma", lambda c: (c,)),
        (
            "blocks.b1_l0.deep.conv_1.conv2d.weight",
            "block1_layer0/feature/conv/kernel",
            lambda c, i, h, w: (h, w, c, i),
        ),
        (
            "blocks.b2_l0.deep.conv_2.conv2d.weight",
            "block2_layer0/feature/conv_temporal/kernel",
            lambda c, i, t, w: (t, w, c, i),
        ),
        (
            "blocks.b2_l0.deep.conv_2.norm.running_var",
            "block2_layer0/feature/bn_temporal/moving_variance",
            lambda c: (c,),
        ),
        (
            "blocks.b2_l0.deep.conv_1.norm.running_mean",
            "block2_layer0/feature/bn/moving_mean",
            lambda c: (c,),
        ),
        (
            "blocks.b4_l2.se.fc1.conv_1.conv2d.weight",
            "block4_layer2/se_reduce/conv/kernel",
            lambda o, i, h, w: (h, w, i, o),
        ),
        (
            "blocks.b4_l2.se.fc2.conv_1.conv2d.bias",
            "block4_layer2/se_expand/conv/bias",
            lambda o: (o,),
        ),
        ("blocks.b3_l1.alpha", "block3_layer1/rezero/scale", lambda: ()),
    ],
    "a3b": [
        (
            "blocks.b3_l0.res.0.conv_1.conv3d.weight",
            "block3_layer0/skip/conv/kernel",
            lambda o, i, t, h, w: (t, h, w, i, o),
        ),
        (
            "blocks.b2_l0.deep.conv_1.conv3d.weight",
            "block2_layer0/feature/conv/kernel",
            lambda c, i, t, h, w: (t, h, w, i, c),
        ),
        (
            "blocks.b2_l0.expand.conv_1.conv3d.weight",
            "block2_layer0/expansion/conv/kernel",
            lambda o, i, t, h, w: (t, h, w, i, o),
        ),
        (
            "blocks.b0_l0.project.conv_1.norm.bias",
            "block0_layer0/projection/bn/beta",
            lambda c: (c,),
        ),
    ],
}
DENSE = [
    ("ln.weight", "norm/gamma", lambda c: (c,)),
    ("video_backbone._encoder.classifier.weight", "affine/kernel", lambda o, i: (i, o)),
    ("attention.linear_head.weight", "logits/kernel", lambda o, i: (i, o)),
    ("attention.transformer.norm.bias", "transformer/norm/beta", lambda c: (c,)),
    (
        "attention.transformer.layers.1.2.net.1.weight",
        "transformer/layer1/mlp_hidden/kernel",
        lambda o, i: (i, o),
    ),
    (
        "attention.transformer.layers.0.2.net.0.bias",
        "transformer/layer0/mlp_norm/beta",
        lambda c: (c,),
    ),
    (
        "attention.transformer.layers.0.0.weight",
        "transformer/layer0/attention_norm/gamma",
        lambda c: (c,),
    ),
]


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("family", PLACES)
def test_elements_are_those_that_lie_in_the_file(shared, family, ema):
    path = shared / "fixtures" / f"{family}_grw.pt"
    raw = _Raw(path, "ema_weights" if ema else "model_state")
    prefix = "module." if ema else ""
    tensors = read(path, ema=ema).tensors
    width = tensors["norm/gamma"].size
    heads = 8

    def output(row, column):
        return (*divmod(column, width // heads), row)

    attention = "attention.transformer.layers.1.1"
    split = packed_index(width)
    rows = [(ENCODER + key, f"backbone/{name}", index) for key, name, index in PLACES[family]]
    rows += [
        *DENSE,
        (f"{attention}.out_proj.weight", "transformer/layer1/attention/output/kernel", output),
        (f"{attention}.in_proj_weight", "transformer/layer1/attention/{}/kernel", split),
        (f"{attention}.in_proj_bias", "transformer/layer1/attention/{}/bias", split),
    ]
    rng = np.random.default_rng(7)
    for key, name, mapped in rows:
        sizes = raw.places[prefix + key][2]
        for _ in range(12):
            index = tuple(int(rng.integers(size)) for size in sizes)
            place = mapped(*index)
            found = tensors[name] if "{" not in name else tensors[name.format(place[0])]
            place = place if "{" not in name else place[1]
            assert found[place] == raw.element(prefix + key, index), (key, index)


def test_tensors_are_own_writable_float32_arrays(shared):
    tensors = read(shared / "fixtures" / "a3b_grw.pt").tensors
    for name, values in tensors.items():
        assert values.dtype == np.float32, name
        assert values.flags.owndata, name
        assert values.flags.writeable, name
        assert values.flags.c_contiguous, name


def test_spec_is_that_of_the_model_in_the_file(shared):
    base = {"streaming": False, "conv_type": "3d", "se_type": "3d"}
    stream = {"streaming": True, "conv_type": "2plus1d", "se_type": "2plus3d"}
    head = {"head": "transformer", "placement": "final"}
    sizes = ("embed_dim", "head_depth", "head_heads", "head_mlp", "num_classes", "window")
    gate = "hard_sigmoid_keras2"
    cases = {
        "a0s_grw": ("movinet_a0", stream, "hard_swish", gate, (480, 2, 8, 1920, 600, 5)),
        "a3b_grw": ("movinet_a3", base, "swish", "sigmoid", (744, 2, 8, 2976, 20, 6)),
        "tiny_ok": ("movinet_a0", stream, "hard_swish", gate, (16, 1, 8, 32, 5, 5)),
    }
    for file, (backbone, options, activation, gating, numbers) in cases.items():
        imported = read(shared / "fixtures" / f"{file}.pt")
        assert imported.spec == {
            "backbone": backbone,
            "activation": activation,
            "gating_activation": gating,
            **options,
            **head,
            **dict(zip(sizes, numbers, strict=True)),
        }
        assert imported.labels is None


def test_averaged_weights_are_the_default_where_there_are_any(shared):
    path = shared / "fixtures" / "a3b_grw.pt"
    default, averaged, plain = (read(path, ema=ema) for ema in (None, True, False))
    assert default.notes == averaged.notes == plain.notes == ()
    assert default.tensors.keys() == averaged.tensors.keys() == plain.tensors.keys()
    for name, values in default.tensors.items():
        np.testing.assert_array_equal(values, averaged.tensors[name])
        assert not np.array_equal(values, plain.tensors[name]), name


def test_plain_weights_stand_in_for_missing_averages_unless_those_are_demanded(shared):
    path = shared / "fixtures" / "tiny_ok.pt"
    default, plain = read(path), read(path, ema=False)
    assert any("no EMA weights" in note for note in default.notes)
    assert plain.notes == ()
    np.testing.assert_array_equal(default.tensors["norm/gamma"], plain.tensors["norm/gamma"])
    with pytest.raises(SnapshotError, match=r"tiny_ok\.pt.*no averaged weights.*ema=False"):
        read(path, ema=True)


def test_snapshot_is_given_as_it_is_in_the_file(shared):
    snapshot = read_state(shared / "fixtures" / "tiny_ok.pt")
    assert (snapshot.num_samples, snapshot.backbone, snapshot.window) == (123, "a0s", 5)
    assert snapshot.version == 10
    assert snapshot.ema_weights is None
    assert next(iter(snapshot.model_state)) == f"{ENCODER}conv1.conv_1.conv2d.weight"
    assert snapshot.transformer == torch_checkpoint.TransformerParams(
        embed_dim=16, depth=1, num_heads=8, mlp_dim=32, num_classes=5
    )


def test_incomplete_and_misshapen_files_are_left_to_the_comparison_with_the_model(shared):
    whole, missing, wrong = (
        read(shared / "fixtures" / f"{name}.pt").tensors
        for name in ("tiny_ok", "missing_tensor", "wrong_shape")
    )
    absent = "backbone/block2_layer0/feature/bn_temporal/moving_variance"
    assert whole.keys() - missing.keys() == {absent}
    assert missing.keys() < whole.keys()
    shapes = {name: values.shape for name, values in whole.items()}
    assert wrong["logits/kernel"].shape == (5, 16)
    assert {n: v.shape for n, v in wrong.items()} == {**shapes, "logits/kernel": (5, 16)}


STEM, HEAD = f"{ENCODER}conv1.conv_1.conv2d.weight", f"{ENCODER}conv7.conv_1.conv2d.weight"
LAYER = "attention.transformer.layers.0."
BACKBONE = "grw_smoothing_models.backbones.movinets.{0}.{0}_backbone.MovinetBackbone"


def _with(field, value):
    return lambda root: root.__setitem__(field, value)


def _without(field):
    return lambda root: root.pop(field)


def _state(key, value):
    return lambda root: root["model_state"].__setitem__(key, value)


def _size(name, value):
    return lambda root: root["transformer_params"].attributes.__setitem__(name, value)


def _class(name):
    return _with("backbone", torch_pickle.Global(BACKBONE.format(name)))


WRONG = [
    (_without("T"), "the snapshot has no T"),
    (_without("version"), "the snapshot has no version"),
    (lambda root: root.clear(), "has no model_state, ema_weights, num_samples.*version"),
    (_with("version", True), "version 10.*version=True"),
    (_with("version", "10"), "version 10.*version='10'"),
    (_with("T", 0), "T must be an integer of at least 1 and at most 1000. Received: 0"),
    (_with("T", 10**9), "T must be an integer"),
    (_with("num_samples", None), "num_samples must be an integer of at least 0"),
    (_with("model_state", {}), "model_state must be a dict of tensors"),
    (_with("model_state", {"a": 1}), r"model_state\['a'\] must be a tensor. Received: 1"),
    (_with("ema_weights", 1), "ema_weights must be a dict of tensors"),
    (_with("ema_weights", {"ln.weight": np.zeros(1)}), r"start with module.*ln\.weight"),
    (_with("transformer_params", {}), "must be TransformerParams"),
    (lambda root: root["transformer_params"].attributes.pop("depth"), "must have embed_dim"),
    (_size("extra", 1), "must have embed_dim.*'extra'"),
    (_size("depth", 2), "depth must be the number of layers in the file, 1. Received: 2"),
    (_size("num_heads", 3), "multiple of num_heads.*num_heads=3"),
    (_size("num_heads", 0), r"transformer_params\.num_heads must be .* at least 1"),
    (_size("embed_dim", 2**40), "claim a head of"),
    (_size("num_classes", 2**40), "claim a head of"),
    (_with("backbone", None), "must be a MovinetBackbone class"),
    (_with("backbone", torch_pickle.Global(PARAMS_CLASS)), "must be a MovinetBackbone class"),
    (_class("a1s"), r"says movinet_a1, which has 24 blocks.*'b0_l1'"),
    (_class("a0b"), r"kernels of this backbone are conv3d.*conv1\.conv_1\.conv2d"),
    (_class("a9s"), "must be one of movinet_a0, .*Received: a9s"),
    (_state(HEAD, np.zeros((600, 104, 1, 1))), r"conv7 has 480 outputs.*\(600, 104, 1, 1\)"),
    (_state(STEM, np.zeros((8, 3, 3))), r"conv2d\.weight must have 4 axes.*\(8, 3, 3\)"),
    (_state(STEM, np.zeros((8, 3, 3, 3), int)), "must hold floats. Received: dtype=int64"),
    (_state("attention.linear_head.weight", np.zeros(5)), r"must have 2 axes.*shape=\(5,\)"),
    (_state(f"{LAYER}1.in_proj_weight", np.zeros((47, 16))), "multiple of 24. Received: 47"),
    (_state(f"{LAYER}1.in_proj_bias", np.zeros((48, 1))), "must have 1 axes"),
    (_state(f"{LAYER}1.out_proj.weight", np.zeros((16, 9))), "multiple of 8. Received: 9"),
    (
        _state(f"{ENCODER}blocks.b0_l0.res.0.conv_1.conv2d.weight", np.zeros((8, 8, 1, 1))),
        "second tensor for backbone/block0_layer0/skip/conv/kernel",
    ),
    (_state("norm/gamma", np.zeros(16)), "'norm/gamma' is no name of a PyTorch tensor"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_wrong_content_is_refused_by_name(shared, monkeypatch, change, message):
    path = shared / "fixtures" / "tiny_ok.pt"
    root = torch_pickle.load(path, torch_checkpoint._CLASSES)
    change(root)
    monkeypatch.setattr(torch_checkpoint, "load", lambda path, inert: root)
    with pytest.raises(SnapshotError, match=rf"tiny_ok\.pt: .*{message}"):
        read(path)


def test_unknown_tensor_keeps_its_name_and_type():
    state = {"attention.extra": np.arange(3), f"{LAYER}1.extra": np.arange(2.0)}
    for name, values in convert(state, 8).items():
        np.testing.assert_array_equal(values, state[name], strict=True)
