import textwrap

import pytest

from grw_keras.zoo import manifest, registry
from grw_keras.zoo.manifest import entries, find, read

# Top-1 of tables 1 (K600 by FLOPs) and 2 (by memory) of the paper, retyped.
TOP1 = {
    "movinet_a0_stream_grw": {1: 78.4, 2: 78.4},
    "movinet_a1_stream_grw": {1: 81.9, 2: 81.9},
    "movinet_a2_stream_grw": {1: 83.3, 2: 83.3},
    "movinet_a3_grw": {1: 85.6},
    "movinet_a0_stream": {2: 72.0},
    "movinet_a1_stream": {2: 76.4},
    "movinet_a2_stream": {2: 78.4},
    "movinet_a0": {1: 72.3},
    "movinet_a1": {1: 76.7},
    "movinet_a2": {1: 78.6},
    "movinet_a3": {1: 81.8},
}
GOOD = """
datasets:
  k600: {title: Kinetics-600}
weights:
  one:
    models: [movinet_a0]
    dataset: k600
    sources:
      - {url: "https://host/a.pt", format: torch_snapshot}
    licence: MIT
    preprocessing: {resolution: 172, resize: 200, frames: 50, fps: 5}
    metrics: [{top1_percent: 70, table: 1}]
    spec: {activation: swish}
"""


def ids(entry):
    return entry.key


@pytest.mark.parametrize("entry", entries(), ids=ids)
def test_entry_fits_the_models_it_is_for(entry):
    for name in entry.models:
        spec = registry.get(name)
        # The authors' stream snapshots alone differ, in one thing, from the model as registered.
        other = {"gating_activation": "hard_sigmoid_keras2"} if name.endswith("stream_grw") else {}
        assert spec.replace(entry.spec) == spec.replace(other)
        for field in ("resolution", "resize", "frames", "fps"):
            assert getattr(entry.preprocessing, field) == getattr(spec, field)
        assert entry.preprocessing.value_range == (0.0, 1.0)
        assert find(name, "k600") is entry


@pytest.mark.parametrize("entry", entries(), ids=ids)
def test_metrics_are_the_papers(entry):
    for metric in entry.metrics:
        assert metric.top1_percent == TOP1[entry.models[0]][metric.table]
    assert bool(entry.metrics) == (entry.models[0] in TOP1)


def test_all_models_with_published_weights_are_there():
    models = {name for entry in entries() for name in entry.models}
    assert models == {*TOP1, *(f"movinet_a{i}_stream_relu6" for i in range(3))}


def test_files_have_places_of_their_own():
    places = [source.relative for entry in entries() for source in entry.sources]
    names = [source.name for entry in entries() for source in entry.sources]
    assert len(set(places)) == len(places)
    assert len(set(names)) == len(names)  # a mirror may be one flat folder


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("movinet_a0_stream_intermediate", "movinet_a0_stream"),
        ("movinet_a2_stream_attention", "movinet_a2_stream"),
        ("movinet_a1_grw", "movinet_a1"),
        ("movinet_a0_stream_relu6_grw", "movinet_a0_stream_relu6"),
    ],
)
def test_missing_weights_name_the_nearest_and_none(name, nearest):
    with pytest.raises(ValueError, match=f"'{nearest}' with weights='k600'") as caught:
        find(name, "k600")
    assert find(nearest, "k600").sources[0].url in str(caught.value)
    assert "weights=None" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("mobilenet_v3_small_grw", "k600", "None of the published weights is near.*weights=None"),
        ("movinet_a0_relu6", "k600", "None of the published weights is near"),
        ("movinet_a0_stream_grw", "k400", "issue 13566.*'movinet_a0_stream_grw' with .*'k600'"),
        ("movinet_a0", "imagenet", "one of 'k600', 'k400'.*Received: weights='imagenet'"),
    ],
)
def test_what_is_not_published_is_said(name, weights, message):
    with pytest.raises(ValueError, match=message):
        find(name, weights)


@pytest.fixture
def written(tmp_path):
    def write(old="", new=""):
        assert old in GOOD
        path = tmp_path / "manifest.yaml"
        path.write_text(textwrap.dedent(GOOD).replace(old, new, 1))
        return path

    return write


def test_defaults_of_a_short_entry(written):
    (entry,) = read(written()).weights
    assert (entry.key, entry.models, entry.notes) == ("one", ("movinet_a0",), "")
    assert entry.metrics[0].top1_percent == 70.0
    assert entry.sources[0].sha256 is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("licence:", "license:", r"weights: one: Did you mean 'licence'\?.*'license'"),
        ("    licence: MIT\n", "", "weights: one: the key 'licence' is missing"),
        ("resize: 200, ", "", "preprocessing: the key 'resize' is missing"),
        ("frames: 50", "frames: fifty", "preprocessing: frames must be of type int.*'fifty'"),
        ("fps: 5", "fps: true", "fps must be of type float.*True"),
        ("format: torch_snapshot", "format: torch_snapsot", r"Did you mean 'torch_snapshot'\?"),
        ("format: torch_snapshot", "sha: x", r"sources\[0\]: .*'sha256'"),
        ("format: torch_snapshot", "sha256: abc", r"sources\[0\]: `sha256` must be 64"),
        ("https://host/a.pt", "ftp://host/a.pt", r"sources\[0\]: `url` must be"),
        ("dataset: k600", "dataset: k60", r"Did you mean 'k600'\?"),
        ("{activation: swish}", "{activatoin: swish}", r"spec: Did you mean 'activation'\?"),
        ("{activation: swish}", "[activation]", "spec must be a mapping"),
        ("[movinet_a0]", "[]", "models and sources must name at least one"),
        ("[movinet_a0]", "movinet_a0", "models must be a list"),
        ("    licence: MIT\n", "    licence: MIT\n    licence: GPL\n", "'licence' stands twice"),
        ("weights:\n", "weight:\n", r"Did you mean 'weights'\?"),
    ],
)
def test_bad_manifest_is_refused_with_the_place_and_the_closest_key(written, old, new, message):
    with pytest.raises(ValueError, match=message):
        read(written(old, new))


def test_model_in_two_entries_of_one_dataset_is_refused(written):
    path = written()
    entry = textwrap.dedent(GOOD).partition("weights:\n")[2]
    path.write_text(path.read_text() + entry.replace("one:", "two:"))
    with pytest.raises(ValueError, match="two: models: 'movinet_a0' belongs to 'one'"):
        read(path)


def test_manifest_is_data_that_can_not_change():
    with pytest.raises(AttributeError):
        entries()[0].licence = "MIT"
    assert manifest.entries() is entries()
