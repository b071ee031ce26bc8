import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from grw_keras import strict_yaml
from grw_keras.evaluation.published import published
from grw_keras.training.recipe import (
    HARMLESS,
    DataPart,
    ModelPart,
    Recipe,
    TrainingPart,
    assignments,
    differences,
    from_dict,
    override,
    read,
    to_dict,
    write,
)
from grw_keras.zoo import manifest, registry

FOLDER = Path(__file__).parents[1] / "zoo" / "recipes"
FILES = sorted(FOLDER.glob("*.yaml"))
SMOOTHED, BACKBONE, HEAD = (5, 0.5, 0.1), (1e-4, 1e-6), (1e-3, 1e-5)
# Typed from the paper. Name of the file: model, resolution, frames (table 1), fps, (T, α, λ),
# epochs, rate of the head (section 4), and top-1 (tables 1 to 4).
PAPER = {
    "movinet_a0_stream_grw_k600": (
        *("movinet_a0_stream_grw", 172, 50, 5, SMOOTHED, 14, HEAD, 78.4),
    ),
    "movinet_a1_stream_grw_k600": (
        *("movinet_a1_stream_grw", 172, 50, 5, SMOOTHED, 14, HEAD, 81.9),
    ),
    "movinet_a2_stream_grw_k600": (
        *("movinet_a2_stream_grw", 224, 50, 5, SMOOTHED, 14, HEAD, 83.3),
    ),
    "movinet_a3_grw_k600": ("movinet_a3_grw", 256, 120, 12, (6, 0.5, 0.1), 14, HEAD, 85.6),
    "mobilenet_v3_small_grw_k600": (
        *("mobilenet_v3_small_grw", 224, 50, 5, SMOOTHED, 14, HEAD, 67.3),
    ),
    "movinet_a2_stream_intermediate_k600": (
        *("movinet_a2_stream_intermediate", 224, 50, 5, SMOOTHED, 14, BACKBONE, 80.8),
    ),
    "movinet_a2_stream_attention_k600": (
        *("movinet_a2_stream_attention", 224, 50, 5, None, 14, HEAD, 79.3),
    ),
    "movinet_a0_stream_grw_k400": (
        *("movinet_a0_stream_grw", 172, 50, 5, SMOOTHED, 10, HEAD, 70.4),
    ),
    "movinet_a2_grw_k400": ("movinet_a2_grw", 224, 50, 5, SMOOTHED, 10, HEAD, 77.6),
    "movinet_a3_grw_k400": ("movinet_a3_grw", 256, 120, 12, (6, 0.5, 0.1), 10, HEAD, 81.7),
}
# Table 3, which `published` doesn't hold.
GFLOPS_K400 = {"movinet_a0_stream_grw": 2.7, "movinet_a2_grw": 11.3, "movinet_a3_grw": 56.4}
UNSTATED = {
    *("optimizer", "batch_size", "accumulate", "weight_decay", "clip_norm", "label_smoothing"),
    *("ema_decay", "precision", "frozen_batch_norm", "frozen_backbone_epochs", "seed", "dropout"),
    *("stochastic_depth", "endpoint", "deterministic", "jit_compile", "early_stopping_epochs"),
    *("flip", "scale", "ratio", "randaugment_layers", "randaugment_magnitude"),
}
GOOD = """
model: {name: movinet_a0_stream_grw}
training: {epochs: 3}
"""


@pytest.fixture
def recipe_file(tmp_path):
    def file(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return file


def leaves(path):
    """(key, comment) of each line of a recipe that gives a value."""
    found = re.findall(r"^ +(\w+): +[^ #].*?(?: # (.*))?$", path.read_text(), re.MULTILINE)
    return [(key, comment) for key, comment in found if key != "name"]


def test_there_is_a_recipe_for_every_model_of_the_paper():
    assert {path.stem for path in FILES} == {*PAPER, "finetune_folder", "warmup_airplanes"}


@pytest.mark.parametrize("name", PAPER)
def test_recipe_holds_the_numbers_of_the_paper(name):
    model, resolution, frames, fps, smoothing, epochs, head_rate, top1 = PAPER[name]
    recipe = read(FOLDER / f"{name}.yaml")
    spec, training = recipe.model.spec, recipe.training
    assert recipe.model.name == model
    assert (spec["resolution"], spec["frames"], spec["fps"]) == (resolution, frames, fps)
    smoothed = tuple(spec[key] for key in ("window", "alpha", "grw_weight") if key in spec)
    assert smoothed == (smoothing or ())
    assert (training.epochs, training.head_rate) == (epochs, head_rate)
    assert training.backbone_rate == (1e-4, 1e-6)
    assert recipe.model.num_classes == (400 if name.endswith("k400") else 600)
    assert spec.get("head_depth") == (None if "intermediate" in name else 2)
    augmented = name in ("movinet_a2_grw_k400", "movinet_a3_grw_k400")
    assert (recipe.data.augmentation is not None) == augmented
    assert recipe.published["top1_percent"] == top1


@pytest.mark.parametrize("name", PAPER)
def test_stated_numbers_are_those_of_the_registered_model(name):
    recipe = read(FOLDER / f"{name}.yaml")
    spec = registry.get(recipe.model.name)
    unstated = {key: recipe.model.spec.get(key, 0.0) for key in ("dropout", "stochastic_depth")}
    assert spec.replace(recipe.model.spec) == dataclasses.replace(spec, **unstated)


@pytest.mark.parametrize("name", PAPER)
def test_published_figures_are_those_of_the_tables(name):
    path = FOLDER / f"{name}.yaml"
    recipe, notes = read(path), dict(leaves(path))
    for key, value in recipe.published.items():
        column = {"top1_percent": "top1_k600"}.get(key, key)
        if name.endswith("k600"):
            assert (value, f"table {published(recipe.model.name, column)[1]}") == (
                published(recipe.model.name, column)[0],
                notes[key],
            )
        else:
            assert notes[key] == "table 3"
            assert key == "top1_percent" or value == GFLOPS_K400[recipe.model.name]


@pytest.mark.parametrize("name", PAPER)
def test_weights_to_start_from_are_published(name):
    recipe = read(FOLDER / f"{name}.yaml")
    if recipe.model.weights is None:
        with pytest.raises(ValueError, match="No Kinetics-600 weights"):
            manifest.find("mobilenet_v3_small", "k600")
        return
    entry = manifest.find(recipe.model.weights, "k600")
    start, model = registry.get(entry.models[0]), registry.get(recipe.model.name)
    assert (start.backbone, start.streaming) == (model.backbone, model.streaming)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_value_says_where_it_is_from(path):
    for key, comment in leaves(path):
        assert re.match(r"ours\b|section [34]\b|table [1-4]\b", comment), (key, comment)
        assert key not in UNSTATED or comment.startswith("ours"), key
    assert {"optimizer", "batch_size", "seed"} <= {key for key, _ in leaves(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recipe_opens_with_its_command(path):
    header = path.read_text().split("\nmodel:")[0]
    assert all(line.startswith("#") for line in header.strip().splitlines())
    command = re.search(r"grw-keras train (\S+)", header)
    assert command[1] == f"zoo/recipes/{path.name}"
    assert "Expected" in header
    assert "Time" in header or "no time" in header
    for name in re.findall(r"--out runs/(\S+)", header):
        assert name in (path.stem, "mine", "airplanes")
    if path.stem in PAPER:
        top1 = PAPER[path.stem][-1]
        days = "3-5 days on one" if re.search("a0|a1|mobilenet", path.stem) else "5 days on two"
        assert f"top-1 {top1} %" in header
        assert f"{days} DGX-A100 (section 4" in header


def test_defaults_are_those_for_a_folder_of_videos():
    recipe = read(FOLDER / "finetune_folder.yaml")
    assert (recipe.data, recipe.training) == (DataPart(), TrainingPart())


def test_warm_up_is_a_mobilenet_per_frame_and_one_transformer_layer():
    recipe = read(FOLDER / "warmup_airplanes.yaml")
    spec = registry.get(recipe.model.name).replace(recipe.model.spec)
    assert (spec.family, spec.head, spec.head_depth) == ("mobilenet", "transformer", 1)
    assert (spec.pair_input, spec.temporal_shift, spec.placement) == (False, "none", "final")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recipe_survives_writing_and_reading(path, tmp_path):
    recipe = read(path)
    write(recipe, tmp_path / "copy.yaml")
    assert read(tmp_path / "copy.yaml") == recipe
    assert from_dict(to_dict(recipe)) == recipe
    assert [file.name for file in tmp_path.iterdir()] == ["copy.yaml"]
    assert yaml.safe_load((tmp_path / "copy.yaml").read_text()) == to_dict(recipe)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modell: {}", "A recipe: Did you mean 'model'\\?"),
        (GOOD.replace("epochs", "epoch"), "`training`: Did you mean 'epochs'\\?"),
        (GOOD + "data: {augmentation: {flop: true}}", "`data.augmentation`: Did you mean 'fl"),
        (GOOD + "data: {augmentation: {scale: 2}}", "`data.augmentation`: `scale` must be two"),
        (GOOD + "data: {cach: disk}", "`data`: Did you mean 'cache'\\?"),
        (GOOD.replace("_grw}", "_gwr}"), "`model.name`: .*The closest: movinet_a0_stream_grw"),
        ("model: {name: movinet_a0, spec: {windw: 3}}", "`model.spec`: Did you mean 'window'\\?"),
        ("model: {name: movinet_a0, spec: {window: 2}}", "`model.spec`: `window` must be >= 3"),
        ("model: {name: movinet_a0, spec: {resolution: big}}", "`model.spec`: .*"),
        ("model: {name: movinet_a0, spec: {seed: 1}}", ".*'seed': set `training.seed`"),
        ("model: {name: movinet_a0, spec: {num_classes: 1}}", ".*set `model.num_classes`"),
        ("model: {weights: k600}", "`model`: the key 'name' is missing"),
        ("training: {}", "A recipe: the key 'model' is missing"),
        ("[1, 2]", "A recipe must be a mapping"),
        (GOOD + "data:", "`data` must be a mapping of names. Received: None"),
        (GOOD + "model: {name: movinet_a0}", "'model' stands twice"),
        (GOOD.replace("epochs: 3", "epochs: 3, epochs: 4"), "'epochs' stands twice"),
        ("!!python/object:os.system {}", "no plain YAML"),
        ("model: {", "no plain YAML"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_key(recipe_file, text, message):
    with pytest.raises(ValueError, match=f"(?s)^mine.yaml: {message}"):
        read(recipe_file(text))


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("training.epochs", 2.0, "an integer"),
        ("training.epochs", True, "an integer"),
        ("training.epochs", 0, ">= 1"),
        ("training.batch_size", -4, ">= 1"),
        ("training.accumulate", 3, "a divisor of the batch size, 4"),
        ("training.optimizer", "lion", "one of 'adam', 'adamw', 'sgd'"),
        ("training.backbone_rate", 1e-4, "two finite numbers"),
        ("training.backbone_rate", [1e-4, 1e-6, 0.0], "two finite numbers"),
        ("training.head_rate", [1e-5, 1e-3], "a first rate > 0 and a last one >= 0"),
        ("training.head_rate", [0.0, 0.0], "a first rate > 0"),
        ("training.weight_decay", 0.1, "0 with adam"),
        ("training.weight_decay", -0.1, ">= 0"),
        ("training.weight_decay", True, "a finite number"),
        ("training.clip_norm", 0.0, "> 0"),
        ("training.clip_norm", float("inf"), "a finite number or null"),
        ("training.clip_norm", float("nan"), "a finite number or null"),
        ("training.label_smoothing", 1.0, r"in \[0, 1\)"),
        ("training.ema_decay", 1.0, r"in \(0, 1\)"),
        ("training.precision", "half", "one of 'float32'"),
        ("training.frozen_batch_norm", "yes", "true or false or null"),
        ("training.frozen_backbone_epochs", 21, "<= the 20 epochs"),
        ("training.early_stopping_epochs", 0, ">= 1"),
        ("training.seed", -1, ">= 0"),
        ("training.deterministic", 1, "true or false"),
        ("training.checkpoint_every_steps", 0, ">= 1"),
        ("training.checkpoint_every_s", 0, "> 0"),
        ("training.keep_checkpoints", 0, ">= 1"),
        ("training.validate_every_epochs", 0, ">= 1"),
        ("data.short", "repeat", "one of 'loop', 'pad'"),
        ("data.holdout", 1.0, r"in \(0, 1\)"),
        ("data.cache", None, "text"),
        ("data.cache", "ram", "one of 'auto', 'memory', 'disk', 'none'"),
        ("data.workers", -1, ">= 0"),
        ("data.max_bad_share", 1.1, r"in \[0, 1\]"),
        ("data.group_regex", "(", "a regular expression"),
        ("data.augmentation", "flip", "a mapping or null"),
        ("model.weights", "", "a name, a path, an address or null"),
        ("model.num_classes", 0, ">= 1"),
        ("published", [1], "a mapping or null"),
    ],
)
def test_a_bad_value_is_refused_with_its_key(key, value, allowed):
    recipe = Recipe(model=ModelPart(name="movinet_a0_stream_grw"))
    with pytest.raises(ValueError, match=f"^`{key}` must be {allowed}.*Received: "):
        override(recipe, {key: value})


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.e-4", ".1e-3", "+1e-4", "1.0e-4", "0.0001"])
def test_numbers_are_numbers_however_written(text):
    assert strict_yaml.parse(f"[{text}]") == [1e-4]
    assert strict_yaml.parse("[1e4, 2e+3, 1e, e4]") == [1e4, 2e3, "1e", "e4"]
    assert strict_yaml.parse(f"['{text}', a{text}]") == [text, f"a{text}"]


def test_override_changes_what_it_names_alone():
    recipe = Recipe(model=ModelPart(name="movinet_a0_stream_grw"), data=DataPart(augmentation=None))
    texts = [
        "training.epochs=20",
        "model.spec.frames = 10",
        "data.augmentation.flip=false",
        "training.head_rate=[1e-2, 1e-4]",
        "data.cache=none",
        "data.group_regex='seq(=\\d+)'",
    ]
    changed = override(recipe, assignments(texts))
    assert changed == dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, spec={"frames": 10}),
        data=DataPart(augmentation={"flip": False}, cache="none", group_regex=r"seq(=\d+)"),
        training=dataclasses.replace(recipe.training, epochs=20, head_rate=(0.01, 1e-4)),
    )
    assert (recipe.model.spec, recipe.data.augmentation) == ({}, None)
    with pytest.raises(ValueError, match=r"`training.epochs.x`: `epochs` must be a mapping"):
        override(recipe, {"training.epochs.x": 1})
    with pytest.raises(ValueError, match="Did you mean 'training'"):
        override(recipe, {"trainin.epochs": 1})


@pytest.mark.parametrize("text", ["training.epochs", "=3", "training.epochs=[1"])
def test_a_setting_without_key_or_value_is_refused(text):
    with pytest.raises(ValueError, match=r"KEY=VALUE|The value of training.epochs: no plain YAML"):
        assignments([text])


def test_differences_are_told_key_by_key():
    old = read(FOLDER / "movinet_a0_stream_grw_k600.yaml")
    changes = {
        "training.epochs": 20,
        "training.head_rate": [1e-2, 1e-4],
        "data.workers": 3,
        "data.cache": "disk",
        "training.checkpoint_every_s": 5,
        "published.gflops": 1.0,
    }
    new = override(old, {**changes, "model.spec.head_heads": 4})
    lines = {
        "model.spec.head_heads: not set → 4",
        "training.epochs: 14 → 20",
        "training.head_rate: [0.001, 1e-05] → [0.01, 0.0001]",
    }
    harmless = {
        'data.cache: "auto" → "disk"',
        "data.workers: null → 3",
        "training.checkpoint_every_s: 600.0 → 5.0",
        "published.gflops: 2.7 → 1.0",
    }
    assert set(differences(to_dict(old), to_dict(new))) == lines | harmless
    assert set(differences(to_dict(old), to_dict(new), ignore=HARMLESS)) == lines
    assert differences(to_dict(old), to_dict(old)) == []


def test_harmless_keys_exist():
    known = to_dict(Recipe(model=ModelPart(name="movinet_a0")))
    for key in HARMLESS:
        part, _, field = key.partition(".")
        assert part in known
        assert not field or field in known[part]


def test_a_misspelt_recipe_is_answered_by_the_closest_file(tmp_path):
    (tmp_path / "k400.yaml").touch()
    with pytest.raises(
        FileNotFoundError, match=r"Did you mean '.*k400.yaml'\? Received: .*k40.yaml"
    ):
        read(tmp_path / "k40.yaml")
