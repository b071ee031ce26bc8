"""The importer of official checkpoints, against models of the official builder."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from official.modeling.optimization import ema_optimizer

from grw_keras.models.spec import ModelSpec
from grw_keras.zoo.importers import tf_checkpoint
from grw_keras.zoo.importers.conv_forms import convert_conv_type
from tests.official_movinets import (
    CASES,
    NUM_CLASSES,
    assert_same_tensors,
    build,
    clip,
    cut,
    expected_tensors,
    fake_movinet,
    load_by_name,
    rewrite,
    save_fake,
    slow_cases,
)

pytestmark = pytest.mark.xdist_group("official")


@slow_cases
def test_checkpoint_yields_every_variable(official_models, official_checkpoints, name):
    tensors = tf_checkpoint.read(official_checkpoints(name)).tensors
    expected = expected_tensors(official_models(name))
    positions = {n for n in tensors if n not in expected}
    assert len(tensors) == len(official_models(name).weights)
    assert_same_tensors({n: t for n, t in tensors.items() if n in expected}, expected)
    if CASES[name].use_positional_encoding:
        assert len(positions) == 15  # one for each block, which no canonical name stands for
        assert all("/_pos_encoding/" in n for n in positions)
    else:
        assert not positions


@slow_cases
def test_spec_of_a_checkpoint_is_the_models(official_checkpoints, name):
    case = CASES[name]
    imported = tf_checkpoint.read(official_checkpoints(name))
    expected = {
        "backbone": "movinet_a0",
        "streaming": case.causal,
        "num_classes": NUM_CLASSES,
        "activation": case.activation,
        "classifier_activation": case.classifier_activation,
        "gating_activation": case.gating_activation,
        "se_type": case.se_type,
        "conv_type": case.conv_type,
        "head": "classifier",
        "placement": "none",
    }
    if case.se_type == "none":
        del expected["gating_activation"]
    assert imported.spec == expected
    ModelSpec(**imported.spec, resolution=32, resize=32, frames=3, fps=5.0)
    notes = "\n".join(imported.notes)
    assert f"activation={case.activation!r}" in notes
    assert ("'2d' has the same weights" in notes) == (case.se_type == "3d")
    assert set(imported.assumed) <= expected.keys()
    assert "num_classes" not in imported.assumed


@slow_cases
def test_object_paths_alone_name_the_variables(official_checkpoints, tmp_path, name):
    def erase_full_names(graph):
        for node in graph.nodes:
            for attribute in node.attributes:
                attribute.full_name = ""

    rewrite(official_checkpoints(name), tmp_path / "ckpt", erase_full_names)
    erased = tf_checkpoint.read(tmp_path)
    named = tf_checkpoint.read(official_checkpoints(name))
    assert erased.spec == named.spec
    assert_same_tensors(erased.tensors, named.tensors)


@pytest.mark.slow
def test_full_names_alone_name_the_variables(official_checkpoints, tmp_path):
    def hide_attributes(graph):
        for i, node in enumerate(graph.nodes):
            for j, child in enumerate(node.children):
                child.local_name = f"{i}-{j}"

    rewrite(official_checkpoints("stream"), tmp_path / "ckpt", hide_attributes)
    hidden, named = tf_checkpoint.read(tmp_path), tf_checkpoint.read(official_checkpoints("stream"))
    assert hidden.spec == named.spec
    # The root's second child, the counter of saves, is a training's only by its attribute.
    assert hidden.tensors.pop("save_counter") == 1
    assert_same_tensors(hidden.tensors, named.tensors)
    assert "streaming=True" in hidden.notes[0]


@pytest.fixture(scope="module")
def other():
    """A model of the official builder whose variables have other names."""
    with tf.name_scope("elsewhere"):
        return build(CASES["stream"])


@pytest.mark.slow
def test_read_weights_make_another_official_model_the_same(
    official_models, official_checkpoints, other
):
    original = official_models("stream")
    assert {v.name for v in other.weights} != {v.name for v in original.weights}
    load_by_name(tf_checkpoint.read(official_checkpoints("stream")).tensors, other)
    np.testing.assert_array_equal(other({"image": clip()}), original({"image": clip()}))


@pytest.mark.slow
def test_a_trained_3d_2plus1d_model_equals_its_2plus1d_form(
    official_models, official_checkpoints, other
):
    tensors = tf_checkpoint.read(official_checkpoints("stream_3d_2plus1d")).tensors
    load_by_name(convert_conv_type(tensors, "2plus1d"), other)
    expected = official_models("stream_3d_2plus1d")({"image": clip()})
    np.testing.assert_allclose(other({"image": clip()}), expected, rtol=1e-5, atol=1e-5)
    assert_same_tensors(
        convert_conv_type(convert_conv_type(tensors, "2plus1d"), "3d_2plus1d"), tensors
    )


def adam(model):
    optimizer = tf_keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    return optimizer


def legacy_adam(model):
    optimizer = tf_keras.optimizers.legacy.Adam()
    optimizer._create_all_weights(model.trainable_variables)
    return optimizer


def moving_averages(model):
    optimizer = ema_optimizer.ExponentialMovingAverage(tf_keras.optimizers.legacy.SGD())
    optimizer.shadow_copy(model)
    return optimizer


@pytest.mark.slow
@pytest.mark.parametrize("make_optimizer", [adam, legacy_adam, moving_averages])
def test_state_of_a_training_is_left_out(official_models, tmp_path, make_optimizer):
    model = official_models("stream")
    optimizer = make_optimizer(model)
    trainer = tf.train.Checkpoint(
        model=model, backbone=model.backbone, optimizer=optimizer, global_step=tf.Variable(7)
    )
    imported = tf_checkpoint.read(trainer.save(tmp_path / "ckpt"))
    saved = tf.train.list_variables(str(tmp_path))
    assert len(saved) > 1.5 * len(model.weights)
    assert_same_tensors(imported.tensors, expected_tensors(model))
    told = [note for note in imported.notes if "moving averages" in note]
    assert len(told) == (make_optimizer is moving_averages)


@pytest.mark.slow
@pytest.mark.parametrize("root", ["backbone", "model", None])
def test_a_backbone_alone_has_no_classes(official_models, tmp_path, root):
    backbone = official_models("stream").backbone
    if root:
        tf.train.Checkpoint(**{root: backbone}).save(tmp_path / "ckpt")
    else:
        backbone.save_weights(tmp_path / "weights")
    imported = tf_checkpoint.read(tmp_path)
    assert "num_classes" not in imported.spec
    assert imported.spec["backbone"] == "movinet_a0"
    expected = expected_tensors(official_models("stream"))
    assert_same_tensors(
        imported.tensors, {n: t for n, t in expected.items() if n.startswith("backbone/")}
    )


@pytest.mark.slow
def test_what_has_no_canonical_name_keeps_its_own(official_models, tmp_path):
    extra = tf_keras.Sequential([tf_keras.layers.Dense(2, name="extra")])
    extra.build([1, 3])
    tf.train.Checkpoint(model=official_models("stream"), head=extra).save(tmp_path / "ckpt")
    tensors = tf_checkpoint.read(tmp_path).tensors
    assert tensors.keys() - expected_tensors(official_models("stream")) == {
        "extra/kernel",
        "extra/bias",
    }


@pytest.mark.slow
def test_two_models_in_one_checkpoint_are_refused(official_models, tmp_path):
    both = tf.train.Checkpoint(student=official_models("stream"), teacher=official_models("relu6"))
    both.save(tmp_path / "ckpt")
    with pytest.raises(ValueError, match="two variables for backbone/"):
        tf_checkpoint.read(tmp_path)


@pytest.mark.parametrize("model_id", ["a0", "a1", "a2", "a3"])
def test_backbone_is_known_by_the_widths_of_its_blocks(tmp_path, model_id):
    save_fake(tmp_path, model_id)
    assert tf_checkpoint.read(tmp_path).spec["backbone"] == f"movinet_{model_id}"


@pytest.mark.parametrize("path", [".", "ckpt", "ckpt.index"])
def test_folder_prefix_and_index_name_the_same_checkpoint(tmp_path, path):
    save_fake(tmp_path)
    assert len(tf_checkpoint.read(tmp_path / path).tensors) == 26


def test_checkpoint_file_from_another_machine_chooses_the_last(tmp_path):
    save_fake(tmp_path, "a0", "ckpt-1")
    save_fake(tmp_path, "a1", "ckpt-2")
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/elsewhere/run/ckpt-2"\n')
    assert tf_checkpoint.read(tmp_path).spec["backbone"] == "movinet_a1"


def with_two(folder):
    save_fake(folder, name="first")
    save_fake(folder, name="second")


def with_cut_values(folder):
    save_fake(folder)
    cut(folder / "ckpt.data-00000-of-00001")


def with_cut_index(folder):
    save_fake(folder)
    cut(folder / "ckpt.index")


def without_values(folder):
    save_fake(folder)
    (folder / "ckpt.data-00000-of-00001").unlink()


def with_dense_model(folder):
    model = tf_keras.Sequential([tf_keras.layers.Dense(2)])
    model.build([1, 3])
    tf.train.Checkpoint(model=model).save(folder / "ckpt")


def with_names_alone(folder):
    tf.raw_ops.SaveV2(
        prefix=str(folder / "ckpt"), tensor_names=["kernel"], shape_and_slices=[""],
        tensors=[tf.zeros([2])],
    )  # fmt: skip


def with_other_widths(folder):
    tf.train.Checkpoint(model=fake_movinet("a0", block1_layer2=9)).save(folder / "ckpt")


def with_two_forms(folder):
    module = fake_movinet("a0")
    module.stem = tf.Variable(tf.zeros([1, 3, 3, 3, 8]), name="stem/stem/conv3d/kernel")
    tf.train.Checkpoint(model=module).save(folder / "ckpt")


@pytest.mark.parametrize(
    ("prepare", "error", "message"),
    [
        (lambda folder: folder.rmdir(), FileNotFoundError, "none of them"),
        (lambda folder: None, FileNotFoundError, r"without a \.index file"),
        (with_two, ValueError, r"several checkpoints.*first\.index.*second\.index"),
        (with_cut_values, ValueError, "damaged"),
        (with_cut_index, ValueError, "damaged"),
        (without_values, ValueError, "damaged"),
        (with_dense_model, ValueError, "holds no MoViNet: of its 2 tensors"),
        (with_names_alone, ValueError, "graph of the saved objects"),
        (with_other_widths, ValueError, "none of the official ones.*block1_layer2 9"),
        (with_two_forms, ValueError, "rank 4 and partly of rank 5"),
        (lambda folder: save_fake(folder, "a4"), ValueError, "MoViNet-A4.*not among our models"),
    ],
)
def test_a_checkpoint_that_is_none_is_refused(tmp_path, prepare, error, message):
    folder = tmp_path / "folder"
    folder.mkdir()
    prepare(folder)
    with pytest.raises(error, match=message) as raised:
        tf_checkpoint.read(folder)
    assert str(folder) in str(raised.value)
