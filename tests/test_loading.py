"""`load` with folders and generated weights, and with weights that don't fit."""

import shutil
import types

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from grw_keras import zoo
from grw_keras.zoo import loading, matching, registry
from tests.zoo_helpers import random_clips, randomize

pytestmark = pytest.mark.xdist_group("loading")  # they share what is dear to make


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small trained model's folder, of four classes."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    model = randomize(zoo.load("mobilenet_v3_small_grw", None, num_classes=4, embed_dim=32))
    model.labels = ("a", "b", "c", "d")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(saved):
    """For tests that leave it as it is."""
    return zoo.load(saved)


@pytest.mark.slow
def test_another_number_of_classes_replaces_the_last_layer_alone(saved, loaded):
    other = zoo.load(str(saved), num_classes=7)
    assert other.spec.num_classes == 7
    assert other.labels is None
    assert other.spec == loaded.spec.replace({"num_classes": 7})
    for name, variable in other.named_weights().items():
        if not name.startswith("logits/"):
            np.testing.assert_array_equal(variable, loaded.named_weights()[name])


@pytest.mark.slow
def test_rgb_weights_start_the_six_channel_stem():
    rgb = randomize(zoo.load("mobilenet_v3_small", None))
    imported = zoo.Imported(
        tensors={name: v.numpy() for name, v in rgb.named_weights().items()},
        spec=rgb.spec.to_dict(),
    )
    pairs = zoo.load("mobilenet_v3_small_attention", None)
    matching.fit(pairs, imported)
    still = tf.repeat(random_clips(1, 1), 4, axis=1)
    # A still clip pairs each frame with itself; the RGB model's features are before its top.
    features = pairs.backbone(still)["features"]
    last = rgb.backbone.cnn.get_layer("Conv_1/BatchNorm").output
    normed = tf_keras.Model(rgb.backbone.cnn.inputs, last)(still[0] * 2 - 1)
    activated = normed * tf.nn.relu6(normed + 3) / 6
    np.testing.assert_allclose(features[0], tf.reduce_mean(activated, [1, 2]), atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("movinet_a0_stream_gwr",), {}, ValueError, "movinet_a0_stream_grw"),
        (("no/such/folder",), {}, FileNotFoundError, "no/such/folder"),
        (("movinet_a0_stream_grw", "no/such/file.pt"), {}, FileNotFoundError, "file.pt"),
        (("movinet_a0_stream_grw", "k700"), {}, ValueError, "k600"),
        (("movinet_a0_stream_intermediate",), {}, ValueError, "weights=None"),
        (("movinet_a0_stream_attention",), {}, ValueError, "movinet_a0_stream"),
        (("mobilenet_v3_small_grw",), {}, ValueError, "weights=None"),
        (("mobilenet_v3_small", None), {"windw": 3}, TypeError, "Did you mean 'window'"),
        (("mobilenet_v3_small", None), {"num_classes": 0}, ValueError, "num_classes"),
    ],
)
def test_what_cannot_be_loaded_says_why(arguments, options, error, message):
    with pytest.raises(error, match=message):
        zoo.load(*arguments, **options)


def test_a_file_in_place_of_a_name_is_told_what_to_be(saved):
    with pytest.raises(ValueError, match=r"load\(NAME, weights=FILE\)"):
        zoo.load(str(saved / "model.safetensors"))


def test_weights_of_another_model_are_refused(saved):
    with pytest.raises(ValueError, match="of another model than movinet_a0_stream"):
        zoo.load("movinet_a0_stream", saved)


@pytest.mark.slow
def test_a_choice_against_the_weights_is_refused(saved):
    with pytest.raises(ValueError, match="fix `embed_dim`=32"):
        zoo.load("mobilenet_v3_small_grw", saved, embed_dim=64)
    assert zoo.load("mobilenet_v3_small_grw", saved, window=4).spec.window == 4


def test_what_files_only_assume_yields_to_a_choice(saved, loaded):
    imported = zoo.read_weights(saved)
    assumed = zoo.Imported(
        tensors=imported.tensors,
        spec={**imported.spec, "activation": "relu6"},
        assumed=("activation",),
    )
    assert matching.resolve(loaded.spec, assumed, None).activation == "relu6"
    chosen = matching.resolve(loaded.spec, assumed, None, ["activation"])
    assert chosen.activation == "hard_swish"


def test_a_choice_is_held_against_what_the_manifest_says_of_published_weights(monkeypatch):
    found = zoo.Imported(
        tensors={}, spec={"activation": "relu6"}, assumed=("activation", "classifier_activation")
    )
    monkeypatch.setattr(loading, "read_weights", lambda path, ema: found)
    monkeypatch.setattr(loading.download, "fetch", lambda entry: types.SimpleNamespace(path="p"))
    entry = types.SimpleNamespace(spec={"activation": "swish"})
    monkeypatch.setattr(loading.manifest, "find", lambda name, dataset: entry)
    published = loading._weights("movinet_a0_stream", "k600", None)
    assert published.spec == {"activation": "swish"}
    assert published.assumed == ("classifier_activation",)


def test_weights_that_are_not_numbers_are_refused(saved, loaded):
    imported = zoo.read_weights(saved)
    imported.tensors["logits/bias"][1] = np.nan
    with pytest.raises(ValueError, match="logits/bias"):
        matching.fit(loaded, imported)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("spec.json", lambda text: text.replace(b'"format_version": 1', b'"format_version": 2'),
         "update grw_keras"),
        ("spec.json", lambda text: text[:40], "no spec of this project"),
        ("spec.json", lambda text: b"[1]", "no spec of this project"),
        ("spec.json", lambda text: text.replace(b'"window"', b'"windw"'), "Did you mean"),
        ("model.safetensors", lambda text: text[:1000], "damaged or cut off"),
    ],
)  # fmt: skip
def test_damaged_and_newer_folders_are_refused(saved, tmp_path, file, change, message):
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    (folder / file).write_bytes(change((folder / file).read_bytes()))
    with pytest.raises(ValueError, match=message):
        zoo.load(folder)


def test_a_folder_without_weights_names_what_is_missing(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"without model\.safetensors"):
        zoo.load(tmp_path / "model")


def test_saving_over_a_file_is_refused(saved, loaded):
    with pytest.raises(NotADirectoryError, match=r"spec\.json"):
        loaded.save_pretrained(saved / "spec.json")


def test_a_folder_holds_what_other_programs_need(saved):
    names = sorted(path.name for path in saved.iterdir())
    assert names == ["README.md", "labels.txt", "model.safetensors", "spec.json"]
    assert (saved / "labels.txt").read_text() == "a\nb\nc\nd\n"
    assert "mobilenet_v3_small_grw" in (saved / "README.md").read_text()


def test_what_to_skip_must_be_there(saved, loaded):
    imported = zoo.read_weights(saved)
    with pytest.raises(TypeError, match="a sequence of patterns"):
        matching.fit(loaded, imported, skip="logits/*")
    with pytest.raises(ValueError, match=r"logts/\*"):
        matching.fit(loaded, imported, skip=["logts/*"])


@pytest.mark.slow
def test_a_folder_takes_other_weights_when_asked(saved, loaded):
    new = zoo.load(saved, None)
    name = "transformer/layer0/mlp_hidden/kernel"
    assert np.any(new.named_weights()[name] != loaded.named_weights()[name])
    with pytest.raises(FileNotFoundError, match=r"other\.pt"):
        zoo.load(saved, "no/other.pt")


def test_folders_named_like_weights_are_in_nobodys_way(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRW_KERAS_OFFLINE", "1")
    monkeypatch.setenv("GRW_KERAS_CACHE", str(tmp_path / "cache"))
    for name in ("k600", "movinet_a0_stream_grw"):
        shutil.copytree(saved, tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"a0s_grw\.pt"):
        zoo.load("movinet_a0_stream_grw")
    with pytest.raises(ValueError, match="k600"):
        zoo.load("movinet_a0_stream_grw", "")


@pytest.mark.slow
def test_loaded_batch_norms_can_be_frozen(saved):
    assert zoo.load(saved, frozen_batch_norm=True).spec.frozen_batch_norm


@pytest.mark.parametrize(
    ("trained", "chosen", "told"),
    [
        ({"temporal_shift": "causal"}, [], "trained with temporal_shift='causal', not 'none'"),
        ({"resolution": 96}, [], "trained with resolution=96, not 224"),
        ({"resolution": 96}, ["resolution"], None),
        ({"fps": 12.0}, [], "trained with fps=12.0, not 5.0"),
        ({}, [], None),
    ],
)
def test_what_the_weights_were_trained_on_is_told_where_it_is_another(
    trained, chosen, told, caplog
):
    spec = registry.get("mobilenet_v3_small")
    imported = zoo.Imported(tensors={}, spec=spec.replace(trained).to_dict())
    assert matching.resolve(spec, imported, None, chosen).resolution == 224
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (told is not None)
    assert all(told in message for message in messages)


@pytest.mark.parametrize(
    "labels", ["abcd", ["a", "b\nc", "d", "e"], ["a\rb", "c", "d", "e"], ["a", "b"]]
)
def test_labels_that_are_none_are_refused(loaded, labels):
    with pytest.raises(ValueError, match="`labels`"):
        loaded.labels = labels


@pytest.mark.parametrize("resolution", [0, -1, 8.5])
def test_resolutions_that_are_none_are_refused(loaded, resolution):
    with pytest.raises(ValueError, match="`resolution`"):
        loaded.to_streaming(resolution)


@pytest.mark.parametrize("lost", ["backbone", "head"])
def test_half_a_model_is_not_converted(loaded, lost):
    spec = {key: v for key, v in loaded.spec.to_dict().items() if key != lost}
    with pytest.raises(ValueError, match=f"holds no {lost}"):
        loading.spec_of(zoo.Imported(tensors={}, spec=spec))


def test_weights_that_no_place_gives_are_told_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("GRW_KERAS_CACHE", str(tmp_path))
    monkeypatch.setenv("GRW_KERAS_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"(?s)not tried, offline.*weights=None"):
        zoo.load("movinet_a0_stream_grw")


def test_a_folder_of_a_similar_name_is_suggested(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileNotFoundError, match=r"Did you mean '.*/mine'\?"):
        zoo.load(f"{tmp_path}/min")


def test_parts_that_were_loaded_in_part_are_told_by_their_number():
    new = ["transformer/layer0/bias", "transformer/layer1/bias", "logits/kernel"]
    loaded = ["transformer/layer0/kernel", "affine/kernel"]
    assert matching._parts(new, loaded) == ["logits", "2 tensors of transformer"]
