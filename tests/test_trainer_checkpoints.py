"""Which checkpoints a run goes on from."""

import numpy as np
import pytest

from grw_keras.training import checkpoint_files, recipe, runs, state
from tests.training_programs import everything, make_trainer


def bits(arrays):
    return {name: (array.shape, np.asarray(array).tobytes()) for name, array in arrays.items()}


@pytest.mark.parametrize("case", ["missing", "more", "shape"])
def test_a_checkpoint_of_another_model_is_refused(case, tmp_path):
    training = make_trainer(tmp_path)
    arrays = state.capture(training._variables)
    name = next(name for name in arrays if "kernel" in name)
    changed = {**arrays, name: np.ones((1, 2), np.float32)}
    if case == "missing":
        del changed[name]
    if case == "more":
        changed = {**arrays, "model/99/other": np.ones(3, np.float32)}
    arrays = {name: array + 1 for name, array in changed.items()}
    kept = {"identity": training.identity, "history": [], "best_epoch": None}
    checkpoint_files.write(tmp_path / "checkpoints", 3, arrays, kept)
    before = bits(everything(training.model))
    with pytest.raises(ValueError, match=r"of the same model and optimiser.*1 tensors that differ"):
        training.resume()
    assert bits(everything(training.model)) == before
    assert training.outcome.step == 0


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    def trainer(seed, clips):
        identity = {"recipe": {"training": {"seed": seed, "rate": (0.1, 0.2)}}, "clips": clips}
        return make_trainer(tmp_path, {"epochs": 1}, identity=identity)

    trainer(0, ["a", "b"]).run()
    same = trainer(0, ["a", "b"])
    same.resume()
    assert same.outcome.step == 6
    other = trainer(1, ["a"])
    before = bits(everything(other.model))
    told = r'recipe.training.seed: 0 → 1; clips: \["a", "b"\] → '
    with pytest.raises(ValueError, match=told):
        other.resume()
    assert bits(everything(other.model)) == before
    assert other.outcome.step == 0


def test_differences_of_plain_data():
    nan = float("nan")
    old = {"a": 1, "b": {"c": (1, 2), "d": None}, "x": nan, "gone": True}
    new = {"a": 1, "b": {"c": [1, 2], "d": 0}, "x": nan, "new": "é"}
    assert recipe.differences(old, new) == [
        "b.d: null → 0",
        "gone: true → not set",
        'new: not set → "é"',
    ]


def test_without_a_checkpoint_it_begins(tmp_path, caplog):
    training = make_trainer(tmp_path)
    training.resume()
    assert "No checkpoint in" in caplog.text
    assert training.outcome.step == 0


def test_a_runs_identity_is_its_recipe_and_its_clips():
    def identity(changes, clips=("a.mp4", "b.mp4")):
        wanted = recipe.Recipe(model=recipe.ModelPart(name="mobilenet_v3_small_grw"))
        return runs.identity(recipe.override(wanted, changes), clips)

    own = identity({})
    harmless = {"training.keep_checkpoints": 9, "data.workers": 3, "published": {"top1": 0.7}}
    assert recipe.differences(own, identity(harmless)) == []
    assert recipe.differences(own, identity({"training.seed": 1})) == [
        "recipe.training.seed: 0 → 1"
    ]
    for clips in (["b.mp4", "a.mp4"], ["a.mp4", "c.mp4"], ["a.mp4"]):
        changed = recipe.differences(own, identity({}, clips))
        assert any(line.startswith("clips.sha256: ") for line in changed)
