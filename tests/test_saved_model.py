"""The importer of official SavedModels, against the official exporter."""

import dataclasses
import functools
import shutil

import pytest
import tensorflow as tf
from official.projects.movinet.modeling import movinet_layers
from official.projects.movinet.tools import export_saved_model

from grw_keras.zoo.importers import saved_model, tf_checkpoint
from grw_keras.zoo.importers.files import read_weights
from tests.official_movinets import (
    CASES,
    NUM_CLASSES,
    Case,
    assert_same_tensors,
    cut,
    expected_tensors,
    fake_movinet,
)

pytestmark = pytest.mark.xdist_group("official")


@pytest.fixture(scope="module")
def exported(official_checkpoints, tmp_path_factory):
    """Official exports of the models, as those on Kaggle Models were made."""

    @functools.cache
    def folder(name):
        path = tmp_path_factory.mktemp(f"exported_{name}")
        options = dataclasses.asdict(CASES[name])
        export_saved_model.build_and_export_saved_model(
            export_path=str(path / "movinet"),
            num_classes=NUM_CLASSES,
            input_shape=(None, None, None, None, 3),
            checkpoint_path=tf.train.latest_checkpoint(official_checkpoints(name)),
            assert_checkpoint_objects_matched=False,  # compile() makes an optimizer meanwhile
            **options,
        )
        return path / "movinet"

    return folder


@pytest.mark.exhaustive  # the official exporter takes minutes
@pytest.mark.parametrize("name", ["stream", "base"])
def test_official_export_holds_what_its_checkpoint_held(official_checkpoints, exported, name):
    imported = saved_model.read(exported(name))
    checkpoint = tf_checkpoint.read(official_checkpoints(name))
    assert_same_tensors(imported.tensors, checkpoint.tensors)
    assert imported.spec == checkpoint.spec
    assert imported.notes == imported.assumed == ()


def hub_name(variable_name):
    """What the models on TF Hub call a variable of the official builder."""
    name = variable_name.removesuffix(":0").replace("_layer", "/l").replace("block", "b")
    for long, short in (("conv2d/bn/", "bn/"), ("conv2d_temporal/bn_temporal/", "bn_temporal/")):
        name = name.replace(f"/{long}", f"/{short}")
    return name


def hard_sigmoid_keras2(x):
    return tf.clip_by_value(0.2 * x + 0.5, 0.0, 1.0)


GRAPHS = {
    "stream": (Case("2plus1d", True, "2plus3d", "hard_swish", "hard_sigmoid"), "hard_sigmoid"),
    "keras2": (
        Case("2plus1d", True, "2plus3d", "hard_swish", hard_sigmoid_keras2),
        "hard_sigmoid_keras2",
    ),
    "unusual": (Case("2plus1d", False, "2plus3d", "swish", "hard_sigmoid"), "hard_sigmoid"),
    "frames": (Case("2plus1d", True, "2d", "hard_swish", "sigmoid"), "sigmoid"),
    "clip": (Case("2plus1d", True, "3d", "relu6", "hard_sigmoid"), "hard_sigmoid"),
    "relu6": (Case("2plus1d", True, "none", "relu6", "relu6"), None),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["stream", "frames", "relu6"]
    + [pytest.param(n, marks=pytest.mark.exhaustive) for n in ("keras2", "unusual", "clip")],
)
def test_graph_of_a_saved_model_tells_the_form(official_models, tmp_path, name):
    """One official block is the graph; the other blocks' variables bear Hub's names."""
    case, gate = GRAPHS[name]
    options = dataclasses.asdict(case)
    del options["classifier_activation"]
    block = movinet_layers.MovinetBlock(
        32, 80, (3, 3, 3), (1, 2, 2), name="block1_layer0", **options
    )

    class Saved(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, None, 8, 8, 8])])
        def call(self, x):
            return self.block(x)[0]

    module = Saved()
    module.block = block
    block(tf.zeros([1, 3, 8, 8, 8]))
    others = [v for v in official_models("relu6").weights if "block1_layer0" not in v.name]
    module.others = [tf.Variable(v, name=hub_name(v.name)) for v in others]
    tf.saved_model.save(module, str(tmp_path))
    imported = saved_model.read(tmp_path)
    expected = {"activation": case.activation, "streaming": case.causal, "se_type": case.se_type}
    if gate:
        expected["gating_activation"] = gate
    assert {field: imported.spec.get(field) for field in expected} == expected
    assert imported.assumed == ("classifier_activation",)  # no classifier is in this graph
    in_others = {n: t for n, t in imported.tensors.items() if "block1_layer0" not in n}
    all_others = expected_tensors(official_models("relu6"))
    assert_same_tensors(
        in_others, {n: all_others[n] for n in all_others if "block1_layer0" not in n}
    )


def save_fake_model(folder):
    tf.saved_model.save(fake_movinet("a0"), str(folder))


@pytest.mark.parametrize("place", ["1", "archive/movinet/1"])
def test_a_saved_model_in_a_folder_of_its_own_is_found(tmp_path, place):
    save_fake_model(tmp_path / place)
    assert read_weights(tmp_path).spec["backbone"] == "movinet_a0"


def with_two_saved_models(folder):
    save_fake_model(folder / "1")
    shutil.copytree(folder / "1", folder / "2")


def with_cut_graph(folder):
    save_fake_model(folder)
    cut(folder / "saved_model.pb")


def with_empty_graph(folder):
    save_fake_model(folder)
    (folder / "saved_model.pb").write_bytes(b"")


def with_cut_variables(folder):
    save_fake_model(folder)
    cut(folder / "variables" / "variables.data-00000-of-00001")


def without_variables(folder):
    save_fake_model(folder)
    shutil.rmtree(folder / "variables")


def with_other_model(folder):
    module = tf.Module()
    module.kernel = tf.Variable(tf.zeros([2, 2]), name="dense/kernel")
    tf.saved_model.save(module, str(folder))


@pytest.mark.parametrize(
    ("prepare", "error", "message"),
    [
        (lambda folder: folder.rmdir(), FileNotFoundError, "is a folder with saved_model.pb"),
        (lambda folder: None, FileNotFoundError, "without one"),
        (with_two_saved_models, ValueError, "several SavedModels"),
        (with_cut_graph, ValueError, "damaged"),
        (with_empty_graph, ValueError, "holds no graph"),
        (with_cut_variables, ValueError, "damaged"),
        (without_variables, FileNotFoundError, "variables.index"),
        (with_other_model, ValueError, "holds no MoViNet"),
    ],
)
def test_a_saved_model_that_is_none_is_refused(tmp_path, prepare, error, message):
    folder = tmp_path / "folder"
    folder.mkdir()
    prepare(folder)
    with pytest.raises(error, match=message) as raised:
        saved_model.read(folder)
    assert str(folder) in str(raised.value)
